# Copyright (c) 2026, The nemo_vtb authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Recordings with their transcripts, and the frames that a frozen encoder makes of them, computed once.

Letters: T encoder frames of a clip, D encoder width.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from nemo.collections.speechlm2.modules.perception import AudioPerceptionModule
from rich.progress import Progress
from torch import Tensor, nn

from nemo_vtb.data.audio import read_audio
from nemo_vtb.data.conversation import Audio, Conversation
from nemo_vtb.data.index import SourceIndex
from nemo_vtb.data.transcripts import transcripts_of
from nemo_vtb.io import atomic_path, map_bytes, write_atomically
from nemo_vtb.model.perception import encode

_BATCH_S = 120.0
"""Seconds of recordings that are encoded at once."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording with its transcript."""

    audio: Audio
    text: str
    source: str
    lang: str


def clips_of(conversation: Conversation) -> Iterator[Clip]:
    """Every recording of a conversation whose transcript is known: its own `text`, or the answer of a recognition."""
    custom = conversation.custom
    lang = str(custom.get('lang') or custom.get('source_lang') or 'en')
    for audio, text in zip(conversation.audios, transcripts_of(conversation), strict=True):
        if text is not None:
            yield Clip(audio, text, conversation.source, lang)


def read_clips(sources: Iterable[SourceIndex]) -> tuple[list[Clip], Counter[str]]:
    """The clips of sources, each recording once, and what was left aside: no transcript, or digits in it."""
    clips: dict[Audio, Clip] = {}
    aside: Counter[str] = Counter()
    for source in sources:
        for entry in range(source.lines):
            conversation = source.read(entry)
            found = list(clips_of(conversation))
            aside['no transcript'] += len(conversation.audios) - len(found)
            for clip in found:
                # a digit does not say how it is spoken
                if not clip.text or any(c.isdigit() for c in clip.text):
                    aside['digits or no letters in the transcript'] += 1
                else:
                    clips.setdefault(clip.audio, clip)
    return list(clips.values()), aside


class Features:
    """Frames of the frozen encoder for each clip, in half precision, memory-mapped.

    Args:
        folder: Where the file is, or is made.
        encoder: As `build_encoder` makes it.
        encoder_digest: Of its weights.
        clips: In order.
        progress: Told of each batch that is encoded.
    """

    def __init__(
        self,
        folder: Path,
        encoder: AudioPerceptionModule,
        encoder_digest: str,
        clips: Sequence[Clip],
        progress: Progress,
    ) -> None:
        digest = hashlib.sha256(encoder_digest.encode())
        for clip in clips:
            digest.update(f'{clip.audio.path}\0{clip.audio.offset_s}\0{clip.audio.duration_s}\n'.encode())
        stem = folder / f'features-{digest.hexdigest()[:20]}'
        self.width = int(encoder.cfg.output_dim)
        if not stem.with_suffix('.json').is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(stem.with_suffix('.f16')) as new:
                lengths = self._encode(encoder, clips, new, progress)
            write_atomically(stem.with_suffix('.json'), json.dumps(lengths))
        self.lengths: list[int] = json.loads(stem.with_suffix('.json').read_text(encoding='utf-8'))
        self._begins = np.concatenate([[0], np.cumsum(self.lengths)])
        self._frames = map_bytes(stem.with_suffix('.f16')).view(np.float16).reshape(int(self._begins[-1]), self.width)

    @torch.no_grad()
    def _encode(
        self, encoder: AudioPerceptionModule, clips: Sequence[Clip], path: Path, progress: Progress
    ) -> list[int]:
        lengths: list[int] = []
        task = progress.add_task('encoding', total=len(clips))
        with open(path, 'wb') as file:
            for batch in _batches_of_seconds(clips):
                signals = [torch.from_numpy(read_audio(clip.audio)) for clip in batch]
                lens = torch.tensor([len(signal) for signal in signals])
                frames, counts = encode(encoder, nn.utils.rnn.pad_sequence(signals, batch_first=True), lens)
                file.write(frames.half().numpy().tobytes())
                lengths += counts.tolist()
                progress.update(task, advance=len(batch))
        return lengths

    def __getitem__(self, index: int) -> Tensor:
        """(T, D) float32."""
        begin, end = self._begins[index], self._begins[index + 1]
        return torch.from_numpy(np.asarray(self._frames[begin:end], dtype=np.float32))


def _batches_of_seconds(clips: Sequence[Clip]) -> Iterator[list[Clip]]:
    batch: list[Clip] = []
    seconds = 0.0
    for clip in clips:
        length = clip.audio.duration_s or _BATCH_S / 8
        if batch and seconds + length > _BATCH_S:
            yield batch
            batch, seconds = [], 0.0
        batch.append(clip)
        seconds += length
    if batch:
        yield batch
