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
"""The one owner of a run's state: progress of the plan, ledger, quarantine, random generators, Lightning's counters.

All is counted in global batches that were trained on, not in rows that were prefetched.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np

from nemo_vtb.config.schema import DataSettings
from nemo_vtb.data.collate import PackedRow
from nemo_vtb.data.datamodule import RowCounter, TrainLoader, VtbDataModule
from nemo_vtb.data.faults import Reason, skip_table
from nemo_vtb.data.index import FittedSource
from nemo_vtb.data.ledger import Ledger, SourceAccount
from nemo_vtb.data.sampler import RowPlan, TokenBudgetSampler
from nemo_vtb.errors import VtbCheckpointError, VtbConfigError, VtbDataError
from nemo_vtb.io import append_text, bring_back, json_line, moved_away, read_json_lines, tolerated
from nemo_vtb.model.step_watch import StepOutcome
from nemo_vtb.parallel.dims import ParallelDims
from nemo_vtb.parallel.replicas import EVERY_STEPS, check_replicas
from nemo_vtb.parallel.rng_state import (
    RandomState,
    join_peers,
    random_state,
    restore_random_state,
    restore_rank_state,
)
from nemo_vtb.training.step_guard import SeenRow, StepGuard, Suspect

logger = logging.getLogger(__name__)

MAX_TEXT = 0.5
"""The share of text-only conversations is never raised beyond this: a run that needs more needs other data."""

_KEY = 'run_state'
_FORMER_KEY = 'VtbDataModule'  # where Lightning put it when the data module was its owner
_FIELDS = ('source', 'file', 'line', 'byte_offset', 'id', 'reason', 'detail')


class Quarantine:
    """The file that lists what was skipped, one JSON line each; never the same twice, also after a resume."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._known = {self._key(fault) for fault in read_json_lines(self.path)}
        self._unwritten: list[dict[str, Any]] = []

    def add(self, faults: Sequence[Mapping[str, Any]]) -> int:
        """Append faults; returns how many were new."""
        new = []
        for fault in faults:
            if (key := self._key(fault)) not in self._known:
                self._known.add(key)
                new.append({name: fault.get(name) for name in _FIELDS})
        self._unwritten += new
        if self._unwritten:
            with tolerated(str(self.path)):  # what could not be written is tried again with the next line
                append_text(self.path, ''.join(map(json_line, self._unwritten)))
                self._unwritten.clear()
        return len(new)

    @staticmethod
    def _key(fault: Mapping[str, Any]) -> tuple:
        return tuple(fault.get(name) for name in ('source', 'file', 'byte_offset', 'reason'))


