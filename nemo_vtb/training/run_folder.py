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
"""The folder of a run: made by NeMo's `exp_manager`, told once to all that write into it."""

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from nemo.utils.exp_manager import exp_manager
from omegaconf import DictConfig, OmegaConf

from nemo_vtb.training.run_state import RunState

logger = logging.getLogger(__name__)


def open_run(cfg: DictConfig, trainer: Trainer) -> Path:
    """Make the folder of a run with loggers and checkpoints, and write `config.yaml` into it.

    `trainer.fast_dev_run` leaves nothing behind: its folder is a temporary one, without `exp_manager`.

    Returns:
        The folder; ledger, history, curves and quarantine go there too.
    """
    manager: dict[str, Any] = OmegaConf.to_container(cfg.exp_manager, resolve=True)  # type: ignore[assignment]
    if manager.get('create_preemption_callback') is None and not torch.cuda.is_available():
        manager['create_preemption_callback'] = False  # NeMo's asks CUDA for the rank's device
    made = None if trainer.fast_dev_run else exp_manager(trainer, OmegaConf.create(manager))
    folder = Path(made or tempfile.mkdtemp(prefix='nemo_vtb-fast-dev-run-'))
    if made is None:
        logger.warning('trainer.fast_dev_run: nothing is kept; what is written meanwhile is in %s', folder)
    if (state := RunState.of(trainer)) is not None:
        state.folder = folder
    if trainer.is_global_zero:
        OmegaConf.save(cfg, folder / 'config.yaml', resolve=True)
    return folder


def checkpoint_folder(manager: Mapping[str, Any]) -> Path | None:
    """Where `exp_manager` will look for the checkpoint to go on from; None where it resumes nothing."""
    if not manager.get('resume_if_exists'):
        return None
    params = manager.get('checkpoint_callback_params') or {}
    if params.get('dirpath'):
        return Path(params['dirpath'])
    folder = folder_of(manager)
    return None if folder is None else folder / 'checkpoints'


def folder_of(manager: Mapping[str, Any]) -> Path | None:
    """The folder that `exp_manager` will make; None where it will be a new one, named by the time or a number."""
    if manager.get('explicit_log_dir'):
        return Path(manager['explicit_log_dir'])
    if not manager.get('resume_if_exists') and not manager.get('version'):
        return None
    folder = Path(manager.get('exp_dir') or 'nemo_experiments') / (manager.get('name') or 'default')
    return folder / (manager.get('version') or '')


def nemo_file(trainer: Trainer) -> Path | None:
    """The `.nemo` file that the run wrote at its end; None where it wrote none."""
    for callback in trainer.callbacks:
        if getattr(callback, 'save_nemo_on_train_end', False):
            path = Path(callback._format_nemo_checkpoint_name())
            return path if path.is_file() else None
    return None


def last_checkpoint(trainer: Trainer) -> Path | None:
    """The newest checkpoint of the run; None where it wrote none."""
    callback = trainer.checkpoint_callback
    path = getattr(callback, 'last_model_path', None) or getattr(callback, 'best_model_path', None)
    return Path(path) if path and Path(path).exists() else None
