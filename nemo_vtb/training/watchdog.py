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
"""Ends a run in which nothing moves any more, and says which rank is missing and what each one waits for.

Each rank has a thread that writes what the rank does into the folder of the run. Files need no collective, and those
of a rank that was stopped grow old: so it is told apart from one that waits.
"""

import contextlib
import faulthandler
import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from nemo_vtb.io import host_name, process_start

EXIT_STALLED = 124
"""Exit code of a run that the watchdog has ended, as that of timeout(1)."""

_LOADER = 'waits for the next row'


class Watchdog(pl.Callback):
    """Ends all ranks with `EXIT_STALLED` when one of them has not moved for too long.

    Rows of training and validation, and checkpoints, count as movement. Before it ends the run it leaves the stacks
    of all threads in `watchdog/stacks_rank<N>.txt` and a table in `watchdog/report.txt`, in the folder of the run.

    Args:
        limit_s: Seconds without movement.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.every_s = min(10.0, max(0.1, limit_s / 10))
        self.folder = Path()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._moved = time.monotonic()
        self._what, self._step, self._rows = 'starts', 0, 0

    # ---- what Lightning calls

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to watch."""
        self.folder = Path(trainer.log_dir or trainer.default_root_dir) / 'watchdog'  # a collective
        self.rank, self.ranks = trainer.global_rank, trainer.world_size
        self._rows, self._step = 0, trainer.global_step
        self._move(_LOADER)
        self._done.clear()
        self._tell()  # before the first step: a rank that is stopped in it can be ended by the others
        self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)
        self._thread.start()

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """A row has come."""
        self._rows += 1
        self._move('trains on a row')

    def on_before_optimizer_step(self, *args: Any) -> None:
        """Gradients are reduced."""
        self._move('makes the optimizer step')

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """The next row must come."""
        self._step = trainer.global_step
        self._move(_LOADER)

    def on_validation_batch_start(self, *args: Any) -> None:
        """A row of a validation set has come."""
        self._move('validates a row')

    def on_validation_batch_end(self, *args: Any) -> None:
        """The next one must come, or the results are put together."""
        self._move('validates')

    def on_save_checkpoint(self, *args: Any) -> None:
        """A checkpoint is about to be written."""
        self._move('writes a checkpoint')

    def on_validation_end(self, *args: Any) -> None:
        """Training goes on."""
        self._move(_LOADER)

    def on_train_end(self, *args: Any) -> None:
        """What comes now may take long, and only one rank does it."""
        self._end()

    def on_exception(self, *args: Any) -> None:
        """The run ends by itself."""
        self._end()

    # ---- the thread

    def _move(self, what: str) -> None:
        self._what, self._moved = what, time.monotonic()

    def _end(self) -> None:
        self._done.set()
        with contextlib.suppress(OSError):
            (self.folder / f'rank{getattr(self, "rank", 0)}.json').unlink(missing_ok=True)
            self.folder.rmdir()  # by the last one, unless there is a report of an earlier run

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._done.wait(self.every_s):
            now = time.monotonic()
            if now - looked > 5 * self.every_s + 1:
                self._moved = now  # this process was stopped and goes on: a person or the scheduler wanted it
            looked = now
            self._tell()
            if now - self._moved > self.limit_s:
                self._give_up()

    def _tell(self) -> None:
        state = {
            'rank': self.rank, 'step': self._step, 'rows': self._rows, 'what': self._what, 'written': time.time(),
            'still_s': round(time.monotonic() - self._moved, 1), 'host': host_name(), 'pid': os.getpid(),
            'born': process_start(os.getpid()),
        }  # fmt: skip
        path = self.folder / f'rank{self.rank}.json'
        with contextlib.suppress(OSError):  # a full disk is for the checkpoint to report
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix('.new')
            temporary.write_text(json.dumps(state), encoding='utf-8')
            temporary.replace(path)

    def _give_up(self) -> None:
        with contextlib.suppress(OSError), (self.folder / f'stacks_rank{self.rank}.txt').open('w') as stream:
            faulthandler.dump_traceback(stream, all_threads=True)
        self._tell()
        time.sleep(min(5.0, 3 * self.every_s))  # for the others to do the same
        if self._done.is_set():
            return
        states = read_states(self.folder, self.ranks)
        silent = [n for n, state in enumerate(states) if state is None or self._is_silent(state)]
        if self.rank == min((n for n in range(self.ranks) if n not in silent), default=self.rank):
            text = report(states, silent, self.limit_s, self.folder)
            os.write(2, text.encode())
            with contextlib.suppress(OSError):
                (self.folder / 'report.txt').write_text(text, encoding='utf-8')
        for number in silent:
            _kill(states[number])
        os._exit(EXIT_STALLED)

    def _is_silent(self, state: dict[str, Any]) -> bool:
        return time.time() - state['written'] > 5 * self.every_s + 1


def read_states(folder: Path, ranks: int) -> list[dict[str, Any] | None]:
    """What each rank was doing; None where a rank has written nothing."""
    states: list[dict[str, Any] | None] = []
    for rank in range(ranks):
        try:
            states.append(json.loads((folder / f'rank{rank}.json').read_text(encoding='utf-8')))
        except (OSError, ValueError):
            states.append(None)
    return states


def report(states: Sequence[dict[str, Any] | None], silent: Sequence[int], limit_s: float, folder: Path) -> str:
    """The table that is printed, and which rank is missing."""
    known = {n: state for n, state in enumerate(states) if state is not None and n not in silent}
    least = min((state['rows'] for state in known.values()), default=0)
    # ranks that have begun fewer rows than others keep them waiting
    behind = [
        n for n, state in known.items() if state['rows'] == least and len({s['rows'] for s in known.values()}) > 1
    ]
    missing = list(silent) or behind
    step = max((state['step'] for state in known.values()), default=0)
    lines = [f'Watchdog: nothing has moved for {limit_s:g} s (trainer.watchdog_s) behind step {step}.']
    for number, state in enumerate(states):
        if state is None:
            what = 'has not begun, or has ended'
        elif number in silent:
            what = f'does not answer: stopped or gone; before, it {state["what"]}'
        else:
            what = f'{state["what"]}, for {state["still_s"]:g} s'
        where = '' if state is None else f' (step {state["step"]}, {state["host"]}, process {state["pid"]})'
        lines.append(f'  rank {number}{where} {what}')
    if missing and len(states) > 1:
        lines.append(f'  missing: rank {", ".join(map(str, missing))}')
    lines.append(f'  stacks: {folder}/stacks_rank*.txt; all ranks end with exit code {EXIT_STALLED}')
    return '\n'.join(lines) + '\n'


def _kill(state: dict[str, Any] | None) -> None:
    """End a rank of this machine that cannot do so itself, if its process is still the same."""
    if state is None or state['host'] != host_name() or state['born'] is None:
        return
    if process_start(state['pid']) == state['born']:
        with contextlib.suppress(OSError):
            os.kill(state['pid'], signal.SIGKILL)
