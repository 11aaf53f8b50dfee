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
"""Which strategies train one model: those known to reduce our gradients. Others are translated into one, or refused.

NeMo's model wraps itself (FSDP2, tensor parallel) inside `configure_model` when it finds a device mesh; ours is cut
by the strategies of this package. Under one that leaves the reduction to the model, each rank would train alone.
"""

import logging
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
    StrategyRegistry,
    XLAStrategy,
)
from lightning.pytorch.strategies.single_xla import SingleDeviceXLAStrategy

from nemo_vtb.errors import VtbConfigError
from nemo_vtb.parallel.strategies import FullyShardedStrategy, MegatronStrategy, ReducingStrategy

logger = logging.getLogger(__name__)

FIELD = 'trainer.strategy'
ALLOWED = 'auto, ddp (and its variants), fully_sharded, megatron'
_ACCEPTED = (SingleDeviceStrategy, DDPStrategy, ReducingStrategy)
_REFUSED = (DeepSpeedStrategy, XLAStrategy, SingleDeviceXLAStrategy)
_SHARD = 'trainer.strategy=fully_sharded (FSDP2 of the frozen LLM; shard_optimizer: true adds ZeRO-1)'
_REMEDIES = {
    'DeepSpeedStrategy': _SHARD,
    'FSDPStrategy': _SHARD,
    'XLAStrategy': 'TPUs are not supported: train on GPUs or CPUs',
    'SingleDeviceXLAStrategy': 'TPUs are not supported: train on GPUs or CPUs',
}
_NO_AXIS = {
    '_pp_size': 'pp_size',
    '_cp_size': 'cp_size',
    '_ep_size': 'ep_size',
    '_dp_replicate_size': 'dp_replicate_size',
}
"""What NeMo's `AutomodelParallelStrategy` can cut and none of ours can."""


def accepted_strategy(strategy: str | Strategy | None) -> Any:
    """The strategy to give to Lightning's Trainer for the one that a configuration names.

    Lightning's `ModelParallelStrategy` and NeMo's `AutomodelParallelStrategy` become what they mean: a tensor-parallel
    size of 1 is `fully_sharded`, more is `megatron`. The log says so.

    Raises:
        VtbConfigError: The strategy is not known to reduce our gradients.
    """
    kind = StrategyRegistry[strategy]['strategy'] if strategy in StrategyRegistry else type(strategy)
    if isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, ReducingStrategy):
        return _translated(strategy)
    if isinstance(kind, type) and issubclass(kind, Strategy):
        _check_class(kind)
    return strategy


def check_strategy(trainer: Trainer | None) -> None:
    """Refuse a trainer whose strategy would train the ranks apart, also one that `build_trainer` has not made.

    Raises:
        VtbConfigError: The strategy is not known to reduce our gradients, or its sizes do not fit the ranks.
    """
    strategy = getattr(trainer, 'strategy', None)
    if strategy is None:
        return
    _check_class(type(strategy))
    data = getattr(strategy, '_data_parallel_size', 'auto')
    if (
        isinstance(strategy, ReducingStrategy)
        and data != 'auto'
        and data * strategy.tensor_parallel != strategy.world_size
    ):
        raise VtbConfigError(
            'The ranks are not what the sizes of the strategy multiply to.',
            field='trainer.strategy.data_parallel_size',
            got=f'{data} x {strategy.tensor_parallel} (tensor parallel) for {strategy.world_size} ranks',
            allowed=strategy.world_size // strategy.tensor_parallel,
            remedy='leave data_parallel_size out: it follows from trainer.devices and trainer.num_nodes',
        )


def _check_class(kind: type) -> None:
    if issubclass(kind, _ACCEPTED) and not issubclass(kind, _REFUSED):
        return
    known = next((_REMEDIES[base.__name__] for base in kind.__mro__ if base.__name__ in _REMEDIES), None)
    if issubclass(kind, ModelParallelStrategy):
        known = 'make the trainer by nemo_vtb.build_trainer, which translates it; or trainer.strategy=fully_sharded'
    raise VtbConfigError(
        'Under this strategy nobody reduces the gradients: each rank would train a model of its own.',
        field=FIELD,
        got=kind.__name__,
        allowed=ALLOWED,
        remedy=known or 'trainer.strategy=ddp, or a subclass of DDPStrategy or ReducingStrategy',
    )


def _translated(strategy: ModelParallelStrategy) -> ReducingStrategy:
    """What the sizes of a model-parallel strategy mean here."""
    for attribute, name in _NO_AXIS.items():
        if (getattr(strategy, attribute, None) or 1) > 1:
            raise VtbConfigError(
                'No backbone cuts the model along this axis.',
                field=f'{FIELD}.{name}',
                got=getattr(strategy, attribute),
                allowed=1,
                remedy='1, and tp_size for ranks that hold one LLM together; see docs/megatron.md',
            )
    tensor: Any = getattr(strategy, '_tp_size', None) or strategy._tensor_parallel_size
    data: Any = strategy._data_parallel_size
    if hasattr(strategy, '_dp_size'):  # NeMo's; null is what is left over
        data = strategy._dp_size or 'auto'
    ours = FullyShardedStrategy if tensor == 1 else MegatronStrategy
    options = {} if tensor == 1 else {'tensor_parallel': tensor}
    made = ours(process_group_backend=strategy._process_group_backend, timeout=strategy._timeout, **options)
    made._data_parallel_size = data  # compared with the ranks by `check_strategy`
    logger.warning(
        '%s means here: trainer.strategy=%s%s; checkpoints are single files (sharded_checkpoint: true for folders)',
        type(strategy).__name__,
        made.strategy_name,
        f' with tensor_parallel={tensor}' if options else ' (FSDP2 of the frozen LLM)',
    )
    return made
