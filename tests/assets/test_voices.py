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
"""The Pico voices speak reproducibly, and say what is wrong when they cannot."""

import os
import signal
from random import Random

import numpy as np
import pytest

from nemo_vtb.assets import voices
from nemo_vtb.assets.voices import VOICES, random_style, speak, voice_for
from nemo_vtb.constants import SAMPLE_RATE
from nemo_vtb.errors import VtbAssetError


def test_a_sentence_sounds():
    audio = speak('Turn on the lamp in the kitchen.')
    assert audio.dtype == np.float32 and audio.ndim == 1
    assert 1.0 < len(audio) / SAMPLE_RATE < 4.0
    assert 0.1 < np.abs(audio).max() < 1.0


def test_equal_arguments_give_equal_samples_whatever_was_said_before():
    first = speak('Turn on the lamp.')
    for text in ('Close the door in the garage tonight.', 'One.', 'What is four plus nine, and who is Anna?'):
        speak(text, voice='en-GB', pitch=1.2)
        assert np.array_equal(speak('Turn on the lamp.'), first)


def test_a_new_worker_says_the_same():
    first = speak('Open the window.')
    speak('Something else.')
    voices._engine().close()
    assert np.array_equal(speak('Open the window.'), first)


def test_style_changes_the_sound():
    plain = speak('Open the window.')
    assert len(speak('Open the window.', speed=1.3)) < len(plain)
    assert not np.array_equal(speak('Open the window.', pitch=1.3), plain)
    assert not np.array_equal(speak('Open the window.', voice='en-GB'), plain)


@pytest.mark.parametrize('voice', [voice for names in VOICES.values() for voice in names])
def test_every_voice_speaks(voice):
    assert np.abs(speak('Anna, Roma, 1.', voice=voice)).max() > 0.05


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        ({'text': ' '}, 'text'),
        ({'text': 'a', 'voice': 'xx-XX'}, 'voice'),
        ({'text': 'a', 'speed': 0.0}, 'speed'),
        ({'text': 'a', 'pitch': 9.0}, 'pitch'),
    ],
)
def test_what_cannot_be_spoken_is_named(arguments, named):
    with pytest.raises(VtbAssetError) as caught:
        speak(**arguments)
    assert caught.value.field == named


def test_a_language_without_voice_is_named():
    assert voice_for('fr') == ('fr-FR',)
    with pytest.raises(VtbAssetError, match="'ru'|ru"):
        voice_for('ru')


def test_the_missing_package_is_named_with_the_remedy(monkeypatch):
    voices._engine().close()
    monkeypatch.setattr(voices, 'find_spec', lambda name: None)
    with pytest.raises(VtbAssetError, match='pip install py-nanotts'):
        speak('Hello.')


def test_a_worker_that_dies_is_replaced():
    speak('Hello.')
    engine = voices._engine()
    os.kill(engine._process.pid, signal.SIGKILL)
    engine._process.wait()
    assert len(speak('Hello.'))


def test_drawn_styles_spread_and_leave_the_held_out_one_alone():
    rng = Random(0)
    styles = [random_style(rng) for _ in range(500)]
    assert {voice for voice, _, _ in styles} == {'en-US', 'en-GB'}
    assert all(speed != 1.0 and pitch != 1.0 for _, speed, pitch in styles)
    assert max(pitch for *_, pitch in styles) - min(pitch for *_, pitch in styles) > 0.5
