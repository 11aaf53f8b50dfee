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
"""Lightning strategy of the Megatron backbone: tensor x data parallelism, gradients reduced without a wrapper.

Letters in mesh names are Lightning's: `data_parallel`, `tensor_parallel`. Ranks of one LLM are neighbours.
"""

import importlib.util
import logging
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import StrategyRegistry
from torch import nn

from nemo_vtb.backbone.base import Backbone
from nemo_vtb.errors import VtbConfigError, VtbDataError, VtbModelError
from nemo_vtb.parallel.base import ReducingStrategy
from nemo_vtb.parallel.rng_state import follow

logger = logging.getLogger(__name__)


class MegatronStrategy(ReducingStrategy):
    """`tensor_parallel` neighbouring ranks hold one LLM; the others hold copies and see other rows.

    Encoder and adapter are whole on each rank. There is no wrapper around the model: after the last micro-batch of a
    step, gradients are summed or averaged over the ranks as each parameter needs it. Checkpoints hold what the Hugging
    Face backbone would have written, so that any backbone on any number of ranks goes on from them.

    Args:
        tensor_parallel: Ranks that hold one LLM; 'auto' takes all of a node.
        sequence_parallel: Split the activations between the layers over these ranks as well.
        spread_audio: Each of them encodes its part of a row's clips, instead of all of them all clips.
        recompute: Activations that the backward pass makes again: None, 'selective' (attention) or 'full' (layers).
        kernels: 'auto' takes the fastest that are there; or 'te', 'liger', 'torch'.
        fusions: 'auto' takes what the device has; or a list of 'activation', 'rope' and 'cross_entropy'.
        fp8: Format of FP8 matrix products, 'hybrid' or 'e4m3', with Transformer Engine alone; None for none.
        shard_optimizer: Each data-parallel rank keeps its part of the optimizer's moments (ZeRO-1).
        sharded_checkpoint: Checkpoints are folders that all ranks write at once, in the background.
        process_group_backend: None: gloo on CPU, NCCL on GPU.
        timeout: Of a collective.
    """

    strategy_name = 'megatron'

    def __init__(
        self,
        tensor_parallel: int | Literal['auto'] = 1,
        sequence_parallel: bool = False,
        spread_audio: bool = True,
        recompute: Literal['selective', 'full'] | None = None,
        kernels: str = 'auto',
        fusions: str | Sequence[str] = 'auto',
        fp8: Literal['hybrid', 'e4m3'] | None = None,
        shard_optimizer: bool = False,
        sharded_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(tensor_parallel, shard_optimizer, sharded_checkpoint, process_group_backend, timeout)
        self.sequence_parallel, self.spread_audio, self.recompute = sequence_parallel, spread_audio, recompute
        self.kernels, self.fusions, self.fp8 = kernels, fusions, fp8
        if recompute not in (None, 'selective', 'full'):
            raise VtbConfigError(
                'There is no such way to recompute activations.',
                field='trainer.strategy.recompute',
                got=recompute,
                allowed="null, 'selective' or 'full'",
                remedy='selective: attention scores, nearly free; full: whole layers, a third more time, least memory',
            )

    # ---- ranks

    @property
    def tensor_parallel(self) -> int:
        """Ranks that hold one LLM.

        Raises:
            VtbConfigError: The ranks are not a multiple of it.
        """
        size = self.num_processes if self._tensor_parallel_size == 'auto' else int(self._tensor_parallel_size)
        if size < 1 or self.world_size % size:
            raise VtbConfigError(
                'The ranks cannot be shared equally among copies of the LLM.',
                field='trainer.strategy.tensor_parallel',
                got=f'{size} for {self.world_size} ranks',
                allowed=f'a divisor of {self.world_size}',
                remedy=f'trainer.devices={max(1, size)}, or another tensor_parallel',
            )
        return size

    @property
    def backbone_class(self) -> type[Backbone]:  # type: ignore[override]
        """Imported when it is asked for, since it needs megatron-core.

        Raises:
            VtbModelError: megatron-core is not installed.
        """
        if importlib.util.find_spec('megatron') is None or importlib.util.find_spec('megatron.core') is None:
            raise VtbModelError(
                'The Megatron backbone needs megatron-core.',
                field='trainer.strategy',
                got='not installed',
                remedy="pip install -e '.[megatron]'",
            )
        from nemo_vtb.backbone.megatron.model import MegatronBackbone

        return MegatronBackbone

    @property
    def backbone_options(self) -> dict[str, Any]:
        """Groups, kernels, and fields of megatron's `TransformerConfig`."""
        shares_clips = self.spread_audio and self.tensor_parallel > 1
        return {
            'clip_group': self.tensor_group if shares_clips else None,
            'sequence_parallel': self.sequence_parallel,
            **self.decoder_options,
        }

    @property
    def decoder_options(self) -> dict[str, Any]:
        """What `MegatronBackbone` is told beyond the LLM: kernels, and fields of megatron's `TransformerConfig`."""
        options: dict[str, Any] = {'kernels': self.kernels, 'fusions': self.fusions, 'fp8': self.fp8}
        if self.recompute is not None:
            options['recompute_granularity'] = self.recompute
        if self.recompute == 'full':
            options |= {'recompute_method': 'uniform', 'recompute_num_layers': 1}
        return options

    def setup_environment(self) -> None:
        """Make the process groups, Lightning's and Megatron's, which must be the same."""
        self._tensor_parallel_size = self.tensor_parallel
        self._data_parallel_size = self.world_size // self._tensor_parallel_size
        super().setup_environment()
        from nemo_vtb.backbone.megatron import runtime

        # those of rank 0, since without a common seed the ranks of one LLM would drop out differently
        self._seed, drawn = self.broadcast((torch.initial_seed() % 2**31, torch.get_rng_state()))
        runtime.initialize(self._tensor_parallel_size, seed=self._seed)
        torch.set_rng_state(drawn)  # the same numbers follow as on any other strategy
        follow(runtime.generator_states, runtime.set_generator_states)

    def setup(self, trainer: Trainer) -> None:
        """Begin equal, then draw for other rows other numbers."""
        super().setup(trainer)
        if copy := dist.get_rank(self.data_group):
            from nemo_vtb.backbone.megatron.runtime import seed_everything

            seed_everything(self._seed + 7919 * copy)  # other rows, other dropout

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Move a row to the device.

        Raises:
            VtbDataError: The ranks of one LLM hold different rows, since one of them could not load all of it.
        """
        batch = super().batch_to_device(batch, device, dataloader_idx)
        if self.tensor_parallel > 1 and hasattr(batch, 'audio_positions'):
            ids, positions = batch.input_ids, batch.audio_positions
            mine = torch.stack([ids.sum(), torch.tensor(ids.numel()).to(ids), positions.sum()])  # (3,)
            highest = torch.cat([mine, -mine])
            dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=self.tensor_group)
            if not torch.equal(highest[:3], -highest[3:]):
                raise VtbDataError(
                    'The ranks that hold one LLM read different rows.',
                    field='row',
                    got=f'{batch.ids[:3]}, skipped here: {batch.faults or "nothing"}',
                    allowed='the same conversations on all of them',
                    remedy='a file could be read on some ranks only: check the storage, then start again',
                )
        return batch

    def _spread_parameters(self) -> Iterable[nn.Parameter]:
        if self.tensor_parallel == 1 or not self.spread_audio:
            return ()
        return self.lightning_module.perception.parameters()


def register_strategy() -> None:
    """Make `trainer.strategy=megatron` mean one LLM on all GPUs of a node."""
    if 'megatron' not in StrategyRegistry:
        StrategyRegistry.register(
            'megatron', MegatronStrategy, description='Megatron tensor parallelism', tensor_parallel='auto'
        )
