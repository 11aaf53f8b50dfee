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
"""The settings: the files of `conf/factory` are the defaults, and mistakes are named."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_vtb.config import read_settings, settings_dict
from nemo_vtb.errors import VtbConfigError
from nemo_vtb.factory import settings
from nemo_vtb.factory.settings import AsrAst, MixedModal, SpeechQa

CONF = Path(__file__).parents[2] / 'conf' / 'factory'
FILES = {
    'asr_ast': settings.AsrAst, 'demo': settings.Demo, 'mixed_modal': settings.MixedModal,
    'speech_qa': settings.SpeechQa, 'text': settings.TextChats,
}  # fmt: skip


def test_there_is_a_file_for_each_kind():
    assert sorted(path.stem for path in CONF.glob('*.yaml')) == sorted(FILES)


@pytest.mark.parametrize('name', FILES)
def test_files_show_all_keys_with_their_defaults(name):
    shown = OmegaConf.to_container(OmegaConf.load(CONF / f'{name}.yaml'))
    assert shown == settings_dict(FILES[name]())
    assert read_settings(FILES[name], shown) == FILES[name]()


def test_later_layers_win_and_leave_the_rest():
    made = read_settings(MixedModal, {'tts': {'speakers': 3}, 'seed': 1}, {'tts': {'engine': 'nemo'}, 'seed': 2})
    assert (made.seed, made.tts.speakers, made.tts.engine, made.tts.concurrency) == (2, 3, 'nemo', 8)
    assert read_settings(AsrAst, {'forms': {'json': 0.5}}).forms == {'plain': 0.8, 'json': 0.5, 'timestamps': 0.1}


@pytest.mark.parametrize(
    'cls, layer, named',
    [
        (MixedModal, {'tts': {'speaker': 3}}, 'tts.speakers'),
        (MixedModal, {'tts': {'engine': 'festival'}}, 'pico, endpoint, nemo'),
        (MixedModal, {'policies': {'whole_turn': 1}}, 'policies.whole_turn'),
        (MixedModal, {'verify': {'max_wer': -1}}, 'verify.max_wer'),
        (AsrAst, {'tasks': ['asr', 'qa']}, 'tasks'),
        (AsrAst, {'chunk': 0}, 'chunk'),
        (AsrAst, {'lang': None}, 'lang'),
        (SpeechQa, {'llm': {'temperature': 'warm'}}, 'llm.temperature'),
    ],
)
def test_mistakes_are_named(cls, layer, named):
    with pytest.raises(VtbConfigError, match=named):
        read_settings(cls, layer)
