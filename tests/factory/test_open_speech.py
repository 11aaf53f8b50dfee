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
"""Open-vocabulary speech: which sentences are taken, and that a clip depends on seed and number alone."""

import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from nemo_vtb.factory.demo import open_speech


class NoVoice:
    """A tone for each text: the engines are tried where their packages can be had."""

    def say(self, text: str, voice: str, stretch: float, f0: float) -> tuple[np.ndarray, int]:
        time = np.arange(int(16000 * 0.06 * len(text) * stretch)) / 16000
        return (0.3 * np.sin(2 * np.pi * f0 * time)).astype(np.float32), 16000


@pytest.fixture
def tones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_speech, '_engine', [NoVoice()])
    monkeypatch.setattr(open_speech, 'speak', lambda text, voice, speed, pitch: NoVoice().say(text, voice, 1, 200)[0])


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('they kept in daily contact;', 'they kept in daily contact'),
        ('Stay -- or go away!', 'Stay, or go away!'),
        ("don't go there", "don't go there"),
        ('two words', None),
        ('in 1914 a war began', None),
        ("it is 'in vogue", None),
        ('the OECD and others', None),
        ('pneumonoultramicroscopicsilicovolcanoconiosis is a word', None),
    ],
)
def test_what_can_be_spoken(text: str, expected: str | None) -> None:
    assert open_speech._speakable(text) == expected


def test_sentences_of_both_dictionaries(tmp_path: Path) -> None:
    gloss = 'close interaction between two or more people (as at work); "they kept in daily contact"; "a one"'
    assert list(open_speech._of_gloss(gloss)) == [
        'they kept in daily contact',
        'close interaction between two or more people',
    ]
    text = (
        'Contact \\Con"tact\\, n.\n   1. A touching.\n      [1913 Webster]\n\n'
        '         The place of light was far from him.  --Shak.\n'
    )
    assert list(open_speech._of_quotations(text)) == ['The place of light was far from him.']


def test_a_clip_depends_on_seed_and_number_alone(tones: None, tmp_path: Path) -> None:
    groups = [['one two three'], ['four five six', 'seven eight nine'], ['ten or so words']]
    made = []
    for folder in ('a', 'b'):
        (tmp_path / folder / 'flac').mkdir(parents=True)
        Random(len(made)).random()
        made.append(open_speech._make(groups, 'train-0000', tmp_path / folder, seed=7))
    assert made[0] == made[1] and [line['text'] for line in made[0]][1] == 'four five six seven eight nine'
    for line in made[0]:
        one, two = ((tmp_path / folder / line['audio_filepath']).read_bytes() for folder in ('a', 'b'))
        assert one == two


def test_every_sentence_is_spoken_before_one_comes_again() -> None:
    sentences = [f'sentence {number}' for number in range(100)]
    groups = open_speech.groups_of(sentences, 3)
    first: list[str] = []
    for group in groups:
        if len(first) == 100:
            break
        first += group
    assert sorted(first) == sorted(sentences)
    assert {len(group) for group in groups} == {1, 2, 3, 4}


@pytest.mark.real_weights
def test_flite_speaks_the_same_each_time(assets: Any) -> None:
    folder = assets('flite-voices')['flite-voices']
    script = (
        'import sys, hashlib; from pathlib import Path; from nemo_vtb.assets.flite import FLITE_VOICES, Flite\n'
        'flite = Flite(Path(sys.argv[1]))\n'
        'for voice in FLITE_VOICES:\n'
        '    sound, rate = flite.say("They kept in daily contact.", voice)\n'
        '    print(voice, rate, len(sound), hashlib.sha256(sound.tobytes()).hexdigest(), float(abs(sound).max()))\n'
    )
    runs = [
        subprocess.run([sys.executable, '-c', script, str(folder)], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    for line in runs[0].splitlines():
        _, rate, samples, _, loudest = line.split()
        assert 1.0 < int(samples) / int(rate) < 4.0 and float(loudest) > 0.05
