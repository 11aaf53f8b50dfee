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
"""How far a run has come: counted in global batches that were trained on, not in rows that were prefetched."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_vtb.config.schema import DataSettings
from nemo_vtb.data.collate import PackedRow
from nemo_vtb.data.faults import Reason
from nemo_vtb.data.index import skip_table
from nemo_vtb.data.ledger import Ledger, SourceAccount
from nemo_vtb.data.overlong import FittedSource
from nemo_vtb.data.sampler import PlanState, TokenBudgetPlan, TokenBudgetSampler
from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.io import read_json_lines

logger = logging.getLogger(__name__)


class Quarantine:
    """The file that lists what was left out, one JSON line each; never the same twice, also after a resume."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._known: set[tuple] = set()
        self._known.update(self._key(fault) for fault in read_json_lines(self.path))

    def add(self, faults: Sequence[Mapping[str, Any]]) -> int:
        """Append faults; returns how many were new."""
        new = []
        for fault in faults:
            if (key := self._key(fault)) not in self._known:
                self._known.add(key)
                new.append({name: fault.get(name) for name in _FIELDS})
        if new:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, 'a', encoding='utf-8') as stream:
                stream.write(''.join(json.dumps(fault, ensure_ascii=False) + '\n' for fault in new))
        return len(new)

    @staticmethod
    def _key(fault: Mapping[str, Any]) -> tuple:
        return tuple(fault.get(name) for name in ('source', 'file', 'byte_offset', 'reason'))


MAX_TEXT = 0.5
"""The share of typed chats is never raised beyond this: a run that needs more needs other data."""


def _check_text(budget: Mapping[str, float], step: float) -> None:
    if not 0 < budget.get('text', 0.0) < 1:
        raise VtbConfigError(
            'The share of typed chats cannot be raised.',
            field='data.budget.auto',
            got=step,
            allowed='a budget with a share of text between 0 and 1',
            remedy='add a source of kind text, or set data.budget.auto=null',
        )


_FIELDS = ('source', 'file', 'line', 'byte_offset', 'id', 'reason', 'detail')


