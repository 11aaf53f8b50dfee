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
"""Keys and values of one conversation, kept while it is answered and between its turns."""

from torch import Tensor

_FIRST_CAPACITY = 64


class KVCache:
    """Keys and values of all layers for the first `length` positions of one conversation; grows by doubling.

    A layer appends while a pass runs; `commit` makes the pass count, `truncate` takes positions back (another answer,
    a turn that is undone). Whole attention is kept for layers with a sliding window too, so that nothing is lost then.
    """

    def __init__(self) -> None:
        self.length = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add what a layer computed for n new positions.

        Args:
            layer: Number of the layer.
            key: (1, KV heads, n, D); `value` alike.
            value: See `key`.

        Returns:
            Keys and values of all positions, (1, KV heads, length + n, D), as views.
        """
        end = self.length + key.shape[2]
        kept = self._layers.get(layer)
        if kept is None or kept[0].shape[2] < end:
            kept = self._layers[layer] = (
                self._grown(kept and kept[0], key, end),
                self._grown(kept and kept[1], value, end),
            )
        for store, new in zip(kept, (key, value), strict=True):
            store[:, :, self.length : end] = new
        return kept[0][:, :, :end], kept[1][:, :, :end]

    def _grown(self, old: Tensor | None, like: Tensor, end: int) -> Tensor:
        capacity = max(end, _FIRST_CAPACITY, 2 * self.length)
        made = like.new_empty(like.shape[0], like.shape[1], capacity, like.shape[3])
        if old is not None:
            made[:, :, : self.length] = old[:, :, : self.length]
        return made

    def commit(self, count: int) -> None:
        """Count `count` positions that every layer has appended."""
        self.length += count

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on."""
        self.length = min(self.length, length)
