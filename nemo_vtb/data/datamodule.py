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
"""The Lightning data module: indexed sources, one global plan, loader processes, and a state counted when consumed."""

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from nemo_vtb.config.schema import DataSettings
from nemo_vtb.data.collate import Collator, PackedRow, pack_row
from nemo_vtb.data.faults import Reason, data_fault
from nemo_vtb.data.index import Meter, SourceIndex, skip_table
from nemo_vtb.data.ledger import Ledger
from nemo_vtb.data.nemo_loader import NemoLoader, NemoProgress
from nemo_vtb.data.overlong import FittedSource
from nemo_vtb.data.packing import pack_all
from nemo_vtb.data.planning import EVAL_SECTIONS, eval_specs, make_plan, open_source, train_specs
from nemo_vtb.data.progress import Progress, Quarantine
from nemo_vtb.data.sampler import RowPlan
from nemo_vtb.data.sources import SourceSpec
from nemo_vtb.data.template import ChatRenderer
from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.io import bring_back
from nemo_vtb.parallel.rng_state import (
    RandomState,
    gather_random_states,
    join_peers,
    random_state,
    restore_random_state,
    restore_rank_state,
)

logger = logging.getLogger(__name__)

_RETRIES = 3
_RETRY_S = 0.01
_TRANSIENT = (Reason.AUDIO_MISSING, Reason.AUDIO_UNREADABLE, Reason.AUDIO_TRUNCATED)


class RowDataset(torch.utils.data.Dataset):
    """Row plan -> packed batch; lives in the loader processes.

    A conversation that cannot be loaded is left out of its row and reported in `PackedRow.faults`; the row gets no
    substitute, since its place in the plan is what keeps all ranks and every resume equal.

    Args:
        sources: In the order of the plan.
        collator: Renders and reads.
        dataset: Name of a validation set, put into each batch.
    """

    def __init__(self, sources: Sequence[FittedSource], collator: Collator, dataset: str | None = None) -> None:
        self.sources, self.collator, self.dataset = list(sources), collator, dataset

    def __getitem__(self, row: RowPlan) -> PackedRow:
        items, faults = [], []
        for place, (source, entry) in enumerate(row.items):
            try:
                items.append(self._load(source, entry))
            except VtbDataError as error:
                faults.append({'row': row.index, 'place': place} | self._fault(source, entry, error))
        packed = pack_row(items, row.index)
        packed.faults, packed.dataset = faults, self.dataset
        return packed

    def _load(self, source: int, entry: int) -> Any:
        for attempt in range(_RETRIES + 1):
            try:
                item = self.collator.prepare(self.sources[source].read(entry))
                break
            except VtbDataError as error:
                # network file systems fail now and then; a file that is broken fails again
                if attempt == _RETRIES or error.reason not in _TRANSIENT:
                    raise
                time.sleep(_RETRY_S * 4**attempt)
        planned = int(self.sources[source].measure(np.array([entry]))[0][0])
        if item.length != planned:
            raise data_fault(
                Reason.AUDIO_CHANGED, field=item.id, got=f'{item.length} tokens', allowed=f'{planned} as indexed'
            )
        return item

    def _fault(self, source: int, entry: int, error: VtbDataError) -> dict[str, Any]:
        where = self.sources[source].locate(entry)
        detail = ' '.join(str(error).split())[:400]
        return {'number': source, 'entry': entry, **where, 'reason': str(error.reason), 'detail': detail}


class _Loader:
    """What both loaders share; not a `DataLoader`, so that Lightning puts no sampler of its own into it."""

    def __init__(self, dataset: RowDataset, num_workers: int, prefetch_factor: int) -> None:
        self.dataset, self.num_workers, self.prefetch_factor = dataset, num_workers, prefetch_factor

    def _batches(self, rows: Any) -> Iterator[PackedRow]:
        yield from torch.utils.data.DataLoader(
            self.dataset,
            batch_size=None,
            sampler=rows,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor if self.num_workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=_start_worker,
            # else the loader draws its seed from the global generator, and a resumed run has other dropout masks
            generator=torch.Generator(),
            pin_memory=torch.cuda.is_available(),
        )


