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
"""Rows of at most `max_tokens`, filled from a look-ahead pool by best fit, without breaking the shares."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence
from itertools import islice

STALE_DRAWS = 8
"""A conversation that was overtaken by this many pools' worth of draws opens the next row."""


class LookAhead:
    """The next conversations of one source, in the order drawn, sorted by length beside.

    An item is (number of the draw, entry, length, cost); the cost is what it adds to the share of its source.
    """

    __slots__ = ('capacity', 'drawn', 'items', 'sizes', 'total')

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.items: dict[int, tuple[int, int, int, int]] = {}  # insertion order is the order of the draws
        self.sizes: list[tuple[int, int]] = []  # (length, number of the draw), sorted
        self.drawn = 0
        self.total = 0

    def __len__(self) -> int:
        return len(self.sizes)

    def add(self, draw: int, entry: int, length: int, cost: int) -> None:
        """Append the next conversation of the source."""
        self.items[draw] = (draw, entry, length, cost)
        insort(self.sizes, (length, draw))
        self.drawn = draw
        self.total += length

    def take(self, draw: int) -> tuple[int, int, int, int]:
        """Remove and return one item."""
        item = self.items.pop(draw)
        del self.sizes[bisect_left(self.sizes, (item[2], draw))]
        self.total -= item[2]
        return item

    def oldest(self) -> tuple[int, int, int, int]:
        """The item that waits longest."""
        return next(iter(self.items.values()))

    def stale(self) -> bool:
        """Whether the oldest item was overtaken too often."""
        return self.drawn - next(iter(self.items)) > STALE_DRAWS * self.capacity

    def best_fit(self, room: int) -> int | None:
        """The draw of the longest item that fits into `room`; of equally long ones, the oldest."""
        at = bisect_right(self.sizes, (room, 1 << 62)) - 1
        if at < 0:
            return None
        return self.sizes[bisect_left(self.sizes, (self.sizes[at][0], -1))][1]

    def smallest(self) -> int:
        """Length of the shortest item."""
        return self.sizes[0][0]


class RowPacker:
    """Fills one row after another.

    While there is room the neediest source gives its oldest conversation. Near the end of the row the pair that fills
    it best is sought, first between the two neediest sources, so that shares and padding both hold.

    Args:
        max_tokens: Length of a row.
        slack: Positions of a row that may stay empty without a search among other sources.
    """

    def __init__(self, max_tokens: int, slack: float = 0.002) -> None:
        self.max_tokens = max_tokens
        self.slack = max(1, round(max_tokens * slack))

    def fill(
        self,
        pools: Sequence[LookAhead],
        needy: Callable[[], list[int]],
        take: Callable[[int, int], int],
    ) -> None:
        """Fill one row.

        Args:
            pools: One for each source.
            needy: Returns the sources that can give something, the neediest first.
            take: (source, draw) -> length: moves the item into the row, counts it and refills the pool.
        """
        order = needy()
        start = next((s for s in order if pools[s].stale()), order[0])
        room = self.max_tokens - take(start, pools[start].oldest()[0])
        while order := needy():
            if room <= self._closing(pools, order):
                break
            length = pools[order[0]].oldest()[2]
            draw = pools[order[0]].oldest()[0] if length <= room else pools[order[0]].best_fit(room)
            if draw is None:
                break
            room -= take(order[0], draw)
        self._close(room, pools, needy, take)

    def _closing(self, pools: Sequence[LookAhead], order: Sequence[int]) -> float:
        """Room below which the end of the row is planned: about two conversations."""
        waiting = sum(len(pools[s]) for s in order)
        return 2.0 * sum(pools[s].total for s in order) / max(1, waiting)

    def _close(
        self,
        room: int,
        pools: Sequence[LookAhead],
        needy: Callable[[], list[int]],
        take: Callable[[int, int], int],
    ) -> None:
        while order := needy():
            if room < min(pools[s].smallest() for s in order):
                return
            best: tuple[int, list[tuple[int, int]]] = (room + 1, [])
            for other in (*order[1:3], order[0], *order[3:6]):
                best = min(best, self._pair(room, pools, order[0], other), key=lambda found: found[0])
                if best[0] <= self.slack:
                    break
            if best[0] > self.slack:
                for source in order[:6]:
                    draw = pools[source].best_fit(room)
                    if draw is not None:
                        left = room - pools[source].items[draw][2]
                        best = min(best, (left, [(source, draw)]), key=lambda found: found[0])
            if not best[1]:
                return
            for source, draw in best[1]:
                room -= take(source, draw)

    def _pair(
        self, room: int, pools: Sequence[LookAhead], first: int, second: int
    ) -> tuple[int, list[tuple[int, int]]]:
        """The item of `first`, alone or with one of `second`, that leaves the least room: (room left, items)."""
        sizes, others = pools[first].sizes, pools[second].sizes
        left, found = room + 1, []
        for length, draw in sizes:
            rest = room - length
            if rest < 0:
                break
            if rest < left:
                left, found = rest, [(first, draw)]
            at = bisect_right(others, (rest, 1 << 62)) - 1
            if at >= 0 and first == second and others[at][1] == draw:
                at -= 1
            if at >= 0 and rest - others[at][0] < left:
                left, found = rest - others[at][0], [(first, draw), (second, others[at][1])]
            if left <= self.slack:
                break
        return left, found


def pack_all(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Pack a whole set into few rows (best fit, longest first); deterministic; no item may exceed `max_tokens`.

    Args:
        lengths: Length of each item.
        max_tokens: Length of a row.

    Returns:
        For each row the numbers of its items, ascending.
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, row), sorted
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(rooms, (lengths[number], -1))
        if at < len(rooms):
            room, row = rooms.pop(at)
        else:
            room, row = max_tokens, len(rows)
            rows.append([])
        rows[row].append(number)
        insort(rooms, (room - lengths[number], row))
    return [sorted(row) for row in islice(rows, len(rows))]
