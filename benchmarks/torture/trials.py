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
"""A trial: one function in a process of its own, with a seed, a folder and a limit of time.

The process is forked from one that has all imports, so that a training starts in a second or two. What a trial starts
is killed for real, by real signals.
"""

import ctypes
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36
_PREPARE_LIMIT_S = 1800.0


@dataclass
class Trial:
    """What a trial is given, and what it finds.

    Args:
        number: From 0.
        folder: Empty; removed behind a trial without a failure.
        shared: What `prepare` of all experiments made; read only.
        rng: Seeded by the experiment and the number.
        options: Of the command.
    """

    number: int
    folder: Path
    shared: Path
    rng: random.Random
    options: Mapping[str, Any] = field(default_factory=dict)
    n: int = 0
    "Faults that were done."
    problems: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def check(self, good: object, problem: str) -> bool:
        """Note a problem unless all is good; each counts as a failure."""
        if not good:
            self.problems.append(problem[:2000])
        return bool(good)


@dataclass(frozen=True)
class Experiment:
    """What is done to a row of the matrix.

    Args:
        key: The row, and behind a slash which of its faults.
        what: For the page: what is done and what must be.
        count: Trials of the whole run.
        quick: Trials with `--quick`.
        run: The trial.
        cost_s: What one takes, about; for the time left.
        limit_s: A trial that takes longer hangs, which is a failure.
        prepare: Makes in the shared folder what all trials read; called once, before the first one.
    """

    key: str
    what: str
    count: int
    quick: int
    run: Callable[[Trial], None]
    cost_s: float
    limit_s: float = 900.0
    prepare: Callable[[Path], None] | None = None

    @property
    def row(self) -> str:
        """The row of the matrix."""
        return self.key.partition('/')[0]


class Skipped(Exception):
    """This trial cannot be made here; says why."""


def in_order(experiments: Sequence[Experiment], quick: bool) -> list[tuple[Experiment, int]]:
    """All trials, so that at any moment about the same share of each experiment is done."""
    counts = [(e, e.quick if quick else e.count) for e in experiments]
    trials = [((n + 0.5) / count, place, e, n) for place, (e, count) in enumerate(counts) for n in range(count)]
    return [(e, n) for _, _, e, n in sorted(trials, key=lambda each: each[:2])]


def adopt_orphans() -> None:
    """Processes whose parents a trial has killed become children of this one, which ends them behind the trial."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def perform(experiment: Experiment, number: int, seed: int, folder: Path, shared: Path, **options: Any) -> dict:
    """Do one trial; returns its record: trial, n, failures, seconds, problems, figures, and perhaps `skipped`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = random.Random(f'{seed}/{experiment.key}/{number}')
    trial = Trial(number, folder, shared, rng, options)
    begin = time.monotonic()
    in_time = _in_process(lambda: _recorded(experiment.run, trial), folder / 'trial.log', experiment.limit_s)
    unmount_below(folder)
    try:
        record = json.loads((folder / 'outcome.json').read_text(encoding='utf-8'))
    except (OSError, ValueError):
        what = f'hang: more than {experiment.limit_s:.0f} s' if in_time is None else f'ended by itself: {in_time}'
        record = {'n': 1, 'problems': [what], 'figures': {}}
    failures = min(len(record['problems']), max(record['n'], 1))
    return {'trial': number, **record, 'failures': failures, 'seconds': round(time.monotonic() - begin, 1)}


def prepare(experiment: Experiment, shared: Path) -> None:
    """Make what its trials read.

    Raises:
        RuntimeError: That failed.
    """
    if experiment.prepare is None:
        return
    make, log = experiment.prepare, shared / 'prepare.log'
    if _in_process(lambda: make(shared), log, _PREPARE_LIMIT_S) != 0:
        raise RuntimeError(f'{experiment.key}: the preparation failed:\n{log.read_text(errors="replace")[-3000:]}')


def _recorded(run: Callable[[Trial], None], trial: Trial) -> None:
    record: dict[str, Any] = {}
    try:
        run(trial)
    except Skipped as reason:
        record['skipped'] = str(reason)
    except BaseException as error:
        logging.exception('the trial failed')
        frame = traceback.extract_tb(error.__traceback__)[-1]
        trial.problems.append(f'{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})'[:2000])
    record |= {'n': trial.n, 'problems': trial.problems, 'figures': trial.figures}
    whole = trial.folder / 'outcome.new'
    whole.write_text(json.dumps(record), encoding='utf-8')
    whole.rename(trial.folder / 'outcome.json')


def _in_process(action: Callable[[], None], log: Path, limit_s: float) -> int | None:
    """Run it in a fork and end all that it leaves; its exit status, or None where it took too long."""
    if (process := os.fork()) == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        stream = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        status = 1
        try:
            action()
            status = 0
        except BaseException:
            logging.exception('failed')
        finally:
            sys.stdout.flush()
            os._exit(status)
    until, status = time.monotonic() + limit_s, None
    while status is None and time.monotonic() < until:
        found, code = os.waitpid(process, os.WNOHANG)
        status = os.waitstatus_to_exitcode(code) if found else None
        if status is None:
            time.sleep(0.01)
    end_descendants()
    return status


def end_descendants(root: int | None = None) -> None:
    """SIGKILL to all processes below this one, and collect them."""
    for _ in range(100):
        found = list(descendants(root or os.getpid()))
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        if not found:
            return
        time.sleep(0.02)


def unmount_below(folder: Path) -> None:
    """What a trial that was ended has left mounted."""
    mounts = [line.split()[1] for line in Path('/proc/self/mounts').read_text().splitlines()]
    for mount in mounts:
        if Path(mount).is_relative_to(folder):
            subprocess.run(['umount', '-l', mount], check=False)


def descendants(root: int) -> Iterator[int]:
    """Ids of all processes below one, as they are now; those that have ended and were not collected are left out."""
    children: dict[int, list[int]] = {}
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            state, parent = stat.read_text().rpartition(')')[2].split()[:2]
        except OSError:
            continue
        if state not in 'ZX':
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    left = children.get(root, [])
    while left:
        pid = left.pop()
        left += children.get(pid, [])
        yield pid
