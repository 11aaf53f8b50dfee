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
"""Tests of `nemo_vtb.parallel.dims`."""

from types import SimpleNamespace

import pytest
import torch

from nemo_vtb.parallel.dims import ParallelDims


def trainer(rank: int, world: int, **strategy: int) -> SimpleNamespace:
    return SimpleNamespace(global_rank=rank, world_size=world, strategy=SimpleNamespace(**strategy))


def test_no_trainer_is_one_process() -> None:
    dims = ParallelDims.of(None)
    assert (dims.data_rank, dims.data_size, dims.tensor_rank, dims.tensor_size) == (0, 1, 0, 1)
    assert dims.is_writer and dims.world_size == 1


@pytest.mark.parametrize(
    'rank, place', [(0, (0, 0, True)), (1, (0, 1, False)), (2, (1, 0, False)), (5, (2, 1, False))]
)
def test_ranks_of_one_llm_are_neighbours(rank: int, place: tuple[int, int, bool]) -> None:
    dims = ParallelDims.of(trainer(rank, 6, tensor_parallel=2))
    assert (dims.data_rank, dims.tensor_rank, dims.is_writer) == place
    assert (dims.data_size, dims.tensor_size, dims.world_size) == (3, 2, 6)


def test_a_strategy_without_tensor_parallelism_is_data_parallel() -> None:
    dims = ParallelDims.of(trainer(3, 4))
    assert (dims.data_rank, dims.data_size, dims.tensor_size) == (3, 4, 1)


def test_one_process_adds_and_gathers_its_own() -> None:
    values = torch.tensor([1.0, 2.0])
    assert ParallelDims().sum(values) is values
    assert ParallelDims().gather_objects('a') == ['a']