class RunState(RowCounter):
    """Counts what was trained on, tells all ranks what failed, and saves and resumes a run to the bit.

    Args:
        folder: Where `ledger.json`, `ledger.png` and `quarantine.jsonl` go; None: the folder of the trainer's logger.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._dims = ParallelDims()
        self._sampler: TokenBudgetSampler | None = None
        self._sources: list[FittedSource] = []
        self._quarantine: Quarantine | None = None
        self._saved: dict[str, Any] | None = None  # of a checkpoint, until training begins
        self._resumed = False
        self._compared = False  # the replicas of the model, in this process
        self._window: list[SeenRow] = []  # of this rank, in the present global batch
        self._guard = StepGuard(self._dims, DataSettings().max_bad_steps)
        self._faults: list[dict[str, Any]] = []  # of this rank, not yet told to the others
        self._failed: set[tuple[int, int]] = set()
        self._random_at_batch: RandomState | None = None  # after the last whole global batch
        self._random_to_restore: Sequence[RandomState] = ()

    @classmethod
    def of(cls, trainer: pl.Trainer) -> 'RunState | None':
        """The run state of a trainer."""
        return next((callback for callback in trainer.callbacks if isinstance(callback, cls)), None)

    # ---- what Lightning calls

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Open the quarantine file, and list what the evaluation sets lost when they were indexed."""
        if not isinstance(data := trainer.datamodule, VtbDataModule):
            return
        self._dims = ParallelDims.of(trainer)
        self.folder = run_folder(trainer)  # the one owner: other callbacks ask for it
        self._open_quarantine(data.settings, resumed=trainer.ckpt_path is not None)
        for sets in data.eval_sets.values():
            for sources, _ in sets.values():
                self._list([fault for source in sources for fault in source.skipped()])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on where the checkpoint was written.

        Raises:
            VtbCheckpointError: Files, shares, template or size of the global batch changed.
            VtbConfigError: An epoch would end inside a global batch.
        """
        if isinstance(loader := trainer.train_dataloader, TrainLoader):
            self.attach(loader, self._dims)
            self._set_counters(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Follow a loader that Lightning has asked for anew (`reload_dataloaders_every_n_epochs`)."""
        if isinstance(loader := trainer.train_dataloader, TrainLoader) and loader.row_sampler is not self._sampler:
            self.attach(loader, self._dims)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the random generators of a resumed run, once, right before its first row."""
        if self._random_to_restore:
            restore_rank_state(self._random_to_restore, self._dims.data_rank, self._dims.tensor_rank)
            self._random_to_restore = ()
        if self._random_at_batch is None:
            self._random_at_batch = random_state()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the row; log the ledger, and compare the replicas of the model, now and then.

        Raises:
            VtbDataError: Too many conversations could not be loaded.
            VtbModelError: The ranks train different models.
            VtbNumericsError: Too many steps in a row were not finite.
        """
        if self._sampler is None or not self.consume(batch, getattr(pl_module, 'step_outcome', None)):
            return
        assert self.ledger is not None
        self._guard.check()
        self._random_at_batch = random_state()
        if not self._compared or trainer.global_step % EVERY_STEPS == 0:
            check_replicas(pl_module, self._dims, trainer.global_step)
            self._compared = True
        if trainer.loggers and trainer.global_step % max(1, trainer.log_every_n_steps) == 0:
            for each in trainer.loggers:
                each.log_metrics(self.ledger.metrics(), step=trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the run where the data is used up: Lightning would begin epoch after epoch without a batch."""
        if self._sampler is not None and self._sampler.used_up:
            trainer.should_stop = True
            logger.warning('All data was used max_repeats times: the run ends after step %d.', trainer.global_step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the random generators: what a validation draws must not depend on where a run was resumed."""
        self._random = random_state()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on drawing where training was."""
        restore_random_state(self._random)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """List what could not be loaded for a validation row: it is missing from the metrics."""
        if isinstance(batch, PackedRow):
            self.report(batch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write `ledger.json` and `ledger.png`.

        Raises:
            VtbDataError: The run had batches, and not one token in them.
        """
        self.save_ledger(plot=True)
        if self.ledger is not None and self.ledger.batches and not self.ledger.tokens:
            skips = {name: account.skips for name, account in self.ledger.accounts.items() if account.skips}
            raise VtbDataError(
                f'Nothing was trained on: no conversation could be loaded.\n{skip_table(skips)}',
                field='data.train_ds',
                got=f'0 tokens in {self.ledger.batches} batches',
                remedy=f'see {self.quarantine_path} for the reasons',
            )

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write `ledger.json`, so that a run that stopped tells why."""
        self.save_ledger()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the ledger of a run that was killed after its last step: Lightning finds nothing to train."""
        if self._saved is not None and isinstance(loader := trainer.train_dataloader, TrainLoader):
            self.attach(loader, self._dims)
            self.save_ledger(plot=True)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the state into a checkpoint."""
        if state := self.state():
            checkpoint[_KEY] = state

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the state from a checkpoint; it is checked against the data when training begins."""
        self.load(checkpoint.get(_KEY) or checkpoint.get(_FORMER_KEY))
        # former checkpoints hold it twice; the loader has no state of its own
        checkpoint.get('loops', {}).get('fit_loop', {}).get('state_dict', {}).pop('combined_loader', None)

    # ---- counting

    def attach(self, loader: TrainLoader, dims: ParallelDims) -> None:
        """Count the rows of a loader; after what was loaded, or after what was trained on before.

        Raises:
            VtbCheckpointError: Files, shares, template or size of the global batch changed.
        """
        sampler = loader.row_sampler
        again = self._sampler is not None and self._sampler.plan is sampler.plan
        self._sampler, self._sources, self._settings = sampler, loader.dataset.sources, loader.settings
        self._dims, self._window, self._random_at_batch = dims, [], None
        rank = dims.data_rank * dims.tensor_size + dims.tensor_rank
        self._guard = StepGuard(dims, loader.settings.max_bad_steps, rank)
        if self._quarantine is None:
            self._open_quarantine(loader.settings, resumed=self._saved is not None)
        if not again or self.ledger is None:
            self.ledger, self._failed, self._faults = _new_ledger(self._sources, sampler), set(), []
        if self._saved is not None:
            self._recover_quarantine()
            self._restore(self._saved, sampler, self.ledger)
            self._saved, self._resumed = None, True
        for source in self._sources:
            self._list(source.skipped())
        if self.ledger.skipped:
            skips = {name: account.skips for name, account in self.ledger.accounts.items() if account.skips}
            logger.warning('Skipped, see %s:\n%s', self.quarantine_path, skip_table(skips))

    def consume(self, row: PackedRow, outcome: StepOutcome | None = None) -> bool:
        """Count a row that was run; returns whether it completed a global batch.

        Args:
            row: The row.
            outcome: Of the optimizer step, where the row completes a global batch; None: it was made.

        Raises:
            VtbDataError: Too many conversations could not be loaded.
        """
        sampler = self._attached()
        self._window.append(SeenRow.of(row))
        self._faults += [{**fault, 'batch': sampler.batches} for fault in row.faults]
        if len(self._window) < sampler.batch.rows_per_rank:
            return False
        window, self._window = self._window, []
        suspects = [] if outcome is None else self._guard.judge(sampler.batches + 1, outcome, window)
        trained = outcome is None or outcome.is_finite
        rows = self._count_batch(sampler, trained=trained)
        if not trained:
            self._blame(suspects, rows, sampler.batches - 1)
        if (
            not trained
            or self._dims.data_size == 1
            or sampler.batches % max(1, self._settings.refund_batches // 2) == 0
        ):
            self._exchange(sampler)
        return True

    def report(self, row: PackedRow) -> None:
        """List what could not be loaded of an evaluation row."""
        if row.faults:
            reasons = Counter(str(fault['reason']) for fault in row.faults)
            what = f'validation set {row.dataset}'
            logger.warning('Skipped, see %s:\n%s', self.quarantine_path, skip_table({what: reasons}))
            self._list(row.faults)

    def on_retention(self, retention: float, limit: float) -> None:
        """After a validation: with `data.budget.auto`, raise the share of text if less than `limit` was kept.

        The change holds from the same row on all ranks, which call this together; nothing happens where the share is
        at its highest, or where the last change is yet to come.
        """
        if self._sampler is None or self._settings.budget_auto is None or retention >= limit:
            return
        plan, batches, rows = self._sampler.plan, self._sampler.batches, self._sampler.batch.rows
        budget = plan.coming_budget
        text = budget['text']
        if plan.changes_after(batches * rows) or text >= MAX_TEXT:
            return
        now = min(MAX_TEXT, text + self._settings.budget_auto)
        changed = {kind: now if kind == 'text' else s * (1 - now) / (1 - text) for kind, s in budget.items()}
        step = batches + 1 + self._settings.refund_batches  # nobody has planned as far as that
        self._sampler.change_budget(step * rows, changed)
        logger.warning(
            'Retention %.1f %%, limit %.1f %%: share of text-only conversations %.1f %% -> %.1f %% from step %d on',
            *(100 * share for share in (retention, limit, text, now)),
            step,
        )

    # ---- the state

    def state(self) -> dict[str, Any]:
        """Plan, ledger and random generators after the last whole global batch; all ranks call it together.

        Raises:
            VtbDataError: Too many conversations could not be loaded.
        """
        if self._sampler is None or self.ledger is None or self._saved is not None:
            return self._saved or {}
        self.save_ledger()
        if self._dims.data_size > 1:
            self._exchange(self._sampler)
        state: dict[str, Any] = {
            'plan': self._sampler.state_dict(),
            'batches': self._sampler.batches,
            'ledger': self.ledger.to_json(),
            'failed': [[self._sources[s].name, e] for s, e in sorted(self._failed)[:1000]],
            'audio': {source.name: source.index.audio_digest for source in self._sources},
        }
        if self._guard.in_a_row:
            state['bad_steps'] = self._guard.in_a_row
        if self._random_to_restore:  # saved again before the first row
            return state | {'random': list(self._random_to_restore)}
        # within a global batch the plan counts from its beginning, and so do the random generators
        own = (self._random_at_batch if self._window else None) or random_state()
        return state | {'random': join_peers(self._dims.gather_objects(own), self._dims.tensor_size)}

    def load(self, state: dict[str, Any] | None) -> None:
        """Go on from a state, once a loader is attached; on any number of ranks and loader processes."""
        self._saved = state or None

    def save_ledger(self, *, plot: bool = False) -> None:
        """Write `ledger.json` (and `ledger.png`) into the folder of the run; one rank alone."""
        if self.ledger is None or not self._dims.is_writer:
            return
        folder = self.folder or Path()
        with tolerated(f'{folder}/ledger.json'):
            self.ledger.save(folder / 'ledger.json')
            if plot and self.ledger.batches:
                self.ledger.plot(folder / 'ledger.png')

    @property
    def quarantine_path(self) -> Path | None:
        """The file that lists what was skipped; None before a run begins."""
        return None if self._quarantine is None else self._quarantine.path

    # ---- parts

    def _attached(self) -> TokenBudgetSampler:
        if self._sampler is None:
            raise VtbDataError('No rows are counted yet.', field='RunState', remedy='call attach(loader, dims) first')
        return self._sampler

    def _check_audio(self, saved: Mapping[str, str]) -> None:
        """Refuse recordings of other sizes, as other lines are refused; checkpoints of before say nothing."""
        changed = [s.name for s in self._sources if saved.get(s.name, s.index.audio_digest) != s.index.audio_digest]
        if changed and not self._settings.allow_changed:
            raise VtbCheckpointError(
                'Recordings have other sizes than those that this checkpoint was trained on.',
                field=', '.join(f'sources.{name}' for name in changed),
                got='other recordings of the same lengths',
                allowed='the recordings as they were',
                remedy='restore them, or set data.allow_changed=true to continue with the new ones',
            )

    def _restore(self, state: Mapping[str, Any], sampler: TokenBudgetSampler, ledger: Ledger) -> None:
        sampler.load_state_dict(state['plan'], allow_changed=self._settings.allow_changed)
        self._check_audio(state.get('audio') or {})
        ledger.load_state_dict(state['ledger'])
        numbers = {source.name: number for number, source in enumerate(self._sources)}
        self._failed = {(numbers[name], entry) for name, entry in state['failed'] if name in numbers}
        self._faults = []
        self._guard.in_a_row = state.get('bad_steps', 0)
        self._random_to_restore = state.get('random') or ()

    def _open_quarantine(self, settings: DataSettings, *, resumed: bool) -> None:
        path = Path(settings.quarantine or (self.folder or Path()) / 'quarantine.jsonl')
        if resumed and self._dims.is_writer:
            bring_back(path)
        self._quarantine = Quarantine(path)

    def _recover_quarantine(self) -> None:
        """Take the lines of the attempts before: a fault of a validation set may have begun a new file."""
        if (path := self.quarantine_path) is not None and (moved := moved_away(path)) is not None:
            self._list(read_json_lines(moved))

    def _list(self, faults: Sequence[Mapping[str, Any]]) -> None:
        if self._quarantine is not None and self._dims.is_writer:
            self._quarantine.add(faults)

    def _set_counters(self, trainer: pl.Trainer) -> None:
        """Tell Lightning where a resumed run is, after it has restored its own counters.

        Lightning 2.4 saves its batch counters before it advances them, so that a resumed run would accumulate over a
        window shifted by one batch; and on another number of ranks its counters mean something else.
        """
        accumulate, limit = trainer.accumulate_grad_batches, int(trainer.num_training_batches)
        if limit % accumulate:
            raise VtbConfigError(
                'An epoch would end inside a global batch.',
                field='trainer.limit_train_batches',
                got=limit,
                allowed=f'a multiple of the {accumulate} accumulated rows',
            )
        if not self._resumed:
            return
        self._resumed = False
        loop, batches = trainer.fit_loop.epoch_loop, self._attached().batches
        rows = batches * accumulate
        here = min(max(rows - trainer.fit_loop.epoch_progress.current.processed * limit, 0), limit)
        for counter, value in ((loop.batch_progress.total, rows), (loop.batch_progress.current, here)):
            counter.ready = counter.started = counter.processed = counter.completed = value
        loop._batches_that_stepped = batches

    def _count_batch(self, sampler: TokenBudgetSampler, *, trained: bool = True) -> Sequence[RowPlan]:
        assert self.ledger is not None
        if (budget := sampler.plan.change_at(sampler.batches * sampler.batch.rows)) is not None:
            shares = sampler.plan.shares_of(budget)
            self.ledger.change_shares({s.name: share for s, share in zip(self._sources, shares, strict=True)})
        counts, rows = sampler.coming, sampler.take_batch()
        if not trained:
            self.ledger.close_bad_batch(counts.tokens)
            return rows
        for number, sums in counts.sources.items():
            self.ledger.add(self._sources[number].name, *sums)
        self.ledger.close_batch(counts.rows)
        return rows

    def _blame(self, suspects: Sequence[Suspect], rows: Sequence[RowPlan], batch: int) -> None:
        """Make faults of what this rank saw; what could not be loaded of a batch that was left out never counted."""
        self._faults = [{**fault, 'left_out': fault['batch'] == batch} for fault in self._faults]
        items = {row.index: row.items for row in rows}
        for suspect in suspects:
            if suspect.rank // self._dims.tensor_size == self._dims.data_rank:  # its peers know the same rows
                number, entry = items[suspect.row][suspect.place]
                reason = Reason.LOSS_NOT_FINITE.value
                place = {'row': suspect.row, 'place': suspect.place, 'number': number, 'entry': entry, 'batch': batch}
                fault = {'id': suspect.id, 'reason': reason, 'detail': suspect.what, 'left_out': True}
                self._faults.append(place | fault | self._sources[number].locate(entry))

    def _exchange(self, sampler: TokenBudgetSampler) -> None:
        """Tell all ranks what failed; every rank then compensates for the same tokens at the same row."""
        assert self.ledger is not None
        told, self._faults = [self._faults], []
        if self._dims.data_size > 1:
            told = self._dims.gather_objects(told[0])
        # tensor-parallel peers report the same row
        faults = {(f['row'], f['place']): f for each in told for f in each}
        for _, fault in sorted(faults.items()):
            source, entry = fault['number'], fault['entry']
            row = (fault['batch'] + 1 + self._settings.refund_batches) * sampler.batch.rows
            sampler.compensate(row, source, entry)
            tokens, supervised, seconds = (float(v[0]) for v in self._sources[source].measure(np.array([entry])))
            name = self._sources[source].name
            if not fault.get('left_out'):
                self.ledger.add(name, -1, -int(tokens), -int(supervised), -seconds)
            self.ledger.skip(name, fault['reason'])
            if fault['reason'] != Reason.LOSS_NOT_FINITE:  # `max_bad_steps` is the limit of these
                self._failed.add((source, entry))
        if faults:
            self._list(list(faults.values()))
            self._check_skipped(self.ledger)

    def _check_skipped(self, ledger: Ledger) -> None:
        limit = self._settings.max_skip_ratio
        for number, source in enumerate(self._sources):
            failed = sum(s == number for s, _ in self._failed)
            bad = failed + source.index.broken
            lines = source.index.meta['lines']
            if failed and bad > limit * lines:
                table = skip_table({source.name: ledger.accounts[source.name].skips})
                raise VtbDataError(
                    f'Too many conversations of a source cannot be loaded.\n{table}',
                    field=f'source {source.name}',
                    got=f'{bad} of {lines} ({bad / lines:.2%})',
                    allowed=f'data.max_skip_ratio {limit:.2%}',
                    remedy='mend what quarantine.jsonl lists, or raise data.max_skip_ratio',
                )


def run_folder(trainer: pl.Trainer) -> Path:
    """Where the files of a run go: the folder of its `RunState`, else that of its logger. All ranks call it."""
    state = RunState.of(trainer)
    if state is not None and state.folder is not None:
        return state.folder
    return Path(trainer.log_dir or trainer.default_root_dir)  # a collective: Lightning broadcasts the folder


def _new_ledger(sources: Sequence[FittedSource], sampler: TokenBudgetSampler) -> Ledger:
    plan = sampler.plan
    accounts = [SourceAccount(s.name, s.kind, share, len(s)) for s, share in zip(sources, plan.shares, strict=True)]
    ledger = Ledger(accounts, plan.max_tokens, plan.unit)
    for source in sources:
        for reason, count in source.index.meta['quarantined'].items():
            ledger.skip(source.name, reason, count)
        if source.dropped:
            ledger.skip(source.name, Reason.OVERLONG.value, len(source.dropped))
    return ledger
