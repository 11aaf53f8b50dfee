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
"""The arguments of Lightning's Trainer one by one, and the folder of a run under `exp_manager`."""

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import TRAINER, run, train, write_config

pytestmark = pytest.mark.integration


@pytest.fixture(scope='module')
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp('arguments')
    cfg = write_config(folder)
    held_out = {
        'type': 'multimodal_conversation', 'kind': 'text',
        'manifest_filepath': str(folder / 'corpus' / 'text.validation.jsonl'),
    }  # fmt: skip
    cfg['data']['validation_ds'] = {'datasets': {'typed': {'input_cfg': [held_out]}}}
    return cfg


def options(**arguments: Any) -> dict[str, Any]:
    return {'trainer': TRAINER | {'max_steps': 2} | arguments}


def seen_rows(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> list[list[str]]:
    """Which conversations each row of a run was made of."""
    from nemo_vtb import VoiceTextBlender

    rows: list[list[str]] = []
    step = VoiceTextBlender.training_step

    def training_step(model: Any, batch: Any, batch_idx: int) -> Any:
        rows.append(batch.ids)
        return step(model, batch, batch_idx)

    monkeypatch.setattr(VoiceTextBlender, 'training_step', training_step)
    train(config | options(**arguments))
    return rows


def test_overfit_batches_repeats_the_rows(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = seen_rows(config, monkeypatch, max_steps=3)
    assert rows[:2] != rows[2:4]
    again = seen_rows(config, monkeypatch, max_steps=3, overfit_batches=2)
    assert again[:2] == again[2:4] == again[4:] == rows[:2]


@pytest.mark.parametrize(
    ('arguments', 'steps'),
    [
        ({'reload_dataloaders_every_n_epochs': 1, 'limit_train_batches': 2}, 2),
        ({'fast_dev_run': True, 'val_check_interval': 50, 'precision': 'auto'}, 1),
        *(
            pytest.param(arguments, 2, marks=pytest.mark.slow)
            for arguments in (
                {'precision': 'bf16-mixed'},
                {'precision': '64-true'},
                {'logger': True, 'callbacks': [{'_target_': 'lightning.pytorch.callbacks.LearningRateMonitor'}]},
                {'overfit_batches': 0.5},
                {'fast_dev_run': 2},
                {'min_epochs': 1, 'min_steps': 2, 'max_time': '00:00:10:00'},
                {'limit_train_batches': 0.5},
                {'val_check_interval': 0.5, 'limit_val_batches': 1},
                {'val_check_interval': 2, 'limit_val_batches': 1.0},
                {'val_check_interval': 1, 'check_val_every_n_epoch': 2, 'limit_val_batches': 1},
                {'num_sanity_val_steps': -1, 'limit_val_batches': 1},
                {'enable_checkpointing': True, 'enable_progress_bar': True, 'enable_model_summary': True},
                {'accumulate_grad_batches': 2, 'gradient_clip_algorithm': 'value'},
                {'deterministic': True, 'benchmark': True, 'inference_mode': False},
                {'use_distributed_sampler': True, 'sync_batchnorm': True, 'detect_anomaly': True},
                {'profiler': 'simple', 'devices': 'auto', 'accelerator': 'auto'},
            )
        ),
    ],
)
def test_an_argument_of_the_trainer(
    config: dict[str, Any], arguments: dict[str, Any], steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer, _ = train(config | options(**arguments))
    assert trainer.global_step == steps


def finish(config: dict[str, Any], **sections: Any) -> Path:
    from omegaconf import OmegaConf

    return run(OmegaConf.create({**config, 'exp_manager': {}, **sections}))


def test_fast_dev_run_leaves_nothing_behind(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NeMo's exp_manager makes no folder then."""
    monkeypatch.chdir(tmp_path)
    manager = {'explicit_log_dir': str(tmp_path / 'run')}
    folder = finish(config, **options(fast_dev_run=True), exp_manager=manager)
    assert list(tmp_path.iterdir()) == [] and (folder / 'ledger.json').is_file()


@pytest.mark.parametrize('tensorboard', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_all_files_of_a_run_are_in_one_folder(
    config: dict[str, Any], tmp_path: Path, tensorboard: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also with exp_dir, where a logger's folder is another one."""
    from nemo_vtb.training.summary import print_summary

    manager = {
        'exp_dir': str(tmp_path), 'name': 'mine', 'version': 'first', 'create_tensorboard_logger': tensorboard,
        'checkpoint_callback_params': {'save_nemo_on_train_end': False, 'monitor': 'val_loss'},
    }  # fmt: skip
    folder = finish(config, **options(val_check_interval=2, limit_val_batches=1), exp_manager=manager)
    assert folder == tmp_path / 'mine' / 'first'
    names = {path.name for path in folder.iterdir()}
    assert {'config.yaml', 'history.jsonl', 'ledger.json', 'curves.png', 'checkpoints'} <= names
    assert len([r for r in map(json.loads, (folder / 'history.jsonl').open()) if r['type'] == 'train']) == 2
    print_summary(folder)
    assert 'No optimizer step' not in capsys.readouterr().out


@pytest.mark.parametrize(
    ('manager', 'folder'),
    [
        ({'explicit_log_dir': 'here'}, None),
        ({'explicit_log_dir': 'here', 'resume_if_exists': True}, 'here/checkpoints'),
        ({'exp_dir': 'e', 'name': 'n', 'resume_if_exists': True}, 'e/n/checkpoints'),
        ({'exp_dir': 'e', 'name': 'n', 'version': 'v', 'resume_if_exists': True}, 'e/n/v/checkpoints'),
        ({'resume_if_exists': True}, 'nemo_experiments/default/checkpoints'),
        ({'resume_if_exists': True, 'checkpoint_callback_params': {'dirpath': 'd'}}, 'd'),
    ],
)
def test_the_folder_of_checkpoints_is_where_nemo_looks(manager: dict[str, Any], folder: str | None) -> None:
    from nemo_vtb.training.run_folder import checkpoint_folder

    assert checkpoint_folder(manager) == (None if folder is None else Path(folder))
