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
"""Files that are complete or absent, files that several processes share, and digests. Loads nothing heavy."""

import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from nemo_vtb.errors import VtbCheckpointError, disk_fault

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

_EDGE = 65536
_tolerated: set[tuple] = set()
_OWNED = re.compile(r'(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]+)-(?P<start>[0-9]+)-[0-9a-f]{8}')


def cache_dir() -> Path:
    """Folder of the cache: $NEMO_VTB_CACHE, else $XDG_CACHE_HOME/nemo_vtb, else ~/.cache/nemo_vtb. Not made here."""
    own = os.environ.get('NEMO_VTB_CACHE')
    if own:
        return Path(own).expanduser().absolute()
    base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return Path(base).expanduser().absolute() / 'nemo_vtb'


@contextmanager
def atomic_replace(path: str | Path, *, folder: bool = False, keep_existing: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path` that is flushed and renamed to it when the block ends without an error.

    A kill at any moment leaves the old content or the new one, and perhaps a hidden `.NAME.*`, which `clear_leftovers`
    removes; an error leaves the old content alone. Modes follow the user's umask.

    Args:
        path: File or folder to write; its parents are made.
        folder: Whether it is a folder. The temporary one has the same name, in a hidden folder.
        keep_existing: Whether a folder that another process made meanwhile stays: equal names hold equal contents.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f'.{path.name}.{owned_name()}{"" if folder else path.suffix}')
    new = hidden / path.name if folder else hidden
    try:
        if folder:
            new.mkdir(parents=True)
        else:
            new.touch(exist_ok=False)
        mode = new.stat().st_mode
        yield new
        # some writers leave files that only their owner may read
        new.chmod(mode)
        sync_tree(new)
        if folder:
            _replace_folder(new, path, keep_existing)
        else:
            os.replace(new, path)
        _sync(path.parent)
    finally:
        if folder:
            shutil.rmtree(hidden, ignore_errors=True)
        else:
            hidden.unlink(missing_ok=True)


def _replace_folder(new: Path, path: Path, keep_existing: bool) -> None:
    if not path.exists():
        try:
            os.rename(new, path)
        except OSError:
            # another process was faster
            if not (keep_existing and path.exists()):
                raise
    elif not keep_existing:
        # a folder cannot replace another in one step
        old = new.with_name(f'{path.name}.old')
        os.rename(path, old)
        try:
            os.rename(new, path)
        except OSError:
            os.rename(old, path)
            raise


def append_text(path: str | Path, text: str) -> None:
    """Append to a file, all or nothing: where the disk is full, it is as it was before.

    Raises:
        OSError: It cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'ab', buffering=0) as stream:
        before, rest = stream.tell(), memoryview(text.encode())
        try:
            while rest:
                rest = rest[stream.write(rest) :]
        except OSError:
            stream.truncate(before)
            raise


@contextmanager
def tolerated(what: str) -> Iterator[None]:
    """Let a run go on where a file beside it cannot be written; each cause is logged once.

    Raises:
        OSError: The disk is not the cause.
    """
    try:
        yield
    except OSError as error:
        fault = disk_fault(error)
        if fault is None:
            raise
        if (what, fault) not in _tolerated:
            _tolerated.add((what, fault))
            logger.error(
                '%s cannot be written, and the run goes on: %s (%s). Remedy: %s.', what, fault[0], error, fault[1]
            )


def write_atomically(path: str | Path, text: str) -> None:
    """Write a text file so that a kill at any moment leaves the old content or the new one."""
    with atomic_replace(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """`atomic_replace` for a checkpoint or a model file, whose writers report a full disk in several ways.

    Raises:
        VtbCheckpointError: The disk is full or the folder cannot be written to; what stood at `path` is untouched.
    """
    try:
        with atomic_replace(path) as temporary:
            yield temporary
    except VtbCheckpointError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch's writer raises RuntimeError, that of safetensors a class of its own
        what, remedy = disk_fault(error) or (str(error), 'free some space, or name another folder')
        raise VtbCheckpointError(
            'The file cannot be written; what was there before is untouched.',
            field='path',
            got=f'{path}: {what}',
            allowed='a folder that can be written to, with enough space',
            remedy=f'{remedy} (exp_manager.explicit_log_dir=...); a run that is started again resumes from its last '
            'checkpoint',
        ) from error


def sync_tree(path: Path) -> None:
    """Flush a file, or all files and folders below a folder, to the disk."""
    for each in (*path.rglob('*'), path) if path.is_dir() else (path,):
        _sync(each)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def bring_back(path: str | Path) -> bool:
    """Copy back the newest file of that name that NeMo's exp_manager has moved to `run_<n>/`, as at every resume.

    Returns:
        Whether there was one. A file that stands at `path` is left alone.
    """
    path = Path(path)
    moved = moved_away(path)
    if path.exists() or moved is None:
        return False
    write_atomically(path, moved.read_text(encoding='utf-8'))
    return True


def moved_away(path: str | Path) -> Path | None:
    """The newest file of that name that NeMo's exp_manager has moved to `run_<n>/`; None without any."""
    path = Path(path)
    older = [p for p in path.parent.glob(f'run_*/{path.name}') if p.parent.name[4:].isdigit()]
    return max(older, key=lambda p: int(p.parent.name[4:]), default=None)


def read_json_lines(path: str | Path) -> list[Any]:
    """Values of a file of JSON lines; [] where there is no file. A line that an interruption cut off is skipped."""
    try:
        return parse_json_lines(Path(path).read_bytes(), skip_broken=True)
    except FileNotFoundError:
        return []


def parse_json_lines(lines: bytes | str, *, skip_broken: bool = False) -> list[Any]:
    """Values of JSON lines, which end with a line feed and nothing else.

    `str.splitlines` also cuts at U+2028, U+2029, U+0085 and others, which may stand inside a text.

    Raises:
        ValueError: A line is not JSON, and is not to be skipped.
    """
    values = []
    for line in lines.split(b'\n') if isinstance(lines, bytes) else lines.split('\n'):
        try:
            if line.strip():
                values.append(json.loads(line))
        except ValueError:
            if not skip_broken:
                raise
    return values


def json_line(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """One JSON line with its line feed; escaped where UTF-8 cannot hold a text (half of a surrogate pair)."""
    line = json.dumps(value, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(value)
    return line + '\n'


def process_start(pid: int) -> int | None:
    """When a process began, in ticks since the system did: with its number it names a process. None: there is none."""
    try:
        fields = Path(f'/proc/{pid}/stat').read_text(encoding='utf-8', errors='replace').rpartition(')')[2].split()
    except OSError:
        return _start_without_proc(pid)
    return None if fields[0] in ('Z', 'X') else int(fields[19])


def _start_without_proc(pid: int) -> int | None:
    if Path('/proc/self/stat').exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 0


def host_name() -> str:
    """The host, or the container on it: where a process number means one process."""
    try:
        return f'{socket.gethostname()}:{os.stat("/proc/self/ns/pid").st_ino}'
    except OSError:
        return socket.gethostname()


def owned_name() -> str:
    """A name for a temporary file or folder, never given twice, that says which process of which host made it."""
    host = hashlib.sha256(host_name().encode()).hexdigest()[:8]
    return f'{host}-{os.getpid()}-{process_start(os.getpid()) or 0}-{secrets.token_hex(4)}'


def clear_leftovers(folder: str | Path, pattern: str = '.*') -> list[Path]:
    """Remove temporary files and folders whose process, of this host, is gone; returns what was removed.

    Args:
        folder: Where to look, not below.
        pattern: Their names; those without an `owned_name` stay.
    """
    host = owned_name().split('-')[0]
    removed = []
    for path in Path(folder).glob(pattern):
        owner = _OWNED.search(path.name)
        if owner is None or owner['host'] != host or process_start(int(owner['pid'])) == int(owner['start']):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        removed.append(path)
    return removed


def read_json_object(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no file, or something else in it."""
    try:
        # a pipe would be waited for
        value = json.loads(Path(path).read_text(encoding='utf-8')) if Path(path).is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read_yaml(path: str | Path) -> Any:
    """Content of a YAML file of plain values, read by libyaml where it is there (40 times as fast).

    Raises:
        yaml.YAMLError: The file is not YAML.
    """
    import yaml

    loader = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)(Path(path).read_bytes())
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


@contextmanager
def file_lock(path: Path) -> Iterator[bool]:
    """Hold an exclusive lock between processes; yields True if another process was waited for.

    The kernel drops the lock when its holder dies, so a killed process never blocks the next one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        waited = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield waited
    finally:
        os.close(descriptor)


def map_bytes(path: str | Path) -> 'np.ndarray':
    """A file in memory, read as it is used: (size,) uint8. Changes stay in this process.

    No descriptor stays open, as one does for each `np.memmap`: a process may have 1,024, an LLM more tensors.

    Raises:
        OSError: It cannot be read, or is empty.
    """
    import torch

    size = os.path.getsize(path)
    try:
        return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
    except RuntimeError as error:
        raise OSError(str(error)) from error


def map_array(path: str | Path) -> 'np.ndarray':
    """The array of a `.npy` file in memory, read as it is used; see `map_bytes`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is none, or was cut off.
    """
    import numpy as np

    with open(path, 'rb') as stream:
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        begin = stream.tell()
    array = map_bytes(path)[begin:].view(dtype).reshape(shape)
    array.flags.writeable = False
    return array


def file_digest(path: str | Path) -> str:
    """SHA-256 over a whole file, 64 hexadecimal digits."""
    with open(path, 'rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()


def head_tail_digest(path: str | Path) -> str:
    """SHA-256 over the first and last 64 KiB: a cheap key of the cache, beside size and time."""
    digest = hashlib.sha256()
    with open(path, 'rb') as stream:
        digest.update(stream.read(_EDGE))
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _EDGE))
        digest.update(stream.read(_EDGE))
    return digest.hexdigest()
