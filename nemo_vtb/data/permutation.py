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
"""A seeded permutation of any size that is computed, not stored."""

import hashlib
from typing import Protocol

import numpy as np

_ROUNDS = 6
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def permute(positions: np.ndarray, size: int, key: str) -> np.ndarray:
    """Map positions to a pseudo-random permutation of range(size), in O(1) memory: a Feistel network, cycle-walked.

    Args:
        positions: (n,) integers in [0, size).
        size: Size of the permutation.
        key: Anything that names the permutation; another key gives another one.

    Returns:
        (n,) int64, distinct for distinct positions.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    keys = np.frombuffer(hashlib.sha512(key.encode()).digest(), dtype='<u8')[:_ROUNDS]
    values = np.asarray(positions, dtype=np.uint64).copy()
    walking = np.ones(len(values), dtype=bool)
    while walking.any():
        left, right = values[walking] >> shift, values[walking] & mask
        for round_key in keys:
            mixed = (right ^ round_key) * _MULTIPLIER  # wraps modulo 2**64
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        values[walking] = (left << shift) | right
        walking &= values >= np.uint64(size)
    return values.astype(np.int64)


class Order(Protocol):
    """Which entry of a source comes at a position of an epoch: a pure function, so that a run resumes by a number."""

    def entries(self, positions: np.ndarray, epoch: str) -> np.ndarray:
        """Entries at some positions.

        Args:
            positions: (n,) consecutive integers in [0, size).
            epoch: Names the epoch of this source; another name gives another order.

        Returns:
            (n,) int64; over all positions of an epoch each entry comes once.
        """
        ...


class Shuffled:
    """All entries in one pseudo-random order: reads all over the files.

    Args:
        size: Number of entries.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    def entries(self, positions: np.ndarray, epoch: str) -> np.ndarray:
        """See `Order.entries`."""
        return permute(positions, self._size, epoch)


class Blocks:
    """Blocks of neighbours in a pseudo-random order, shuffled within a window: each file is read front to back.

    Args:
        starts: (B,) first entry of each block, ascending, the first is 0.
        size: Number of entries.
        window: Entries that are shuffled among one another; they lie together in their files.
    """

    def __init__(self, starts: np.ndarray, size: int, window: int) -> None:
        self._starts = np.asarray(starts, dtype=np.int64)
        self._sizes = np.diff(np.append(self._starts, size))
        self._size, self._window = size, window
        self._epoch: str | None = None

    def entries(self, positions: np.ndarray, epoch: str) -> np.ndarray:
        """See `Order.entries`."""
        if epoch != self._epoch:
            self._order = permute(np.arange(len(self._starts)), len(self._starts), f'{epoch}:blocks')
            self._ends = np.cumsum(self._sizes[self._order])
            self._epoch = epoch
        places = np.concatenate([self._in_window(number, positions, epoch) for number in self._windows(positions)])
        found = np.searchsorted(self._ends, places, side='right')  # (n,) number of the block in this epoch's order
        block = self._order[found]
        return self._starts[block] + places - (self._ends[found] - self._sizes[block])

    def _windows(self, positions: np.ndarray) -> range:
        return range(int(positions[0]) // self._window, int(positions[-1]) // self._window + 1)

    def _in_window(self, number: int, positions: np.ndarray, epoch: str) -> np.ndarray:
        """Places, in the order of the blocks, of the positions that lie in one window."""
        begin = number * self._window
        size = min(self._window, self._size - begin)
        inside = positions[(positions >= begin) & (positions < begin + size)] - begin
        return begin + permute(inside, size, f'{epoch}:{number}')


def block_starts(files: np.ndarray, nbytes: np.ndarray, most: int) -> np.ndarray:
    """First entries of blocks: runs of entries of one file, cut at about `most` bytes.

    Args:
        files: (n,) number of the file of each entry, in the order of reading.
        nbytes: (n,) bytes that reading each entry takes.
        most: Bytes of a block.

    Returns:
        (B,) int64, ascending.
    """
    before = np.cumsum(nbytes, dtype=np.int64) - nbytes
    changes = np.diff(files, prepend=files[0] - 1) != 0
    runs = np.flatnonzero(changes)
    inside = before - np.repeat(before[runs], np.diff(np.append(runs, len(files))))
    return np.flatnonzero(changes | (np.diff(inside // most, prepend=0) != 0))
