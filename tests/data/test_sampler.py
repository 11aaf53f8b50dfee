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
"""The plan: shares, padding, permutation, resume, and the same rows for any number of ranks."""

import json
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
from data_helpers import BUDGET, FakeSource, four_sources

from nemo_vtb.data.sampler import (
    BatchPlan,
    RowPlan,
    TokenBudgetPlan,
    TokenBudgetSampler,
    resolve_shares,
    split_rows,
)
from nemo_vtb.errors import VtbCheckpointError, VtbConfigError, VtbDataError

PAPER = {'text': 0.15, 'asr_ast': 0.6, 'speech_qa': 0.1, 'mixed_modal': 0.15}


def plan(sources: list[FakeSource] | None = None, budget: dict | None = BUDGET, **keys: object) -> TokenBudgetPlan:
    return TokenBudgetPlan(sources or four_sources(), budget, **({'max_tokens': 2048, 'pool': 256} | keys))


def take(p: TokenBudgetPlan, count: int) -> list[RowPlan]:
    return list(islice(p, count))


def tokens(p: TokenBudgetPlan, rows: list[RowPlan]) -> np.ndarray:
    """Tokens of each source in each row: (rows, sources)."""
    counts = np.zeros((len(rows), len(p.sources)))
    for number, row in enumerate(rows):
        for source, entry in row.items:
            counts[number, source] += p.sources[source].measure(np.array([entry]))[0][0]
    return counts


@pytest.mark.parametrize('budget', [BUDGET, PAPER], ids=['equal', 'paper'])
@pytest.mark.parametrize('window', [None, 256])
def test_shares_hold_over_the_run_and_in_every_window_and_rows_are_full(
    budget: dict[str, float], window: int | None
) -> None:
    # windows of 200 global batches of 8 rows
    p = plan(budget=budget, max_tokens=4096, pool=512, window=window)
    rows = take(p, 3200)
    counts = tokens(p, rows)
    asked = np.array(p.shares)
    delivered = counts.sum(0) / counts.sum()
    assert np.abs(delivered / asked - 1).max() < 0.001
    sums = np.vstack([np.zeros(4), counts.cumsum(0)])[::8]
    windows = sums[200:] - sums[:-200]
    assert np.abs(windows / windows.sum(1, keepdims=True) / asked - 1).max() < 0.01
    assert 1 - counts.sum() / (4096 * len(rows)) < 0.005
    assert max(row.num_tokens for row in rows) <= 4096


def test_shares_of_supervised_tokens() -> None:
    p = plan(budget=PAPER, unit='supervised_tokens', max_tokens=4096)
    counts = np.zeros(4)
    for row in take(p, 2000):
        for source, entry in row.items:
            counts[source] += p.sources[source].supervised[entry]
    assert np.abs(counts / counts.sum() / np.array(p.shares) - 1).max() < 0.001


def test_shares_inside_a_kind_follow_the_weights_and_the_temperature() -> None:
    sources = [FakeSource('a', 'text', 900, 100, 1, weight=4.0), FakeSource('b', 'text', 900, 300, 2, weight=1.0)]
    assert plan(sources, {'text': 1.0}).shares == pytest.approx([0.8, 0.2])
    p = plan(sources, {'text': 1.0}, temperature=0.5)
    assert p.shares == pytest.approx([2 / 3, 1 / 3])
    counts = tokens(p, take(p, 1500)).sum(0)
    assert np.abs(counts / counts.sum() / np.array(p.shares) - 1).max() < 0.001


def test_without_a_budget_all_data_is_seen_equally_often() -> None:
    p = plan(budget=None)
    take(p, 1500)
    epochs = p.epochs()
    assert max(epochs) / min(epochs) < 1.05


