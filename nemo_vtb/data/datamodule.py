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
"""The Lightning data module: indexed sources, one global plan, loader processes."""

import logging
import math
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from nemo_vtb.config.schema import DataSettings
from nemo_vtb.data.audio import fetch_audio_ahead
from nemo_vtb.data.augment import Augmenter
from nemo_vtb.data.collate import Collator, PackedRow, PackItem, pack_row
from nemo_vtb.data.conversation import Audio
from nemo_vtb.data.counting import Meter
from nemo_vtb.data.faults import Reason, data_fault, skip_table
from nemo_vtb.data.index import FittedSource, SourceIndex, open_source
from nemo_vtb.data.ledger import Ledger
from nemo_vtb.data.manifest_files import manifest_cache
from nemo_vtb.data.packing import pack_all
from nemo_vtb.data.planner import Planner, batches_ahead, spare_batches
from nemo_vtb.data.sampler import BatchPlan, RowPlan, TokenBudgetPlan, TokenBudgetSampler, make_plan
from nemo_vtb.data.sources import EVAL_SECTIONS, SourceSpec, eval_specs, train_augmenter, train_specs
from nemo_vtb.data.stores import forget_facts
from nemo_vtb.data.template import ChatRenderer
from nemo_vtb.errors import VtbConfigError, VtbDataError, VtbStoreError
from nemo_vtb.io import clear_leftovers, process_start
from nemo_vtb.parallel.dims import ParallelDims, is_distributed

logger = logging.getLogger(__name__)

_RETRIES = 3
_RETRY_S = 0.01
_LAST_ROWS_S = 60  # for the trainer to complete its step and to save, after a TERM to all processes
_KILLED = re.compile(r'DataLoader worker \(pid\(s\) ([\d, ]+)\) exited')
_TRANSIENT = (Reason.AUDIO_MISSING, Reason.AUDIO_UNREADABLE, Reason.AUDIO_TRUNCATED)


class RowDataset(torch.utils.data.Dataset):
    """Row plan -> packed batch; lives in the loader processes.

    A conversation that cannot be loaded is skipped and reported in `PackedRow.faults`; the row gets no
    substitute, since its place in the plan is what keeps all ranks and every resume equal.

    Args:
        sources: In the order of the plan.
        collator: Renders and reads.
        dataset: Name of a validation set, put into each batch.
        augmenter: Changes what is heard, where that is asked for.
    """

    def __init__(
        self,
        sources: Sequence[FittedSource],
        collator: Collator,
        dataset: str | None = None,
        augmenter: Augmenter | None = None,
    ) -> None:
        self.sources, self.collator, self.dataset, self.augmenter = list(sources), collator, dataset, augmenter
        self.reading = torch.zeros(1, 4, dtype=torch.int64)
        "What each loader process reads, in shared memory: its id, the row, the source, the entry."

    def __getitem__(self, row: RowPlan) -> PackedRow:
        items, faults = [], []
        worker = torch.utils.data.get_worker_info()
        mine, pid = self.reading[0 if worker is None else worker.id], os.getpid()
        self._fetch_ahead(row)
        for place, (source, entry) in enumerate(row.items):
            mine.copy_(torch.tensor([pid, row.index, source, entry]))
            try:
                items.append(self._load(source, entry, row.passes[place] if row.passes else 0))
            except VtbDataError as error:
                faults.append({'row': row.index, 'place': place} | self._fault(source, entry, error))
        packed = pack_row(items, row.index)
        packed.faults, packed.dataset = faults, self.dataset
        return packed

    def _fetch_ahead(self, row: RowPlan) -> None:
        """Read the recordings of the row that lie in stores at the same time: one slow answer delays one of many."""
        audios: list[Audio] = []
        for source, entry in row.items:
            if self.sources[source].in_store:
                try:
                    audios += self.sources[source].read(entry).audios
                except VtbDataError:
                    continue  # said when it is loaded
        fetch_audio_ahead(audios)

    def _load(self, source: int, entry: int, number: int) -> PackItem:
        """One conversation as it is heard in this pass over its source."""
        for attempt in range(_RETRIES + 1):
            try:
                conversation, changed = self.sources[source].read_checked(entry)
                heard = () if self.augmenter is None else (self.augmenter.of(f'{conversation.id}:{number}'),)
                item = self.collator.prepare(conversation, *heard)
                break
            except VtbStoreError as error:
                if not error.busy:
                    raise  # nothing can be read from this store: the run ends, and resumes from its checkpoint
                raise data_fault(Reason.STORE_FAILED, field=error.field or '', got=error.got) from error
            except VtbDataError as error:
                # network file systems fail now and then; a file that is broken fails again
                if attempt == _RETRIES or error.reason not in _TRANSIENT:
                    raise
                time.sleep(_RETRY_S * 4**attempt)
        planned = int(self.sources[source].measure(np.array([entry]))[0][0])
        if item.length != planned:
            frames, known = sum(item.frames), self.sources[source].frames(entry)
            raise data_fault(
                Reason.LINE_CHANGED if frames == known else Reason.AUDIO_CHANGED,
                field=item.id,
                got=f'{item.length - frames} tokens of text and {frames} frames of audio',
                allowed=f'{planned} together' + ('' if known is None else f', {known} frames') + ', as indexed',
            )
        if changed:
            raise data_fault(
                Reason.AUDIO_CHANGED, field=item.id, got='another size or time of change than when it was indexed',
                remedy=f'restore it; or, if all is as you want it, remove {self.sources[source].index.folder}',
            )  # fmt: skip
        return item

    def _fault(self, source: int, entry: int, error: VtbDataError) -> dict[str, Any]:
        return {'number': source, 'entry': entry, **self.sources[source].locate(entry), **error.facts}


