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
"""From a composed configuration to a trainer and a model: the two constructions that scripts share."""

import math
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, Trainer, seed_everything
from nemo.utils.trainer_utils import resolve_trainer_cfg
from omegaconf import DictConfig

from nemo_vtb.backbone.precision import resolve_precision
from nemo_vtb.checkpoint.checkpoint_io import AtomicCheckpointIO
from nemo_vtb.checkpoint.foreign_config import check_own_targets
from nemo_vtb.config.schema import TrainerKeys
from nemo_vtb.data.datamodule import VtbDataModule
from nemo_vtb.data.sampler import BatchPlan
from nemo_vtb.model.blender import VoiceTextBlender, plain_dict
from nemo_vtb.model.pretrained import warm_start
from nemo_vtb.parallel.accepted import accepted_strategy, check_strategy
from nemo_vtb.parallel.dims import ParallelDims
from nemo_vtb.parallel.strategies import register_strategies
from nemo_vtb.training.changed_settings import ChangedSettings
from nemo_vtb.training.interrupted import CompleteRun, clean_interrupted
from nemo_vtb.training.launch import launch_trainer
from nemo_vtb.training.progress_bar import ProgressLine
from nemo_vtb.training.retention_monitor import retention_monitor_of
from nemo_vtb.training.run_folder import checkpoint_folder, folder_of, open_run
from nemo_vtb.training.run_lock import hold_run_folder
from nemo_vtb.training.run_state import RunState
from nemo_vtb.training.stop_signals import StopSignals
from nemo_vtb.training.watchdog import Watchdog


def build_trainer(cfg: DictConfig, callbacks: Sequence[Callback] = ()) -> Trainer:
    """Build the Lightning trainer; a global batch of `data.rows_per_batch` rows is spread over the ranks.

    `trainer.val_check_interval` counts optimizer steps here, so that validation and checkpoints fall between them.

    Raises:
        VtbConfigError: The rows of a batch cannot be shared equally among the ranks, strategy or launcher would train
            each rank by itself, the devices are not there, or another job works in the run folder.
        VtbCheckpointError: The run is to be resumed, and each of its checkpoints is damaged.
    """
    check_own_targets(cfg, '')
    options: dict[str, Any] = dict(resolve_trainer_cfg(cfg.trainer))
    if (precision := options.get('precision')) == 'auto':
        options['precision'] = resolve_precision(precision, str(options.get('accelerator', 'auto')))
    interval = options.get('val_check_interval')
    limit_s = options.pop('watchdog_s', TrainerKeys.watchdog_s)
    given = [*(options.get('callbacks') or []), *callbacks]
    state = [] if any(isinstance(callback, RunState) for callback in given) else [RunState()]
    watch = [] if limit_s is None else [Watchdog(limit_s)]
    # the state before anything that saves, and what ends a run behind what writes down its last step
    options['callbacks'] = [
        *state,
        ChangedSettings(),
        *given,
        *retention_monitor_of(cfg),
        CompleteRun(),
        *watch,
        StopSignals(),
    ]
    options['plugins'] = [*(options.get('plugins') or []), AtomicCheckpointIO(tolerant=True)]
    options.setdefault('use_distributed_sampler', False)
    if any(isinstance(callback, ProgressLine) for callback in given):  # two would overwrite one another
        options['enable_progress_bar'] = bool(options.get('enable_progress_bar', False))
    if isinstance(interval, int):  # the data has one long epoch: validation is counted in batches, across epochs
        options.setdefault('check_val_every_n_epoch', None)
    register_strategies()
    options['strategy'] = accepted_strategy(options.get('strategy', 'auto'))
    trainer = launch_trainer(options)
    check_strategy(trainer)
    _take_folder(cfg)
    batch = BatchPlan.of(trainer, cfg.data.get('rows_per_batch'), ParallelDims.of(trainer).data_size)
    if trainer.fast_dev_run:
        trainer.limit_train_batches = trainer.fast_dev_run * batch.rows_per_rank  # whole steps
        return trainer
    if trainer.overfit_batches and isinstance(trainer.limit_train_batches, int):
        steps = math.ceil(trainer.limit_train_batches / batch.rows_per_rank)
        trainer.limit_train_batches = steps * batch.rows_per_rank
    if isinstance(interval, int):
        trainer.val_check_interval = interval * batch.rows_per_rank
    return trainer


def _take_folder(cfg: DictConfig) -> None:
    """Hold the folder of the run, behind the checks: a rank that nobody expects would wait for the first one."""
    manager = cfg.get('exp_manager') or {}
    if (folder := folder_of(manager)) is not None and not cfg.trainer.get('fast_dev_run'):
        hold_run_folder(folder)
        if (checkpoints := checkpoint_folder(manager)) is not None:
            clean_interrupted(checkpoints)


def build_model(cfg: DictConfig, trainer: Trainer | None = None) -> VoiceTextBlender:
    """Build the model of a run, from its pretrained parts; `init_from_nemo` names a warm start (`warm_start`)."""
    model = VoiceTextBlender(plain_dict(cfg.model), trainer)
    if source := cfg.get('init_from_nemo'):
        warm_start(model, source)
    # the configuration goes where the weights go
    model.provenance['run_config'] = plain_dict(cfg)
    return model


def train(cfg: DictConfig, callbacks: Sequence[Callback] = ()) -> Trainer:
    """Build all of a checked configuration and train; returns the trainer, `run_folder` of which has the files.

    Raises:
        VtbError: Of the configuration, the data, the model or the checkpoint to go on from.
    """
    seed_everything(cfg.seed, workers=True, verbose=False)
    trainer = build_trainer(cfg, callbacks)
    open_run(cfg, trainer)
    model = build_model(cfg, trainer)
    trainer.fit(model, VtbDataModule(cfg.data, model.renderer, model.frames))
    return trainer
