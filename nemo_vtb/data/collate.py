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
"""Conversations -> one packed row of tensors: tokens, positions, shifted labels, boundaries and the recordings."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch

from nemo_vtb.constants import IGNORE_INDEX, KINDS
from nemo_vtb.data.audio import read_audio
from nemo_vtb.data.conversation import Conversation
from nemo_vtb.data.faults import Reason, audio_fault, guarded
from nemo_vtb.data.limits import LIMITS, Limits
from nemo_vtb.data.template import AUDIO_SLOT, ChatRenderer, Rendered
from nemo_vtb.data.transcripts import transcripts_of
from nemo_vtb.errors import VtbDataError

Augment = Callable[[str, np.ndarray], np.ndarray]
_ON_HOST = ('cu_seqlens', 'audio_lens', 'frame_lens')


@dataclass(frozen=True, slots=True)
class PackItem:
    """A conversation ready to be packed: its rendering and, in the order in which they are heard, its recordings."""

    rendered: Rendered
    clips: Sequence[np.ndarray]  # each (S,) float32
    frames: Sequence[int]  # how many frames the encoder and adapter make of each clip
    id: str
    kind: str
    source: str
    transcripts: Sequence[str | None] = ()  # what is said in each clip, see `data.transcripts`; (): none is known

    @property
    def length(self) -> int:
        """Positions that the conversation takes in a row."""
        return len(self.rendered.ids) - len(self.frames) + sum(self.frames)


@dataclass(slots=True)
class PackedRow:
    """One micro-batch: N conversations one behind the other, T positions, F audio frames of A clips, no padding.

    Args:
        input_ids: (T,) int64, tokens; 0 at audio frames.
        labels: (T,) int64, the token that position t must predict, `IGNORE_INDEX` elsewhere.
        label_kinds: (T,) int64, number in `KINDS` where there is a label, -1 elsewhere.
        position_ids: (T,) int64, restart with each conversation.
        cu_seqlens: (N+1,) int32, boundaries of the conversations; on the host, as the two below, see `to`.
        audio_positions: (F,) int64, positions of all audio frames, in the order of the clips.
        audios: (A, S) float32, clips, zero-padded to the longest.
        audio_lens: (A,) int64, samples of each clip.
        frame_lens: (A,) int64, frames of each clip.
        max_seqlen: Length of the longest conversation.
        num_tokens: T.
        index: Number of the row in the global plan.
        ids: Id of each conversation (N).
        kinds: Kind of each conversation (N).
        sources: Source of each conversation (N).
        faults: What could not be loaded and is missing from the row.
        transcripts: What is said in each clip (A), None where that is not known.
        dataset: Name of the validation set that the row belongs to.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    label_kinds: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    audio_positions: torch.Tensor
    audios: torch.Tensor
    audio_lens: torch.Tensor
    frame_lens: torch.Tensor
    max_seqlen: int
    num_tokens: int
    index: int
    ids: list[str]
    kinds: list[str]
    sources: list[str]
    faults: list[dict[str, Any]] = field(default_factory=list)
    transcripts: list[str | None] = field(default_factory=list)
    dataset: str | None = None

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> 'PackedRow':
        """The row on a device; Lightning calls this. Lengths stay on the host, which slices by them and must not wait.

        Args:
            device: Where to.
            non_blocking: Whether copies overlap with what follows; None: to a GPU, where that is safe.
        """
        if non_blocking is None:
            non_blocking = torch.device(device).type == 'cuda'
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking), apart=_ON_HOST)

    def pin_memory(self) -> 'PackedRow':
        """The row in pinned memory; torch's `DataLoader` calls this."""
        return self._map(torch.Tensor.pin_memory)

    def with_frames(self, frame_lens: torch.Tensor) -> 'PackedRow':
        """The row after a compressing adapter made fewer frames of its clips than were counted.

        Args:
            frame_lens: (A,) int64, frames that each clip has become, at least 1 and at most `self.frame_lens`.

        Returns:
            This very row where nothing is to be removed, else one without the surplus positions. They are removed at
            the beginning of each clip: what its last position predicts stays.
        """
        surplus = self.frame_lens - frame_lens.to(self.frame_lens)  # (A,)
        if not surplus.numel() or not bool(surplus.any()):
            return self
        device, positions = self.input_ids.device, self.audio_positions.cpu()
        begins = self.frame_lens.cumsum(0) - self.frame_lens
        place = torch.arange(len(positions))  # (F,) number of the frame in its clip
        place = place - begins.repeat_interleave(self.frame_lens)
        dropped = place < surplus.repeat_interleave(self.frame_lens)
        keep = torch.ones(self.num_tokens, dtype=torch.bool)
        keep[positions[dropped]] = False
        number = torch.cat([keep.new_zeros(1), keep]).long().cumsum(0)  # (T+1,) kept positions before each
        borders = number[self.cu_seqlens.long()]
        lengths = borders.diff()
        kept = keep.nonzero().squeeze(-1)
        index = kept.to(device)
        return replace(
            self,
            input_ids=self.input_ids[index],
            labels=self.labels[index],
            label_kinds=self.label_kinds[index],
            position_ids=(torch.arange(len(kept)) - borders[:-1].repeat_interleave(lengths)).to(device),
            cu_seqlens=borders.to(self.cu_seqlens),
            audio_positions=number[positions[~dropped]].to(device),
            frame_lens=frame_lens.to(self.frame_lens),
            max_seqlen=int(lengths.max()),
            num_tokens=len(kept),
        )

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor], apart: Sequence[str] = ()) -> 'PackedRow':
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in apart}
        return replace(self, **{n: change(v) for n, v in values.items() if isinstance(v, torch.Tensor)})


