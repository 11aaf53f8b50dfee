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
"""Evaluation sets are recognised: by their words, and by the sound of their recordings."""

import numpy as np
import pytest
from factory_helpers import write_jsonl

from nemo_vtb.assets.recordings import write_wav
from nemo_vtb.assets.voices import speak
from nemo_vtb.errors import VtbConfigError
from nemo_vtb.factory.contamination import Fingerprints, fingerprint, load_avoid_list, ngrams
from nemo_vtb.factory.settings import Avoid

SENTENCES = ('Turn on the lamp in the kitchen at noon.', 'Open the window in the office tonight.',
             'The river runs slowly past the old mill.', 'Seven people wait in front of the station.')  # fmt: skip


@pytest.fixture(scope='module')
def clips():
    return [speak(text, voice) for text in SENTENCES for voice in ('en-US', 'en-GB')]


@pytest.fixture(scope='module')
def known(clips):
    prints = Fingerprints()
    for number, clip in enumerate(clips):
        prints.add(str(number), clip)
    return prints


def test_bits_depend_on_the_sound_and_not_on_the_loudness(clips):
    prints = fingerprint(clips[0])
    assert prints.dtype == np.uint32 and len(prints) > 100
    louder = np.bitwise_count(prints ^ fingerprint(clips[0] * 0.1)).mean() / 32
    other = fingerprint(clips[2])
    length = min(len(prints), len(other))
    assert louder < 0.02
    assert 0.35 < np.bitwise_count(prints[:length] ^ other[:length]).mean() / 32 < 0.65
    assert len(fingerprint(np.zeros(1000, np.float32))) == 0


@pytest.mark.parametrize('change', ['louder', 'noisy', 'cut', 'later', 'inside', 'eight_bit'])
def test_changed_recordings_are_found(clips, known, change):
    rng = np.random.default_rng(0)
    for number, clip in enumerate(clips):
        noise = rng.normal(0, np.sqrt((clip**2).mean()) / 10 ** (20 / 20), len(clip)).astype(np.float32)
        changed = {
            'louder': clip * 1.7, 'noisy': clip + noise, 'cut': clip[4000:-6000], 'later': np.pad(clip, (777, 0)),
            'inside': np.concatenate([noise * 3, clip, noise]), 'eight_bit': np.round(clip * 128) / 128,
        }[change].astype(np.float32)  # fmt: skip
        assert known.find(changed) == str(number), change


def test_other_recordings_are_not_found(known):
    for text in ('Close the drawer in the bedroom now.', 'What is the square of three?', 'A cow says moo.'):
        for voice in ('en-US', 'en-GB'):
            assert known.find(speak(text, voice)) is None
    # the same words by another speaker are another recording
    assert known.find(speak(SENTENCES[0], 'en-US', pitch=1.25, speed=0.9)) is None


def test_ngrams():
    long = 'one two three four five six seven eight nine'
    assert len(list(ngrams(long, 8))) == 2
    assert set(ngrams('two, THREE four five six seven eight nine!', 8)) < set(ngrams(long, 8))
    assert len(list(ngrams('what is a verb', 8))) == 1 and not list(ngrams('thank you', 8))


def test_lists_of_evaluation_sets(tmp_path, clips):
    write_wav(tmp_path / 'a.wav', clips[0])
    write_wav(tmp_path / 'b.wav', clips[1] * 0.5)
    write_wav(tmp_path / 'c.wav', clips[4])
    manifest = write_jsonl(tmp_path / 'eval.jsonl', [{'audio_filepath': 'b.wav', 'text': 'Where does the river run?'}])
    avoid = load_avoid_list(Avoid(files=(str(manifest), str(tmp_path / 'a.wav'))))
    assert avoid.reason(['where does the river run']) == 'contaminated_text'
    assert avoid.reason(['where does it run'], [(str(tmp_path / 'c.wav'), 0.0, None)]) is None
    assert avoid.reason([], [(str(tmp_path / 'a.wav'), 0.0, None)]) == 'contaminated_audio'
    assert avoid.reason([], [(str(tmp_path / 'b.wav'), 0.2, None)]) == 'contaminated_audio'
    with pytest.raises(VtbConfigError, match='avoid.files'):
        load_avoid_list(Avoid(files=(str(tmp_path / 'none.jsonl'),)))
