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

from nemo_vtb.data.permutation import Blocks, block_starts, permute


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


# ---- blocks

SHARDS = np.repeat(np.arange(7), [100, 1, 333, 64, 5, 700, 20])
STARTS = block_starts(SHARDS, np.full(len(SHARDS), 10), 1000)


def test_a_block_is_a_shard_or_a_stretch_of_it() -> None:
    sizes = np.diff([*STARTS, len(SHARDS)])
    assert sizes.max() == 100 and sizes.min() == 1  # 1000 bytes of 10 each
    assert all(len(set(SHARDS[a:b])) == 1 for a, b in zip(STARTS, [*STARTS[1:], len(SHARDS)], strict=True))
    assert block_starts(SHARDS, np.full(len(SHARDS), 10), 1 << 62).tolist() == [0, 100, 101, 434, 498, 503, 1203]
    large = np.array([5000, 10, 10])
    assert block_starts(np.zeros(3, dtype=int), large, 1000).tolist() == [0, 1]


def drawn(window: int, epoch: str, step: int = 1024) -> np.ndarray:
    order = Blocks(STARTS, len(SHARDS), window)
    at = range(0, len(SHARDS), step)
    return np.concatenate([order.entries(np.arange(a, min(a + step, len(SHARDS))), epoch) for a in at])


@pytest.mark.parametrize('window', [1, 7, 50, 1024, 10**6])
def test_each_entry_comes_once_however_it_is_asked_for(window: int) -> None:
    entries = drawn(window, 'a')
    assert sorted(entries.tolist()) == list(range(len(SHARDS)))
    for step in (1, 10, 333):
        assert drawn(window, 'a', step).tolist() == entries.tolist()
    assert drawn(window, 'b').tolist() != entries.tolist()


@pytest.mark.parametrize('window', [1, 7, 50])
def test_a_file_is_read_front_to_back(window: int) -> None:
    """Of two entries of a block the one that stands a window before the other comes first."""
    place = np.argsort(drawn(window, 'a'))
    for begin, end in zip(STARTS, [*STARTS[1:], len(SHARDS)], strict=True):
        inside = place[begin:end]
        assert (inside[window:] > inside[: max(0, len(inside) - window)]).all()
    # and the blocks themselves do not stand in the order of the files
    order = [place[begin] for begin in STARTS]
    assert order != sorted(order)