class Progress:
    """Ties the global plan to this run: what was consumed, the ledger, the faults.

    Args:
        sources: In the order of the plan.
        plan: The global plan.
        settings: Of the data engine.
    """

    def __init__(self, sources: Sequence[FittedSource], plan: TokenBudgetPlan, settings: DataSettings) -> None:
        self.sources, self.plan, self.settings = list(sources), plan, settings
        accounts = [
            SourceAccount(s.name, s.kind, share, len(s)) for s, share in zip(self.sources, plan.shares, strict=True)
        ]
        self.ledger = Ledger(accounts, plan.max_tokens, plan.unit)
        if settings.budget_auto:
            _check_text(plan.coming_budget, settings.budget_auto)
        for source in self.sources:
            for reason, count in source.index.meta['quarantined'].items():
                self.ledger.skip(source.name, reason, count)
            if source.dropped:
                self.ledger.skip(source.name, Reason.OVERLONG.value, len(source.dropped))
        self._skips_before = {name: dict(a.skips) for name, a in self.ledger.accounts.items()}
        self.batches = 0
        self._rows = 0  # of this rank, in the present global batch
        self._faults: list[dict[str, Any]] = []  # of this rank, not yet told to the others
        self._failed: set[tuple[int, int]] = set()
        self.attached = False

    def attach(
        self,
        rows_per_batch: int,
        rank: int,
        world_size: int,
        num_batches: int | None,
        quarantine: str | Path,
        writes: bool = True,
    ) -> None:
        """Fix ranks, size of the global batch and length of the run; list what the indexes left out."""
        if self.attached:
            self.rewind()  # a second fit goes on after what was consumed
        self.sampler = TokenBudgetSampler(
            self.plan, rows_per_batch, rank, world_size, num_batches, self.settings.balance
        )
        self.rank, self.world_size, self.attached = rank, world_size, True
        self._consumed: PlanState = self.sampler.state_after(self.batches)
        self._each = rows_per_batch // world_size
        self._quarantine = Quarantine(quarantine) if rank == 0 and writes else None
        if self._quarantine is not None:
            for source in self.sources:
                self._quarantine.add([*source.index.quarantined(), *source.dropped])
        if self.ledger.skipped:
            skips = {name: account.skips for name, account in self.ledger.accounts.items() if account.skips}
            logger.warning('Left out, see %s:\n%s', quarantine, skip_table(skips))

    @property
    def inside_batch(self) -> bool:
        """Whether some rows of a global batch were trained on, but not all."""
        return self._rows > 0

    def prefetch(self, settings: DataSettings) -> int:
        """Rows that each loader process may keep ready, so that a refund is always in time for the plan.

        Raises:
            VtbConfigError: There are too many loader processes for `refund_batches`.
        """
        workers = max(1, settings.num_workers)
        # half of the time is for telling the other ranks, and the plan is one batch ahead of the loader
        rows = (settings.refund_batches // 2 - 2) * self._each
        if settings.num_workers and rows < workers:
            raise VtbConfigError(
                'The loader processes run further ahead than a refund of tokens waits.',
                field='data.refund_batches',
                got=settings.refund_batches,
                allowed=f'>= {2 * (math.ceil(workers / self._each) + 2)}',
                remedy='raise it, or lower data.num_workers',
            )
        return max(1, min(settings.prefetch_factor, rows // workers))

    def rewind(self) -> None:
        """Go back to what was consumed: what was only prefetched is planned again."""
        self.sampler.load_state_dict(self._consumed)
        self._rows = 0

    def consumed(self, row: PackedRow) -> bool:
        """Count one row; returns whether it completed a global batch.

        Raises:
            VtbDataError: Too many conversations could not be loaded.
        """
        self._rows += 1
        self._faults += [{**fault, 'batch': self.batches} for fault in row.faults]
        if self._rows < self._each:
            return False
        self._rows = 0
        self._count_batch()
        self.batches += 1
        if self.world_size == 1 or self.batches % max(1, self.settings.refund_batches // 2) == 0:
            self.exchange()
        self._consumed = self.sampler.state_after(self.batches)
        return True

    def exchange(self) -> None:
        """Tell all ranks what failed; every rank then refunds the same tokens at the same row.

        Raises:
            VtbDataError: Too many conversations could not be loaded.
        """
        gathered, self._faults = self._gather(self._faults), []
        # tensor-parallel peers report the same row
        faults = {(f['row'], f['place']): f for f in gathered}
        for _, fault in sorted(faults.items()):
            source, entry = fault['number'], fault['entry']
            row = (fault['batch'] + 1 + self.settings.refund_batches) * self.sampler.rows_per_batch
            self.plan.refund(row, source, entry)
            tokens, supervised, seconds = (float(v[0]) for v in self.sources[source].measure(np.array([entry])))
            name = self.sources[source].name
            self.ledger.add(name, -1, -int(tokens), -int(supervised), -seconds)
            self.ledger.skip(name, fault['reason'])
            self._failed.add((source, entry))
        if not faults:
            return
        if self._quarantine is not None:
            self._quarantine.add(list(faults.values()))
        self._check()

    def raise_text(self) -> str | None:
        """Ask for a larger share of typed chats, from the same row on all ranks; all of them call it together.

        Returns:
            What was changed, in words; None where the share is at its highest, or the last change is yet to come.
        """
        rows = self.sampler.rows_per_batch
        batch = self.batches + 1 + self.settings.refund_batches  # nobody has planned as far as that
        budget = self.plan.coming_budget
        text, step = budget['text'], float(self.settings.budget_auto or 0.0)
        if self.plan.changes_after(self.batches * rows) or text >= MAX_TEXT:
            return None
        now = min(MAX_TEXT, text + step)
        changed = {kind: now if kind == 'text' else s * (1 - now) / (1 - text) for kind, s in budget.items()}
        self.plan.change_budget(batch * rows, changed)
        self._consumed = self.sampler.state_after(self.batches)
        return f'share of typed chats {text:.1%} -> {now:.1%} from step {batch} on'

    def state_dict(self) -> dict[str, Any]:
        """Plan and ledger after the last whole global batch. All ranks call it together, as for a checkpoint."""
        if self.world_size > 1:
            self.exchange()
        self._consumed = self.sampler.state_after(self.batches)
        return {
            'plan': self._consumed,
            'batches': self.batches,
            'ledger': self.ledger.to_json(),
            'failed': [[self.sources[s].name, e] for s, e in sorted(self._failed)[:1000]],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, on any number of ranks and loader processes.

        Raises:
            VtbCheckpointError: Files, shares, template or size of the global batch changed.
        """
        self.sampler.load_state_dict(state['plan'], allow_changed=self.settings.allow_changed)
        self.batches = self.plan.row // self.sampler.rows_per_batch
        self._consumed = self.sampler.state_after(self.batches)
        self.ledger.load_state_dict(state['ledger'])
        numbers = {source.name: number for number, source in enumerate(self.sources)}
        self._failed = {(numbers[name], entry) for name, entry in state['failed'] if name in numbers}
        self._rows, self._faults = 0, []

    def _count_batch(self) -> None:
        if (budget := self.plan.change_at(self.batches * self.sampler.rows_per_batch)) is not None:
            shares = self.plan.shares_of(budget)
            self.ledger.change_shares({s.name: share for s, share in zip(self.sources, shares, strict=True)})
        rows = self.sampler.take_batch(self.batches)
        entries: dict[int, list[int]] = {}
        for row in rows:
            for number, entry in row.items:
                entries.setdefault(number, []).append(entry)
        for number, chosen in entries.items():
            tokens, supervised, seconds = self.sources[number].measure(np.array(chosen, dtype=np.int64))
            sums = (int(tokens.sum()), int(supervised.sum()), float(seconds.sum(dtype=np.float64)))
            self.ledger.add(self.sources[number].name, len(chosen), *sums)
        self.ledger.close_batch(len(rows))

    def _check(self) -> None:
        for number, source in enumerate(self.sources):
            failed = sum(s == number for s, _ in self._failed)
            bad = failed + sum(source.index.meta['quarantined'].values())
            lines = source.index.meta['lines']
            if failed and bad > self.settings.max_skip_ratio * lines:
                table = skip_table({source.name: self.ledger.accounts[source.name].skips})
                raise VtbDataError(
                    f'Too many conversations of a source cannot be loaded.\n{table}',
                    field=f'source {source.name}',
                    got=f'{bad} of {lines} ({bad / lines:.2%})',
                    allowed=f'data.max_skip_ratio {self.settings.max_skip_ratio:.2%}',
                    remedy='mend what quarantine.jsonl lists, or raise data.max_skip_ratio',
                )

    def _gather(self, faults: list[dict[str, Any]]) -> list[dict[str, Any]]:
        import torch.distributed as dist

        if self.world_size == 1 or not dist.is_available() or not dist.is_initialized():
            return faults
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, faults)
        return [fault for each in gathered for fault in each]
