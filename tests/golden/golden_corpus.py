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
"""A corpus made by whole numbers alone, so that every machine makes the same bytes; nothing of the library is used."""

import json
import random
import wave
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ('text', 'asr_ast', 'speech_qa', 'mixed_modal')
WORDS = (
    'turn on off open close the lamp heater fan window door in kitchen bedroom office garage at noon midnight seven '
    'tonight now please what who where rain green blue old yes no first second story mountain sea'
).split()
RATE = 16000


def write_corpus(folder: Path) -> None:
    """`<kind>.<split>.jsonl` in NeMo's `multimodal_conversation` format, and `wav/`.

    One line of the typed chats is broken, so that the ledger has something that was left out.
    """
    (folder / 'wav').mkdir(parents=True)
    for split, count in (('train', 8), ('validation', 3)):
        for kind in KINDS:
            maker = _Maker(folder, f'{split}-{kind}')
            lines = [json.dumps(maker.line(kind, number)) for number in range(count)]
            if (split, kind) == ('train', 'text'):
                lines.insert(4, json.dumps({'id': 'broken', 'conversations': []}))
            (folder / f'{kind}.{split}.jsonl').write_text('\n'.join(lines) + '\n', encoding='utf-8')


class _Maker:
    def __init__(self, folder: Path, prefix: str) -> None:
        self.folder, self.prefix, self.random, self.clips = folder, prefix, random.Random(prefix), 0

    def line(self, kind: str, number: int) -> dict[str, Any]:
        entries = getattr(self, kind)(number)
        return {'id': f'{self.prefix}-{number}', 'conversations': entries, 'custom': {'kind': kind, 'lang': 'en'}}

    def text(self, number: int) -> list[dict[str, Any]]:
        chat = [self.user(self.words(3, 8)), self.says(self.words(6, 16))]
        if number % 3 == 2:
            chat += [self.user(self.words(2, 5)), self.says(self.words(3, 9))]
        return chat

    def asr_ast(self, number: int) -> list[dict[str, Any]]:
        said = self.words(2, 5)
        if number % 3 == 2:
            return [self.spoken(said), self.user('Say this in Spanish:'), self.says(f'es {said}')]
        return [self.user('Transcribe the speech.'), self.spoken(said), self.says(said)]

    def speech_qa(self, number: int) -> list[dict[str, Any]]:
        said = self.words(2, 5)
        return [self.spoken(said), self.user('Which word is said first?'), self.says(f'The {said.split()[0]}.')]

    def mixed_modal(self, number: int) -> list[dict[str, Any]]:
        first, second = self.words(2, 4), self.words(2, 4)
        return [
            self.user('Listen to'), self.spoken(first), self.user('and say its last word.'),
            self.says(first.split()[-1]), self.user('And the first word of this?'), self.spoken(second),
            self.says(second.split()[0]),
        ]  # fmt: skip

    def words(self, low: int, high: int) -> str:
        return ' '.join(self.random.choices(WORDS, k=self.random.randint(low, high)))

    def user(self, text: str) -> dict[str, Any]:
        return {'type': 'text', 'from': 'User', 'value': text}

    def says(self, text: str) -> dict[str, Any]:
        return {'type': 'text', 'from': 'Assistant', 'value': text}

    def spoken(self, text: str) -> dict[str, Any]:
        samples = np.concatenate([_tone(WORDS.index(word)) for word in text.split()])
        name = f'wav/{self.prefix}-{self.clips}.wav'
        self.clips += 1
        with wave.open(str(self.folder / name), 'wb') as stream:
            stream.setnchannels(1)
            stream.setsampwidth(2)
            stream.setframerate(RATE)
            stream.writeframes(samples.astype('<i2').tobytes())
        return {'type': 'audio', 'from': 'User', 'value': name, 'duration': len(samples) / RATE, 'text': text}


def _tone(number: int) -> np.ndarray:
    """A quarter of a second of a triangle wave of a period of its own, with a soft start and end."""
    time = np.arange(RATE // 4, dtype=np.int64)
    period = 16 + 3 * number
    wave_ = np.abs(4 * (time % period) - 2 * period) - period  # between -period and period
    envelope = np.minimum(time, len(time) - time)
    return 8000 * wave_ * envelope // (period * (len(time) // 2))
