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
"""The one progress bar of training: step, loss per kind, speed, time left, validation loss, what was skipped."""

import math
import time
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

from nemo_vtb.constants import KINDS
from nemo_vtb.parallel.dims import ParallelDims
from nemo_vtb.training.meter import StepMeter, StepTotals
from nemo_vtb.training.retention_monitor import RetentionMonitor
from nemo_vtb.training.run_state import RunState

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

_LOSS_DECAY = 0.95
_SPEED_DECAY = 0.9


class ProgressLine(pl.Callback):
    """Shows on rank zero how far training is: a bar on a terminal, else one line now and then.

    Losses are exponential means over the targets of each kind; speeds are those of all ranks, as far as rank zero can
    tell from its own.

    Args:
        every_n_steps: Optimizer steps between two lines where the output is not a terminal.
        console: Where to show; None for standard output.
    """

    def __init__(self, every_n_steps: int = 10, console: 'Console | None' = None) -> None:
        self.every_n_steps, self._given = max(1, every_n_steps), console
        self._live: Live | None = None
        self._meter = StepMeter()
        self._validating = False

    # ---- what Lightning calls

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to measure; a resumed run shows where it continues."""
        if not trainer.is_global_zero:
            return
        from rich.console import Console
        from rich.live import Live

        self._console = self._given or Console()
        self._total, self._first = _total_steps(trainer), trainer.global_step
        self._step, self._world = trainer.global_step, ParallelDims.of(trainer).data_size
        self._sums, self._counts = [0.0] * len(KINDS), [0.0] * len(KINDS)
        self._tokens = self._audio_s = self._seconds = 0.0
        self._began = self._mark = time.perf_counter()
        self._val_loss: float | None = None
        self._ledger = self._retention = ''
        if self._first:
            self._console.print(f'resumed at step {self._first}', highlight=False)
        if self._console.is_terminal:
            self._live = Live(self._render(), console=self._console, refresh_per_second=4)
            self._live.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the row; show the step that it completes."""
        if not trainer.is_global_zero:
            return
        self._meter.add(outputs, batch)
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self._count(self._meter.close())
        self._ledger = _ledger(trainer)
        self._show(self._step % self.every_n_steps == 0 or self._step in (self._first + 1, self._total))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say that validation runs, since the steps stand still."""
        self._validating = True
        if self._live is not None:
            self._live.update(self._render())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the validation loss; the time that it took is no training time."""
        self._validating = False
        if trainer.sanity_checking or not trainer.is_global_zero or not hasattr(self, '_mark'):
            return
        value = trainer.callback_metrics.get('val_loss')
        self._val_loss = None if value is None else float(value)
        self._retention = next((c.short() for c in trainer.callbacks if isinstance(c, RetentionMonitor)), '')
        self._mark = time.perf_counter()
        self._show(True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the last state on the screen."""
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the terminal back before the error is printed."""
        self._stop()

    # ---- parts

    def _count(self, totals: StepTotals) -> None:
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        # decayed sums over decayed counts: a kind that is missing in a step, or not finite, keeps its mean
        counts = [n if math.isfinite(s) else 0.0 for s, n in zip(totals.sums, totals.counts, strict=True)]
        sums = [s if math.isfinite(s) else 0.0 for s in totals.sums]
        self._sums = [_LOSS_DECAY * old + new for old, new in zip(self._sums, sums, strict=True)]
        self._counts = [_LOSS_DECAY * old + new for old, new in zip(self._counts, counts, strict=True)]
        self._tokens = _SPEED_DECAY * self._tokens + totals.tokens * self._world
        self._audio_s = _SPEED_DECAY * self._audio_s + totals.audio_s * self._world
        self._seconds = _SPEED_DECAY * self._seconds + seconds

    def _show(self, due: bool) -> None:
        if self._live is not None:
            self._live.update(self._render())
        elif due:
            share = f' {100 * self._step / self._total:3.0f} %' if self._total else ''
            line = f'step {self._step}/{self._total or "?"}{share}  loss: {self._losses()}  |  {self._speed()}'
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _render(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        bar = ProgressBar(total=self._total or 1, completed=self._step, width=30)
        line = Table.grid(padding=(0, 1))
        verb = 'validating' if self._validating else 'training'
        line.add_row(Text(f'{verb:<10}', 'bold'), bar, Text(f'{self._step}/{self._total or "?"}'), Text(self._speed()))
        return Group(line, Text(f'loss       {self._losses()}', 'cyan'))

    def _losses(self) -> str:
        triples = zip(KINDS, self._sums, self._counts, strict=True)
        parts = [f'{kind} {total / count:.3f}' for kind, total, count in triples if count]
        return '  '.join(parts) or 'none yet'

    def _speed(self) -> str:
        if not self._seconds:
            return 'starting'
        parts = [
            f'{self._tokens / self._seconds:,.0f} tokens/s',
            f'{self._audio_s / self._seconds:.1f} s audio/s',
            f'ETA {self._eta()}',
        ]
        if self._val_loss is not None:
            parts.append(f'val_loss {self._val_loss:.3f}')
        if self._retention:
            parts.append(self._retention)
        return '  '.join([*parts, self._ledger] if self._ledger else parts)

    def _eta(self) -> str:
        done = self._step - self._first
        if not self._total or not done:
            return '?'
        # wall clock since the start, so that validations and checkpoints to come are counted in
        return _clock((time.perf_counter() - self._began) / done * max(0, self._total - self._step))

    def _stop(self) -> None:
        if self._live is not None:
            self._live.update(self._render())
            self._live.stop()
            self._live = None


def _total_steps(trainer: pl.Trainer) -> int | None:
    if trainer.max_steps and trainer.max_steps > 0:
        return trainer.max_steps
    steps = trainer.estimated_stepping_batches
    return int(steps) if steps != float('inf') else None


def _ledger(trainer: pl.Trainer) -> str:
    state = RunState.of(trainer)
    return '' if state is None or state.ledger is None else state.ledger.short()


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f'{hours}:{minute:02d}:{second:02d}' if hours else f'{minute}:{second:02d}'
