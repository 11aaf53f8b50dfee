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
"""A run that stands still is ended with a code of its own, the missing rank is named, and what each waits for."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_vtb.training.watchdog import EXIT_STALLED, Watchdog, read_states, report

WORKER = Path(__file__).resolve().parents[1] / 'parallel' / 'train_worker.py'


def rank(number: int, rows: int, what: str = 'trains on a row', step: int = 3) -> dict[str, Any]:
    return {'rank': number, 'rows': rows, 'what': what, 'step': step, 'still_s': 9.0, 'host': 'node', 'pid': 7}


def test_a_rank_that_does_not_answer_is_missing() -> None:
    text = report([rank(0, 8), rank(1, 8), None], [1, 2], 30.0, Path('w'))
    assert 'missing: rank 1, 2\n' in text and 'behind step 3' in text
    assert 'rank 1 (step 3, node, process 7) does not answer' in text and 'rank 2 has not begun, or has ended' in text


def test_a_rank_that_waits_for_its_row_keeps_the_others_waiting() -> None:
    text = report([rank(0, 8), rank(1, 7, 'waits for the next row'), rank(2, 8)], [], 30.0, Path('w'))
    assert 'missing: rank 1\n' in text and 'rank 1 (step 3, node, process 7) waits for the next row, for 9 s' in text


def test_nobody_is_accused_without_a_sign() -> None:
    assert 'missing' not in report([rank(0, 8), rank(1, 8)], [], 30.0, Path('w'))
    assert 'missing' not in report([rank(0, 8, 'waits for the next row')], [], 30.0, Path('w'))


def test_what_cannot_be_read_has_never_answered(tmp_path: Path) -> None:
    (tmp_path / 'rank0.json').write_text('{"rank": 0')
    assert read_states(tmp_path, 2) == [None, None]


def test_it_looks_often_enough() -> None:
    assert Watchdog(1200.0).every_s == 10.0 and Watchdog(5.0).every_s == 0.5


def test_a_rank_is_known_before_its_first_step(tmp_path: Path) -> None:
    """Where it is stopped in that step, the others must know which process to end."""
    watchdog = Watchdog(limit_s=600)
    trainer = SimpleNamespace(log_dir=str(tmp_path), global_rank=1, world_size=2, global_step=7)
    watchdog.on_train_start(trainer, None)  # type: ignore[arg-type]
    _, state = read_states(tmp_path / 'watchdog', 2)
    watchdog.on_train_end()
    assert state is not None and (state['pid'], state['step']) == (os.getpid(), 7)


@pytest.mark.slow
def test_a_stopped_rank_ends_the_run(tmp_path: Path) -> None:
    """Rank 1 gets a SIGSTOP, as a frozen node would look: the other one cannot but wait for it."""
    code = f'import sys; sys.path.insert(0, {str(WORKER.parent)!r}); import train_worker; from pathlib import Path; '
    subprocess.run([sys.executable, '-c', f'{code}train_worker.write_config(Path({str(tmp_path)!r}))'], check=True)
    limit_s = 4.0
    values = {
        'trainer.strategy': 'ddp',
        'trainer.devices': 2,
        'trainer.max_steps': 100_000,
        'trainer.watchdog_s': limit_s,
    }
    (tmp_path / 'jobs.json').write_text(
        json.dumps({'still': {'set': values | {'trainer.default_root_dir': str(tmp_path)}}})
    )
    process = subprocess.Popen(
        [sys.executable, str(WORKER), str(tmp_path), 'still'],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    history, other = tmp_path / 'still/history.jsonl', tmp_path / 'still/pid1'
    while not history.exists() or len(history.read_text().splitlines()) < 3:
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.1)
    pid = int(other.read_text())
    os.kill(pid, signal.SIGSTOP)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == EXIT_STALLED, output[-3000:]
    text = (tmp_path / 'watchdog/report.txt').read_text()
    assert text in output and 'missing: rank 1\n' in text
    stacks = (tmp_path / 'watchdog/stacks_rank0.txt').read_text()
    # at which of a step's collectives the signal found it differs from run to run
    assert any(waits in stacks for waits in ('backward', 'all_reduce', 'broadcast')), stacks
    time.sleep(1)
    # it could not end by itself; where nobody collects orphans, its number stays
    left = Path(f'/proc/{pid}/stat')
    assert not left.exists() or left.read_text().rpartition(')')[2].split()[0] in 'ZX'
