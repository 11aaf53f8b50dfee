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
"""Breaks a script at a chosen file-system operation, from outside: production code has no hooks and pays nothing.

python -m nemo_vtb.testing.failpoints 'replace:3:kill' script.py arguments ...
python -m nemo_vtb.testing.failpoints 'open@*.jsonl:1:ENOSPC,save:2+:EIO' script.py arguments ...
python -m nemo_vtb.testing.failpoints 'trace=/tmp/operations.jsonl' script.py arguments ...

A failpoint is OPERATION[@PATTERN]:NUMBER[+]:ACTION. Its operation is counted in this process alone, from 1, over all
threads, among paths that match PATTERN (of the whole path, as `fnmatch`; absent: all). `+`: that call and all after.

| operation | what is counted |
|---|---|
| open | `open`, `Path.open` and `os.open`, for writing |
| replace | `os.replace` and `os.rename`; the path is where it goes |
| unlink | `os.unlink` and `os.remove` |
| mkdir, rmdir | `os.mkdir`, `os.rmdir` |
| fsync | `os.fsync` of a file or folder |
| save | `torch.save` to a path, or to a stream that has a `name` |

| action | what happens |
|---|---|
| kill | SIGKILL to this process in place of the call |
| kill_after | SIGKILL right after it |
| tear | the first half of the file is written, then SIGKILL (`save` alone) |
| ENOSPC, EIO ... | the call raises `OSError` with that name of `errno` |
| SIGTERM, SIGINT ... | that signal to this process, then the call as usual |
| flip | one bit in the middle of the finished file is turned |
| cut | the finished file loses its second half |
"""

import builtins
import errno
import fnmatch
import io
import json
import os
import re
import runpy
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_vtb.errors import VtbConfigError

OPERATIONS = ('open', 'replace', 'unlink', 'mkdir', 'rmdir', 'fsync', 'save')
ACTIONS = ('kill', 'kill_after', 'tear', 'flip', 'cut')
_FORM = re.compile(r'(?P<operation>\w+)(@(?P<pattern>[^:]+))?:(?P<number>[1-9]\d*)(?P<later>\+?):(?P<action>\w+)')
_BEFORE, _AFTER = ('kill', 'tear'), ('kill_after', 'flip', 'cut')


@dataclass
class Failpoint:
    """One operation, which call of it, and what happens there; see the module's text."""

    operation: str
    number: int
    action: str
    pattern: str = '*'
    later: bool = False
    calls: int = field(default=0, compare=False)

    @classmethod
    def parse(cls, text: str) -> 'Failpoint':
        """Read OPERATION[@PATTERN]:NUMBER[+]:ACTION.

        Raises:
            VtbConfigError: It has another form, or no such operation or action.
        """
        found = _FORM.fullmatch(text.strip())
        parts = found.groupdict() if found else {}
        known = parts and parts['operation'] in OPERATIONS
        action = parts.get('action') or ''
        torn_elsewhere = action == 'tear' and parts['operation'] != 'save'
        possible = action in ACTIONS or action in signal.Signals.__members__ or hasattr(errno, action)
        if not known or torn_elsewhere or not possible:
            raise VtbConfigError(
                'This is no failpoint.',
                field='failpoint',
                got=text,
                allowed=f'OPERATION[@PATTERN]:NUMBER[+]:ACTION with {", ".join(OPERATIONS)}; '
                f'{", ".join(ACTIONS)} (tear: save alone), a signal or a name of errno',
                remedy="for instance 'replace@*.ckpt:3:kill'",
            )
        return cls(parts['operation'], int(parts['number']), action, parts['pattern'] or '*', bool(parts['later']))

    def hit(self, operation: str, path: str) -> bool:
        """Count a call; returns whether it is the one."""
        if operation != self.operation or not fnmatch.fnmatch(path, self.pattern):
            return False
        self.calls += 1
        return self.calls == self.number or (self.later and self.calls > self.number)


def install(failpoints: str, *, trace: str | Path | None = None) -> None:
    """Patch this process (a child that may die); loader processes that it forks are left alone.

    Args:
        failpoints: Several are separated by commas; '' for none.
        trace: File of JSON lines that lists each operation with its number and path.

    Raises:
        VtbConfigError: One has a wrong form.
    """
    points = [Failpoint.parse(text) for text in failpoints.split(',') if text.strip()]
    guard = _Guard(points, trace)
    for module, name, operation, path in (
        (os, 'replace', 'replace', lambda source, target, **_: target),
        (os, 'rename', 'replace', lambda source, target, **_: target),
        (os, 'unlink', 'unlink', lambda path, **_: path),
        (os, 'remove', 'unlink', lambda path, **_: path),
        (os, 'mkdir', 'mkdir', lambda path, *_, **__: path),
        (os, 'rmdir', 'rmdir', lambda path, **_: path),
        (os, 'fsync', 'fsync', lambda descriptor: _path_of(descriptor)),
        (os, 'open', 'open', _written_by_os),
        (builtins, 'open', 'open', _written_by_open),
    ):
        setattr(module, name, guard.around(getattr(module, name), operation, path))
    io.open = builtins.open
    if any(point.operation == 'save' for point in points) or trace:
        import torch

        torch.save = guard.around(torch.save, 'save', _saved)


