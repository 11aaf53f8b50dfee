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
"""Options of a command line become Hydra's overrides, by the dataclass alone."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from nemo_vtb.config.command_line import conf_folder, config_file, overrides_of, usage
from nemo_vtb.config.schema import EvalConfig, ExportConfig, GenerateConfig
from nemo_vtb.errors import VtbConfigError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ('words', 'cls', 'values'),
    [
        (['my.nemo'], EvalConfig, {'model': 'my.nemo'}),
        (['model=my.nemo', 'limit=3'], EvalConfig, {'model': 'my.nemo', 'limit': 3}),
        (['my.nemo', '--data', 'a.jsonl', 'b c.jsonl', '--limit', '5'], EvalConfig,
         {'model': 'my.nemo', 'data': ['a.jsonl', 'b c.jsonl'], 'limit': 5}),
        (['--data', 'a.jsonl', 'limit=5'], EvalConfig, {'data': ['a.jsonl'], 'limit': 5}),
        (['--judge-url', 'http://h:1/v1', '--record', '--no-chat-template'], EvalConfig,
         {'judge.url': 'http://h:1/v1', 'record': True, 'chat_template': False}),
        (['--suite=text', '--limit', 'null'], EvalConfig, {'suite': 'text', 'limit': None}),
        (['--prompt', "It's {audio}, [isn't] it = so?"], GenerateConfig, {'prompt': "It's {audio}, [isn't] it = so?"}),
        (['my.nemo', '--to', 'asr', '--asr', 'x=y.nemo', '--no-check', '--without-llm'], ExportConfig,
         {'model': 'my.nemo', 'to': 'asr', 'asr': 'x=y.nemo', 'check': False, 'without_llm': True}),
    ],
)  # fmt: skip
def test_options_reach_hydra_with_their_values(words: list[str], cls: type, values: dict[str, object]) -> None:
    parsed = OverridesParser.create().parse_overrides(overrides_of(words, cls))
    assert {
        p.key_or_group: p.value() if not isinstance(p.value(), list) else list(map(str, p.value())) for p in parsed
    } == {**values}


def test_options_of_hydra_pass() -> None:
    words = ['--config-path', 'conf', '-m', 'limit=1,2', '--cfg', 'job']
    assert overrides_of(words, EvalConfig) == words


@pytest.mark.parametrize(
    ('words', 'field', 'said'),
    [
        (['--limt', '3'], '--limt', 'did you mean --limit?'),
        (['my.nemo', 'other.nemo'], 'other.nemo', 'no option'),
        (['--limit'], '--limit', 'no value'),
        (['--no-limit'], '--no-limit', 'unknown option'),
    ],
)
def test_mistakes_are_named(words: list[str], field: str, said: str) -> None:
    with pytest.raises(VtbConfigError, match=said.replace('?', '.')) as caught:
        overrides_of(words, EvalConfig)
    assert caught.value.field == field


def test_help_names_every_key_and_option() -> None:
    text = usage('export', ExportConfig, 'x')
    assert '--without-llm' in text and 'without_llm ' in text and '[MODEL]' in text


def test_the_yaml_files_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_file('speechllm_joint_sft') == conf_folder() / 'speechllm_joint_sft.yaml'
    assert config_file('eval/speechllm_eval').is_file()
    own = tmp_path / 'conf' / 'eval' / 'speechllm_eval.yaml'
    own.parent.mkdir(parents=True)
    own.touch()
    assert config_file('eval/speechllm_eval').resolve() == own
