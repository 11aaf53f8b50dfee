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
"""FSDP2 for the Hugging Face backbone: each rank keeps a part of the frozen LLM, and gathers a layer to run it."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.strategies import StrategyRegistry
from torch import Tensor

from nemo_vtb.backbone.sharded import ShardedHFBackbone
from nemo_vtb.parallel.base import ReducingStrategy


class FullyShardedStrategy(ReducingStrategy):
    """Data parallel, with the decoder layers of the frozen LLM spread over all ranks (FSDP2).

    What is trained (LoRA, adapter, encoder) stays whole on each rank, as under DDP, and so do the token embedding and
    the head: how often they run differs from rank to rank, and a rank that gathers alone would wait forever.

    Args:
        shard_optimizer: Each rank keeps its part of the optimizer's moments (ZeRO-1).
        sharded_checkpoint: Checkpoints are folders that all ranks write at once, in the background.
        process_group_backend: None: gloo on CPU, NCCL on GPU.
        timeout: Of a collective.
    """

    strategy_name = 'fully_sharded'
    backbone_class = ShardedHFBackbone

    def __init__(
        self,
        shard_optimizer: bool = False,
        sharded_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(1, shard_optimizer, sharded_checkpoint, process_group_backend, timeout)

    def setup_environment(self) -> None:
        """All ranks are data parallel."""
        self._data_parallel_size = self.world_size
        super().setup_environment()

    @property
    def backbone_options(self) -> dict[str, Any]:
        """The ranks over which the LLM is spread."""
        return {'mesh': self.device_mesh['data_parallel']}

    def _tensors_that_begin_equal(self) -> Iterable[Tensor]:
        # LoRA is whole here, and may have been drawn by each rank for itself
        lora = self.lightning_module.backbone.trainable_parameters().values()
        return [*super()._tensors_that_begin_equal(), *lora]


def register_fully_sharded() -> None:
    """Make `trainer.strategy=fully_sharded` a name of `FullyShardedStrategy`."""
    if 'fully_sharded' not in StrategyRegistry:
        StrategyRegistry.register('fully_sharded', FullyShardedStrategy, description='FSDP2 of the frozen LLM')
