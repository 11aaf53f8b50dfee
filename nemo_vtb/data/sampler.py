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
"""The token-budget plan: which conversations make up row i, as a pure function of (index fingerprint, seed, i).

The next source is the one that lacks most tokens: no randomness, an error of about one conversation. The order inside
a source is a seeded permutation per epoch that is computed, not stored. Nothing here needs torch.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heapreplace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nemo_vtb.config.schema import DataSettings
from nemo_vtb.data.packing import LookAhead, RowPacker
from nemo_vtb.data.permutation import Blocks, Order, Shuffled
from nemo_vtb.errors import VtbCheckpointError, VtbConfigError, VtbDataError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from nemo_vtb.data.planner import Planner

STATE_VERSION = 1
_BLOCK = 1024  # positions of a permutation computed at once


class BudgetedSource(Protocol):
    """What the plan needs to know of a source (see `index.SourceIndex`)."""

    name: str
    kind: str
    weight: float
    max_repeats: int | None
    digest: str

    def __len__(self) -> int: ...

    def measure(self, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, supervised tokens and seconds of audio of some entries, each (len(entries),)."""
        ...

    def blocks(self) -> np.ndarray:
        """First entries of the blocks that are read together, (B,); asked where the order is `blocks`."""
        ...


@dataclass(frozen=True, slots=True)
class RowPlan:
    """One packed row.

    Args:
        index: Number of the row.
        items: (number of the source, entry) in the order in which they are laid out.
        num_tokens: Its length.
        cost: What it takes, for balancing.
        passes: How often the source of each item had been drawn from end to end before.
    """

    index: int
    items: tuple[tuple[int, int], ...]
    num_tokens: int
    cost: float
    passes: tuple[int, ...] = ()


PlanState = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BatchCounts:
    """What a global batch holds, over all ranks.

    Args:
        rows: Its rows.
        tokens: Of all of them.
        sources: Number of the source -> conversations, tokens, supervised tokens, seconds of audio.
    """

    rows: int
    tokens: int
    sources: Mapping[int, tuple[int, int, int, float]]

    @classmethod
    def of(cls, rows: Sequence[RowPlan], sources: Sequence[BudgetedSource]) -> 'BatchCounts':
        """Count the rows of all ranks."""
        entries: dict[int, list[int]] = {}
        for row in rows:
            for number, entry in row.items:
                entries.setdefault(number, []).append(entry)
        found = {}
        for number, chosen in entries.items():
            tokens, supervised, seconds = sources[number].measure(np.array(chosen, dtype=np.int64))
            sums = (int(tokens.sum()), int(supervised.sum()), float(seconds.sum(dtype=np.float64)))
            found[number] = (len(chosen), *sums)
        return cls(len(rows), sum(row.num_tokens for row in rows), found)


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """One global batch.

    Args:
        number: From 0, over the whole run.
        rows: Those of one rank, or of all ranks.
        counts: Of all ranks.
        snapshot: The plan behind it (`TokenBudgetPlan.snapshot`).
    """

    number: int
    rows: Sequence[RowPlan]
    counts: BatchCounts
    snapshot: tuple


class _Stream:
    """The endless order of one source: draw d is position d % n of the order of epoch d // n."""

    def __init__(self, source: BudgetedSource, order: Order, seed: int, supervised: bool) -> None:
        self.source, self.order, self.seed, self.supervised = source, order, seed, supervised
        self.size = len(source)
        repeats = source.max_repeats
        self.last = None if repeats is None else repeats * self.size
        self._start = -1
        self._block: tuple[list[int], list[int], list[int]] = ([], [], [])

    def draw(self, number: int) -> tuple[int, int, int]:
        """Entry, length and cost of draw `number`."""
        epoch, position = divmod(number, self.size)
        block = position - position % _BLOCK
        if (start := epoch * self.size + block) != self._start:
            positions = np.arange(block, min(block + _BLOCK, self.size))
            entries = self.order.entries(positions, f'{self.seed}:{self.source.name}:{epoch}')
            tokens, supervised, _ = self.source.measure(entries)
            costs = supervised if self.supervised else tokens
            self._block = (entries.tolist(), tokens.tolist(), costs.tolist())
            self._start = start
        at = position - block
        return self._block[0][at], self._block[1][at], self._block[2][at]


