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
"""Who made a step not finite, as closely as it can be told; and gradients far larger than usual."""

import logging
import math

import pytest

from nemo_vtb.errors import VtbNumericsError
from nemo_vtb.model.step_watch import RowEvidence, StepOutcome
from nemo_vtb.parallel.dims import ParallelDims
from nemo_vtb.training.step_guard import SeenRow, StepGuard, find_suspects

SOUND, TURNED = RowEvidence((), False), RowEvidence((), True)


def row(index: int, count: int = 2) -> SeenRow:
    return SeenRow(index, tuple(range(count)), tuple(f'{index}.{n}' for n in range(count)))


def outcome(norm: float = 1.0, *rows: RowEvidence) -> StepOutcome:
    return StepOutcome(10.0, norm, math.isfinite(norm), 0, False, rows or (SOUND,))


@pytest.mark.parametrize(
    ('first', 'second', 'expected'),
    [
        # a loss tells the conversation, whatever gradients say
        ([SOUND, RowEvidence((1,), True)], [SOUND, TURNED], {'1.1'}),
        ([RowEvidence((0, 1), True), SOUND], [SOUND, RowEvidence((1,), True)], {'0.0', '0.1', '3.1'}),
        # a gradient that only one rank has tells the row
        ([SOUND, SOUND], [TURNED, SOUND], {'2.0', '2.1'}),
        # that of an earlier row is not yet reduced, but the last row of the other rank is: nobody else is told apart
        ([SOUND, TURNED], [SOUND, TURNED], {'0.0', '0.1', '1.0', '1.1', '2.0', '2.1', '3.0', '3.1'}),
        # nobody has anything: an overflow of the sum over ranks
        ([SOUND, SOUND], [SOUND, SOUND], {'0.0', '0.1', '1.0', '1.1', '2.0', '2.1', '3.0', '3.1'}),
    ],
)
def test_suspects_on_two_ranks(first: list[RowEvidence], second: list[RowEvidence], expected: set[str]) -> None:
    reports = [
        (0, list(zip((row(0), row(1)), first, strict=True))),
        (1, list(zip((row(2), row(3)), second, strict=True))),
    ]
    suspects = find_suspects(reports)
    assert {s.id for s in suspects} == expected
    assert all(s.rank == s.row // 2 for s in suspects)


def test_ranks_of_one_llm_name_a_conversation_once() -> None:
    reports = [(rank, [(row(0), RowEvidence((1,), True))]) for rank in (0, 1)]
    assert [(s.rank, s.id) for s in find_suspects(reports, 2)] == [(0, '0.1')]


def test_steps_in_a_row_end_the_run() -> None:
    guard = StepGuard(ParallelDims(), 3)
    for step, norm in enumerate([math.nan, math.inf, 1.0, math.nan, math.nan, math.inf], start=1):
        guard.check()
        guard.judge(step, outcome(norm, TURNED), [row(step)])
    with pytest.raises(VtbNumericsError, match='step 4, rank 0: .*: 4.0, 4.1') as caught:
        guard.check()
    assert caught.value.field == 'data.max_bad_steps' and 'step 1,' not in str(caught.value)


def test_a_spike_is_logged_with_its_conversations(caplog: pytest.LogCaptureFixture) -> None:
    guard = StepGuard(ParallelDims(), 3)
    with caplog.at_level(logging.WARNING):
        for step in range(1, 31):
            guard.judge(step, outcome(1.0 + step % 3), [row(step)])
        guard.judge(31, outcome(19.0), [row(31)])
        assert not caplog.records, 'below ten times the median'
        guard.judge(32, outcome(21.0), [row(32)])
    (record,) = caplog.records
    assert '32.0, 32.1' in record.getMessage()
