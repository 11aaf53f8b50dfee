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
"""The process that plans ahead: what ranks get is what they would have planned themselves, bit by bit."""

import json
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
from data_helpers import BUDGET, FakeSource, four_sources

from nemo_vtb.data.planner import Planner, batches_ahead
from nemo_vtb.data.sampler import BatchPlan, RowPlan, TokenBudgetPlan, TokenBudgetSampler, split_rows
from nemo_vtb.errors import VtbDataError, VtbIndexError

pytestmark = pytest.mark.forks


class Dims:
    """A rank of several in one process: they meet in a list."""

    def __init__(self, rank: int = 0, size: int = 1, met: list[Any] | None = None) -> None:
        self.data_rank, self.world_size, self.met = rank, size, [] if met is None else met

    @property
    def is_writer(self) -> bool:
        return self.data_rank == 0

    def gather_objects(self, value: Any) -> list[Any]:
        if self.is_writer:
            self.met.append(value)
        return self.met


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    for process in multiprocessing.active_children():
        if process.name == 'vtb-planner':
            process.join(10)
            assert not process.is_alive()


def plan(sources: list[Any] | None = None, **keys: Any) -> TokenBudgetPlan:
    options = {'max_tokens': 2048, 'seed': 3, 'pool': 64, 'budget': BUDGET} | keys
    return TokenBudgetPlan(sources or four_sources(), **options)


def sampler(batch: BatchPlan, rank: int = 0, *, ahead: int = 0, count: int | None = 12, **keys: Any) -> Any:
    dims: Any = Dims()
    return TokenBudgetSampler(plan(**keys), batch, rank, count, planner=Planner(dims, ahead) if ahead else None)


def bits(value: Any) -> str:
    return json.dumps(value)


def train(rows: Any, after: Callable[[Any, int], None] = lambda sampler, batch: None) -> list[Any]:
    """Each batch that is trained on: its rows, what it counts, and the state behind it."""
    seen, own = [], iter(rows)
    while chunk := list(islice(own, rows.batch.rows_per_rank)):
        counts = rows.coming
        assert list(rows.take_batch()) == chunk
        after(rows, rows.batches)
        seen.append((chunk, counts, bits(rows.state_dict())))
    return seen


@pytest.mark.parametrize('ahead', [1, 4])
@pytest.mark.parametrize('order', [None, 64])
def test_rows_counts_and_states_are_those_of_a_plan_of_ones_own(ahead: int, order: int | None) -> None:
    batch = BatchPlan(6)
    assert train(sampler(batch, ahead=ahead, window=order)) == train(sampler(batch, window=order))


def test_the_state_is_that_of_what_was_trained_on_not_planned() -> None:
    batch = BatchPlan(4)
    expected = train(sampler(batch))
    rows = sampler(batch, ahead=4)
    list(islice(rows, 4 * 7 + 1))
    for _ in range(3):
        rows.take_batch()
    state = json.loads(bits(rows.state_dict()))
    assert bits(state) == expected[2][2] and state['row'] == 12
    for ahead in (0, 2):  # either way, whoever saved it
        again = sampler(batch, ahead=ahead)
        again.load_state_dict(state)
        assert train(again) == expected[3:]


def test_a_second_iteration_goes_on_after_what_was_trained_on() -> None:
    batch = BatchPlan(4)
    expected = train(sampler(batch))
    rows = sampler(batch, ahead=3)
    iterator = iter(rows)
    assert list(islice(iterator, 4)) == expected[0][0]
    rows.take_batch()
    iterator.close()
    assert train(rows) == expected[1:]


def test_compensations_and_changed_shares_hold_from_the_same_row() -> None:
    def after(rows: TokenBudgetSampler, done: int) -> None:
        for number in range(2):
            rows.compensate((done + 6) * rows.batch.rows, number, 17 * done + number)
        if done == 2:
            rows.change_budget(8 * rows.batch.rows, {'text': 0.7} | dict.fromkeys(list(BUDGET)[1:], 0.1))

    batch = BatchPlan(4)
    found, expected = (train(sampler(batch, ahead=ahead, count=16), after) for ahead in (4, 0))
    assert found == expected
    assert found != train(sampler(batch, count=16))
    rows = sampler(batch, ahead=4, count=16)
    train(rows, after)
    assert rows.plan.coming_budget['text'] == 0.7


def test_a_compensation_that_comes_too_late_is_an_error_on_all_ranks() -> None:
    rows = sampler(BatchPlan(4), ahead=3)
    iterator = iter(rows)
    next(iterator)
    rows.planner.tell('compensate', 3, 0, 0)
    with pytest.raises(VtbDataError, match='too late'):
        list(iterator)


