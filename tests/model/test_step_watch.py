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
"""What a global batch leaves behind: targets, norm, and which conversation had a loss that is not finite."""

import math

import pytest
import torch

from nemo_vtb.constants import IGNORE_INDEX
from nemo_vtb.data.collate import PackedRow, pack_row
from nemo_vtb.model.step_watch import StepWatch
from nemo_vtb.parallel.dims import ParallelDims

CPU = torch.device('cpu')


def packed(*lengths: int, targets: int = 2) -> PackedRow:
    """Conversations whose last positions are supervised."""
    row = pack_row([])
    row.ids = [f'c{n}' for n in range(len(lengths))]
    row.cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    row.labels = torch.full((sum(lengths),), IGNORE_INDEX)
    for end in row.cu_seqlens[1:].tolist():
        row.labels[end - targets : end] = 1
    return row


def parameter(*gradient: float, dtype: torch.dtype = torch.float32) -> torch.nn.Parameter:
    value = torch.nn.Parameter(torch.zeros(len(gradient), dtype=dtype))
    value.grad = torch.tensor(gradient, dtype=dtype)
    return value


@pytest.mark.parametrize(('target', 'conversation'), [(0, 0), (1, 0), (2, 1), (5, 2)])
def test_the_conversation_of_a_loss(target: int, conversation: int) -> None:
    watch, nll = StepWatch(), torch.ones(6)
    nll[target] = math.nan
    watch.add_row(packed(2, 5, 3), nll, 6.0, float(nll.mean()))
    watch.add_gradient([parameter(1.0)])
    outcome = watch.close(ParallelDims(), [parameter(1.0)], [], CPU, 1.0)
    assert not outcome.is_finite and outcome.bad_losses == 1
    assert outcome.rows[0].bad_losses == (conversation,)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32, torch.float64])
def test_norm_and_targets_of_a_sound_step(dtype: torch.dtype) -> None:
    watch = StepWatch()
    for _ in range(2):
        watch.add_row(packed(4, 4), torch.ones(4), 4.0, 1.0)
        watch.add_gradient([parameter(3.0, dtype=dtype)])
    trained = [parameter(3.0, 0.0, dtype=dtype), parameter(4.0, dtype=dtype)]
    outcome = watch.close(ParallelDims(), trained, [torch.ones(3, dtype=dtype)], CPU, 16.0)
    assert outcome.is_finite and outcome.targets == 8.0 and outcome.norm == pytest.approx(10.0)
    assert watch.close(ParallelDims(), [parameter(3.0)], [], CPU, 1.0).targets == 0.0, 'it begins anew'


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize('where', ['gradient', 'statistics'])
def test_one_value_is_enough(value: float, where: str) -> None:
    """The greatest finite numbers count, too: their squares would overflow the moments of Adam."""
    watch = StepWatch()
    watch.add_row(packed(4), torch.ones(2), 2.0, 1.0)
    watch.add_gradient([parameter(1.0)])
    statistics = [torch.tensor([0.0, value])] if where == 'statistics' else []
    gradient = parameter(0.0, value if where == 'gradient' else 0.0)
    assert not watch.close(ParallelDims(), [gradient], statistics, CPU, 1.0).is_finite


def test_the_first_row_behind_which_a_gradient_is_not_finite() -> None:
    watch = StepWatch()
    for value in (1.0, math.inf, math.inf):
        watch.add_row(packed(4), torch.ones(2), 2.0, 1.0)
        watch.add_gradient([parameter(value)])
    outcome = watch.close(ParallelDims(), [parameter(math.inf)], [], CPU, 1.0)
    assert [row.bad_gradient for row in outcome.rows] == [False, True, False]
