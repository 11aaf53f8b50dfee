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