@pytest.mark.parametrize('window', [None, 1, 33, 1024])
def test_each_conversation_comes_once_per_epoch(window: int | None) -> None:
    sources = [
        FakeSource('a', 'text', 500, 100, 1, max_repeats=3),
        FakeSource('b', 'asr_ast', 700, 90, 2, max_repeats=2),
    ]
    p = plan(sources, {'text': 0.5, 'asr_ast': 0.5}, on_exhausted='drop', window=window)
    seen = [np.zeros(500, dtype=int), np.zeros(700, dtype=int)]
    for row in p:
        for source, entry in row.items:
            seen[source][entry] += 1
    assert (seen[0] == 3).all()
    assert (seen[1] == 2).all()


def test_a_used_up_source_stops_the_run() -> None:
    sources = [FakeSource('a', 'text', 100, 100, 1, max_repeats=1), FakeSource('b', 'asr_ast', 700, 90, 2)]
    p = plan(sources, {'text': 0.5, 'asr_ast': 0.5})
    rows = list(p)
    ids = [entry for row in rows for source, entry in row.items if source == 0]
    assert len(set(ids)) == len(ids) == 100


def test_a_long_conversation_is_not_overtaken_for_ever() -> None:
    source = FakeSource('a', 'text', 1000, 60, 1)
    source.lengths[:20] = 2000
    p = plan([source], {'text': 1.0}, pool=64)
    seen = {entry for row in take(p, 120) for _, entry in row.items if entry < 20}
    assert len(seen) == 20


@pytest.mark.parametrize(
    ('first', 'second'), [(0, 0), (0, 1), (1, 1), (7, 150), (33, 0), (60, 61), (150, 333), (400, 400)]
)
@pytest.mark.parametrize('window', [None, 70])
def test_a_plan_resumes_at_any_row_also_twice(first: int, second: int, window: int | None) -> None:
    sources = [FakeSource('a', 'text', 90, 300, 1), FakeSource('b', 'asr_ast', 200, 90, 2)]
    budget = {'text': 0.5, 'asr_ast': 0.5}
    expected = take(plan(sources, budget, window=window), 900)  # many epochs
    p = plan(sources, budget, window=window)
    rows = take(p, first)
    for more in (second, 40):
        state = json.loads(json.dumps(p.state_dict()))
        p = plan(sources, budget, window=window)
        p.load_state_dict(state)
        rows += take(p, more)
    assert rows == expected[: len(rows)]


def test_a_plan_resumes_after_a_source_was_dropped() -> None:
    def make() -> TokenBudgetPlan:
        sources = [FakeSource('a', 'text', 60, 100, 1, max_repeats=1), FakeSource('b', 'text', 900, 90, 2)]
        return plan(sources, {'text': 1.0}, on_exhausted='drop')

    expected = take(make(), 60)
    p = make()
    take(p, 30)
    q = make()
    q.load_state_dict(json.loads(json.dumps(p.state_dict())))
    assert take(q, 30) == expected[30:]


def test_the_state_is_small() -> None:
    p = plan(pool=4096)
    take(p, 500)
    assert len(json.dumps(p.state_dict())) < 100_000


def test_a_compensation_is_made_up_for_and_survives_a_resume() -> None:
    p, q = plan(), plan()
    rows = take(p, 50)
    source, entry = rows[10].items[0]
    p.compensate(60, source, entry)
    state = json.loads(json.dumps(p.state_dict()))
    q.load_state_dict(state)
    assert take(p, 200) == take(q, 200)
    r = plan()
    r.load_state_dict(state | {'refunds': []})
    assert take(r, 10) == take(plan(), 60)[50:]
    with pytest.raises(VtbDataError, match='too late'):
        p.compensate(10, source, entry)


