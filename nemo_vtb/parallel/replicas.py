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
"""Whether the replicas of a model are still one: a digest of what is trained, compared over the ranks."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nemo_vtb.errors import VtbModelError
from nemo_vtb.parallel.dims import ParallelDims, is_distributed

EVERY_STEPS = 1000
"""Optimizer steps between two checks after the first one: a digest reads each trained tensor once."""

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_replicas(module: nn.Module, dims: ParallelDims, step: int) -> None:
    """Compare what the data-parallel ranks train, to the bit; all ranks call it together.

    Args:
        module: Its parameters with `requires_grad` are looked at, for shards each rank's own part.
        dims: Who is who among the ranks.
        step: Optimizer steps made so far, for the message.

    Raises:
        VtbModelError: On all ranks, if one holds other weights than the first rank with the same part of the LLM.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if dims.data_size == 1 or not is_distributed() or not trained:
        return
    mine = digests(trained.values())  # (P,)
    all_ranks = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(all_ranks, mine)
    for rank, theirs in enumerate(all_ranks):
        differ = (theirs != all_ranks[rank % dims.tensor_size]).cpu()
        if differ.any():
            names = [name for name, apart in zip(trained, differ.tolist(), strict=True) if apart]
            raise VtbModelError(
                f'After step {step} the ranks train different models: their gradients are not reduced.',
                field='trainer.strategy',
                got=f'{len(names)} of {len(trained)} trained tensors of rank {rank} differ, as {names[0]}',
                allowed='the same weights on all data-parallel ranks',
                remedy='trainer.strategy=ddp or fully_sharded; or a strategy, callback or hook of your own changes '
                'weights or gradients on one rank alone',
            )


@torch.no_grad()
def digests(tensors: Iterable[Tensor]) -> Tensor:
    """Sum of the words of each tensor: (P,) int64 on the device where they are; equal for equal bits."""
    sums = [t.detach().view(_WORDS[t.element_size()]).sum(dtype=torch.int64) for t in tensors]
    return torch.stack(sums)
