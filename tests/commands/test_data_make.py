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
"""`vtb data make`: what it prints, and what is wrong use."""

import json
from pathlib import Path

import pytest

from nemo_vtb import cli
from nemo_vtb.errors import VtbConfigError
from nemo_vtb.factory.pipeline import make_stage

CHATS = [
    {'instruction': 'What do bees make?', 'output': 'Bees make honey and wax.'},
    {'instruction': 'What is a verb?', 'output': 'A verb is a word for an action.'},
    {'instruction': 'Empty?', 'output': ' '},
]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / 'chats.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in CHATS))
    return path


def run(*words: object) -> int:
    return cli.main(['data', 'make', *map(str, words)])


def test_text_chats_from_the_command_line(chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / 'out'
    assert run('text', out, chats, 'validation_share=0', '--workers', 1) == 0
    printed = capsys.readouterr().out
    assert 'text: 2 of 3 kept' in printed and 'empty' in printed and 'card.md' in printed
    assert len((out / 'text.train.jsonl').read_text().splitlines()) == 2


def test_settings_from_a_file_and_shards(chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / 'my.yaml'
    config.write_text('chunk: 1\nvalidation_share: 0.0\n')
    words = ('text', tmp_path / 'out', chats, '--config', config, '--workers', 1, '--shard')
    assert run(*words, '1/2') == 0
    assert '2 of 3 left' in capsys.readouterr().out and not (tmp_path / 'out' / 'card.md').exists()
    assert run(*words, '0/2') == 0
    assert (tmp_path / 'out' / 'card.md').exists()


@pytest.mark.parametrize(
    'words, named',
    [
        (('chunks=3',), 'chunk'),
        (('--shard', '2/2'), '--shard'),
        (('--config', 'none.yaml'), '--config'),
        (('none.jsonl',), 'does not exist'),
    ],
)
def test_wrong_use_is_an_error_of_ours(
    chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple, named: str
) -> None:
    assert run('text', tmp_path / 'out', chats, *words) == cli.USER_ERROR
    assert named in capsys.readouterr().err


def test_inputs_are_needed(tmp_path: Path) -> None:
    with pytest.raises(VtbConfigError, match='INPUT'):
        make_stage('text', [])
    assert run('demo', tmp_path / 'out', 'chats.jsonl') == cli.USER_ERROR