@pytest.mark.parametrize('stop', [40, 60, 61, 100, 239])
def test_other_shares_begin_at_their_row_and_survive_a_resume(stop: int) -> None:
    other = {'text': 0.4, 'asr_ast': 0.2, 'speech_qa': 0.2, 'mixed_modal': 0.2}

    def changed() -> TokenBudgetPlan:
        p = plan()
        p.change_budget(60, other)
        p.change_budget(240, BUDGET)
        return p

    p = changed()
    rows = take(p, 1200)
    assert rows[:60] == take(plan(), 60) and rows[60:120] != take(plan(), 120)[60:]
    counts = tokens(p, rows)
    for part, budget in ((counts[60:240], other), (counts[240:], BUDGET)):
        asked = np.array(p.shares_of(budget))
        assert np.abs(part.sum(0) / part.sum() / asked - 1).max() < 0.02
    first = changed()
    assert take(first, stop) == rows[:stop]
    again = plan()
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert again.coming_budget == BUDGET
    assert take(again, 400) == rows[stop : stop + 400]
    with pytest.raises(VtbDataError, match='too late'):
        again.change_budget(10, other)
    with pytest.raises(VtbConfigError, match='do not sum to 1'):
        again.change_budget(5000, {**other, 'text': 0.9})


def test_a_state_without_changes_is_read() -> None:
    p, q = plan(), plan()
    take(p, 30)
    state = p.state_dict()
    q.load_state_dict({key: value for key, value in state.items() if key not in ('budget', 'changes')})
    assert take(q, 50) == take(p, 50)


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        ({'max_tokens': 1024}, 'max_tokens: 2048 -> 1024'),
        ({'seed': 1}, 'seed: 42 -> 1'),
        ({'budget': PAPER}, 'shares.chats: 0.25 -> 0.15'),
        ({'unit': 'supervised_tokens'}, 'unit: tokens'),
        ({'window': 1024}, 'order: absent -> blocks'),
    ],
)
def test_a_changed_plan_is_refused_by_name(change: dict, named: str) -> None:
    p = plan()
    take(p, 20)
    with pytest.raises(VtbCheckpointError, match=named.replace('.', r'\.')):
        plan(**change).load_state_dict(p.state_dict())


def test_changed_files_are_refused_by_name_or_adopted() -> None:
    p = plan()
    take(p, 20)
    sources = four_sources()
    sources[1].digest = 'other'
    q = plan(sources)
    with pytest.raises(VtbCheckpointError, match=r'sources\.asr'):
        q.load_state_dict(p.state_dict())
    q.load_state_dict(p.state_dict(), allow_changed=True)
    assert q.row == 20
    assert q.epochs()[0] > 0.01
    assert next(iter(q)).index == 20
    with pytest.raises(VtbCheckpointError, match='state version 99'):
        plan().load_state_dict(p.state_dict() | {'version': 99})