class TrainLoader(_Loader):
    """All packed rows of this rank over the whole run; `iter` goes on after the last row that was trained on.

    Its length stays that of the whole run after a resume: Lightning counts the batches before it.
    """

    def __init__(self, dataset: RowDataset, progress: Progress, num_workers: int, prefetch_factor: int) -> None:
        super().__init__(dataset, num_workers, prefetch_factor)
        self.progress = progress

    def __len__(self) -> int:
        return len(self.progress.sampler)

    def __iter__(self) -> Iterator[PackedRow]:
        self.progress.rewind()
        yield from self._batches(self.progress.sampler)

    def state_dict(self) -> dict[str, Any]:
        """State after the last whole global batch that was trained on."""
        return self.progress.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; the data module may have done it before Lightning does it here."""
        self.progress.load_state_dict(state)


class EvalLoader(_Loader):
    """A whole named set once, packed; the rows of this rank."""

    def __init__(self, dataset: RowDataset, rows: Sequence[RowPlan], num_workers: int, prefetch_factor: int) -> None:
        super().__init__(dataset, num_workers, prefetch_factor)
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[PackedRow]:
        return self._batches(self.rows)


class LedgerCallback(pl.Callback):
    """Tells the data module what was trained on, and writes the ledger; the data module adds it by itself."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set Lightning's counters right after a resume."""
        data = _data_module(trainer)
        if data is not None:
            data.on_start()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the random generators at the last moment of a resume."""
        data = _data_module(trainer)
        if data is not None:
            data.restore_random()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the random generators: what a validation draws must not depend on where a run was resumed."""
        self._random = random_state()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on drawing where training was."""
        restore_random_state(self._random)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the row; log the ledger now and then."""
        data = _data_module(trainer)
        if data is None:
            return
        whole = data.on_consumed(batch)
        if whole and trainer.loggers and trainer.global_step % max(1, trainer.log_every_n_steps) == 0:
            for each in trainer.loggers:
                each.log_metrics(data.ledger.metrics(), step=trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the run where the data is used up: Lightning would begin epoch after epoch without a batch."""
        data = _data_module(trainer)
        if data is not None and data.used_up:
            trainer.should_stop = True
            logger.warning('All data was used max_repeats times: the run ends after step %d.', trainer.global_step)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Say what is missing from the metrics."""
        data = _data_module(trainer)
        if data is not None:
            data.on_evaluated(batch)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write `ledger.json`, so that a run that stopped tells why."""
        data = _data_module(trainer)
        if data is not None:
            data.save_ledger()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write `ledger.json` and `ledger.png` into the folder of the run."""
        data = _data_module(trainer)
        if data is not None:
            data.save_ledger(plot=True)


class VtbDataModule(pl.LightningDataModule):
    """Trains on a token budget; validates on whole named sets.

    Args:
        cfg: The `data` section; see `DataSettings`.
        renderer: The one renderer.
        frame_counter: Samples of a clip -> frames that the perception returns for it.
        run_dir: Where ledger and quarantine file go; None is the folder of the trainer's logger.
        num_batches: Global batches of the run, where there is no trainer to ask.
    """

    def __init__(
        self,
        cfg: Mapping[str, Any] | DataSettings,
        renderer: ChatRenderer,
        frame_counter: Callable[[int], int],
        *,
        run_dir: str | Path | None = None,
        num_batches: int | None = None,
    ) -> None:
        super().__init__()
        self.settings = cfg if isinstance(cfg, DataSettings) else DataSettings.from_config(cfg)
        self.meter = Meter.of(self.settings, renderer, frame_counter)
        self.collator = Collator(renderer, frame_counter, self.settings.sample_rate, resample=self.settings.resample)
        self._run_dir, self._num_batches = run_dir, num_batches
        self.progress: Progress | NemoProgress | None = None
        self._state: dict[str, Any] | None = None
        self._resumed = False
        self._random_at_batch: RandomState | None = None  # after the last whole global batch
        self._random_to_restore: Sequence[RandomState] = ()
        self._eval: dict[str, dict[str, tuple[list[FittedSource], list[RowPlan]]]] = {}

    @property
    def rank(self) -> int:
        """Data-parallel rank: tensor-parallel peers have the same one and see the same rows."""
        return self._parallel()[0]

    @property
    def world_size(self) -> int:
        """Number of data-parallel ranks."""
        return self._parallel()[1]

    @property
    def writes(self) -> bool:
        """Whether this process writes files: data-parallel rank 0 may be several tensor-parallel processes."""
        return self.trainer is None or self.trainer.is_global_zero

    @property
    def run_dir(self) -> Path:
        """Where ledger and quarantine file go."""
        folder = self._run_dir or (self.trainer.log_dir or self.trainer.default_root_dir if self.trainer else None)
        return Path(folder or '.')

    @property
    def quarantine_path(self) -> Path:
        """The file that lists what was left out."""
        return Path(self.settings.quarantine or self.run_dir / 'quarantine.jsonl')

    @property
    def ledger(self) -> Ledger:
        """What was trained on so far.

        Raises:
            VtbDataError: `setup('fit')` was not called yet.
        """
        if self.progress is None:
            raise VtbDataError('There is no ledger yet.', field='ledger', remedy="call setup('fit') first")
        return self.progress.ledger

    @property
    def used_up(self) -> bool:
        """Whether `max_repeats` has ended the plan before `trainer.max_steps`."""
        return isinstance(self.progress, Progress) and self.progress.attached and self.progress.sampler.used_up

    def prepare_data(self) -> None:
        """Build the indexes, once per node."""
        evals = [specs for section in EVAL_SECTIONS for specs in eval_specs(self.settings, section).values()]
        for specs in [train_specs(self.settings), *evals]:
            for spec in specs:
                self._open(spec, check=False)  # `setup` checks on every rank, so that all of them stop

    def setup(self, stage: str | None = None) -> None:
        """Open the indexes and make the plan.

        Raises:
            VtbDataError: A source is empty, or too much of it is broken.
            VtbConfigError: The budget does not fit the sources.
        """
        if stage in (None, 'fit') and self.progress is None and self.settings.train_ds:
            self._setup_train()
        for section, stages in (('validation_ds', ('fit', 'validate', None)), ('test_ds', ('test', None))):
            if stage in stages and section not in self._eval:
                self._eval[section] = {n: self._pack(specs) for n, specs in eval_specs(self.settings, section).items()}

    def train_dataloader(self) -> TrainLoader | NemoLoader:
        """The rows of this rank over the whole run."""
        if self.progress is None:
            self.setup('fit')
        progress = self.progress
        assert progress is not None  # setup raises otherwise
        if self._state is not None and self.writes:
            bring_back(self.quarantine_path)
        self._attach(progress)
        if self._state is not None:
            progress.load_state_dict(self._state)
            self._random_to_restore = self._state.get('random') or ()
            self._state, self._resumed = None, True
        if isinstance(progress, NemoProgress):
            return NemoLoader(progress, self.collator, self.meter.renderer.tokenizer)
        dataset = RowDataset(progress.sources, self.collator)
        return TrainLoader(dataset, progress, self.settings.num_workers, progress.prefetch(self.settings))

    def val_dataloader(self) -> list[EvalLoader]:
        """One loader for each named validation set."""
        return self._eval_loaders('validation_ds')

    def test_dataloader(self) -> list[EvalLoader]:
        """One loader for each named test set."""
        return self._eval_loaders('test_ds')

    def on_consumed(self, batch: PackedRow) -> bool:
        """Count a row that was trained on; returns whether that completed a global batch.

        Raises:
            VtbDataError: Too many conversations could not be loaded.
        """
        whole = self.progress.consumed(batch) if self.progress is not None else False
        if whole and self.trainer is not None:
            self._random_at_batch = random_state()
        return whole

    def on_retention(self, retention: float, limit: float) -> None:
        """After a validation: with `data.budget.auto`, ask for more typed chats if less than `limit` was kept."""
        if self.settings.budget_auto is None or retention >= limit or not isinstance(self.progress, Progress):
            return
        if said := self.progress.raise_text():
            logger.warning('Retention %.1f %%, limit %.1f %%: %s', 100 * retention, 100 * limit, said)

    def restore_random(self) -> None:
        """Set the random generators of a resumed run, once, right before its first row."""
        if self._random_to_restore and self.trainer is not None:
            peers = self.trainer.world_size // self.world_size
            restore_rank_state(self._random_to_restore, self.rank, self.trainer.global_rank % peers)
            self._random_to_restore = ()
        if self._random_at_batch is None:
            self._random_at_batch = random_state()

    def on_start(self) -> None:
        """Tell Lightning where a resumed run is, after it has restored its own counters.

        Lightning 2.4 saves its batch counters before it advances them, so that a resumed run would accumulate over a
        window shifted by one batch; and on another number of ranks its counters mean something else.

        Raises:
            VtbConfigError: An epoch would end inside a global batch.
        """
        if not isinstance(self.progress, Progress) or self.trainer is None:
            return
        accumulate, limit = self.trainer.accumulate_grad_batches, int(self.trainer.num_training_batches)
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
        loop = self.trainer.fit_loop.epoch_loop
        rows = self.progress.batches * accumulate
        here = min(max(rows - self.trainer.fit_loop.epoch_progress.current.processed * limit, 0), limit)
        for counter, value in ((loop.batch_progress.total, rows), (loop.batch_progress.current, here)):
            counter.ready = counter.started = counter.processed = counter.completed = value
        loop._batches_that_stepped = self.progress.batches

    def on_evaluated(self, batch: PackedRow) -> None:
        """List what could not be loaded for a validation row: it is missing from the metrics."""
        if batch.faults:
            self._report(batch.faults, f'validation set {batch.dataset}')

    def state_dict(self) -> dict[str, Any]:
        """Plan and ledger after the last whole global batch; Lightning puts it into every checkpoint."""
        if self.progress is None or not self.progress.attached:
            return self._state or {}
        self.save_ledger()
        state = self.progress.state_dict()
        if self.trainer is None:
            return state
        if self._random_to_restore:  # saved again before the first row
            return state | {'random': list(self._random_to_restore)}
        # within a global batch the plan counts from its beginning, and so do the random generators
        own = (self._random_at_batch if self.progress.inside_batch else None) or random_state()
        peers = self.trainer.world_size // self.world_size
        return state | {'random': join_peers(gather_random_states(own), peers)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a run; checked against the data when the loader is made.

        Raises:
            VtbCheckpointError: Later, in `train_dataloader`: files, shares or template changed.
        """
        self._state = state_dict or None

    def save_ledger(self, *, plot: bool = False) -> None:
        """Write `ledger.json` (and `ledger.png`) into the folder of the run; rank 0 alone."""
        if self.progress is None or not self.writes:
            return
        self.ledger.save(self.run_dir / 'ledger.json')
        if plot and self.ledger.batches:
            self.ledger.plot(self.run_dir / 'ledger.png')

    def _parallel(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        # Lightning's own word for the data-parallel group; strategies with tensor parallelism override it
        group = getattr(self.trainer.strategy, 'distributed_sampler_kwargs', None)
        if group:
            return int(group['rank']), int(group['num_replicas'])
        return self.trainer.global_rank, self.trainer.world_size

    def _report(self, faults: Sequence[Mapping[str, Any]], what: str) -> None:
        reasons = Counter(str(fault['reason']) for fault in faults)
        logger.warning('Left out of %s, see %s:\n%s', what, self.quarantine_path, skip_table({what: reasons}))
        if self.writes:
            Quarantine(self.quarantine_path).add(faults)

    def _open(self, spec: SourceSpec, *, check: bool = True) -> SourceIndex:
        return open_source(spec, self.settings, self.meter, check=check, quiet=not self.writes)

    def _fitted(self, specs: Sequence[SourceSpec]) -> list[FittedSource]:
        s = self.settings
        return [FittedSource(self._open(spec), self.meter, s.max_tokens, s.overlong) for spec in specs]

    def _setup_train(self) -> None:
        sources = self._fitted(train_specs(self.settings))
        plan = make_plan(sources, self.settings)
        if self.settings.sampler == 'nemo':
            self.progress = NemoProgress(sources, plan.shares, self.settings)
        else:
            self.progress = Progress(sources, plan, self.settings)

    def _attach(self, progress: Progress | NemoProgress) -> None:
        """Tie the plan to ranks, accumulation and length of the run."""
        batches, rows = self._num_batches, self.settings.rows_per_batch or self.world_size
        if self.trainer is not None:
            rows = self._rows_per_batch(self.trainer)
            if self.trainer.max_steps is not None and self.trainer.max_steps > 0:
                batches = self.trainer.max_steps
            if batches is None:
                raise VtbConfigError(
                    'The plan is endless: it needs the number of optimizer steps.',
                    field='trainer.max_steps',
                    got=self.trainer.max_steps,
                    allowed='>= 1',
                    remedy='set trainer.max_steps',
                )
            if not any(isinstance(c, LedgerCallback) for c in self.trainer.callbacks):
                self.trainer.callbacks.insert(0, LedgerCallback())  # before anything that saves
        progress.attach(rows, self.rank, self.world_size, batches, self.quarantine_path, self.writes)

    def _rows_per_batch(self, trainer: pl.Trainer) -> int:
        """Rows of a global batch; where they are given, the accumulation follows, whatever the number of ranks."""
        rows, accumulate = self.settings.rows_per_batch, trainer.accumulate_grad_batches
        if rows is None:
            return accumulate * self.world_size
        if rows % self.world_size == 0 and accumulate == 1:
            trainer.accumulate_grad_batches = accumulate = rows // self.world_size
        if rows != accumulate * self.world_size:
            raise VtbConfigError(
                'The rows of a global batch are not what the ranks and the accumulation make.',
                field='data.rows_per_batch',
                got=rows,
                allowed=f'a multiple of {self.world_size} ranks'
                + (f' x {accumulate} accumulated rows' if accumulate > 1 else ''),
                remedy='set data.rows_per_batch alone: the accumulation follows from it',
            )
        return rows

    def _pack(self, specs: Sequence[SourceSpec]) -> tuple[list[FittedSource], list[RowPlan]]:
        s = self.settings
        sources = self._fitted(specs)
        for source in sources:
            if faults := [*source.index.quarantined(), *source.dropped]:
                self._report(faults, source.name)
        items = [(number, entry) for number, source in enumerate(sources) for entry in range(len(source))]
        lengths = [int(n) for source in sources for n in source.measure(np.arange(len(source)))[0]]
        rows = [
            RowPlan(index, tuple(items[i] for i in row), (total := sum(lengths[i] for i in row)), float(total))
            for index, row in enumerate(_pack_for(lengths, s.max_tokens, self.world_size))
        ]
        return sources, rows

    def _eval_loaders(self, section: str) -> list[EvalLoader]:
        if section not in self._eval:
            self._eval[section] = {n: self._pack(specs) for n, specs in eval_specs(self.settings, section).items()}
        workers = min(self.settings.num_workers, 2)
        return [
            EvalLoader(
                RowDataset(sources, self.collator, name),
                rows[self.rank :: self.world_size],
                min(workers, math.ceil(len(rows) / 4)),
                self.settings.prefetch_factor,
            )
            for name, (sources, rows) in self._eval[section].items()
        ]


def _pack_for(lengths: Sequence[int], max_tokens: int, ranks: int) -> list[list[int]]:
    """Pack a whole set so that every rank gets a row: Lightning refuses a rank without a validation batch.

    Raises:
        VtbDataError: The set has fewer conversations than there are ranks.
    """
    if len(lengths) < ranks:
        raise VtbDataError(
            'A validation set has fewer conversations than there are ranks.',
            field='data.validation_ds',
            got=f'{len(lengths)} conversations for {ranks} ranks',
            allowed='at least one for each rank',
            remedy='add conversations, or train on fewer devices',
        )
    rows = pack_all(lengths, max_tokens)
    while len(rows) < ranks:
        max_tokens = max(max_tokens // 2, *lengths)
        rows = pack_all(lengths, max_tokens)
        if max_tokens == max(lengths) and len(rows) < ranks:  # no shorter row is possible: one conversation each
            rows = [[number] for number in range(len(lengths))]
    return rows


def _data_module(trainer: pl.Trainer) -> VtbDataModule | None:
    return trainer.datamodule if isinstance(trainer.datamodule, VtbDataModule) else None


def _start_worker(_: int) -> None:
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'


def _as_it_is(batch: PackedRow) -> PackedRow:
    return batch
