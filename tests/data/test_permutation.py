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
"""The order inside a source: a bijection, random to the eye, computed position by position."""

import numpy as np
import pytest

from nemo_vtb.data.permutation import permute


@pytest.mark.parametrize('size', [1, 2, 3, 4, 5, 16, 17, 1000, 1024, 1025, 65537])
@pytest.mark.parametrize('key', ['', 'a', '42:asr:3'])
def test_a_permutation_is_one(size: int, key: str) -> None:
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


def test_permutations_of_two_epochs_differ_and_look_random() -> None:
    first, second = (permute(np.arange(10000), 10000, f'{epoch}') for epoch in (0, 1))
    assert (first == second).mean() < 0.01
    for order in (first, second):
        assert abs(np.corrcoef(np.arange(10000), order)[0, 1]) < 0.05
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05


def test_a_position_needs_no_other_position() -> None:
    whole = permute(np.arange(10**7 - 5, 10**7), 10**7, 'x')
    assert [int(permute(np.array([p]), 10**7, 'x')[0]) for p in range(10**7 - 5, 10**7)] == whole.tolist()
