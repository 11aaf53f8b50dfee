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
"""The definition of retention by hand."""

import math

import pytest

from nemo_vtb.errors import VtbDataError
from nemo_vtb.training.retention import kept_of_chats, kept_of_tasks, retention


def test_chats_are_the_ratio_of_perplexities() -> None:
    assert kept_of_chats(10.0, 12.0, 4) == pytest.approx(math.exp(10 / 4) / math.exp(12 / 4))
    assert kept_of_chats(10.0, 10.0, 4) == 1.0
    assert kept_of_chats(10.0, math.inf, 4) == kept_of_chats(10.0, math.nan, 4) == 0.0
    with pytest.raises(VtbDataError) as caught:
        kept_of_chats(1.0, 1.0, 0)
    assert caught.value.field == 'targets'


def test_tasks_are_the_mean_of_ratios_without_those_that_the_base_cannot_do() -> None:
    assert kept_of_tasks({'a': 0.4, 'b': 0.5, 'c': 0.3}, {'a': 0.5, 'b': 0.5, 'c': 0.0}) == pytest.approx(0.9)
    assert kept_of_tasks({'c': 0.3}, {'c': 0.0}) is None


def test_retention_is_the_smaller_of_what_was_measured() -> None:
    assert retention({'chats': 0.97, 'tasks': 0.99}) == 0.97
    assert retention({'chats': None, 'tasks': 0.99}) == 0.99
    assert retention({'chats': math.nan, 'tasks': 0.99}) == 0.0
    assert retention({'chats': None}) is None
