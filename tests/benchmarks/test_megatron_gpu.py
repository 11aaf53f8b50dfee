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
"""The benchmark of the LLM's step: rows of different lengths, and a way that fails is a line."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import megatron_cases
import megatron_gpu as bench
import pytest
import torch

pytestmark = pytest.mark.integration
CPU = torch.device('cpu')


@pytest.fixture
def alone() -> Iterator[None]:
    from nemo_vtb.backbone.megatron import runtime

    runtime.initialize(1, device=CPU)
    yield
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()


def test_rows_have_other_lengths() -> None:
    rows = [bench.make_row(512, 60, 100, CPU, seed) for seed in range(4)]
    assert len({tuple(row.lengths) for row in rows}) == 4
    for row in rows:
        assert sum(row.lengths) == 512 == len(row.ids) and row.cu_seqlens.tolist()[-1] == 512
        assert torch.equal(row.cu_seqlens.diff(), torch.tensor(row.lengths, dtype=torch.int32))


def test_a_way_that_fails_is_a_line_and_the_others_are_measured(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One kernel that does not run on a device must not cost the figures of all others."""
    ways = {'Megatron, broken': {'kernels': 'nope'}, 'Megatron, torch': {'kernels': 'torch'}}
    monkeypatch.setattr(bench, 'megatron_ways', lambda gpu: ways)
    name, (family, sizes) = next(iter(bench.SMALL.items()))
    plan = replace(bench.plan_for(quick=True), tokens=96, mean_length=20, rows=3)
    found = {row['way']: row for row in bench.measure_shape(name, family, sizes, plan, 1.0)}
    assert list(found) == [*ways, 'HF backbone', 'padded batch']
    assert found['Megatron, broken']['step_s'] is None and 'nope' in found['Megatron, broken']['error']
    measured = [row for way, row in found.items() if way != 'Megatron, broken']
    assert all(row['step_s'] > 0 and row['cold_s'] > 0 and row['tokens_per_s'] > 0 for row in measured)
    losses = [row['loss'] for row in measured]
    assert max(losses) - min(losses) < 1e-4 * losses[0]
    assert bench.report(plan, 1.0, list(found.values())) == 1  # not all that was wanted


def test_cases_of_parity_stand_where_megatron_makes_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU machine they stood on the CPU beside linears on the GPU."""
    from nemo_vtb.backbone.megatron import runtime

    monkeypatch.setattr(runtime, 'device', lambda: torch.device('meta'))
    row: dict[str, Any] = megatron_cases._row(64, 131)
    assert {name for name, value in row.items() if isinstance(value, torch.Tensor) and value.is_meta} == {
        'embeds', 'position_ids', 'labels',
    }  # fmt: skip
    assert row['cu_seqlens'].tolist() == [0, 7, 8, 23]
    assert all(prompt.is_meta for prompt in megatron_cases._prompts(64))
