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
"""The global random generators as plain values: Lightning saves none of them, and a resumed run needs its dropout."""

import hashlib
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

__all__ = ['gather_random_states', 'random_state', 'restore_random_state', 'restore_rank_state']

RandomState = dict[str, Any]


def random_state() -> RandomState:
    """The generators of Python, NumPy, torch and the present CUDA device, JSON-able (12 kB)."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        'python': [version, np.array(words, dtype='<u8').tobytes().hex(), gauss],
        'numpy': [name, np.asarray(keys, dtype='<u4').tobytes().hex(), position, has_gauss, cached],
        'torch': torch.get_rng_state().numpy().tobytes().hex(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state['cuda'] = torch.cuda.get_rng_state().numpy().tobytes().hex()
    return state


def restore_random_state(state: RandomState) -> None:
    """Put the generators where `random_state` found them; a CUDA state is left out where there is no CUDA."""
    version, words, gauss = state['python']
    random.setstate((version, tuple(np.frombuffer(bytes.fromhex(words), '<u8').tolist()), gauss))
    name, keys, position, has_gauss, cached = state['numpy']
    np.random.set_state((name, np.frombuffer(bytes.fromhex(keys), '<u4'), position, has_gauss, cached))
    torch.set_rng_state(_bytes(state['torch']))
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(state['cuda']))


def gather_random_states(own: RandomState) -> list[RandomState]:
    """The states of all ranks, in the order of the ranks; all ranks call it together."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        return [own]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return gathered


def restore_rank_state(states: Sequence[RandomState], rank: int) -> None:
    """Restore the generators of one rank; a rank that did not exist gets seeds of its own, always the same ones."""
    if rank < len(states):
        restore_random_state(states[rank])
        return
    digest = hashlib.sha256(f'{states[0]["torch"]}:{rank}'.encode()).digest()
    random.seed(digest)
    np.random.seed(int.from_bytes(digest[:4], 'little'))
    torch.manual_seed(int.from_bytes(digest[:8], 'little') >> 1)


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