@pytest.mark.parametrize('size', [2, 5])
def test_each_rank_is_sent_its_own_rows(size: int) -> None:
    """Rank 0 forks the process, the others connect to it: as if each had planned for itself."""
    batch = BatchPlan(2 * size, size)
    met: list[Any] = []
    ranks = []
    for rank in range(size):
        dims: Any = Dims(rank, size, met)
        ranks.append(TokenBudgetSampler(plan(), batch, rank, 8, planner=Planner(dims, 2)))
    for _ in range(2):  # and again: a second epoch connects anew
        found: dict[int, Any] = {}

        def follow(rank: int, found: dict[int, Any] = found) -> None:
            found[rank] = list(ranks[rank])

        threads = [threading.Thread(target=follow, args=(rank,)) for rank in range(1, size)]
        for thread in threads:
            thread.start()
        found[0] = list(ranks[0])
        for thread in threads:
            thread.join(60)
        assert found == {rank: list(TokenBudgetSampler(plan(), batch, rank, 8)) for rank in range(size)}
    listener = ranks[0].planner._listener
    assert listener is not None
    listener.close()


def test_a_stranger_gets_no_rows_and_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    from multiprocessing.connection import Client

    monkeypatch.setattr('nemo_vtb.data.planner._HANDSHAKE_S', 1)
    met: list[Any] = []
    leader: Any = Dims(0, 2, met)
    other: Any = Dims(1, 2, met)
    planners = [Planner(dims, 2) for dims in (leader, other)]
    samplers = [TokenBudgetSampler(plan(), BatchPlan(4, 2), rank, 3, planner=planners[rank]) for rank in range(2)]
    refused: list[BaseException] = []

    def intrude() -> None:
        try:
            with socket.create_connection(met[0][0]):  # says nothing
                Client(met[0][0], authkey=b'guess')
        except Exception as error:  # noqa: BLE001 - whatever the handshake raises
            refused.append(error)
        list(samplers[1])

    thread = threading.Thread(target=intrude)
    thread.start()
    rows = list(samplers[0])
    thread.join(60)
    assert len(rows) == 6 and refused
    assert planners[0]._listener is not None
    planners[0]._listener.close()


def test_the_end_of_the_data_is_seen() -> None:
    def small() -> list[FakeSource]:
        return four_sources(max_repeats=1)

    found, expected = (
        TokenBudgetSampler(plan(small()), BatchPlan(8), planner=planner)
        for planner in (Planner(Dims(), 2), None)  # type: ignore[arg-type]
    )
    assert list(found) == list(expected) and found.used_up and expected.used_up


def test_what_the_process_raises_is_raised_here() -> None:
    class Vanishing(FakeSource):
        def measure(self, entries: np.ndarray) -> Any:
            if multiprocessing.current_process().name == 'vtb-planner':
                raise VtbIndexError('The index was removed or changed while it was in use.', field='source x')
            return super().measure(entries)

    sources = [Vanishing('x', 'text', 4000, 100, 1)]
    rows = TokenBudgetSampler(plan(sources, budget=None), BatchPlan(8), planner=Planner(Dims(), 2))  # type: ignore[arg-type]
    with pytest.raises(VtbIndexError, match='removed or changed'):
        list(islice(rows, 4000))


def test_a_killed_process_is_named() -> None:
    rows = sampler(BatchPlan(4), ahead=2, count=None)
    iterator = iter(rows)
    next(iterator)
    (process,) = (p for p in multiprocessing.active_children() if p.name == 'vtb-planner')
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    with pytest.raises(VtbDataError) as caught:
        list(islice(iterator, 4000))
    assert caught.value.field == 'data.plan_ahead'


def test_the_process_ends_with_its_iteration_and_outlives_a_signal_to_all() -> None:
    rows = sampler(BatchPlan(4), ahead=2, count=None)
    iterator = iter(rows)
    next(iterator)
    (process,) = (p for p in multiprocessing.active_children() if p.name == 'vtb-planner')
    assert process.pid is not None
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        os.kill(process.pid, number)
    assert len(list(islice(iterator, 100))) == 100 and process.is_alive()
    iterator.close()
    process.join(10)
    assert process.exitcode == 0


@pytest.mark.parametrize(('asked', 'refund', 'prefetched', 'batch', 'expected'), [
    (None, 32, 8, BatchPlan(8), 0),
    (None, 32, 8, BatchPlan(64, 64), 4),
    (None, 32, 24, BatchPlan(64, 64), 0),
    (None, 32, 8, BatchPlan(1024, 16), 4),
    (None, 24, 8, BatchPlan(64, 64), 2),
    (3, 32, 8, BatchPlan(1), 3),
    (0, 32, 8, BatchPlan(64, 64), 0),
])  # fmt: skip
def test_how_far_ahead(asked: int | None, refund: int, prefetched: int, batch: BatchPlan, expected: int) -> None:
    assert batches_ahead(asked, refund, prefetched, batch) == expected


@pytest.mark.parametrize('world', [1, 3, 16])
def test_rows_are_dealt_as_by_trying_each_rank(world: int) -> None:
    rng = np.random.default_rng(world)
    costs = rng.choice([100.0, 200.5, 300.25, *rng.uniform(50, 400, 5)], 4 * world)
    rows = [RowPlan(n, (), 0, float(cost)) for n, cost in enumerate(costs)]
    shares: list[list[RowPlan]] = [[] for _ in range(world)]
    for row in sorted(rows, key=lambda r: (-r.cost, r.index)):
        free = [r for r in range(world) if len(shares[r]) < 4]
        shares[min(free, key=lambda r: (sum(x.cost for x in shares[r]), r))].append(row)
    assert split_rows(rows, world) == [sorted(share, key=lambda r: r.index) for share in shares]
