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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

RandomState = dict[str, Any]
_Named = dict[str, torch.Tensor]
_followed: list[tuple[Callable[[], _Named], Callable[[_Named], None]]] = []


def follow(read: Callable[[], _Named], write: Callable[[_Named], None]) -> None:
    """Keep and restore further generators, those of which each tensor-parallel peer has its own.

    Args:
        read: Returns the state of each by name, uint8 tensors.
        write: Puts such states back.
    """
    _followed[:] = [(read, write)]


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
    if _followed:  # a list of peers, of this one alone until `join_peers`
        state['peers'] = [{name: value.cpu().numpy().tobytes().hex() for name, value in _followed[0][0]().items()}]
    return state


def restore_random_state(state: RandomState, peer: int = 0) -> None:
    """Put the generators where `random_state` found them; a CUDA state is left out where there is no CUDA.

    Args:
        state: Of `random_state`, or of `join_peers`.
        peer: Place among the tensor-parallel peers.
    """
    version, words, gauss = state['python']
    random.setstate((version, tuple(np.frombuffer(bytes.fromhex(words), '<u8').tolist()), gauss))
    name, keys, position, has_gauss, cached = state['numpy']
    np.random.set_state((name, np.frombuffer(bytes.fromhex(keys), '<u4'), position, has_gauss, cached))
    torch.set_rng_state(_bytes(state['torch']))
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(state['cuda']))
    peers: Sequence[Mapping[str, str]] = state.get('peers') or ()
    if _followed and peer < len(peers):  # a peer that did not exist goes on with its first seeds
        read, write = _followed[0]
        now, then = read(), {name: _bytes(text) for name, text in peers[peer].items()}
        # generators of another device have states of another size
        write(now | {n: v for n, v in then.items() if n in now and v.numel() == now[n].numel()})


def join_peers(states: Sequence[RandomState], peers: int) -> list[RandomState]:
    """One state for each data-parallel rank: tensor-parallel peers draw alike, but for the generators of their own.

    Args:
        states: Of all ranks; peers are neighbours.
        peers: How many hold one LLM together.
    """
    groups = [states[begin : begin + peers] for begin in range(0, len(states), peers)]
    return [
        group[0] | ({'peers': [one for each in group for one in each['peers']]} if 'peers' in group[0] else {})
        for group in groups
    ]


def restore_rank_state(states: Sequence[RandomState], rank: int, peer: int = 0) -> None:
    """Restore the generators of one rank; a rank that did not exist gets seeds of its own, always the same ones."""
    if rank < len(states):
        restore_random_state(states[rank], peer)
        return
    digest = hashlib.sha256(f'{states[0]["torch"]}:{rank}'.encode()).digest()
    random.seed(digest)
    np.random.seed(int.from_bytes(digest[:4], 'little'))
    torch.manual_seed(int.from_bytes(digest[:8], 'little') >> 1)


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