class _Guard:
    """Counts the operations of one process, and acts."""

    def __init__(self, points: list[Failpoint], trace: str | Path | None) -> None:
        self._points, self._process = points, os.getpid()
        self._lock, self._inside = threading.RLock(), threading.local()
        self._trace = None if trace is None else os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._counts: dict[str, int] = {}
        self._write = os.write

    def around(self, real: Callable[..., Any], operation: str, path_of: Callable[..., Any]) -> Callable[..., Any]:
        """The function that takes the place of a real one."""

        def patched(*args: Any, **options: Any) -> Any:
            if os.getpid() != self._process or getattr(self._inside, 'active', False):
                return real(*args, **options)
            path = path_of(*args, **options)
            point = None if path is None else self._count(operation, os.fspath(path))
            if point is None:
                return real(*args, **options)
            return self._act(point.action, real, args, options, os.fspath(path))

        return patched

    def _count(self, operation: str, path: Any) -> Failpoint | None:
        path = os.fsdecode(path)
        with self._lock:
            self._counts[operation] = number = self._counts.get(operation, 0) + 1
            hits = [point for point in self._points if point.hit(operation, path)]
        if self._trace is not None:
            line = json.dumps({'operation': operation, 'number': number, 'path': path}) + '\n'
            self._write(self._trace, line.encode())
        return hits[0] if hits else None

    def _act(self, action: str, real: Callable[..., Any], args: Any, options: Any, path: Any) -> Any:
        sys.stderr.write(f'failpoint: {action} at {getattr(real, "__name__", real)} of {path}\n')
        sys.stderr.flush()
        if action in signal.Signals.__members__:
            os.kill(self._process, signal.Signals[action])
            return real(*args, **options)
        if action not in (*_BEFORE, *_AFTER):
            number = getattr(errno, action)
            raise OSError(number, os.strerror(number), path)
        self._inside.active = True
        try:
            if action in _BEFORE:
                if action == 'tear':
                    _tear(real, path, args, options)
                os.kill(self._process, signal.SIGKILL)
            result = real(*args, **options)
            if action == 'kill_after':
                os.kill(self._process, signal.SIGKILL)
            if hasattr(args[1:2] and args[1], 'flush'):
                args[1].flush()
            damage(path, action)
            return result
        finally:
            self._inside.active = False


def damage(path: str | Path, how: str, at: float = 0.5, bit: int = 0) -> None:
    """Turn one bit of a file (`flip`), or take away what lies behind a place (`cut`).

    Args:
        path: The file; a folder or an empty file stays as it is.
        how: `flip` or `cut`.
        at: The place, as a share of the length.
        bit: Which bit of the byte there, 0 to 7.
    """
    path = Path(path)
    size = path.stat().st_size if path.is_file() else 0
    if not size:
        return
    place = min(int(size * at), size - 1)
    if how == 'cut':
        os.truncate(path, place)
        return
    with open(path, 'r+b') as stream:
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ (1 << bit)]))


def _tear(save: Callable[..., Any], path: Any, args: Any, options: Any) -> None:
    whole = io.BytesIO()
    rest = {name: value for name, value in options.items() if name not in ('f', 'obj')}
    save(args[0] if args else options['obj'], whole, *args[2:], **rest)
    half = whole.getvalue()[: whole.tell() // 2]
    target = args[1] if len(args) > 1 else options['f']
    if hasattr(target, 'write'):
        target.write(half)
        target.flush()
    else:
        Path(path).write_bytes(half)


def _path_of(descriptor: Any) -> str:
    return os.readlink(f'/proc/self/fd/{descriptor if isinstance(descriptor, int) else descriptor.fileno()}')


def _written_by_os(path: Any, flags: int, *_: Any, **__: Any) -> Any:
    return path if flags & (os.O_WRONLY | os.O_RDWR) else None


def _written_by_open(path: Any, mode: str = 'r', *_: Any, **__: Any) -> Any:
    return path if not isinstance(path, int) and set(mode) & set('wax+') else None


def _saved(obj: Any, f: Any = None, *_: Any, **__: Any) -> Any:
    return f if isinstance(f, str | os.PathLike) else getattr(f, 'name', None)


def main() -> None:
    """Run a script with failpoints."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    given, script = sys.argv[1:3]
    sys.argv = sys.argv[2:]
    sys.path[0] = str(Path(script).resolve().parent)
    trace, spec = (given.removeprefix('trace='), '') if given.startswith('trace=') else (None, given)
    install(spec, trace=trace)
    runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
    main()
