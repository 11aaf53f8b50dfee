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

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from nemo.utils.trainer_utils import resolve_trainer_cfg
from omegaconf import DictConfig

from nemo_vtb.checkpoint.checkpoint_io import AtomicCheckpointIO
from nemo_vtb.errors import VtbConfigError
from nemo_vtb.model.blender import VoiceTextBlender, plain_dict
from nemo_vtb.model.pretrained import warm_start
from nemo_vtb.parallel.dims import ParallelDims
from nemo_vtb.parallel.fully_sharded import register_fully_sharded
from nemo_vtb.parallel.megatron import register_strategy
from nemo_vtb.training.interrupted import CompleteRun, clear_leftovers
from nemo_vtb.training.retention_monitor import retention_monitor_of


def build_trainer(cfg: DictConfig, callbacks: Sequence[Callback] = ()) -> Trainer:
    """Build the Lightning trainer; a global batch of `data.rows_per_batch` rows is spread over the ranks.

    `trainer.val_check_interval` counts optimizer steps here, so that validation and checkpoints fall between them.

    Raises:
        VtbConfigError: The rows of a batch cannot be shared equally among the ranks.
    """
    manager = cfg.get('exp_manager') or {}
    if manager.get('resume_if_exists') and manager.get('explicit_log_dir'):
        clear_leftovers(Path(manager['explicit_log_dir']) / 'checkpoints')
    options: dict[str, Any] = dict(resolve_trainer_cfg(cfg.trainer))
    interval = options.get('val_check_interval')
    counted = isinstance(interval, int)
    options['callbacks'] = [*(options.get('callbacks') or []), *callbacks, *retention_monitor_of(cfg), CompleteRun()]
    options['plugins'] = [*(options.get('plugins') or []), AtomicCheckpointIO()]
    options.setdefault('use_distributed_sampler', False)
    if counted:  # the data has one long epoch: validation is counted in batches, across epochs
        options['check_val_every_n_epoch'] = None
    register_strategy()
    register_fully_sharded()
    trainer = Trainer(**options)
    world = ParallelDims.of(trainer).data_size  # the ranks of one LLM see the same rows
    rows = int(cfg.data.get('rows_per_batch') or world)
    if rows % world:
        raise VtbConfigError(
            'The rows of a global batch cannot be shared equally among the ranks.',
            field='data.rows_per_batch',
            got=f'{rows} rows for {world} data-parallel ranks',
            allowed=f'a multiple of {world}',
            remedy=f'data.rows_per_batch={world * max(1, round(rows / world))}',
        )
    if cfg.data.get('rows_per_batch'):
        trainer.accumulate_grad_batches = rows // world
    if counted:
        trainer.val_check_interval = interval * trainer.accumulate_grad_batches
    return trainer


def build_model(cfg: DictConfig, trainer: Trainer | None = None) -> VoiceTextBlender:
    """Build the model of a run, from its pretrained parts; `init_from_nemo` names a warm start (`warm_start`)."""
    model = VoiceTextBlender(plain_dict(cfg.model), trainer)
    if source := cfg.get('init_from_nemo'):
        warm_start(model, source)
    # what was asked for goes where the weights go
    model.provenance['run_config'] = plain_dict(cfg)
    return model
