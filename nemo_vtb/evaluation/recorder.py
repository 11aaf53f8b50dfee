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
"""Recordings of evaluation items: synthesised by the embedded voices, or taken from embedded assets."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_vtb.assets.recordings import write_wav
from nemo_vtb.assets.store import ensure
from nemo_vtb.data.audio import probe
from nemo_vtb.data.conversation import Audio, Text, Turn, read_jsonl
from nemo_vtb.errors import VtbDataError
from nemo_vtb.factory.language import spoken_form
from nemo_vtb.factory.settings import Verify
from nemo_vtb.factory.speech_models import PicoVoices, Utterance, Voices
from nemo_vtb.factory.synthesis import check_sound
from nemo_vtb.io import atomic_replace

_PAUSE = np.zeros(6400, dtype=np.float32)


class Recorder:
    """Turns the parts of an item into recordings, synthesised ones as 16 kHz WAV files of a folder.

    Args:
        folder: Where they go; existing ones are not synthesised again.
        voices: The engine; None is the embedded one.
    """

    def __init__(self, folder: str | Path, voices: Voices | None = None) -> None:
        self.folder = Path(folder)
        self._voices = PicoVoices() if voices is None else voices
        self.folder.mkdir(parents=True, exist_ok=True)

    def turns(self, turns: Sequence[Mapping[str, Any]], name: str) -> tuple[Turn, ...]:
        """Turns of a data file as those of a conversation.

        Args:
            turns: As in `items/emergent.jsonl`.
            name: Prefix of the names of the recordings.

        Raises:
            VtbAssetError: A voice or an asset is missing.
            VtbDataError: A recording holds no speech, or an asset lacks it.
        """
        made = []
        for number, turn in enumerate(turns):
            parts = (self._part(p, f'{name}-{number}{i}') for i, p in enumerate(turn['parts']))
            made.append(Turn(turn['role'], tuple(parts)))
        return tuple(made)

    def _part(self, part: Mapping[str, Any], name: str) -> Text | Audio:
        if 'text' in part:
            return Text(part['text'])
        if 'asset' in part:
            return _recording(part['asset'], part['key'])
        return self.say(part['say'], part['lang'], name, part['said'])

    def say(self, lines: Sequence[Mapping[str, str]], lang: str, name: str, said: str) -> Audio:
        """Synthesise lines one after the other, each by its voice, in one recording.

        Args:
            lines: `text` and `voice` of each.
            lang: Of all of them.
            name: Prefix of the file name.
            said: The transcript.

        Raises:
            VtbAssetError: The voice is missing.
            VtbDataError: The recording holds no speech.
        """
        spoken = [Utterance(spoken_form(line['text'], lang), line['voice']) for line in lines]
        # a changed text is another file: a recording of an earlier version is never reused for it
        digest = hashlib.sha256(json.dumps([[u.text, u.voice] for u in spoken]).encode()).hexdigest()[:8]
        path = self.folder / f'{name}-{digest}.wav'
        if not path.exists():
            sounds = self._voices.say(spoken)
            pieces = [piece for sound in sounds if sound is not None for piece in (_PAUSE, sound)][1:]
            clip = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.float32)  # (S,)
            reason = 'no_sound' if len(pieces) < 2 * len(lines) - 1 else check_sound(clip, Verify(asr=None))
            if reason is not None:
                raise VtbDataError(
                    'The synthesised recording holds no speech.', field=name, got=f'{reason}: {spoken}',
                    allowed='speech', remedy='install the voices again: pip install --force-reinstall py-nanotts',
                )  # fmt: skip
            with atomic_replace(path) as temporary:
                write_wav(temporary, clip)
        return Audio(str(path), probe(path).duration_s, text=said)


@functools.cache
def _manifest(asset: str) -> dict[str, Audio]:
    folder = ensure(asset)[asset]
    return {
        str(line['key']): Audio(str(folder / line['audio_filepath']), line['duration'], text=line['text'])
        for _, _, line in read_jsonl(folder / 'manifest.jsonl')
    }


def _recording(asset: str, key: str) -> Audio:
    found = _manifest(asset)
    if key not in found:
        raise VtbDataError(
            'An asset lacks a recording.', field=asset, got=key, allowed=f'{len(found)} other keys',
            remedy=f'build it again: vtb assets {asset} --rebuild',
        )  # fmt: skip
    return found[key]


def typed_turns(turns: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """The same turns with the transcript in place of each recording."""
    return tuple(
        Turn(turn['role'], tuple(Text(part['text'] if 'text' in part else part['typed']) for part in turn['parts']))
        for turn in turns
    )
