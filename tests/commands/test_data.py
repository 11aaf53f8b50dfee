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
"""`vtb data`: an index built ahead is the one that training opens; a preview is the plan that training follows."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from nemo_vtb.cli import main as vtb
from nemo_vtb.commands.data import main
from nemo_vtb.data.datamodule import VtbDataModule
from nemo_vtb.data.ledger import Ledger, SourceAccount
from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.testing import TinyCorpus, tiny_model_cfg


@pytest.fixture(scope='module')
def config(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path, corpus: TinyCorpus) -> Path:
    """A training YAML over the tiny corpus."""
    folder = tmp_path_factory.mktemp('data-command')
    data = {
        'train_ds': {'seed': 1, 'input_cfg': corpus.input_cfg('train')},
        'validation_ds': {'datasets': {'text': {'input_cfg': corpus.input_cfg('validation')[:1]}}},
        'budget': {'text': 0.4, 'asr_ast': 0.2, 'speech_qa': 0.2, 'mixed_modal': 0.2},
        'max_tokens': 192,
        'num_workers': 0,
        'index_dir': str(folder / 'index'),
    }
    OmegaConf.save({'model': tiny_model_cfg(tiny_root / 'model'), 'data': data}, folder / 'mine.yaml')
    return folder / 'mine.yaml'


def data_section(config: Path) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(config).data)


def test_training_opens_what_was_indexed_ahead(
    config: Path, tiny_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(['index', str(config)]) == 0
    out = capsys.readouterr().out
    assert 'text.train' in out and 'text.validation' in out and 'mixed_modal' in out
    cfg = data_section(config) | {'build_index': False}
    data = VtbDataModule(cfg, tiny_model.renderer, tiny_model.frames, num_batches=3)
    data.setup('fit')
    assert len(list(data.train_dataloader())) == 3


def test_the_preview_is_the_plan(
    config: Path, tiny_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(['preview', str(config), '-n', '5', '--png', str(tmp_path / 'p.png')]) == 0
    out = capsys.readouterr().out
    assert (tmp_path / 'p.png').read_bytes()[:4] == b'\x89PNG'
    assert 'requested  40.0%' in out and '5 rows, padding' in out
    data = VtbDataModule(data_section(config), tiny_model.renderer, tiny_model.frames, num_batches=5)
    data.setup('fit')
    assert data.plan is not None
    for row in islice(data.plan, 5):
        line = next(line for line in out.splitlines() if line.startswith(f'row {row.index} '))
        assert line.endswith(f'{row.num_tokens / 192:6.1%}  {len(row.items):>3} conversations')


def test_a_preview_follows_changes_of_keys(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['preview', str(config), 'data.max_tokens=384', '-n', '2', '--png', str(tmp_path / 'p.png')]) == 0
    tokens = int(capsys.readouterr().out.split(' tokens in 2 rows')[0].rsplit('\n', 1)[-1].replace(',', ''))
    assert 2 * 192 < tokens <= 2 * 384


def test_lengths_are_those_of_the_index(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / 's.png'
    assert main(['stats', str(config), 'data.max_tokens=96', '--buckets', '3']) == 0
    out = capsys.readouterr().out
    assert 'bucket_duration_bins (3 buckets)=[' in out and 'text.train' in out and 'text.validation' not in out
    assert main(['stats', str(config), 'data.max_tokens=96', '--json', '--picture', str(picture)]) == 0
    stats = json.loads(capsys.readouterr().out)
    assert picture.read_bytes()[:4] == b'\x89PNG'
    assert set(stats['kinds']) == {'text', 'asr_ast', 'speech_qa', 'mixed_modal'} and stats['max_tokens'] == 96
    assert stats['total']['conversations'] == sum(each['conversations'] for each in stats['sources'].values())
    assert stats['kinds']['text']['with_audio'] == 0 and stats['kinds']['asr_ast']['duration_s']['min'] > 0
    with pytest.raises(VtbConfigError, match='Not an override'):
        main(['stats', str(config), 'other.jsonl'])


def test_files_are_counted_as_the_configuration_would(
    config: Path, corpus: TinyCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / 'asr.jsonl'
    wav = sorted((corpus.folder / 'wav').iterdir())[0]
    lines = [
        {'audio_filepath': str(wav), 'duration': None, 'text': 'hello'},
        {'audio_filepath': 'none.wav', 'text': 'x'},
    ]
    manifest.write_text('\n'.join(json.dumps(line) for line in lines) + '\n')
    with pytest.raises(VtbDataError, match='Too many conversations'):
        main(['index', str(config), str(manifest)])
    assert main(['index', str(config), str(manifest), str(corpus.path('text')), '++data.max_skip_ratio=0.5']) == 0
    out = capsys.readouterr().out
    assert '1 audio_missing' in out and 'quarantine.jsonl' in out and 'text.train' in out


def test_what_cannot_be_read_is_named(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'conf').mkdir()
    (tmp_path / 'conf' / 'speechllm_joint_sft.yaml').write_bytes(config.read_bytes())
    with pytest.raises(VtbDataError, match='does not exist'):  # the configuration of ./conf is
        main(['index', 'some.jsonl'])
    with pytest.raises(VtbDataError, match='does not exist'):
        main(['index', str(config), 'some.jsonl'])
    with pytest.raises(VtbConfigError, match='Only one configuration'):
        main(['index', str(config), 'other.yaml'])
    with pytest.raises(VtbConfigError, match='Not an override'):
        main(['preview', str(config), 'other.jsonl'])
    with pytest.raises(SystemExit):
        main(['preview', str(config), '-n', '0'])
    with pytest.raises(SystemExit):
        main([])
    assert vtb(['data', 'ledger', str(tmp_path)]) == 2
    assert 'There is no ledger' in capsys.readouterr().err


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[str], Path]:
    def save(name: str) -> Path:
        ledger = Ledger([SourceAccount('chats', 'text', 0.25, 4), SourceAccount('asr', 'asr_ast', 0.75, 4)], 100)
        for _ in range(10):
            ledger.add('chats', 1, 24, 10, 0.0)
            ledger.add('asr', 2, 75, 10, 7200.0)
            ledger.close_batch(1)
        ledger.skip('asr', 'audio_missing', 3)
        ledger.save(tmp_path / name)
        return tmp_path / name

    return save


def test_the_ledger_of_a_run(saved: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved('run/ledger.json')
    assert main(['ledger', str(path.parent), '--png', str(tmp_path / 'l.png')]) == 0
    out = capsys.readouterr().out
    assert '3 audio_missing' in out and 'audio (h)' in out and '20.00' in out
    assert 'delivered  24.24%' in out
    assert (tmp_path / 'l.png').is_file()
    assert main(['ledger', str(path), '--json']) == 0
    assert json.loads(capsys.readouterr().out)['tokens'] == 990


@pytest.mark.parametrize('text', ['', '[]', '{"unit": "tokens"}', '{"sources": [{}]}', '\x00'])
def test_a_broken_ledger_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / 'ledger.json').write_text(text)
    with pytest.raises(VtbDataError, match='no ledger'):
        main(['ledger', str(tmp_path)])