class _Loader:
    """What both loaders share; not a `DataLoader`, so that Lightning puts no sampler of its own into it."""

    def __init__(self, dataset: RowDataset, num_workers: int, prefetch_factor: int) -> None:
        self.dataset, self.num_workers, self.prefetch_factor = dataset, num_workers, prefetch_factor

    def _batches(self, rows: Any) -> Iterator[PackedRow]:
        self.dataset.reading = torch.zeros(max(1, self.num_workers), 4, dtype=torch.int64).share_memory_()
        loader = torch.utils.data.DataLoader(
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
        rows = iter(loader)
        if self.num_workers and threading.current_thread() is threading.main_thread():
            # torch's handler raises wherever the main thread is, also between two ranks' halves of a collective;
            # whoever waits for the row sees within seconds that its process has gone
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            yield from rows
        except (RuntimeError, ConnectionError, FileNotFoundError, EOFError) as error:
            found = _KILLED.search(str(error))
            pids = [int(pid) for pid in found[1].split(',')] if found else self._gone()
            if not pids:
                raise
            raise self._killed(pids) from error

    def _gone(self) -> list[int]:
        """Loader processes that have ended; one that broke its connection by it has a second to be gone."""
        pids = {pid for pid, *_ in self.dataset.reading.tolist() if pid and pid != os.getpid()}
        until = time.monotonic() + 1
        while not (gone := [pid for pid in pids if process_start(pid) is None]) and time.monotonic() < until:
            time.sleep(0.02)
        return gone

    def _killed(self, pids: Sequence[int]) -> VtbDataError:
        had = [entry for entry in self.dataset.reading.tolist() if entry[0] in pids]
        where = [f'row {row}: {self.dataset.sources[source].locate(entry)}' for _, row, source, entry in had]
        return VtbDataError(
            'A loader process was killed, most often since the memory was full.',
            field='data.num_workers',
            got=f'process {", ".join(map(str, pids))}, last reading {"; ".join(where) or "nothing"}',
            allowed='loader processes that live as long as the run',
            remedy='the same command goes on from the last checkpoint; with less memory: data.num_workers=1, '
            'data.prefetch_factor=1',
        )


class TrainLoader(_Loader):
    """All packed rows of this rank over the whole run; `iter` goes on after the last row that was trained on.

    Its length stays that of the whole run after a resume: Lightning counts the batches before it.
    """

    def __init__(self, dataset: RowDataset, sampler: TokenBudgetSampler, settings: DataSettings) -> None:
        ahead = 0 if sampler.planner is None else sampler.planner.ahead
        super().__init__(dataset, settings.num_workers, _prefetch(settings, sampler.batch, ahead))
        # not `sampler`: with overfit_batches Lightning would put one of its own in its place
        self.row_sampler, self.settings = sampler, settings

    def __len__(self) -> int:
        return len(self.row_sampler)

    def __iter__(self) -> Iterator[PackedRow]:
        self.row_sampler.rewind()
        yield from self._batches(self.row_sampler)


class EvalLoader(_Loader):
    """A whole named set once, packed; the rows of this rank."""

    def __init__(self, dataset: RowDataset, rows: Sequence[RowPlan], num_workers: int, prefetch_factor: int) -> None:
        super().__init__(dataset, num_workers, prefetch_factor)
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[PackedRow]:
        return self._batches(self.rows)


class RowCounter(pl.Callback):
    """Base of the callback that counts what was trained on: `training.run_state.RunState`."""

    ledger: Ledger | None = None
    "What was trained on so far; None before training."


class VtbDataModule(pl.LightningDataModule):
    """Trains on a token budget; validates on whole named sets.

    What was trained on is counted, saved and resumed by the trainer's `RunState` (`nemo_vtb.training.run_state`).

    Args:
        cfg: The `data` section; see `DataSettings`.
        renderer: The one renderer.
        frame_counter: Samples of a clip -> frames that the perception returns for it.
        num_batches: Global batches of the run, where there is no trainer to ask.
        dims: Who is who among the ranks, where there is no trainer to ask.
    """

    def __init__(
        self,
        cfg: Mapping[str, Any] | DataSettings,
        renderer: ChatRenderer,
        frame_counter: Callable[[int], int],
        *,
        num_batches: int | None = None,
        dims: ParallelDims | None = None,
    ) -> None:
        super().__init__()
        forget_facts()  # of objects, which may have changed since an earlier run in this process
        self.settings = cfg if isinstance(cfg, DataSettings) else DataSettings.from_config(cfg)
        self.meter = Meter.of(self.settings, renderer, frame_counter)
        options: dict[str, Any] = {'resample': self.settings.resample, 'limits': self.meter.limits}
        self.collator = Collator(renderer, frame_counter, self.settings.sample_rate, **options)
        self.sources: list[FittedSource] = []
        self.plan: TokenBudgetPlan | None = None
        self.augmenter: Augmenter | None = None
        self.sampler: TokenBudgetSampler | None = None
        self.eval_sets: dict[str, dict[str, tuple[list[FittedSource], list[RowPlan]]]] = {}
        self._num_batches, self._dims = num_batches, dims

    @property
    def dims(self) -> ParallelDims:
        """Who is who among the ranks: tensor-parallel peers see the same rows."""
        return self._dims or ParallelDims.of(self.trainer)

    def prepare_data(self) -> None:
        """Build the indexes, once per node."""
        for folder in (self.settings.index_folder, manifest_cache()):
            clear_leftovers(folder)
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
        if stage in (None, 'fit') and self.plan is None and self.settings.train_ds:
            self.sources = self._fitted(train_specs(self.settings))
            self.plan = make_plan(self.sources, self.settings)
            self.augmenter = train_augmenter(self.settings)
        for section, stages in (('validation_ds', ('fit', 'validate', None)), ('test_ds', ('test', None))):
            if stage in stages:
                self._open_sets(section)

    def train_dataloader(self) -> TrainLoader:
        """The rows of this rank over the whole run.

        Raises:
            VtbConfigError: The trainer has no `RunState`, no number of steps, or another size of the global batch.
        """
        self.setup('fit')
        assert self.plan is not None  # setup raises otherwise
        if self.trainer is not None and not any(isinstance(c, RowCounter) for c in self.trainer.callbacks):
            raise VtbConfigError(
                'Nobody would count what is trained on: no ledger, and no way to resume.',
                field='trainer.callbacks',
                got=[type(callback).__name__ for callback in self.trainer.callbacks],
                allowed='a list with a nemo_vtb.training.run_state.RunState',
                remedy='add RunState() to the callbacks, or make the trainer by nemo_vtb.training.run.build_trainer',
            )
        dims, settings = self.dims, self.settings
        batch = BatchPlan.of(self.trainer, settings.rows_per_batch, dims.data_size)
        repeat = self._overfitted(batch)
        planner = None if repeat else self._planner(batch)
        num_batches = self._length()
        sampler = TokenBudgetSampler(self.plan, batch, dims.data_rank, num_batches, settings.balance, repeat, planner)
        if self.sampler is not None:  # a second fit goes on after what was trained on
            sampler.load_state_dict(self.sampler.state_dict())
        self.sampler = sampler
        dataset = RowDataset(self.sources, self.collator, augmenter=self.augmenter)
        return TrainLoader(dataset, sampler, settings)

    def _planner(self, batch: BatchPlan) -> Planner | None:
        """The process that plans ahead; None where each rank plans for itself."""
        prefetched = self.settings.num_workers * self.settings.prefetch_factor
        ahead = batches_ahead(self.settings.plan_ahead, self.settings.refund_batches, prefetched, batch)
        together = self.dims.world_size == 1 or is_distributed()
        return Planner(self.dims, ahead) if ahead and together else None

    def val_dataloader(self) -> list[EvalLoader]:
        """One loader for each named validation set."""
        return self._eval_loaders('validation_ds')

    def test_dataloader(self) -> list[EvalLoader]:
        """One loader for each named test set."""
        return self._eval_loaders('test_ds')

    def _open(self, spec: SourceSpec, *, check: bool = True) -> SourceIndex:
        return open_source(spec, self.settings, self.meter, check=check, quiet=not self.dims.is_writer)

    def _fitted(self, specs: Sequence[SourceSpec]) -> list[FittedSource]:
        s = self.settings
        return [FittedSource(self._open(spec), self.meter, s.max_tokens, s.overlong) for spec in specs]

    def _overfitted(self, batch: BatchPlan) -> int:
        """Global batches that `trainer.overfit_batches` repeats."""
        asked = 0 if self.trainer is None else self.trainer.overfit_batches
        rows = asked * (self._length() or 0) * batch.rows_per_rank if isinstance(asked, float) and asked else asked
        return math.ceil(rows / batch.rows_per_rank)

    def _length(self) -> int | None:
        """Global batches of the run."""
        if self.trainer is None:
            return self._num_batches
        if self.trainer.max_steps is not None and self.trainer.max_steps > 0:
            return self.trainer.max_steps
        if self._num_batches is None:
            raise VtbConfigError(
                'The plan is endless: it needs the number of optimizer steps.',
                field='trainer.max_steps',
                got=self.trainer.max_steps,
                allowed='>= 1',
                remedy='set trainer.max_steps',
            )
        return self._num_batches

    def _open_sets(self, section: str) -> dict[str, tuple[list[FittedSource], list[RowPlan]]]:
        if section not in self.eval_sets:
            specs = eval_specs(self.settings, section)
            self.eval_sets[section] = {name: self._pack(each) for name, each in specs.items()}
        return self.eval_sets[section]

    def _pack(self, specs: Sequence[SourceSpec]) -> tuple[list[FittedSource], list[RowPlan]]:
        s = self.settings
        sources = self._fitted(specs)
        for source in sources:
            if reasons := Counter(str(fault['reason']) for fault in source.skipped()):
                logger.warning('Skipped in a validation or test set:\n%s', skip_table({source.name: reasons}))
        items = [(number, entry) for number, source in enumerate(sources) for entry in range(len(source))]
        lengths = [int(n) for source in sources for n in source.measure(np.arange(len(source)))[0]]
        rows = [
            RowPlan(index, tuple(items[i] for i in row), (total := sum(lengths[i] for i in row)), float(total))
            for index, row in enumerate(_pack_for(lengths, s.max_tokens, self.dims.data_size))
        ]
        return sources, rows

    def _eval_loaders(self, section: str) -> list[EvalLoader]:
        dims, workers = self.dims, min(self.settings.num_workers, 2)
        return [
            EvalLoader(
                RowDataset(sources, self.collator, name),
                rows[dims.data_rank :: dims.data_size],
                min(workers, math.ceil(len(rows) / 4)),
                self.settings.prefetch_factor,
            )
            for name, (sources, rows) in self._open_sets(section).items()
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


def _prefetch(settings: DataSettings, batch: BatchPlan, ahead: int) -> int:
    """Rows that each loader process may keep ready, so that a compensation is always in time for the plan.

    Raises:
        VtbConfigError: There are too many loader processes for `refund_batches`.
    """
    workers = max(1, settings.num_workers)
    rows = (spare_batches(settings.refund_batches) - ahead) * batch.rows_per_rank
    if (settings.num_workers and rows < workers) or (ahead and rows < 0):
        raise VtbConfigError(
            'The loader processes run further ahead than the compensation for a skipped conversation waits.',
            field='data.refund_batches',
            got=settings.refund_batches,
            allowed=f'>= {2 * (math.ceil(workers / batch.rows_per_rank) + 2 + ahead)}',
            remedy='raise it, or lower data.num_workers or data.plan_ahead',
        )
    return max(1, min(settings.prefetch_factor, rows // workers))


def _start_worker(_: int) -> None:
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'
    # the terminal and the scheduler signal all processes of a run: its trainer says when it ends
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # torch ends its loader processes by TERM as well, but only those that do not end by themselves
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_LAST_ROWS_S))


def _as_it_is(batch: PackedRow) -> PackedRow:
    return batch
