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
"""A run folder belongs to one job: real processes that hold it, are refused, killed, and followed by others."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_vtb.errors import VtbConfigError
from nemo_vtb.io import clear_leftovers, owned_name
from nemo_vtb.training import run_lock
from nemo_vtb.training.run_lock import RunLock, hold_run_folder

HOLD = """
import sys
from nemo_vtb.errors import VtbConfigError
from nemo_vtb.training.run_lock import hold_run_folder
try:
    print('first' if hold_run_folder(sys.argv[1]) else 'other', flush=True)
except VtbConfigError as error:
    print('refused', error.field, error.got, error.remedy, flush=True)
    sys.exit(2)
sys.stdin.read()
"""
RANKS = ('RANK', 'LOCAL_RANK', 'NODE_RANK', 'GROUP_RANK', 'MASTER_ADDR', 'MASTER_PORT', 'NEMO_VTB_JOB')


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [*RANKS, *(name for name in os.environ if name.startswith(('SLURM_', 'TORCHELASTIC_')))]:
        monkeypatch.delenv(name, raising=False)
    yield
    for lock in list(run_lock._held.values()):
        lock.release()
    os.environ.pop('NEMO_VTB_JOB', None)


class Job:
    """A process that holds a folder, or says why not."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, '-c', HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | env,
        )  # fmt: skip
        self.says = self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.communicate('')

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


def test_a_second_job_is_refused_by_name(tmp_path: Path) -> None:
    """Row C5: as often as it is tried, and the first one keeps the folder."""
    first = Job(tmp_path)
    assert first.says == 'first'
    for _ in range(3):
        second = Job(tmp_path)
        second.end()
        assert second.says.startswith('refused exp_manager.explicit_log_dir') and second.process.returncode == 2
        assert f'process {first.process.pid} on ' in second.says and f'kill {first.process.pid}' in second.says
    with pytest.raises(VtbConfigError):
        hold_run_folder(tmp_path)
    first.end()
    assert not (tmp_path / '.lock' / 'owner.json').exists()
    assert hold_run_folder(tmp_path) and hold_run_folder(tmp_path)  # the same process builds a second trainer


def test_a_killed_job_leaves_no_obstacle(tmp_path: Path) -> None:
    first = Job(tmp_path)
    first.kill()
    assert (tmp_path / '.lock' / 'owner.json').exists()
    next_ = Job(tmp_path)
    assert next_.says == 'first'
    next_.end()


def test_the_ranks_of_a_job_share_it(tmp_path: Path) -> None:
    env = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '29511', 'TORCHELASTIC_RUN_ID': 'a', 'WORLD_SIZE': '2'}
    first = Job(tmp_path, RANK='0', **env)
    other = Job(tmp_path, RANK='1', **env)
    assert (first.says, other.says) == ('first', 'other')
    stranger = Job(tmp_path, RANK='0', **env)  # not a second first one
    assert stranger.says.startswith('refused')
    for job in (first, other, stranger):
        job.end()


def test_ranks_that_lightning_starts_belong_to_it(tmp_path: Path) -> None:
    assert hold_run_folder(tmp_path)
    child = Job(tmp_path, LOCAL_RANK='1', NODE_RANK='0', MASTER_ADDR='127.0.0.1', MASTER_PORT='29512')
    assert child.says == 'other'
    child.end()


def test_a_rank_of_another_job_does_not_get_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Job(tmp_path)
    monkeypatch.setattr(run_lock, '_WAIT_S', 0.3)
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'other')
    with pytest.raises(VtbConfigError):
        hold_run_folder(tmp_path)
    first.end()


def elsewhere(folder: Path, **changes: object) -> Path:
    path = RunLock(folder).path
    path.parent.mkdir(parents=True)
    owner = {'host': 'node7:1', 'pid': 1, 'start': 1, 'job': 'x', 'scheduler': [], 'since': 'then'} | changes
    path.write_text(json.dumps(owner))
    return path


def test_another_host_is_known_by_its_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(run_lock, '_WATCH_S', 0.5)
    monkeypatch.setattr(run_lock, '_BEAT_S', 0.1)
    path, stop = elsewhere(tmp_path / 'a'), threading.Event()

    def live() -> None:
        number = 0
        while not stop.wait(0.05):
            os.utime(path, (number, number := number + 1))

    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(VtbConfigError) as error:
        hold_run_folder(tmp_path / 'a')
    assert 'node7' in str(error.value)
    stop.set()
    thread.join()
    assert hold_run_folder(tmp_path / 'a')  # it stood still


def test_a_folder_that_is_removed_stays_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    import time

    monkeypatch.setattr(run_lock, '_BEAT_S', 0.05)
    assert hold_run_folder(tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run')
    deadline = time.monotonic() + 60
    while not (tmp_path / 'run/.lock/owner.json').exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    second = Job(tmp_path / 'run')
    second.end()
    assert second.says.startswith('refused')


def test_a_requeued_job_follows_itself_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(tmp_path, scheduler=['77', '0'])
    monkeypatch.setattr(run_lock, '_WATCH_S', 1e9)
    monkeypatch.setenv('SLURM_JOB_ID', '77')
    monkeypatch.setenv('SLURM_RESTART_COUNT', '1')
    assert hold_run_folder(tmp_path)


def test_leftovers_go_with_their_process(tmp_path: Path) -> None:
    script = "from nemo_vtb.io import owned_name; print(owned_name())"
    gone = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True).stdout.strip()
    own, foreign = owned_name(), f'{"0" * 8}-{gone.partition("-")[2]}'
    for name in (gone, own, foreign):
        (tmp_path / f'.index.{name}').mkdir()
        (tmp_path / f'.file.{name}.json').touch()
    (tmp_path / '.another').touch()
    assert {path.name for path in clear_leftovers(tmp_path)} == {f'.index.{gone}', f'.file.{gone}.json'}
    assert len(list(tmp_path.iterdir())) == 5
