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
"""A corpus in LibriSpeech's published layout: lhotse's recipe, `vtb data make`, two steps of training."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import soundfile
from data_helpers import write_librispeech
from ranks import train, write_config

from nemo_vtb import cli
from nemo_vtb.factory.pipeline import make_stage
from nemo_vtb.training.run_state import RunState

pytestmark = [pytest.mark.integration, pytest.mark.real_weights]


@pytest.fixture(scope='module')
def librispeech(tmp_path_factory: pytest.TempPathFactory, assets: Any) -> Path:
    return write_librispeech(tmp_path_factory.mktemp('published') / 'LibriSpeech', assets)


@pytest.fixture(scope='module')
def made(librispeech: Path) -> Path:
    from lhotse.recipes import prepare_librispeech

    manifests = librispeech.parent / 'manifests'
    prepare_librispeech(librispeech, output_dir=manifests, normalize_text='lower')
    out = librispeech.parent / 'made'
    assert cli.main(['data', 'make', 'asr_ast', str(out), str(manifests), '--workers', '1']) == 0
    return out


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]


def test_every_utterance_is_taken_and_its_part_decides_the_split(made: Path, librispeech: Path) -> None:
    train_lines, held_out = lines(made / 'asr_ast.train.jsonl'), lines(made / 'asr_ast.validation.jsonl')
    assert not lines(made / 'rejected.jsonl')
    for part, found in (('train-clean-5', train_lines), ('dev-clean-2', held_out)):
        published = {path.stem: path for path in (librispeech / part).rglob('*.flac')}
        assert {line['id'] for line in found} == {f'asr-{name}' for name in published}
        for line in found:
            (audio,) = [turn for turn in line['conversations'] if turn['type'] == 'audio']
            path = published[line['id'].removeprefix('asr-')]
            assert audio['value'] == str(path) and audio['duration'] == soundfile.info(path).duration
            assert audio['text'] == audio['text'].lower() and line['custom']['lang'] == 'en'
            assert line['custom']['source'] == f'librispeech_{part}'


def test_a_model_trains_on_it(made: Path, tmp_path: Path) -> None:
    entry = {'type': 'multimodal_conversation', 'kind': 'asr_ast', 'source': 'librispeech'}
    cfg = write_config(tmp_path)
    cfg['trainer'] = {**cfg['trainer'], 'max_steps': 2, 'limit_val_batches': 1.0, 'val_check_interval': 2}
    cfg['data']['train_ds']['input_cfg'] = [{**entry, 'manifest_filepath': str(made / 'asr_ast.train.jsonl')}]
    held_out = {'input_cfg': [{**entry, 'manifest_filepath': str(made / 'asr_ast.validation.jsonl')}]}
    cfg['data'] |= {'validation_ds': {'sample_rate': 16000, 'datasets': {'dev-clean': held_out}}, 'max_tokens': 1024}
    trainer, _ = train(cfg)
    assert trainer.global_step == 2 and math.isfinite(trainer.callback_metrics['val_loss'])
    (state,) = (callback for callback in trainer.callbacks if isinstance(callback, RunState))
    (account,) = state.ledger.accounts.values()
    assert account.conversations > 5 and account.audio_s > 20 and not account.skips


def test_a_prepared_corpus_needs_both_files(made: Path, librispeech: Path, tmp_path: Path, capsys: Any) -> None:
    name = 'librispeech_supervisions_train-clean-5.jsonl.gz'
    (tmp_path / name).write_bytes((librispeech.parent / 'manifests' / name).read_bytes())
    assert cli.main(['data', 'make', 'asr_ast', str(tmp_path / 'out'), str(tmp_path / name)]) == cli.USER_ERROR
    assert 'librispeech_recordings_train-clean-5.jsonl.gz' in capsys.readouterr().err


def test_questions_are_made_of_the_same_folder(librispeech: Path, made: Path) -> None:
    """Of all parts, each in its own split; what a language model makes of them: tests/factory/test_speech_qa.py."""
    stage = make_stage('speech_qa', [str(librispeech.parent / 'manifests')], {'questions': 1})
    splits = Counter(item.data.get('split') for item in stage.items())
    assert splits == {'validation': 5, None: 32}
    assert stage.settings.validation_share == 0.0, 'the corpus has a part for it'
    own = make_stage('speech_qa', [str(librispeech.parent / 'manifests')], {'validation_share': 0.1})
    assert own.settings.validation_share == 0.1
