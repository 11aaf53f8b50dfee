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
"""Budgets that do not fit the sources are refused by name."""

import pytest
from data_helpers import BUDGET, FakeSource, four_sources

from nemo_vtb.data.sampler import resolve_shares
from nemo_vtb.errors import VtbConfigError, VtbDataError


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
