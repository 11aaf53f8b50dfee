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
"""A folder with whole objects of a store, shared by the processes of a node, never larger than it may be.

What was used least recently goes first. A file appears when it is whole; what is removed stays readable for who has it
open.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nemo_vtb.data.addresses import without_query
from nemo_vtb.data.stores import Facts
from nemo_vtb.errors import disk_fault
from nemo_vtb.io import clear_leftovers, file_lock, owned_name

logger = logging.getLogger(__name__)

_ROOM = 0.9
"Share of the limit that is left after objects had to go."
_tolerated: set[str] = set()


@dataclass(frozen=True, slots=True)
class StoreCache:
    """A folder of objects.

    Args:
        folder: Where; made when it is needed.
        limit: Bytes of all files in it.
    """

    folder: Path
    limit: int

    def open(self, address: str, facts: Facts, copy: Callable[[BinaryIO], None]) -> BinaryIO | None:
        """An object as an open file, copied here first if need be; None where it does not fit, or the disk fails.

        Args:
            address: Of the object.
            facts: Of its version: another one is another file.
            copy: Writes the object.

        Raises:
            OSError: As `copy` does.
            VtbStoreError: As `copy` does.
        """
        if facts.size > self.limit * _ROOM:
            return None
        path = self._path(address, facts)
        if (found := _opened(path)) is not None:
            return found
        try:
            with file_lock(self.folder / 'locks' / path.parent.name):  # another process may be fetching it
                if (found := _opened(path)) is None:
                    with self._reserved(path, facts.size) as new:
                        stream = open(new, 'r+b')
                        try:
                            copy(stream)
                            stream.flush()
                            with self._alone():
                                os.replace(new, path)
                        except BaseException:
                            stream.close()
                            raise
                        stream.seek(0)
                        found = stream
                return found
        except OSError as error:
            fault = disk_fault(error)
            if fault is None or not str(error.filename or self.folder).startswith(str(self.folder)):
                raise
            if fault[0] not in _tolerated:
                _tolerated.add(fault[0])
                logger.warning('data.store_cache %s: %s; objects are read without it.', self.folder, fault[0])
            return None

    def holds(self, address: str, facts: Facts) -> bool:
        """Whether an object is here."""
        return self._path(address, facts).exists()

    def used(self) -> int:
        """Bytes of all objects in it, and of those that are being copied."""
        return sum(size for _, size, _ in self._files())

    def _alone(self) -> AbstractContextManager[bool]:
        return file_lock(self.folder / 'locks' / 'room')

    def _path(self, address: str, facts: Facts) -> Path:
        content = json.dumps([without_query(address), facts.size, facts.tag])
        digest = hashlib.sha256(content.encode()).hexdigest()[:40]
        return self.folder / digest[:2] / digest

    @contextmanager
    def _reserved(self, path: Path, size: int) -> Iterator[Path]:
        """A file of that size that counts already; what is in the way of the limit is removed."""
        new = path.with_name(f'.{path.name}.{owned_name()}')
        with self._alone():
            self._make_room(size)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(new, 'wb') as stream:
                stream.truncate(size)
            self._count(size)
        try:
            yield new
        except BaseException:
            new.unlink(missing_ok=True)  # it stays counted until the next look at all files
            raise

    def _make_room(self, size: int) -> None:
        if self._counted() + size <= self.limit:
            return
        for folder in self.folder.glob('[0-9a-f][0-9a-f]'):
            clear_leftovers(folder)
        files = sorted(self._files())
        used = sum(each for _, each, _ in files)
        for _, each, path in files:
            if used + size <= self.limit * _ROOM:
                break
            if not path.name.startswith('.'):
                path.unlink(missing_ok=True)
                used -= each
        self._sum().write_text(str(used), encoding='ascii')

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """When each was used last, its bytes, its path; those with a dot are being copied."""
        for path in self.folder.glob('[0-9a-f][0-9a-f]/*'):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            yield stat.st_mtime_ns, stat.st_size, path

    def _sum(self) -> Path:
        return self.folder / 'locks' / 'bytes'

    def _counted(self) -> int:
        """Bytes as they were counted last; all files are looked at where nobody counted."""
        try:
            return int(self._sum().read_text(encoding='ascii'))
        except (OSError, ValueError):
            used = self.used()
            self._sum().write_text(str(used), encoding='ascii')
            return used

    def _count(self, more: int) -> None:
        self._sum().write_text(str(self._counted() + more), encoding='ascii')


def _opened(path: Path) -> BinaryIO | None:
    try:
        stream = open(path, 'rb')
    except FileNotFoundError:
        return None
    os.utime(stream.fileno())  # it may have been removed meanwhile
    return stream