def require_packed(batch: object) -> PackedRow:
    """The batch; raises VtbDataError unless it is a packed row: NeMo's own datasets yield padded batches."""
    if not isinstance(batch, PackedRow):
        keys = sorted(map(str, batch)) if isinstance(batch, dict) else type(batch).__name__
        raise VtbDataError(
            'This model trains on packed rows, not on padded batches as those of SALMDataset.',
            field='batch',
            got=keys,
            allowed='nemo_vtb.data.collate.PackedRow',
            remedy='trainer.fit(model, VtbDataModule(cfg.data, model.renderer, model.frames)), which reads the same '
            'YAML; for a lhotse dataset of your own see `TokenBudgetCutSampler`',
        )
    return batch


class Collator:
    """Turns conversations into one packed row, reading the recordings.

    Args:
        renderer: The one renderer.
        frame_counter: Samples of a clip -> frames that the perception returns for it.
        sample_rate: Rate in Hz at which the encoder reads.
        resample: Whether recordings of another rate are resampled, or refused.
        limits: The largest clip.
    """

    def __init__(
        self,
        renderer: ChatRenderer,
        frame_counter: Callable[[int], int],
        sample_rate: int = 16000,
        *,
        resample: bool = True,
        limits: Limits = LIMITS,
    ) -> None:
        self.renderer, self.frame_counter = renderer, frame_counter
        self.sample_rate, self.resample, self.limits = sample_rate, resample, limits

    def __call__(self, conversations: Sequence[Conversation], index: int = 0) -> PackedRow:
        """Pack conversations into one row.

        Raises:
            VtbAudioError: A recording cannot be read; `error.reason` says why.
            VtbTemplateError: The chat template refuses a conversation.
        """
        return pack_row([self.prepare(conversation) for conversation in conversations], index)

    def prepare(self, conversation: Conversation, augment: Augment | None = None) -> PackItem:
        """Render one conversation and read its recordings; raises as calling the collator does.

        Args:
            conversation: The conversation.
            augment: Makes what is heard of a clip, as long as before; told its name within the conversation.
        """
        with guarded(Reason.OTHER, f'conversation {conversation.id}'):
            return self._prepare(conversation, augment)

    def _prepare(self, conversation: Conversation, augment: Augment | None) -> PackItem:
        options: dict[str, Any] = {'resample': self.resample, 'limits': self.limits}
        clips = [read_audio(audio, self.sample_rate, **options) for audio in conversation.audios]
        if augment is not None:
            named = enumerate(zip(conversation.audios, clips, strict=True))
            clips = [augment(f'{number}:{audio.speed}', clip) for number, (audio, clip) in named]
        frames = [self.frame_counter(len(clip)) for clip in clips]
        for audio, clip, count in zip(conversation.audios, clips, frames, strict=True):
            if count < 1:
                raise audio_fault(Reason.AUDIO_TOO_SHORT, field='audio', got=f'{len(clip)} samples: {audio.path}')
        rendered = self.renderer.render(conversation)
        about = (conversation.id, conversation.kind, conversation.source, transcripts_of(conversation))
        return PackItem(rendered, clips, frames, *about)


