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
"""How people start trainings: sweeps, composed files from elsewhere, Slurm without srun, no GPU, a locked home."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from salm_yaml import parts, salm_config

from nemo_vtb import cli, scripts
from nemo_vtb.errors import VtbConfigError

pytestmark = pytest.mark.integration

CHECKPOINTS = 'exp_manager.checkpoint_callback_params'


@pytest.fixture(autouse=True)
def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands quiet the logs of their process, which here is that of all tests."""
    monkeypatch.setenv('NEMO_LOG_LEVEL', 'ERROR')


@pytest.mark.slow
def test_a_sweep_over_composed_files_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SALM's YAML in several files; each job has a folder of its own, and gives the sweeper its best metric."""
    changes = {'trainer.num_sanity_val_steps': 0} | {
        f'{CHECKPOINTS}.monitor': 'val_loss',
        f'{CHECKPOINTS}.mode': 'min',
    }
    cfg: Any = OmegaConf.to_container(salm_config(parts(tmp_path / 'parts'), Path('runs'), changes))
    conf = tmp_path / 'mine'
    for group in ('data', 'trainer'):
        (conf / group).mkdir(parents=True)
        OmegaConf.save(OmegaConf.create(cfg.pop(group)), conf / group / 'tiny.yaml')
    OmegaConf.save(OmegaConf.create(cfg), conf / 'base.yaml')
    (conf / 'salm.yaml').write_text('defaults:\n- base\n- data: tiny\n- trainer: tiny\n- _self_\n')
    values: list[float | None] = []
    run = scripts.run_training
    monkeypatch.setattr(scripts, 'run_training', lambda cfg: values.append(run(cfg)))
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    assert cli.main(['train', '--config-path', '../mine', '--config-name', 'salm', '-m', 'seed=1,2']) == 0
    folders = [tmp_path / 'elsewhere' / 'runs' / 'salm_results' / str(job) for job in (0, 1)]
    assert [OmegaConf.load(folder / 'config.yaml').seed for folder in folders] == [1, 2]
    for folder, value in zip(folders, values, strict=True):
        lines = [json.loads(line) for line in (folder / 'history.jsonl').open()]
        assert [line['step'] for line in lines if line['type'] == 'train'] == [1, 2]
        measured = [line['metrics']['val_loss'] for line in lines if line['type'] == 'validation']
        assert value == pytest.approx(min(measured), abs=1e-4)  # as far as the history is written


@pytest.mark.parametrize(
    ('environment', 'options', 'field', 'remedy'),
    [
        ({'CUDA_VISIBLE_DEVICES': ''}, {'accelerator': 'gpu', 'devices': -1}, 'trainer.accelerator', 'devices=1'),
        ({'CUDA_VISIBLE_DEVICES': ''}, {'devices': -1}, 'trainer.devices', 'trainer.devices=1'),
        ({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '2', 'SLURM_PROCID': '0'}, {}, 'SLURM_NTASKS', 'srun'),
        ({'WORLD_SIZE': '2', 'RANK': '1', 'LOCAL_RANK': '0'}, {}, 'trainer.devices', 'num_nodes'),
        ({}, {'limit_train_batches': -3}, 'trainer', 'docs/nemo.md'),
        ({}, {'precision': 'bf16-automodels'}, 'trainer', 'docs/nemo.md'),
    ],
)
def test_what_cannot_start_is_said_at_once(
    environment: dict[str, str], options: dict[str, Any], field: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these was a traceback of Lightning's; ranks unknown to it trained a model each."""
    from nemo_vtb.training.launch import launch_trainer

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(VtbConfigError) as caught:
        launch_trainer({'accelerator': 'auto', 'devices': 1, 'logger': False} | options)
    assert caught.value.field == field and remedy in str(caught.value.remedy)


@pytest.mark.parametrize(
    'environment',
    [
        {'WORLD_SIZE': '2'},  # left over in a shell
        {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '2', 'SLURM_JOB_NAME': 'bash'},  # salloc
        {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '1'},
    ],
)
def test_one_process_starts_where_nobody_else_was_started(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nemo_vtb.training.launch import launch_trainer

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launch_trainer({'accelerator': 'cpu', 'devices': 1, 'logger': False, 'barebones': True}).world_size == 1


def test_an_optimizer_that_nemo_would_block_is_refused_before_the_model_is_loaded() -> None:
    from nemo_vtb.checkpoint.foreign_config import check_own_targets

    with pytest.raises(VtbConfigError) as caught:
        check_own_targets({'model': {'optimizer': {'_target_': 'flashoptim.FlashAdamW'}}}, '')
    assert caught.value.field == 'model.optimizer._target_' and 'torch.optim' in str(caught.value.allowed)


def test_a_home_that_cannot_be_written_to_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(cfg: Any) -> None:
        raise OSError(errno.EROFS, 'Read-only file system', str(tmp_path / '.cache'))

    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(scripts, 'run_training', fail)
    assert cli.main(['train']) == 2
    assert 'NEMO_VTB_CACHE=FOLDER' in capsys.readouterr().err
