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
"""Who is who among the ranks: data and tensor parallelism, who writes files, what is added up or gathered."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ParallelDims:
    """Place of this process in the mesh of data x tensor parallelism; ranks of one LLM are neighbours.

    Args:
        data_rank: Which rows this rank sees; the same for all ranks of one LLM.
        data_size: Ranks that see different rows.
        tensor_rank: Which part of the LLM this rank holds.
        tensor_size: Ranks that hold one LLM together.
    """

    data_rank: int = 0
    data_size: int = 1
    tensor_rank: int = 0
    tensor_size: int = 1

    @classmethod
    def of(cls, trainer: Trainer | None) -> 'ParallelDims':
        """Read the place of this process from a trainer, also before its process groups exist; None is one process.

        Raises:
            VtbConfigError: The ranks are not a multiple of those that hold one LLM.
        """
        if trainer is None:
            return cls()
        tensor = int(getattr(trainer.strategy, 'tensor_parallel', 1))
        data_rank, tensor_rank = divmod(trainer.global_rank, tensor)
        return cls(data_rank, trainer.world_size // tensor, tensor_rank, tensor)

    @property
    def world_size(self) -> int:
        """Number of all ranks."""
        return self.data_size * self.tensor_size

    @property
    def is_writer(self) -> bool:
        """Whether this process writes the files of a run."""
        return self.data_rank == 0 and self.tensor_rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Add up values of all data-parallel ranks; each row counts once, however many ranks hold its LLM.

        Args:
            values: Any shape, on any device.

        Returns:
            The sums on the device and in the type of `values`; `values` itself where there is one process.
        """
        if not is_distributed():
            return values
        # NCCL adds up what is on the GPU
        total = values.cuda() if dist.get_backend() == 'nccl' else values.clone()
        dist.all_reduce(total)
        return (total / self.tensor_size if self.tensor_size > 1 else total).to(values)

    def gather_objects(self, value: Any) -> list[Any]:
        """Values of all ranks in the order of the ranks; [value] where there is one process."""
        if not is_distributed():
            return [value]
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, value)
        return gathered

    @torch.no_grad()
    def take_from_first(self, tensors: Iterable[Tensor], device: torch.device | None = None) -> None:
        """Overwrite tensors by those of rank 0, as DDP does: copies of one model must begin equal, seeds or not.

        Args:
            tensors: The same number, shapes and types on all ranks.
            device: Where the backend can broadcast; None is where each tensor is.
        """
        for tensor in tensors if is_distributed() else ():
            value = tensor.detach().to(device or tensor.device)
            dist.broadcast(value, 0)
            tensor.copy_(value)


def is_distributed() -> bool:
    """Whether there is a process group."""
    return dist.is_available() and dist.is_initialized()