@pytest.mark.parametrize('balance', [True, False])
def test_the_global_batch_is_the_same_for_any_number_of_ranks(balance: bool) -> None:
    def batches(world: int) -> list[list[RowPlan]]:
        ranks = [TokenBudgetSampler(plan(), BatchPlan(8, world), rank, 12, balance) for rank in range(world)]
        rows = [list(sampler) for sampler in ranks]
        assert [len(r) for r in rows] == [len(s) for s in ranks] == [96 // world] * world
        each = 8 // world
        return [
            sorted((row for r in rows for row in r[k * each : (k + 1) * each]), key=lambda row: row.index)
            for k in range(12)
        ]

    assert batches(1) == batches(2) == batches(4) == batches(8)


def test_ranks_get_rows_of_like_cost() -> None:
    rows = [RowPlan(n, (), 100, cost) for n, cost in enumerate([9.0, 1.0, 8.0, 2.0])]
    shares = split_rows(rows, 2)
    assert [sum(r.cost for r in share) for share in shares] == [10.0, 10.0]
    assert [len(share) for share in split_rows(rows, 4)] == [1, 1, 1, 1]
    assert [r.index for r in split_rows(rows, 2, balance=False)[1]] == [1, 3]


def test_a_sampler_resumes_on_another_number_of_ranks() -> None:
    expected = list(TokenBudgetSampler(plan(), BatchPlan(4), num_batches=10))
    sampler = TokenBudgetSampler(plan(), BatchPlan(4), num_batches=10)
    list(islice(sampler, 21))  # five batches and one row: the sixth is planned
    for batch in range(5):
        assert [row.index for row in sampler.take_batch()] == [*range(4 * batch, 4 * batch + 4)]
    state = json.loads(json.dumps(sampler.state_dict()))
    again = []
    for rank in range(2):
        other = TokenBudgetSampler(plan(), BatchPlan(4, 2), rank, 10)
        other.load_state_dict(state)
        again += list(other)
    assert sorted(again, key=lambda row: row.index) == expected[20:]
    with pytest.raises(VtbCheckpointError, match='another size'):
        TokenBudgetSampler(plan(), BatchPlan(2)).load_state_dict(state)


@pytest.mark.parametrize(('rows', 'ranks', 'accumulation'), [(6, 4, 1), (8, 2, 3), (0, 1, 1), (4, 1, 3), (2, 4, 1)])
def test_a_global_batch_must_be_spread_equally(rows: int, ranks: int, accumulation: int) -> None:
    with pytest.raises(VtbConfigError) as caught:
        BatchPlan.of(SimpleNamespace(accumulate_grad_batches=accumulation), rows, ranks)
    assert caught.value.field == 'data.rows_per_batch'


@pytest.mark.parametrize(
    ('rows', 'ranks', 'accumulation', 'plan', 'after'),
    [(None, 2, 3, (6, 3), 3), (8, 2, 1, (8, 4), 4), (8, 2, 4, (8, 4), 4), (4, 4, 1, (4, 1), 1)],
)
def test_accumulation_follows_from_the_rows(
    rows: int | None, ranks: int, accumulation: int, plan: tuple[int, int], after: int
) -> None:
    trainer = SimpleNamespace(accumulate_grad_batches=accumulation)
    batch = BatchPlan.of(trainer, rows, ranks)
    assert (batch.rows, batch.rows_per_rank) == plan and trainer.accumulate_grad_batches == after
    assert BatchPlan.of(trainer, rows, ranks).rows == batch.rows, 'asked again, it is the same'


def test_a_kind_can_have_no_share() -> None:
    p = plan(budget={'text': 0.0, 'asr_ast': 0.5, 'speech_qa': 0.5, 'mixed_modal': 0.0})
    assert {p.sources[s].name for row in take(p, 50) for s, _ in row.items} == {'asr', 'qa'}


@pytest.mark.parametrize(
    ('budget', 'named'),
    [
        ({**BUDGET, 'text': 0.5}, 'sum to 1'),
        ({'text': 0.5, 'asr_ast': 0.5}, 'no share'),
        ({**BUDGET, 'text': -0.25}, 'from 0 to 1'),
        ({**BUDGET, 'text': 'much'}, 'from 0 to 1'),
    ],
)
def test_a_budget_that_does_not_fit_is_refused(budget: dict, named: str) -> None:
    with pytest.raises(VtbConfigError, match=named):
        resolve_shares(four_sources(), budget)


def test_a_share_needs_a_source_and_a_source_needs_conversations() -> None:
    with pytest.raises(VtbConfigError, match='no source'):
        resolve_shares(four_sources()[:3], BUDGET)
    with pytest.raises(VtbDataError, match='no usable conversation'):
        resolve_shares([FakeSource('a', 'text', 0, 10, 1)], {'text': 1.0})
    with pytest.raises(VtbDataError, match='no source'):
        resolve_shares([], None)
    silent = FakeSource('a', 'text', 10, 50, 1)
    silent.supervised[:] = 0
    with pytest.raises(VtbDataError, match='no supervised'):
        resolve_shares([silent], None, unit='supervised_tokens')
    with pytest.raises(VtbConfigError, match='unit'):
        resolve_shares(four_sources(), BUDGET, unit='words')
