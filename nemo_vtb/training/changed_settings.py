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
"""What the configuration says is what a resumed run uses: a checkpoint would bring its own learning rate back."""

import logging
from typing import Any

import lightning.pytorch as pl

from nemo_vtb.checkpoint.run_settings import KEY, changed_settings, run_settings
from nemo_vtb.io import moved_away, tolerated, write_atomically
from nemo_vtb.training.run_state import RunState

logger = logging.getLogger(__name__)

_PROGRESS = ('last_epoch', '_step_count', '_last_lr', '_get_lr_called_within_step')
_APPLIED = ('model.optimizer.', 'model.lr_scheduler.', 'model.lr_factors')


class ChangedSettings(pl.Callback):
    """Saves the settings of a run in its checkpoints; applies those that were changed, and allowed, at a resume.

    Refused they are by the model (`checkpoint.run_settings.check_settings`), before any weight is loaded.
    """

    def __init__(self) -> None:
        self._groups: list[list[dict[str, Any]]] = []
        self._schedules: list[dict[str, Any]] = []
        self._apply = self._began = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember what the configuration asks for, before the checkpoint replaces it."""
        self._groups = [
            [{name: value for name, value in group.items() if name != 'params'} for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]
        self._schedules = [
            {name: value for name, value in config.scheduler.state_dict().items() if name not in _PROGRESS}
            for config in trainer.lr_scheduler_configs
        ]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the settings into the checkpoint."""
        if hasattr(pl_module, 'cfg'):
            checkpoint[KEY] = run_settings(pl_module)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say what was changed."""
        changed = changed_settings(pl_module, checkpoint) if KEY in checkpoint else {}
        for key, (saved, now) in changed.items():
            logger.warning('Resumed with %s=%s; the checkpoint was written with %s.', key, now, saved)
        self._apply = any(key.startswith(_APPLIED) for key in changed)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the configuration's values back into optimizer and schedule; only their progress is the checkpoint's."""
        self._began = True
        if not self._apply:
            return
        self._apply = False
        for optimizer, groups in zip(trainer.optimizers, self._groups, strict=True):
            for group, fresh in zip(optimizer.param_groups, groups, strict=True):
                base = group.get('initial_lr') or group['lr']
                rate = group['lr'] * (fresh.get('initial_lr', fresh['lr']) / base if base else 1.0)
                group.update(fresh | {'lr': rate if 'initial_lr' in fresh else fresh['lr']})
        for config, schedule in zip(trainer.lr_scheduler_configs, self._schedules, strict=True):
            config.scheduler.load_state_dict(schedule)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Where nothing was trained, `config.yaml` is that of the attempt before: a refused one used nothing."""
        state = RunState.of(trainer)
        if self._began or not trainer.is_global_zero or state is None or state.folder is None:
            return
        path = state.folder / 'config.yaml'
        if (moved := moved_away(path)) is not None:
            with tolerated(str(path)):
                write_atomically(path, moved.read_text(encoding='utf-8'))
