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
"""Trainings of the tiny model that are disturbed, and compared row by row with an undisturbed one.

Each is examples/speechllm_joint_sft.py itself, as in `benchmarks/resume_matrix.py`. The retention monitor is off,
since it takes most of the time of so small a run; `R14` and the benchmark have it on.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from resume_matrix import Run, write_config

from nemo_vtb.testing.oracle import differing, digest, read_rows
from torture.trials import Trial

STEPS = 16
BASE = (
    'gate.enabled=false',
    'exp_manager.checkpoint_callback_params.monitor=val_loss',
    f'trainer.max_steps={STEPS}',
    'trainer.val_check_interval=6',
)
SAVES = {  # how checkpoints are made
    'validation': ('trainer.val_check_interval=4',),
    'steps': (
        '++exp_manager.checkpoint_callback_params.every_n_train_steps=3',
        'exp_manager.checkpoint_callback_params.every_n_epochs=null',
    ),
    'each step': (
        '++exp_manager.checkpoint_callback_params.every_n_train_steps=1',
        'exp_manager.checkpoint_callback_params.every_n_epochs=null',
    ),
    # only what ends a run makes one
    'never': (
        '++exp_manager.checkpoint_callback_params.every_n_train_steps=1000',
        'exp_manager.checkpoint_callback_params.every_n_epochs=null',
    ),
}
Disturb = Callable[['Training', list[int]], object]


class Training:
    """One run folder, and the reference that its attempts are compared with.

    Args:
        trial: Notes what differs.
        reference: Name of the undisturbed training (`make_reference`).
        overrides: Of the configuration; may not change what is trained.
        name: Of the folder.
        config: Of the file in the shared folder.
        compared: Whether its rows must be those of the reference.
    """

    def __init__(
        self,
        trial: Trial,
        reference: str,
        *overrides: str,
        name: str = 'training',
        config: str = 'tiny',
        compared: bool = True,
    ) -> None:
        self.trial, self.compared = trial, compared
        self.reference = json.loads((trial.shared / f'{reference}.json').read_text(encoding='utf-8'))
        self.rows = {row['row']: row for row in self.reference['rows']}
        self.ranks, self.rows_per_batch = self.reference['ranks'], self.reference['rows_per_batch']
        self.steps = self.reference['steps']
        self.run = _run(trial.shared, trial.folder / name, *self.reference['overrides'], *overrides, config=config)
        self.folder = self.run.folder / 'run'
        self.checkpoints = self.folder / 'checkpoints'
        self.processes: list[int] = []

    def attempt(self, disturb: Disturb | None = None, failpoints: str = '', begins_at: int | None = None) -> list[int]:
        """Start, disturb, wait for all; returns the exit statuses, negative for signals.

        Args:
            disturb: Called with the processes once they are started; it may wait as it likes.
            failpoints: Of the first rank.
            begins_at: Step from which it must go on; -1: whichever.
        """
        expected = self.newest_step() if begins_at is None else begins_at
        processes = self.run.start(self.ranks, failpoints)
        self.processes = processes
        for process in processes:
            _collected.pop(process, None)  # of an earlier process with this number
        if disturb is not None:
            disturb(self, processes)
        statuses = wait_for_all(processes)
        self.compare(expected)
        return statuses

    def compare(self, begins_at: int) -> None:
        """Every row of the newest attempt against that of the undisturbed training."""
        rows = [row for row in self.run.rows() if 'row' in row and self.compared]
        if rows and begins_at >= 0:
            first = min(row['row'] for row in rows)
            expected = begins_at * self.rows_per_batch
            self.trial.check(first == expected, f'began at row {first}, its checkpoint was at row {expected}')
        wrong = next((row for row in rows if row != self.rows.get(row['row'])), None)
        self.trial.check(not wrong, f'{wrong} instead of {self.rows.get(wrong["row"]) if wrong else None}')

    def finish(self, begins_at: int | None = None) -> None:
        """Let it end undisturbed; the state must be that of the reference, to the bit."""
        statuses = self.attempt(begins_at=begins_at)
        self.trial.check(not any(statuses), f'exit statuses {statuses}:\n{self.run.log_tail()[-1200:]}')
        self.check_end()

    def check_end(self) -> None:
        """The newest attempt has come to the end, with the state of the reference."""
        found = parts_of(self.run, self.ranks)
        if self.trial.check(all(found), f'it has not come to its end:\n{self.run.log_tail()[-1200:]}'):
            # running statistics of the other ranks are never saved: without a row they are those of the first one
            ranks = self.ranks if any('row' in row for row in self.run.rows()) else 1
            for rank, (expected, parts) in enumerate(zip(self.reference['parts'][:ranks], found[:ranks], strict=True)):
                wrong = self.differing(expected, parts)
                self.trial.check(not wrong, f'rank {rank} differs at the end: {", ".join(wrong)}')

    def differing(self, expected: dict[str, str], parts: dict[str, str]) -> list[str]:
        """Names of the parts of the state at the end of the newest attempt that are not the expected ones."""
        wrong = differing(expected, parts)
        if wrong == ['counters'] and not any('row' in row for row in self.run.rows()):
            # with nothing left to train Lightning has not begun an epoch, nor writes a checkpoint any more
            return [] if parts['counters'] == digest([self.steps, 0]) else wrong
        return wrong

    def newest_step(self) -> int:
        """Optimizer step of the newest checkpoint; 0 without any."""
        return self.run.newest_step()

    def trained_steps(self) -> int:
        """Optimizer steps behind which the newest attempt has written its last complete row; 0 without any."""
        rows = [row['row'] for row in self.run.rows() if 'row' in row]
        return (max(rows) + 1) // self.rows_per_batch if rows else 0

    def wait_for_row(self, least: int = 0, limit_s: float = 600.0) -> bool:
        """Until a row of this number or a later one is done, or all have ended; whether that row came."""
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            if any(row.get('row', -1) >= least for row in self.run.rows()):
                return True
            if all(map(has_ended, self.processes)):
                return False
            time.sleep(0.005)
        return False

    def remaining_s(self) -> float:
        """What the training has left to do takes about so long."""
        return self.reference['train_s'] * max(0.05, 1 - self.newest_step() / self.steps)


def _run(shared: Path, folder: Path, *overrides: str, config: str = 'tiny') -> Run:
    words = [f'--config-path={shared}', f'--config-name={config}', f'exp_manager.explicit_log_dir={folder}/run']
    return Run(folder, [*words, *BASE, *overrides])


def make_reference(
    shared: Path,
    name: str,
    ranks: int = 1,
    overrides: Sequence[str] = (),
    rows: int = 2,
    steps: int = STEPS,
    config: str = 'tiny',
) -> None:
    """Train undisturbed; leaves `NAME.json` in the shared folder: rows, parts of the state at the end, seconds.

    Raises:
        RuntimeError: It failed.
    """
    if (shared / f'{name}.json').exists():
        return
    if not (shared / 'tiny.yaml').exists():
        write_config(shared)
    own = [*overrides, f'data.rows_per_batch={rows}', f'trainer.max_steps={steps}']
    run = _run(shared, shared / name, *own, config=config)
    begin = time.monotonic()
    processes = run.start(ranks)
    while not run.rows() and not any(map(has_ended, processes)):
        time.sleep(0.01)
    start_s = time.monotonic() - begin
    if any(wait_for_all(processes)):
        raise RuntimeError(run.log_tail())
    records = run.rows()
    reference = {
        'ranks': ranks, 'rows_per_batch': rows, 'steps': steps, 'overrides': own, 'start_s': start_s,
        'train_s': time.monotonic() - begin - start_s, 'rows': [r for r in records if 'row' in r],
        'parts': parts_of(run, ranks),
    }  # fmt: skip
    (shared / f'{name}.json').write_text(json.dumps(reference), encoding='utf-8')


def parts_of(run: Run, ranks: int) -> list[dict[str, str]]:
    """Digests of each rank's state at the end of the newest attempt; {} where it has not come to its end."""
    found = []
    for rank in range(ranks):
        rows = read_rows(run.folder / f'rows-{run.attempts:03}-{rank}.jsonl')
        found.append(rows[-1].get('parts', {}) if rows else {})
    return found


def one_rank(shared: Path) -> None:
    """One process."""
    make_reference(shared, 'one')


def two_ranks(shared: Path) -> None:
    """Two processes, DDP over gloo."""
    make_reference(shared, 'two', ranks=2)


def wait_for_all(processes: Sequence[int]) -> list[int]:
    """Exit statuses of all, negative for signals."""
    return [_collect(process) for process in processes]


_collected: dict[int, int] = {}


def _collect(process: int) -> int:
    if process not in _collected:
        _collected[process] = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return _collected[process]


def has_ended(process: int) -> bool:
    """Whether a child has ended; its status stays to be read by `wait_for_all`."""
    if process not in _collected:
        found, code = os.waitpid(process, os.WNOHANG)
        if found:
            _collected[process] = os.waitstatus_to_exitcode(code)
    return process in _collected


def kill_groups(processes: Sequence[int]) -> bool:
    """SIGKILL to each process and its loader processes; whether somebody was still running."""
    running = [process for process in processes if not has_ended(process)]
    for process in running:
        os.killpg(process, signal.SIGKILL)
    return bool(running)
