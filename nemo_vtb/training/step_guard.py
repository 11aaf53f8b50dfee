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
"""Steps that are left out because something is not finite, and steps whose gradient is far larger than usual.

The Lightning module leaves a step out (`VoiceTextBlender.on_before_optimizer_step`); here it is found which
conversations made it, it is told, and after too many in a row the run ends.
"""

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from nemo_vtb.data.collate import PackedRow
from nemo_vtb.errors import VtbNumericsError
from nemo_vtb.model.step_watch import StepOutcome
from nemo_vtb.parallel.dims import ParallelDims

logger = logging.getLogger(__name__)

SPIKE = 10.0
"""A gradient is a spike when its norm is beyond this many times the running median."""

_MEMORY = 100  # steps that the median is of
_FEWEST = 20  # steps before which nothing is called a spike
_SHOWN = 8  # ids in a line of the table


@dataclass(frozen=True, slots=True)
class SeenRow:
    """A row of the present global batch: number in the plan, and for each conversation its place there and its id."""

    index: int
    places: tuple[int, ...]
    ids: tuple[str, ...]

    @classmethod
    def of(cls, row: PackedRow) -> 'SeenRow':
        """What must be remembered of a row."""
        missing = {fault['place'] for fault in row.faults}
        places = (place for place in range(len(row.ids) + len(missing)) if place not in missing)
        return cls(row.index, tuple(places), tuple(row.ids))


@dataclass(frozen=True, slots=True)
class Suspect:
    """A conversation that made a step not finite, or may have: rank that saw it, row, place in it, id, what it was."""

    rank: int
    row: int
    place: int
    id: str
    what: str


class StepGuard:
    """Judges each optimizer step; all ranks see the same outcome and so call it together.

    Args:
        dims: Who is who among the ranks.
        limit: Steps in a row that may be left out, less one (`data.max_bad_steps`).
        rank: Of this process.
    """

    def __init__(self, dims: ParallelDims, limit: int, rank: int = 0) -> None:
        self.dims, self.limit, self.rank = dims, limit, rank
        self.in_a_row = 0
        self._norms: deque[float] = deque(maxlen=_MEMORY)
        self._table: list[tuple[int, int, str, list[str]]] = []

    def judge(self, step: int, outcome: StepOutcome, rows: Sequence[SeenRow]) -> list[Suspect]:
        """Look at a step; returns the suspects of all ranks, none where the step was made.

        Args:
            step: Its number.
            outcome: What it came to.
            rows: The rows of this rank, in the order of `outcome.rows`.
        """
        if outcome.is_finite:
            self._see_norm(step, outcome.norm, rows)
            self.in_a_row = 0
            self._table.clear()
            return []
        reports = self.dims.gather_objects((self.rank, list(zip(rows, outcome.rows, strict=False))))
        suspects = find_suspects(reports, self.dims.tensor_size)
        self.in_a_row += 1
        for rank in sorted({s.rank for s in suspects}):
            for what in sorted({s.what for s in suspects if s.rank == rank}):
                ids = [s.id for s in suspects if (s.rank, s.what) == (rank, what)]
                self._table.append((step, rank, what, ids))
                if self.dims.is_writer:
                    logger.warning('Step %d is left out on all ranks: rank %d, %s: %s', step, rank, what, _listed(ids))
        return suspects

    def check(self) -> None:
        """End the run after too many steps in a row.

        Raises:
            VtbNumericsError: `limit` steps in a row were left out.
        """
        if self.in_a_row >= self.limit:
            lines = [f'  step {step}, rank {rank}: {what}: {_listed(ids)}' for step, rank, what, ids in self._table]
            raise VtbNumericsError(
                'Step after step is not finite; weights and checkpoints are those before the first.\n'
                + '\n'.join(lines),
                field='data.max_bad_steps',
                got=f'{self.in_a_row} steps in a row',
                allowed=f'fewer than {self.limit}',
                remedy='look at the conversations above, whose files and lines are in quarantine.jsonl; where nothing '
                'is wrong with them, lower model.optimizer.lr or set trainer.gradient_clip_val',
            )

    def _see_norm(self, step: int, norm: float, rows: Sequence[SeenRow]) -> None:
        if not math.isfinite(norm):
            return
        usual = median(self._norms) if len(self._norms) >= _FEWEST else math.inf
        self._norms.append(norm)
        if norm > SPIKE * usual:
            ids = [id_ for each in self.dims.gather_objects([i for row in rows for i in row.ids]) for id_ in each]
            if self.dims.is_writer:
                text = 'Step %d: the norm of the gradient is %.3g, %.0f times the median of the last %d steps: %s'
                logger.warning(text, step, norm, norm / usual, len(self._norms) - 1, _listed(list(dict.fromkeys(ids))))


def find_suspects(reports: Sequence[tuple[int, Sequence[tuple]]], tensor_size: int = 1) -> list[Suspect]:
    """Conversations that made a step not finite, as closely as it can be told.

    A loss tells the conversation, a gradient the row. DDP reduces while the last row is run, so that all ranks see the
    gradient of one of them; where no other evidence is there, all conversations of the global batch are suspects.

    Args:
        reports: Of each rank: its number, and pairs of `SeenRow` and `RowEvidence`.
        tensor_size: Ranks that see the same rows.
    """
    lost = [_lost(rank, rows) for rank, rows in reports]
    turned = [_turned(rank, rows) for rank, rows in reports]
    # all at once, and not by a loss of their own: the gradient was reduced already
    mixed = len(reports) > tensor_size and all(turned)
    found = [suspect for each in lost for suspect in each]
    if not mixed:
        found += [s for own, each in zip(lost, turned, strict=True) if not own for s in each]
    if not found:
        what = 'the gradient of the global batch is not finite; whose it was cannot be told'
        found = [
            _suspect(rank, row, n, what) for rank, rows in reports for row, _ in rows for n in range(len(row.ids))
        ]
    # ranks that hold one LLM see the same rows: the first to tell is enough
    return list({(s.row, s.place): s for s in reversed(found)}.values())[::-1]


def _lost(rank: int, rows: Sequence[tuple]) -> list[Suspect]:
    return [_suspect(rank, row, n, 'its loss is not finite') for row, seen in rows for n in seen.bad_losses]


def _turned(rank: int, rows: Sequence[tuple]) -> list[Suspect]:
    what = 'the gradient of its row is not finite'
    return [_suspect(rank, row, n, what) for row, seen in rows if seen.bad_gradient for n in range(len(row.ids))]


def _suspect(rank: int, row: SeenRow, number: int, what: str) -> Suspect:
    return Suspect(rank, row.index, row.places[number], row.ids[number], what)


def _listed(ids: Sequence[str]) -> str:
    more = f' and {len(ids) - _SHOWN} more' if len(ids) > _SHOWN else ''
    return ', '.join(ids[:_SHOWN]) + more