def fill_rows(items: Iterable[PackItem], max_tokens: int) -> Iterator[list[PackItem]]:
    """Groups of about `max_tokens` positions, in order, for measuring; training rows are planned by `sampler`."""
    row: list[PackItem] = []
    for item in items:
        if row and sum(i.length for i in row) + item.length > max_tokens:
            yield row
            row = []
        row.append(item)
    if row:
        yield row


def pack_row(items: Sequence[PackItem], index: int = 0) -> PackedRow:
    """Lay conversations one after another into one row, without padding.

    Args:
        items: The conversations; none makes an empty row, T = 0.
        index: Number of the row in the global plan.
    """
    rows = [_expand(item) for item in items]
    lengths = np.array([len(ids) for ids, _, _ in rows], dtype=np.int32)
    labels = [_shift(ids, supervised) for ids, supervised, _ in rows]
    kinds = [
        np.where(row != IGNORE_INDEX, KINDS.index(item.kind), -1) for row, item in zip(labels, items, strict=True)
    ]
    clips = [clip for item in items for clip in item.clips]
    return PackedRow(
        input_ids=_join([np.where(is_audio, 0, ids) for ids, _, is_audio in rows]),
        position_ids=_join([np.arange(n, dtype=np.int64) for n in lengths]),
        labels=_join(labels),
        label_kinds=_join(kinds),
        cu_seqlens=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)),
        max_seqlen=int(lengths.max(initial=0)),
        audio_positions=_join([np.flatnonzero(np.concatenate([is_audio for _, _, is_audio in rows]))] if rows else []),
        audios=_pad(clips),
        audio_lens=torch.tensor([len(clip) for clip in clips], dtype=torch.int64),
        frame_lens=torch.tensor([n for item in items for n in item.frames], dtype=torch.int64),
        ids=[item.id for item in items],
        kinds=[item.kind for item in items],
        sources=[item.source for item in items],
        transcripts=[text for item in items for text in item.transcripts or [None] * len(item.clips)],
        num_tokens=int(lengths.sum()),
        index=index,
    )


def _expand(item: PackItem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Repeat each audio slot as often as it has frames: ids, supervised, is_audio, each (length,)."""
    ids = np.asarray(item.rendered.ids, dtype=np.int64)
    repeats = np.ones(len(ids), dtype=np.int64)
    repeats[ids == AUDIO_SLOT] = item.frames
    ids, supervised = np.repeat(ids, repeats), np.repeat(np.asarray(item.rendered.supervised, dtype=bool), repeats)
    return ids, supervised, ids == AUDIO_SLOT


def _shift(ids: np.ndarray, supervised: np.ndarray) -> np.ndarray:
    """The label of a position is the next token of the same conversation, where that one is supervised."""
    labels = np.full(len(ids), IGNORE_INDEX, dtype=np.int64)
    labels[:-1] = np.where(supervised[1:], ids[1:], IGNORE_INDEX)
    return labels


def _join(parts: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64)) if parts else torch.zeros(0, dtype=torch.int64)


def _pad(clips: Sequence[np.ndarray]) -> torch.Tensor:
    padded = np.zeros((len(clips), max((len(clip) for clip in clips), default=0)), dtype=np.float32)  # (A, S)
    for row, clip in zip(padded, clips, strict=True):
        row[: len(clip)] = clip
    return torch.from_numpy(padded)
