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
"""What SALM's YAML says elsewhere than ours, or in another unit: found, converted, and said in the log.

SALM has no `seed`, `name` or `gate` at the top, draws batches by number, duration or tokens, and counts batches where
the steps of a run are counted here.
"""

import logging
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nemo_vtb.errors import VtbConfigError

logger = logging.getLogger(__name__)

DEFAULT_NAME = 'salm'
_OWN = ('max_tokens', 'budget', 'rows_per_batch', 'unit', 'pool_size')
"""Keys of `data` that only a configuration of ours has."""


def complete_config(cfg: DictConfig) -> DictConfig:
    """Fill in what a SALM configuration has elsewhere, and convert its units; the log names each conversion.

    Args:
        cfg: A composed configuration, SALM's or ours; changed in place.

    Returns:
        The same configuration; one of ours comes back as it was.

    Raises:
        VtbConfigError: A unit cannot be converted.
    """
    OmegaConf.set_struct(cfg, False)
    train = _select(cfg, 'data.train_ds') or {}
    if cfg.get('seed') is None:
        seed = _select(cfg, 'data.train_ds.seed')
        cfg.seed = seed if isinstance(seed, int) and not isinstance(seed, bool) else 42
    if cfg.get('name') is None:
        cfg.name = _select(cfg, 'exp_manager.name') or DEFAULT_NAME
    if 'exp_manager' not in cfg or cfg.exp_manager is None:
        cfg.exp_manager = {'explicit_log_dir': f'runs/{cfg.name}', 'name': cfg.name}
        cfg.exp_manager.create_tensorboard_logger = False
        for key in ('logger', 'enable_checkpointing'):
            if 'trainer' in cfg and cfg.trainer.get(key) is None:
                cfg.trainer[key] = False  # exp_manager makes them
    said = [*_precision(cfg), *_epochs(cfg)]
    data = cfg.get('data')
    if isinstance(data, DictConfig) and not any(key in data for key in _OWN):
        said += [*_row_length(cfg, train), *_intervals(cfg)]
    if said:
        logger.warning('Converted:\n%s', '\n'.join(f'  {line}' for line in said))
    return cfg


def _precision(cfg: DictConfig) -> list[str]:
    """NeMo's own name, of SALMAutomodel, for parameters in half precision that a package of its own optimizes."""
    if _select(cfg, 'trainer.precision') != 'bf16-automodel':
        return []
    cfg.trainer.precision = 'bf16-true'
    return ['trainer.precision=bf16-automodel -> bf16-true']


def _epochs(cfg: DictConfig) -> list[str]:
    """A run is so many optimizer steps long: an epoch is `trainer.limit_train_batches` rows of each rank."""
    epochs, limit = _select(cfg, 'trainer.max_epochs'), _select(cfg, 'trainer.limit_train_batches')
    steps = _select(cfg, 'trainer.max_steps') if 'max_steps' in (cfg.get('trainer') or {}) else None
    if not isinstance(epochs, int) or epochs < 1 or (isinstance(steps, int) and steps > 0):
        return []
    rows = _rows_per_rank(cfg)
    if not isinstance(limit, int) or isinstance(limit, bool) or rows is None or limit % rows:
        raise VtbConfigError(
            'An epoch has no end here, since sources are drawn by their shares: the length of a run is its steps.',
            field='trainer.max_epochs',
            got=epochs,
            allowed='trainer.max_steps; or max_epochs with limit_train_batches, the rows of each rank in an epoch, '
            f'a multiple of the {rows or "accumulated"} rows of a step',
            remedy='trainer.max_steps=STEPS; `vtb data index CONFIG` shows the tokens of one pass over the data, '
            'and a step takes data.max_tokens x data.rows_per_batch of them',
        )
    cfg.trainer.max_steps = epochs * limit // rows
    del cfg.trainer.max_epochs
    return [f'trainer.max_epochs={epochs} x limit_train_batches={limit} -> trainer.max_steps={cfg.trainer.max_steps}']


def _rows_per_rank(cfg: DictConfig) -> int | None:
    """Rows of a rank for one optimizer step; None where only Lightning will know."""
    total = _select(cfg, 'data.rows_per_batch')
    if total is None:
        return int(cfg.trainer.get('accumulate_grad_batches') or 1)
    devices, nodes = cfg.trainer.get('devices'), cfg.trainer.get('num_nodes') or 1
    return max(1, total // (devices * nodes)) if isinstance(devices, int) and devices > 0 else None


def _row_length(cfg: DictConfig, train: Mapping[str, Any]) -> list[str]:
    """One batch of one rank becomes one packed row that holds as much."""
    frame_s = float(train.get('token_equivalent_duration') or 0.08)
    tokens, seconds, number = (train.get(key) for key in ('batch_tokens', 'batch_duration', 'batch_size'))
    if tokens:
        cfg.data.max_tokens = int(tokens)
        return [f'data.train_ds.batch_tokens={tokens} -> data.max_tokens={tokens}: a packed row holds that many']
    if seconds:
        cfg.data.max_tokens = rows = max(1, round(float(seconds) / frame_s))
        return [
            f'data.train_ds.batch_duration={seconds} s -> data.max_tokens={rows}: as many frames of {frame_s} s; '
            'text tokens count too'
        ]
    if number:
        return [
            f'data.train_ds.batch_size={number}: a batch is one packed row of data.max_tokens=4096 tokens for each '
            'rank, with as many conversations as fit; set data.max_tokens for smaller ones'
        ]
    return []


def _intervals(cfg: DictConfig) -> list[str]:
    """Lightning counts a rank's batches between validations; `build_trainer` counts optimizer steps."""
    trainer = cfg.get('trainer')
    if trainer is None:
        return []
    accumulate, interval = trainer.get('accumulate_grad_batches') or 1, _select(cfg, 'trainer.val_check_interval')
    said = []
    if isinstance(interval, int) and not isinstance(interval, bool) and accumulate > 1:
        if interval % accumulate:
            raise VtbConfigError(
                'A validation would fall inside an optimizer step.',
                field='trainer.val_check_interval',
                got=f'{interval} batches, of which {accumulate} make a step',
                allowed=f'a multiple of {accumulate}',
                remedy=f'trainer.val_check_interval={max(1, interval // accumulate) * accumulate}',
            )
        trainer.val_check_interval = interval // accumulate
        said.append(f'trainer.val_check_interval={interval} batches -> {interval // accumulate} optimizer steps')
    limit = _select(cfg, 'trainer.limit_val_batches')
    if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
        said.append(f'trainer.limit_val_batches={limit}: packed rows of each rank and set, not single conversations')
    return said


def _select(cfg: DictConfig, path: str) -> Any:
    return OmegaConf.select(cfg, path, throw_on_missing=False, throw_on_resolution_failure=False)
