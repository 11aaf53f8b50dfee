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
"""One job for each run folder: a second one would remove the temporary files of the first, or resume from its files.

The first process of a job writes `.lock/owner.json` (host, process, start, job) and renews its time while it lives.
The other ranks of the job wait for it. Nothing has to be cleaned up: a lock is stale when its process is gone; on
another host when the scheduler has restarted the same job, or when its time stands still for `_WATCH_S`.
"""

import atexit
import fcntl
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nemo_vtb.errors import VtbConfigError
from nemo_vtb.io import host_name, process_start, read_json_object, write_atomically

logger = logging.getLogger(__name__)

_BEAT_S = 10.0
_WATCH_S = 60.0  # longer than a network file system remembers the time of a file
_WAIT_S = 600.0  # for the first process of the same job
_TOKEN = 'NEMO_VTB_JOB'  # Lightning starts the other ranks from the first one, which hands this on
_held: dict[Path, 'RunLock'] = {}


class RunLock:
    """The lock of one run folder, held by this process until it ends or calls `release`.

    Args:
        folder: The run folder; made where it is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / '.lock' / 'owner.json'
        self._stop = threading.Event()
        self._pid = os.getpid()

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            VtbConfigError: Another job holds it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path.parent, os.O_RDONLY)
        try:
            _lock_where_possible(descriptor)
            owner = read_json_object(self.path)
            if owner and not self._is_stale(owner):
                raise _held_by(owner, self.path)
            if owner:
                logger.warning('The lock of %s is taken over: %s is gone.', self.folder, _words(owner))
            write_atomically(self.path, json.dumps(_identity()))
        finally:
            os.close(descriptor)
        threading.Thread(target=self._beat, name='run lock', daemon=True).start()
        atexit.register(self.release)

    def release(self) -> None:
        """Give it back, if it is still this process's own."""
        self._stop.set()
        _held.pop(self.folder.absolute(), None)
        if os.getpid() == self._pid and _is_own(read_json_object(self.path)):
            self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(_BEAT_S):
            try:
                os.utime(self.path)
            except FileNotFoundError:  # the run folder was removed: it is still this job's
                with suppress(OSError):
                    write_atomically(self.path, json.dumps(_identity()))
            except OSError:
                continue  # a full or lost disk: the next beat may succeed

    def _is_stale(self, owner: Mapping[str, Any]) -> bool:
        if owner.get('host') == host_name():
            return _is_gone(owner) or _is_own(owner)
        scheduler = _scheduler()
        if scheduler and (owner.get('scheduler') or [None])[0] == scheduler[0]:
            return owner['scheduler'] != scheduler  # the same job, requeued: its former start is over
        logger.warning('%s holds %s; waiting %.0f s for a sign of life.', _words(owner), self.folder, _WATCH_S)
        before, until = self._time(), time.monotonic() + _WATCH_S
        while time.monotonic() < until:
            time.sleep(min(_BEAT_S, _WATCH_S) / 4)
            if self._time() != before:
                return False
        return True

    def _time(self) -> int:
        try:
            with self.path.open('rb') as stream:  # opening makes a network file system ask anew
                return os.fstat(stream.fileno()).st_mtime_ns
        except OSError:
            return 0


def hold_run_folder(folder: str | Path) -> bool:
    """Hold a run folder as long as this process lives; returns whether this is the first process of its job.

    Other ranks wait until the first one holds it.

    Raises:
        VtbConfigError: Another job holds it.
    """
    key = Path(folder).absolute()
    lock = RunLock(key)
    if not _is_first():
        _wait_for_first(lock)
        return False
    if key not in _held or _held[key]._pid != os.getpid():
        lock.acquire()
        _held[key] = lock
    return True


def _wait_for_first(lock: RunLock) -> None:
    job, until = _job(), time.monotonic() + _WAIT_S
    while (owner := read_json_object(lock.path)).get('job') != job or _is_gone(owner):
        if time.monotonic() > until:
            raise _held_by(owner, lock.path)
        time.sleep(0.1)


def _is_first() -> bool:
    if 'RANK' in os.environ:
        return os.environ['RANK'] == '0'
    return all(os.environ.get(name, '0') == '0' for name in ('SLURM_PROCID', 'NODE_RANK', 'GROUP_RANK', 'LOCAL_RANK'))


def _scheduler() -> list[str]:
    """Job and number of its start, where a scheduler restarts the same job."""
    if 'SLURM_JOB_ID' not in os.environ:
        return []
    return [os.environ['SLURM_JOB_ID'], os.environ.get('SLURM_RESTART_COUNT', '0')]


def _job() -> str:
    """What all ranks of a job have in common, and no other job."""
    names = (
        'TORCHELASTIC_RUN_ID',
        'TORCHELASTIC_RESTART_COUNT',
        'SLURM_JOB_ID',
        'SLURM_STEP_ID',
        'SLURM_RESTART_COUNT',
    )
    known = [f'{name}={os.environ[name]}' for name in names if name in os.environ]
    if 'RANK' in os.environ or not known:
        known += [f'{name}={os.environ[name]}' for name in ('MASTER_ADDR', 'MASTER_PORT') if name in os.environ]
    if not known or _TOKEN in os.environ:
        known = [os.environ.setdefault(_TOKEN, secrets.token_hex(8))]
    return ' '.join(known)


def _identity() -> dict[str, Any]:
    pid = os.getpid()
    return {
        'host': host_name(),
        'pid': pid,
        'start': process_start(pid),
        'job': _job(),
        'scheduler': _scheduler(),
        'since': datetime.now(UTC).isoformat(timespec='seconds'),
    }


def _is_gone(owner: Mapping[str, Any]) -> bool:
    """Whether the process of a lock of this host has ended."""
    return owner.get('host') == host_name() and process_start(int(owner.get('pid') or 0)) != owner.get('start')


def _is_own(owner: Mapping[str, Any]) -> bool:
    own = _identity()
    return all(owner.get(name) == own[name] for name in ('host', 'pid', 'start'))


def _words(owner: Mapping[str, Any]) -> str:
    parts = ('pid', 'host', 'since', 'job')
    return 'process {} on {} since {} (job {})'.format(*(owner.get(part) for part in parts))


def _held_by(owner: Mapping[str, Any], path: Path) -> VtbConfigError:
    return VtbConfigError(
        'Another job works in this run folder.',
        field='exp_manager.explicit_log_dir',
        got=f'{path.parent.parent}: held by {_words(owner)}' if owner else f'{path.parent.parent}: held by nobody yet',
        allowed='one job for each run folder',
        remedy=f'end that one on {owner.get("host")} (kill {owner.get("pid")}) or wait for it; or name another folder '
        f'(name=...). If it is certainly gone: rm {path}',
    )


def _lock_where_possible(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        pass  # a file system without locks: the file itself must do