class TokenBudgetPlan:
    """The global plan of rows.

    Args:
        sources: The indexed sources.
        budget: Share of each kind; they sum to 1. None: in proportion to the tokens that each kind has.
        max_tokens: Length of a row.
        unit: What shares are counted in: `tokens` or `supervised_tokens`.
        seed: Of the order inside the sources.
        pool: Conversations in the look-ahead pool, over all sources.
        temperature: Weights inside a kind are raised to this power (NeMo's `reweight_temperature`).
        on_exhausted: What happens when a source has been repeated `max_repeats` times: `stop` the run, or `drop` the
            source and give its share to the others of its kind.
        window: None: conversations are drawn from all over a source. A number: its blocks of neighbours in random
            order, and so many conversations are shuffled among one another.

    Raises:
        VtbConfigError: Shares do not sum to 1, or a kind with a share has no source, or the reverse.
        VtbDataError: A source is empty.
    """

    def __init__(
        self,
        sources: Sequence[BudgetedSource],
        budget: Mapping[str, float] | None,
        *,
        max_tokens: int,
        unit: str = 'tokens',
        seed: int = 42,
        pool: int = 512,
        temperature: float = 1.0,
        on_exhausted: str = 'stop',
        window: int | None = None,
    ) -> None:
        self.sources = list(sources)
        self.max_tokens, self.unit, self.seed, self.on_exhausted = max_tokens, unit, seed, on_exhausted
        self.kinds = sorted({s.kind for s in self.sources})
        self._temperature = temperature
        self._first_shares = self.shares = resolve_shares(self.sources, budget, temperature, unit)
        self._kind_of = [self.kinds.index(s.kind) for s in self.sources]
        self._packer = RowPacker(max_tokens)
        orders = [Shuffled(len(s)) if window is None else Blocks(s.blocks(), len(s), window) for s in self.sources]
        supervised = unit == 'supervised_tokens'
        self._streams = [_Stream(s, order, seed, supervised) for s, order in zip(self.sources, orders, strict=True)]
        capacity = max(16, pool // max(1, len(self.sources)))
        self._capacities = [max(1, min(capacity, (len(s) + 1) // 2)) for s in self.sources]
        self.fingerprint = {
            'sources': {s.name: s.digest for s in self.sources},
            'shares': {s.name: round(share, 12) for s, share in zip(self.sources, self.shares, strict=True)},
            'max_tokens': max_tokens,
            'unit': unit,
            'seed': seed,
            'pool': pool,
            'max_repeats': {s.name: s.max_repeats for s in self.sources},
            'on_exhausted': on_exhausted,
            **({} if window is None else {'order': f'blocks, window {window}'}),
        }
        self._start()

    def _start(self) -> None:
        count = len(self.sources)
        self.row = 0
        self._draws = [0] * count  # conversations drawn into the pool, over all epochs
        self._spent = [0] * count  # cost counted against the shares, since the last change of shares
        self._pools = [LookAhead(capacity) for capacity in self._capacities]
        self._alive = [True] * count
        self._compensations: dict[
            int, list[tuple[int, int]]
        ] = {}  # row -> (source, cost), given back before it is planned
        self._changes: dict[int, dict[str, float]] = {}  # row -> budget that holds from it on
        self._budget: dict[str, float] | None = None  # the last of them that was reached
        self.shares = self._first_shares
        self._set_shares()
        for source in range(count):
            self._refill(source)

    def _set_shares(self) -> None:
        """Shares among the sources that are left; the counters begin anew, so that no old deficit is chased."""
        weights = np.array([s if a else 0.0 for s, a in zip(self.shares, self._alive, strict=True)])
        total = weights.sum()
        live = (weights / total if total else weights).tolist()
        kinds = [sum(w for w, k in zip(live, self._kind_of, strict=True) if k == n) for n in range(len(self.kinds))]
        self._kind_share = kinds
        self._inner = [w / kinds[k] if kinds[k] else 0.0 for w, k in zip(live, self._kind_of, strict=True)]
        self._spent = [0] * len(self.sources)
        self._kind_spent = [0] * len(self.kinds)
        self._total = 0
        members: list[list[int]] = [[] for _ in self.kinds]
        for source, kind in enumerate(self._kind_of):
            if self._alive[source] and self.shares[source] > 0:
                members[kind].append(source)
        self._members = members
        self._live_kinds = [kind for kind, inside in enumerate(members) if inside]

    def _refill(self, source: int) -> None:
        pool, stream = self._pools[source], self._streams[source]
        while len(pool) < pool.capacity and (stream.last is None or self._draws[source] < stream.last):
            entry, length, cost = stream.draw(self._draws[source])
            pool.add(self._draws[source], entry, length, cost)
            self._draws[source] += 1

    def _needy(self) -> list[int]:
        """Sources that can give something: kinds by deficit, and inside each kind its neediest source."""
        total, spent, share = self._total, self._kind_spent, self._kind_share
        kinds = self._live_kinds
        if len(kinds) > 1:
            kinds = sorted(kinds, key=lambda k: spent[k] - share[k] * total)
        order = []
        for kind in kinds:
            inside = self._members[kind]
            if len(inside) == 1:
                best = inside[0]
            else:
                base = spent[kind]
                best = min(inside, key=lambda s: self._spent[s] - self._inner[s] * base)
            if self._pools[best].sizes:
                order.append(best)
        return order

    def _retire(self) -> bool:
        """Handle sources that ran dry; whether the plan can go on."""
        dry = [s for inside in self._members for s in inside if not self._pools[s].sizes]
        if not dry:
            return bool(self._live_kinds)
        if self.on_exhausted == 'stop':
            return False
        for source in dry:
            self._alive[source] = False
        self._set_shares()
        return bool(self._live_kinds)

    def next_row(self) -> RowPlan | None:
        """Plan the next row; None when the data is used up (`max_repeats`)."""
        for source, cost in self._compensations.get(self.row, ()):
            self._count(source, -cost)
        if (budget := self._changes.get(self.row)) is not None:
            self._take_budget(budget)
        if not self._retire():
            return None
        items: list[tuple[int, int]] = []
        lengths: list[int] = []
        passes: list[int] = []

        def take(source: int, draw: int) -> int:
            _, entry, length, cost = self._pools[source].take(draw)
            items.append((source, entry))
            lengths.append(length)
            passes.append(draw // self._streams[source].size)
            self._count(source, cost)
            self._refill(source)
            return length

        self._packer.fill(self._pools, self._needy, take)
        dear = float(sum(n + n * n / 4096 for n in lengths))
        plan = RowPlan(self.row, tuple(items), sum(lengths), dear, tuple(passes))
        self.row += 1
        return plan

    def _count(self, source: int, cost: int) -> None:
        self._spent[source] += cost
        self._kind_spent[self._kind_of[source]] += cost
        self._total += cost

    def compensate(self, row: int, source: int, entry: int) -> None:
        """Give the tokens of a conversation that could not be loaded back to its source, before `row` is planned.

        Raises:
            VtbDataError: That row is planned already, so that the plan would depend on chance.
        """
        if row < self.row:
            raise VtbDataError('A compensation came too late.', field='row', got=row, allowed=f'>= {self.row}')
        tokens, supervised, _ = self.sources[source].measure(np.array([entry]))
        cost = int((supervised if self.unit == 'supervised_tokens' else tokens)[0])
        self._compensations.setdefault(row, []).append((source, cost))

    def change_budget(self, row: int, budget: Mapping[str, float]) -> None:
        """Other shares of the kinds from `row` on; part of the state, so that a resumed run has them at the same row.

        Raises:
            VtbDataError: That row is planned already, so that the plan would depend on chance.
            VtbConfigError: The shares do not fit the sources.
        """
        if row < self.row:
            raise VtbDataError('A change of shares came too late.', field='row', got=row, allowed=f'>= {self.row}')
        self.shares_of(budget)
        self._changes[row] = dict(budget)

    def shares_of(self, budget: Mapping[str, float]) -> list[float]:
        """Share of each source under other shares of the kinds."""
        return resolve_shares(self.sources, budget, self._temperature, self.unit)

    def change_at(self, row: int) -> dict[str, float] | None:
        """The budget that begins with `row`, None if none does."""
        return self._changes.get(row)

    def changes_after(self, row: int) -> bool:
        """Whether a change of shares is known that begins behind `row`."""
        return any(at > row for at in self._changes)

    @property
    def coming_budget(self) -> dict[str, float]:
        """Share of each kind once every change that is known has been reached."""
        if self._changes:
            return dict(self._changes[max(self._changes)])
        if self._budget is not None:
            return dict(self._budget)
        return {
            k: sum(s for s, n in zip(self.shares, self._kind_of, strict=True) if n == i)
            for i, k in enumerate(self.kinds)
        }

    def _take_budget(self, budget: Mapping[str, float]) -> None:
        self._budget = dict(budget)
        self.shares = self.shares_of(budget)
        self._set_shares()

    def forget_before(self, row: int) -> None:
        """Forget compensations and changes of rows that were trained on."""
        for table in (self._compensations, self._changes):
            for older in [at for at in table if at < row]:
                del table[older]

    def epochs(self) -> list[float]:
        """How often each source has been drawn from end to end."""
        return [draws / len(source) for draws, source in zip(self._draws, self.sources, strict=True)]

    def snapshot(self) -> tuple:
        """The state as cheap immutable tuples, to be kept for every row in flight; see `state_of`."""
        return (
            self.row,
            tuple(self._draws),
            tuple(self._spent),
            tuple(self._kind_spent),
            self._total,
            tuple(self._alive),
            tuple(tuple(pool.items) for pool in self._pools),
            self._budget,
        )

    def follow(self, snapshot: tuple) -> None:
        """Stand where the same plan stands in another process, but for its pools: this one plans no more rows."""
        self.row, self._draws = snapshot[0], list(snapshot[1])
        if snapshot[7] is not None and snapshot[7] != self._budget:
            self._take_budget(snapshot[7])

    def state_of(self, snapshot: tuple) -> PlanState:
        """A snapshot as JSON-able state: O(1) in the size of the data and in the length of the run."""
        row, draws, spent, kind_spent, total, alive, pools, budget = snapshot
        return {
            'version': STATE_VERSION,
            'fingerprint': self.fingerprint,
            'row': row,
            'total': total,
            'kind_spent': dict(zip(self.kinds, kind_spent, strict=True)),
            'sources': {
                source.name: {
                    'draws': draws[number],
                    'spent': spent[number],
                    'alive': alive[number],
                    'pool': list(pools[number]),
                }
                for number, source in enumerate(self.sources)
            },
            # also those that became known after the snapshot was taken
            'refunds': [[at, *r] for at, each in sorted(self._compensations.items()) if at >= row for r in each],
            'budget': budget,
            'changes': [[at, change] for at, change in sorted(self._changes.items()) if at >= row],
        }

    def state_dict(self) -> PlanState:
        """The present state; see `state_of`."""
        return self.state_of(self.snapshot())

    def load_state_dict(self, state: PlanState, *, allow_changed: bool = False) -> None:
        """Continue from a state.

        Raises:
            VtbCheckpointError: The data, the shares or the template changed; it names what.
        """
        changes = changed_fields(state, self.fingerprint)
        if changes and not allow_changed:
            raise VtbCheckpointError(
                'The data is not what this checkpoint was trained on, so the run cannot be continued exactly.',
                field='data.train_ds',
                got='; '.join(changes),
                allowed='the same files, shares, template and max_tokens as before',
                remedy='restore them, or set data.allow_changed=true to continue with the new data',
            )
        self._start()
        self.row = state['row']
        names = {source.name: number for number, source in enumerate(self.sources)}
        if changes:
            self._adopt(state, names)
            return
        for name, saved in state['sources'].items():
            number = names[name]
            self._alive[number] = saved['alive']
            self._draws[number] = saved['draws']
            pool = self._pools[number] = LookAhead(self._capacities[number])
            for draw in saved['pool']:
                pool.add(draw, *self._streams[number].draw(draw))
            pool.drawn = saved['draws'] - 1
        self._changes = dict(state.get('changes') or ())
        if state.get('budget'):
            self._take_budget(state['budget'])
        self._set_shares()
        self._spent = [state['sources'][source.name]['spent'] for source in self.sources]
        self._kind_spent = [state['kind_spent'][kind] for kind in self.kinds]
        self._total = state['total']
        for row, source, cost in state['refunds']:
            self._compensations.setdefault(row, []).append((source, cost))

    def _adopt(self, state: PlanState, names: Mapping[str, int]) -> None:
        """Changed data, by the user's leave: each source goes on at its share of an epoch, the shares begin anew."""
        for name, saved in state['sources'].items():
            if name in names and state['fingerprint']['sources'][name] == self.sources[names[name]].digest:
                number = names[name]
                self._pools[number] = LookAhead(self._capacities[number])
                self._draws[number] = min([saved['draws'], *saved['pool']])
                self._refill(number)

    def __iter__(self) -> Iterator[RowPlan]:
        while (row := self.next_row()) is not None:
            yield row


def make_plan(sources: Sequence[BudgetedSource], settings: DataSettings) -> TokenBudgetPlan:
    """The global plan of the settings.

    Raises:
        VtbConfigError: The shares do not fit the sources, or that of text cannot be raised (`data.budget.auto`).
    """
    plan = TokenBudgetPlan(
        sources,
        settings.budget,
        max_tokens=settings.max_tokens,
        unit=settings.unit,
        seed=settings.seed,
        pool=settings.pool_size,
        temperature=settings.temperature,
        on_exhausted=settings.on_exhausted,
        window=settings.shuffle_window if settings.order == 'blocks' else None,
    )
    if settings.budget_auto and not 0 < plan.coming_budget.get('text', 0.0) < 1:
        raise VtbConfigError(
            'The share of text-only conversations cannot be raised.',
            field='data.budget.auto',
            got=settings.budget_auto,
            allowed='a budget with a share of text between 0 and 1',
            remedy='add a source of kind text, or set data.budget.auto=null',
        )
    return plan


def resolve_shares(
    sources: Sequence[BudgetedSource],
    budget: Mapping[str, float] | None,
    temperature: float = 1.0,
    unit: str = 'tokens',
) -> list[float]:
    """The share of each source in all tokens: the share of its kind times its part of the weights of that kind.

    Raises:
        VtbConfigError: See `TokenBudgetPlan`.
        VtbDataError: See `TokenBudgetPlan`.
    """
    if unit not in ('tokens', 'supervised_tokens'):
        raise VtbConfigError(
            'Unknown unit of shares.', field='data.train_ds.unit', got=unit, allowed='tokens, supervised_tokens'
        )
    for source in sources:
        if not len(source):
            raise VtbDataError(
                'A source has no usable conversation.',
                field=f'source {source.name}',
                got='0 conversations',
                remedy='correct its manifest, or take it out of input_cfg',
            )
        if unit == 'supervised_tokens' and not source.measure(np.arange(len(source)))[1].any():
            raise VtbDataError(
                'A source has no supervised tokens, so that it can have no share of them.',
                field=f'source {source.name}',
                got='0 supervised tokens',
                remedy='set data.unit to tokens',
            )
    if not sources:
        raise VtbDataError('There is no source of data.', field='data.train_ds.input_cfg', got='[]')
    weights = [max(float(s.weight), 0.0) ** temperature if s.weight else 0.0 for s in sources]
    kinds = sorted({s.kind for s in sources})
    if budget is None:
        budget = _proportional(sources, unit)
    _check_budget(budget, kinds)
    inside = {kind: sum(w for w, s in zip(weights, sources, strict=True) if s.kind == kind) for kind in kinds}
    for kind in kinds:
        if budget.get(kind, 0) > 0 and inside[kind] <= 0:
            raise VtbConfigError('All sources of a kind have weight 0.', field=f'budget.{kind}', got=0, allowed='> 0')
    return [
        float(budget.get(s.kind, 0.0)) * (w / inside[s.kind] if inside[s.kind] else 0.0)
        for w, s in zip(weights, sources, strict=True)
    ]


def _check_budget(budget: Mapping[str, float], kinds: Sequence[str]) -> None:
    field = 'data.train_ds.budget'
    for kind, share in budget.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise VtbConfigError(
                'A share must be a number from 0 to 1.', field=f'{field}.{kind}', got=share, allowed='0 ... 1'
            )
        if share > 0 and kind not in kinds:
            raise VtbConfigError(
                'A kind of data has a share but no source.',
                field=f'{field}.{kind}',
                got=share,
                allowed=f'kinds with a source: {", ".join(kinds)}',
                remedy=f'add a source of kind {kind} to input_cfg, or give its share to the others',
            )
    for kind in kinds:
        if kind not in budget:
            raise VtbConfigError(
                'A kind of data has sources but no share.',
                field=f'{field}.{kind}',
                got='absent',
                remedy='give it a share; 0 leaves it out',
            )
    if abs(sum(budget.values()) - 1) > 1e-6:
        raise VtbConfigError(
            'The shares do not sum to 1.',
            field=field,
            got=f'{dict(budget)}, sum {sum(budget.values()):.6g}',
            allowed='sum 1',
        )


def _proportional(sources: Sequence[BudgetedSource], unit: str) -> dict[str, float]:
    """Each kind in proportion to what it has, so that every conversation is seen equally often."""
    tokens: dict[str, int] = {}
    for source in sources:
        measured = source.measure(np.arange(len(source)))
        tokens[source.kind] = tokens.get(source.kind, 0) + int(
            measured[1 if unit == 'supervised_tokens' else 0].sum(dtype=np.int64)
        )
    total = sum(tokens.values())
    return {kind: count / total for kind, count in tokens.items()}


def changed_fields(state: PlanState, fingerprint: Mapping[str, Any]) -> list[str]:
    """Name what differs between a saved state and the present plan, a line for each."""
    if state.get('version') != STATE_VERSION:
        return [f'state version {state.get("version")} (this release writes {STATE_VERSION})']
    saved = json.loads(json.dumps(state['fingerprint']))
    changes = []
    for key, now in json.loads(json.dumps(fingerprint)).items():
        before = saved.get(key)
        if before == now:
            continue
        if isinstance(now, dict) and isinstance(before, dict):
            for name in sorted(before.keys() | now.keys()):
                if before.get(name) != now.get(name):
                    changes.append(f'{key}.{name}: {_brief(before.get(name))} -> {_brief(now.get(name))}')
        else:
            changes.append(f'{key}: {_brief(before)} -> {_brief(now)}')
    return changes


def _brief(value: object) -> str:
    text = 'absent' if value is None else str(value)
    return text if len(text) <= 14 else text[:12] + '..'


def split_rows(rows: Sequence[RowPlan], world_size: int, *, balance: bool = True) -> list[list[RowPlan]]:
    """Deal the rows of one global batch to the data-parallel ranks, equally many to each.

    Args:
        rows: All rows of the batch; a multiple of `world_size`.
        world_size: Number of data-parallel ranks.
        balance: Greedily by cost, the dearest row first, so that no rank waits long; else in turn.
    """
    if not balance or world_size == 1:
        return [list(rows[rank::world_size]) for rank in range(world_size)]
    each = len(rows) // world_size
    shares: list[list[RowPlan]] = [[] for _ in range(world_size)]
    loads = [(0.0, rank) for rank in range(world_size)]  # a heap of the ranks that may get more
    for row in sorted(rows, key=lambda r: (-r.cost, r.index)):
        load, rank = loads[0]
        shares[rank].append(row)
        if len(shares[rank]) < each:
            heapreplace(loads, (load + row.cost, rank))
        else:
            heappop(loads)
    return [sorted(share, key=lambda r: r.index) for share in shares]


def plan_batch(plan: TokenBudgetPlan, size: int) -> PlannedBatch | None:
    """The next global batch with the rows of all ranks; None where the data is used up before it is full."""
    number = plan.row // size
    rows = [row for row in (plan.next_row() for _ in range(size)) if row is not None]
    if len(rows) < size:
        return None
    return PlannedBatch(number, rows, BatchCounts.of(rows, plan.sources), plan.snapshot())


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How many packed rows make a global batch, and how they are spread.

    Args:
        rows: Rows of a global batch.
        ranks: Data-parallel ranks, each of which sees as many of them.
        accumulation: Rows whose gradients a rank adds up before a step, where that is fixed already; None follows.

    Raises:
        VtbConfigError: The rows are not ranks x accumulation.
    """

    rows: int
    ranks: int = 1
    accumulation: int | None = None

    def __post_init__(self) -> None:
        each = (self.accumulation or 1) * self.ranks
        if self.rows < 1 or self.rows % each or (self.accumulation and self.rows != each):
            fixed = f' x {self.accumulation} accumulated rows' if self.accumulation else ''
            raise VtbConfigError(
                'The rows of a global batch cannot be spread equally over the data-parallel ranks.',
                field='data.rows_per_batch',
                got=f'{self.rows} rows for {self.ranks} ranks{fixed}',
                allowed=f'{each}' if fixed else f'a multiple of {self.ranks}',
                remedy=f'data.rows_per_batch={self.ranks * max(1, round(self.rows / self.ranks))} '
                'without trainer.accumulate_grad_batches, which follows from it',
            )

    @property
    def rows_per_rank(self) -> int:
        """Rows of a global batch that each rank sees, and whose gradients it adds up before a step."""
        return self.rows // self.ranks

    @classmethod
    def of(cls, trainer: 'Trainer | None', rows: int | None, ranks: int) -> 'BatchPlan':
        """The global batch of a run; where `rows` are given, the trainer's accumulation is made to follow.

        Args:
            trainer: None where there is none.
            rows: `data.rows_per_batch`; None takes one row for each rank and accumulation.
            ranks: Data-parallel ranks.

        Raises:
            VtbConfigError: The rows are not a multiple of the ranks, or the trainer accumulates something else.
        """
        accumulation = 1 if trainer is None else trainer.accumulate_grad_batches
        if rows is None:
            return cls(accumulation * ranks, ranks)
        plan = cls(rows, ranks, accumulation if accumulation > 1 else None)
        if trainer is not None:
            trainer.accumulate_grad_batches = plan.rows_per_rank
        return plan


class TokenBudgetSampler:
    """Yields the rows of one data-parallel rank, batch after batch, and knows the state after each global batch.

    Works as the `sampler` of a `torch.utils.data.DataLoader(batch_size=None)`; it runs in the main process, so that
    the number of loader workers changes nothing. What it has yielded may only be prefetched: `take_batch` says that a
    global batch was trained on, and the state counts those alone.

    Args:
        plan: The global plan; the same on all ranks.
        batch: The global batch.
        rank: Data-parallel rank (not the global rank: tensor-parallel peers must see the same rows).
        num_batches: Global batches of the whole run; None is endless.
        balance: See `split_rows`.
        repeat: The first so many global batches come again and again (`trainer.overfit_batches`); 0: never.
        planner: Process that plans for all ranks, ahead of training; None: the rows are planned here, when they are
            asked for.
    """

    def __init__(
        self,
        plan: TokenBudgetPlan,
        batch: BatchPlan,
        rank: int = 0,
        num_batches: int | None = None,
        balance: bool = True,
        repeat: int = 0,
        planner: 'Planner | None' = None,
    ) -> None:
        self.plan, self.batch, self.rank, self.planner = plan, batch, rank, planner
        self.num_batches, self.balance = num_batches, balance
        self._repeated = self._first_batches(repeat) if repeat else []
        self.used_up = False
        "Whether `max_repeats` left too little for another global batch."
        self._begin_here()

    def _first_batches(self, count: int) -> list[list[RowPlan]]:
        """The first global batches, after which the plan stands where it stood."""
        before = self.plan.state_of(self.plan.snapshot())
        rows = [row for row in (self.plan.next_row() for _ in range(count * self.batch.rows)) if row is not None]
        self.plan.load_state_dict(before)
        return [rows[n : n + self.batch.rows] for n in range(0, len(rows), self.batch.rows)]

    def _begin_here(self) -> None:
        self.batches = self.plan.row // self.batch.rows
        "Global batches that were trained on."
        self._snapshots = {self.batches: self.plan.snapshot()}
        self._contents: dict[int, PlannedBatch] = {}  # with the rows of this rank

    def __len__(self) -> int:
        """Rows of this rank over the whole run.

        Raises:
            TypeError: The run is endless.
        """
        if self.num_batches is None:
            raise TypeError('an endless sampler has no length')
        return self.num_batches * self.batch.rows_per_rank

    def __iter__(self) -> Iterator[RowPlan]:
        for planned in self._planned_here() if self.planner is None else self._planned_ahead(self.planner):
            self._snapshots[planned.number + 1], self._contents[planned.number] = planned.snapshot, planned
            yield from planned.rows
        self.used_up = self.num_batches is None or self.plan.row < self.num_batches * self.batch.rows

    def _planned_here(self) -> Iterator[PlannedBatch]:
        while self.num_batches is None or self.plan.row < self.num_batches * self.batch.rows:
            planned = plan_batch(self.plan, self.batch.rows)
            if planned is None:
                return
            if self._repeated:
                rows = self._repeated[planned.number % len(self._repeated)]
                planned = replace(planned, rows=rows, counts=BatchCounts.of(rows, self.plan.sources))
            shares = split_rows(planned.rows, self.batch.ranks, balance=self.balance)
            yield replace(planned, rows=shares[self.rank])

    def _planned_ahead(self, planner: 'Planner') -> Iterator[PlannedBatch]:
        self.rewind()  # the plan here followed the other, without its pools
        for planned in planner.batches(self.plan, self.batch, self.num_batches, self.balance):
            self.plan.follow(planned.snapshot)
            yield planned

    def compensate(self, row: int, source: int, entry: int) -> None:
        """See `TokenBudgetPlan.compensate`; all ranks call it alike."""
        self.plan.compensate(row, source, entry)
        if self.planner is not None:
            self.planner.tell('compensate', row, source, entry)

    def change_budget(self, row: int, budget: Mapping[str, float]) -> None:
        """See `TokenBudgetPlan.change_budget`; all ranks call it alike."""
        self.plan.change_budget(row, budget)
        if self.planner is not None:
            self.planner.tell('change_budget', row, dict(budget))

    @property
    def coming(self) -> BatchCounts:
        """What the global batch holds that `take_batch` counts next."""
        return self._contents[self.batches].counts

    def take_batch(self) -> Sequence[RowPlan]:
        """Count the next global batch as trained on; returns its rows of this rank."""
        rows = self._contents.pop(self.batches).rows
        self.batches += 1
        for older in [number for number in self._snapshots if number < self.batches]:
            del self._snapshots[older]
        self.plan.forget_before(self.batches * self.batch.rows)
        return rows

    def rewind(self) -> None:
        """Go back to what was trained on: what was only prefetched is planned again."""
        self.load_state_dict(self.state_dict())

    def state_dict(self) -> PlanState:
        """State after the last whole global batch that was trained on."""
        return self.plan.state_of(self._snapshots[self.batches]) | {'rows_per_batch': self.batch.rows}

    def load_state_dict(self, state: PlanState, *, allow_changed: bool = False) -> None:
        """Continue after a whole global batch, on any number of ranks.

        Raises:
            VtbCheckpointError: The data or the size of the global batch changed.
        """
        saved = state.get('rows_per_batch', self.batch.rows)
        if saved != self.batch.rows and not allow_changed:
            raise VtbCheckpointError(
                'The global batch has another size than in the checkpoint.',
                field='data.rows_per_batch',
                got=self.batch.rows,
                allowed=saved,
                remedy=f'data.rows_per_batch={saved}, or data.allow_changed=true',
            )
        self.plan.load_state_dict(state, allow_changed=allow_changed)
        if saved != self.batch.rows:
            self.plan.row = -(-self.plan.row // self.batch.rows) * self.batch.rows
        self._begin_here()
