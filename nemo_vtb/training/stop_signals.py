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
"""Ends a run in order when a scheduler or a person asks for it: saved behind the next optimizer step, exit code 75.

It works on every strategy and device, one process included, and whichever rank gets the signal: the request is added
to a sum that all ranks make once per step anyway (`nemo_vtb.model.step_watch`).
"""

import logging
import math
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from nemo.utils.callbacks.preemption import PreemptionCallback
from nemo.utils.exp_manager import StatelessTimer

logger = logging.getLogger(__name__)

EXIT_STOPPED = 75
"""Exit code of a run that was asked to end and has work left: EX_TEMPFAIL, "try again later"."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""What asks a run to end; HUP is left alone where it was ignored, as under nohup."""

_DOUBLE_S = 1.0  # a launcher passes on what the terminal has sent already
_GRACE_S = 60.0  # to save, once the launcher is gone


class StopSignals(pl.Callback):
    """Saves behind the step in which a signal arrives, on all ranks, and ends them with `EXIT_STOPPED`.

    Before the first step there is nothing to save and the run ends at once; a validation or a checkpoint is completed
    first; behind the last step the run ends as usual. A second SIGINT ends the process at once: files are put in place
    whole, so that nothing is torn. The time limit of a run (`exp_manager.max_time_per_run`) ends it in the same way.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        "The signal that this rank got."
        self._when = 0.0
        self._phase = 'idle'  # starting, training, ending
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        self._step = 0
        self._limit_s = math.inf
        self._until = math.inf

    # ---- what Lightning calls

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Listen from now on."""
        if stage != 'fit':
            return
        # NeMo's needs a GPU and several ranks, listens to rank 0 alone, and ends with exit code 0
        # its timer ends a run within a global batch, and with exit code 0 too
        timers = [c for c in trainer.callbacks if isinstance(c, StatelessTimer)]
        self._limit_s = min((t._duration for t in timers if t._duration is not None), default=math.inf)
        replaced = (PreemptionCallback, StatelessTimer)
        trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, replaced)]
        self.received, self._phase, self._process = None, 'starting', os.getpid()
        self._listen()
        follow_launcher()

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning has put its own handlers in front: they end without saving, in the middle of a step."""
        self._listen()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From now on there is something to save."""
        self._listen()
        self._phase, self._step = 'training', trainer.global_step
        self._until = time.monotonic() + self._limit_s

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Tell the other ranks, together with what they add up here."""
        if self._is_wanted() and hasattr(pl_module, 'step_watch'):
            pl_module.step_watch.stop = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End behind a step that some rank wants to be the last.

        Raises:
            SystemExit: With `EXIT_STOPPED`, once the checkpoint is there.
        """
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        outcome = getattr(pl_module, 'step_outcome', None)
        wanted = self._is_wanted() if outcome is None else outcome.stop
        if wanted and not 0 < trainer.max_steps <= trainer.global_step:
            self._end(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing is left to do: what is written now is completed."""
        self._phase = 'ending'

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Whoever had the signals before has them again, unless this is the end that was asked for."""
        if not isinstance(exception, SystemExit):
            self._phase = 'idle'

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Whoever had the signals before has them again."""
        self._phase = 'idle'

    # ---- parts

    def _is_wanted(self) -> bool:
        return self.received is not None or time.monotonic() > self._until

    def _end(self, trainer: pl.Trainer) -> None:
        path = save_last(trainer)
        self._phase = 'ending'
        if trainer.is_global_zero:
            what = 'a signal at another rank' if self.received is None else self.received.name
            if self.received is None and time.monotonic() > self._until:
                what = 'the time limit (exp_manager.max_time_per_run)'
            saved = f'saved in {path}' if path else 'NOT saved: the trainer has no checkpoint callback, or could not'
            text = 'Ended by %s behind step %d, %s. The same command goes on; exit code %d.'
            logger.warning(text, what, trainer.global_step, saved, EXIT_STOPPED)
        raise SystemExit(EXIT_STOPPED)

    def _listen(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler is signal.SIG_IGN and number == signal.SIGHUP:
                continue
            self._before.setdefault(number, handler)
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loader process has inherited this; its trainer decides
        now = time.monotonic()
        if self._phase == 'idle':
            self._pass_on(number, frame)
        elif self.received is not None:
            if number == signal.SIGINT and now - self._when > _DOUBLE_S:
                _default(number)
        else:
            self.received, self._when = signal.Signals(number), now
            if self._phase == 'starting':
                raise SystemExit(EXIT_STOPPED)
            if self._phase == 'training':
                # not by logging, which may be in the middle of a line
                name = self.received.name
                os.write(2, f'{name}: saving behind the next optimizer step; Ctrl-C ends at once\n'.encode())

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        before = self._before.get(number)
        if callable(before):
            before(number, frame)
        elif before != signal.SIG_IGN:
            _default(number)


def save_last(trainer: pl.Trainer) -> Path | None:
    """Write the newest checkpoint now; all ranks call it together behind a step.

    Returns:
        Its path; None where there is no checkpoint callback, or the file could not be written.
    """
    callback = trainer.checkpoint_callback
    if not isinstance(callback, ModelCheckpoint):
        return None
    callback.save_last = callback.save_last or True
    callback._save_last_checkpoint(trainer, callback._monitor_candidates(trainer))
    io: Any = trainer.strategy.checkpoint_io
    if hasattr(io, 'wait'):  # sharded checkpoints are written in the background
        io.wait()
    path = Path(callback.last_model_path)
    return path if callback.last_model_path and path.exists() else None


_following = threading.Event()


def follow_launcher(grace_s: float = _GRACE_S, every_s: float = 1.0) -> None:
    """Ask this rank to end when the process that launched it is gone, and end it if it does not.

    Lightning's launcher and torchrun end their ranks themselves, unless they are killed.

    Args:
        grace_s: What it may take to save.
        every_s: Between two looks.
    """
    by_lightning = os.environ.get('LOCAL_RANK', '0') != '0' and 'SLURM_PROCID' not in os.environ
    if not (by_lightning or 'TORCHELASTIC_RUN_ID' in os.environ) or _following.is_set():
        return
    _following.set()
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(every_s)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_s)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name='follow_launcher', daemon=True).start()


def _default(number: int) -> None:
    """End as if nobody had listened."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
