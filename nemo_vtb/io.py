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
"""Files that are either complete or absent: temporary name, fsync, rename; and digests of big files."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from nemo_vtb.errors import VtbCheckpointError

_EDGE = 65536


def write_atomically(path: str | Path, text: str) -> None:
    """Write a text file so that a kill at any moment leaves the old content or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    try:
        with os.fdopen(handle, 'w', encoding='utf-8') as stream:
            stream.write(text)
            stream.flush()
            os.fchmod(stream.fileno(), 0o666 & ~_umask())
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Fill a temporary folder that becomes `path` only when the block ends without an error.

    If another process made `path` meanwhile, its folder is kept: equal names hold equal contents.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f'.{path.name}.'))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        for file in temporary.iterdir():
            with open(file, 'rb') as stream:
                os.fsync(stream.fileno())
        with suppress(OSError):  # the name is taken: another rank was faster
            os.rename(temporary, path)
        _sync_folder(path.parent)
    finally:
        if temporary.exists():
            for file in temporary.iterdir():
                file.unlink()
            temporary.rmdir()


def bring_back(path: str | Path) -> bool:
    """Copy back the newest file of that name that NeMo's exp_manager has moved to `run_<n>/`, as at every resume.

    Returns:
        Whether there was one. A file that stands at `path` is left alone.
    """
    path = Path(path)
    older = [p for p in path.parent.glob(f'run_*/{path.name}') if p.parent.name[4:].isdigit()]
    if path.exists() or not older:
        return False
    newest = max(older, key=lambda p: int(p.parent.name[4:]))
    write_atomically(path, newest.read_text(encoding='utf-8'))
    return True


def head_tail_digest(path: str | Path) -> str:
    """SHA-256 over the first and last 64 KiB: a cheap key of the cache, beside size and time."""
    digest = hashlib.sha256()
    with open(path, 'rb') as stream:
        digest.update(stream.read(_EDGE))
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _EDGE))
        digest.update(stream.read(_EDGE))
    return digest.hexdigest()


def file_digest(path: str | Path) -> str:
    """SHA-256 over a whole file."""
    with open(path, 'rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()


def _umask() -> int:
    """What the user lets others do (`mkstemp`: nothing); read without setting it, since threads share it."""
    try:
        with open('/proc/self/status', encoding='ascii') as stream:
            return next(int(line.split()[1], 8) for line in stream if line.startswith('Umask:'))
    except (OSError, StopIteration):
        return 0o022


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and renamed, on failure removed.

    Raises:
        VtbCheckpointError: The disk is full or the folder cannot be written to; what stood at `path` is untouched.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f'.{path.name}.', suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise _cannot_write(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open('rb') as stream:
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except VtbCheckpointError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch's writer reports a full disk as a RuntimeError, that of safetensors by a class of its own
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _cannot_write(path: Path, error: Exception) -> VtbCheckpointError:
    return VtbCheckpointError(
        'The file cannot be written; what was there before is untouched.',
        field='path',
        got=f'{path}: {error}',
        allowed='a folder that can be written to, with enough space',
        remedy='free some space or name another folder (exp_manager.explicit_log_dir=...), and start again: '
        'a run goes on from its last checkpoint',
    )
