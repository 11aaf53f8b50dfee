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
"""Rows are full, nothing is lost, nothing is too long."""

import numpy as np
import pytest
from data_helpers import four_sources

from nemo_vtb.data.packing import LookAhead, pack_all
from nemo_vtb.data.sampler import TokenBudgetPlan


def test_a_pool_finds_the_longest_that_fits_and_of_equals_the_oldest() -> None:
    pool = LookAhead(8)
    for draw, length in enumerate([30, 10, 20, 20, 40]):
        pool.add(draw, 100 + draw, length, length)
    assert pool.best_fit(25) == 2
    assert pool.best_fit(9) is None
    assert pool.best_fit(1000) == 4
    assert pool.take(2) == (2, 102, 20, 20)
    assert pool.best_fit(25) == 3
    assert pool.oldest()[0] == 0
    assert pool.smallest() == 10
    assert (len(pool), pool.total) == (4, 100)


@pytest.mark.parametrize('seed', range(5))
def test_a_whole_set_is_packed_once(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 600, 700).tolist()
    rows = pack_all(lengths, 1000)
    assert sorted(i for row in rows for i in row) == list(range(700))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 1000
    assert 1 - sum(lengths) / (1000 * len(rows)) < 0.02
    assert rows == pack_all(lengths, 1000)


def test_an_empty_set_has_no_rows() -> None:
    assert pack_all([], 100) == []


@pytest.mark.parametrize('pool', [64, 256, 2048])
@pytest.mark.parametrize('max_tokens', [1024, 2048, 8192])
def test_padding_stays_below_two_percent(pool: int, max_tokens: int) -> None:
    budget = {'text': 0.15, 'asr_ast': 0.6, 'speech_qa': 0.1, 'mixed_modal': 0.15}
    plan = TokenBudgetPlan(four_sources(longest=1000), budget, max_tokens=max_tokens, pool=pool)
    used = sum(plan.next_row().num_tokens for _ in range(400))  # type: ignore[union-attr]
    assert 1 - used / (400 * max_tokens) < 0.02


def test_conversations_nearly_as_long_as_a_row_fill_one_each() -> None:
    sources = four_sources()
    for source in sources:
        source.lengths[:] = 900
    plan = TokenBudgetPlan(sources, None, max_tokens=1000, pool=64)
    assert [len(plan.next_row().items) for _ in range(20)] == [1] * 20  # type: ignore[union-attr]
