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
"""The random generators survive a checkpoint, on any number of ranks."""

import json
import random

import numpy as np
import pytest
import torch

from nemo_vtb.parallel import rng_state
from nemo_vtb.parallel.rng_state import (
    follow,
    join_peers,
    random_state,
    restore_random_state,
    restore_rank_state,
)


def draw() -> tuple[float, ...]:
    values = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn()]
    return (*values, float(torch.rand(())), float(torch.randn(3).sum()))


def test_all_generators_go_on_where_they_were() -> None:
    draw()  # leaves halves of pairs of normal numbers in the caches
    state = json.loads(json.dumps(random_state()))
    expected = [draw() for _ in range(3)]
    restore_random_state(state)
    assert [draw() for _ in range(3)] == expected


def test_a_new_rank_gets_its_own_seeds_always_the_same() -> None:
    states = [random_state()]
    seen = []
    for rank in (0, 1, 2, 1):
        restore_rank_state(states, rank)
        seen.append(draw())
    assert seen[1] == seen[3]
    assert len(set(seen)) == 3


def test_peers_keep_the_generators_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {'own': torch.tensor([1, 2, 3], dtype=torch.uint8)}
    monkeypatch.setattr(rng_state, '_followed', [])
    follow(lambda: dict(own), own.update)
    states = []
    for rank in range(4):  # two LLMs on two ranks each
        own['own'] = torch.tensor([rank, rank, rank], dtype=torch.uint8)
        states.append(json.loads(json.dumps(random_state())))
    joined = join_peers(states, 2)
    assert len(joined) == 2
    restore_rank_state(joined, 1, 1)
    assert own['own'].tolist() == [3, 3, 3]
    restore_rank_state(joined, 0, 1)
    assert own['own'].tolist() == [1, 1, 1]
    restore_rank_state(joined, 0, 2)  # was not there
    assert own['own'].tolist() == [1, 1, 1]
    own['own'] = torch.zeros(5, dtype=torch.uint8)  # another device
    restore_rank_state(joined, 0, 0)
    assert own['own'].tolist() == [0] * 5
    rng_state._followed.clear()
    restore_rank_state(joined, 0)  # on a backbone that has none
    assert 'peers' not in random_state()
