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
"""Voices: speakers of a corpus, and a real speech server."""

import numpy as np
import pytest
from factory_helpers import openai_server

from nemo_vtb.assets.voices import VOICES, speak
from nemo_vtb.errors import VtbConfigError
from nemo_vtb.factory.settings import Tts
from nemo_vtb.factory.speech_models import PicoVoices, Utterance, load_voices


@pytest.mark.parametrize('lang', VOICES)
def test_pico_has_many_speakers_of_each_language(lang):
    cast = PicoVoices().speakers(lang, 8, seed=0)
    assert len(set(cast)) == 8 and {name.partition('@')[0] for name in cast} == set(VOICES[lang])
    assert cast == PicoVoices().speakers(lang, 8, seed=0) != PicoVoices().speakers(lang, 8, seed=1)
    assert all(0.75 <= float(name.partition('@')[2]) <= 1.3 for name in cast)


def test_pico_says_what_it_can():
    said, nothing = PicoVoices().say([Utterance('Hello.', 'en-US@1.1', 0.9), Utterance(' ', 'en-US@1.0')])
    assert np.array_equal(said, speak('Hello.', 'en-US', 0.9, 1.1)) and nothing is None


def test_a_speech_server_at_another_rate(tmp_path):
    with openai_server(tmp_path, '429 500') as url:
        settings = Tts(engine='endpoint', url=url, voices=('en-US', 'en-GB'), concurrency=2)
        voices = load_voices(settings)
        assert voices.speakers('en', 16, 0) == ['en-US', 'en-GB']
        texts = ('Turn on the lamp.', 'Open the door in the garage.', 'Close it.')
        said = voices.say([Utterance(text, 'en-GB', 1.1) for text in texts])
    for text, samples in zip(texts, said, strict=True):
        expected = speak(text, 'en-GB', 1.1)
        assert samples.dtype == np.float32 and abs(len(samples) - len(expected)) <= 2
        length = min(len(samples), len(expected))
        assert np.corrcoef(samples[:length], expected[:length])[0, 1] > 0.99


@pytest.mark.parametrize(
    'settings, named',
    [(Tts(engine='endpoint'), 'tts.url'), (Tts(engine='endpoint', url='http://x/v1'), 'voices'),
     (Tts(engine='nemo', model='a.nemo'), 'tts.vocoder')],
)  # fmt: skip
def test_what_an_engine_lacks_is_named(settings, named):
    with pytest.raises(VtbConfigError, match=named):
        load_voices(settings)
