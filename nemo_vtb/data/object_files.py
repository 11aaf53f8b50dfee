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
"""Files wherever they are: a path or an address is opened, read by ranges, or copied; see `stores` for who reads."""

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from nemo_vtb.config.schema import DataSettings
from nemo_vtb.data.addresses import is_address
from nemo_vtb.data.store_cache import StoreCache
from nemo_vtb.data.stores import fetch, file_facts

_COPY_BYTES = 8 << 20
_FIRST_BYTES, _NEXT_BYTES = 4 << 10, 256 << 10
_NEAR = 1 << 20  # a gap that is read faster than a new request is answered
_KEPT_BYTES = 128 << 20
_READERS = 8

_cache: StoreCache | None = None


def use_cache(settings: DataSettings) -> None:
    """Keep whole objects in `data.store_cache`, in this process and those forked from it."""
    global _cache
    folder = settings.store_cache
    _cache = StoreCache(Path(folder), round(settings.store_cache_gb * 1e9)) if folder else None


class RangeFile(io.RawIOBase):
    """An object as a file. What is read in sequence is fetched in growing pieces.

    A decoder written in C drops what is raised while it reads: `error` keeps it.
    """

    def __init__(self, address: str) -> None:
        self.address, self.size = address, file_facts(address).size
        self.error: BaseException | None = None
        self._at, self._begin, self._data, self._step = 0, 0, b'', _FIRST_BYTES

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Read on from elsewhere; nothing is fetched yet."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: 'memoryview | bytearray') -> int:  # type: ignore[override]
        """Fill a buffer, wholly but at the end; raises as `fetch` does."""
        done, wanted = 0, max(0, min(len(buffer), self.size - self._at))
        while done < wanted:  # whole: readers take less for the end
            inside = self._at - self._begin
            if not 0 <= inside < len(self._data):
                self._fill(wanted - done)
                inside = 0
            piece = self._data[inside : inside + wanted - done]
            buffer[done : done + len(piece)] = piece
            self._at += len(piece)
            done += len(piece)
        return done

    def _fill(self, wanted: int) -> None:
        gap = self._at - self._begin - len(self._data)
        near = bool(self._data) and 0 <= gap <= _NEAR
        self._step = min(max(4 * self._step, _NEXT_BYTES), _COPY_BYTES) if near else _FIRST_BYTES
        try:
            self._data = fetch(self.address, self._at, self._at + max(wanted, self._step))
        except BaseException as error:
            self.error = error
            raise
        self._begin = self._at


def open_file(path: str) -> BinaryIO:
    """A file or an object, opened for reading; an object from the cache where there is one.

    Raises:
        OSError: It is not there, or may not be read.
        VtbStoreError: The store refuses the credentials, or does not answer.
    """
    if not is_address(path):
        return open(path, 'rb')
    return _from_cache(path) or RangeFile(path)  # type: ignore[return-value]


def is_cached(address: str) -> bool:
    """Whether an object is in the cache; raises as `open_file` does."""
    return _cache is not None and _cache.holds(address, file_facts(address))


def _from_cache(address: str) -> BinaryIO | None:
    if _cache is None:
        return None
    return _cache.open(address, file_facts(address), lambda out: copy_object(address, out))


def copy_object(address: str, out: BinaryIO) -> None:
    """Write a whole object to an open file; raises as `open_file` does."""
    size = file_facts(address).size
    for start in range(0, size, _COPY_BYTES):
        out.write(fetch(address, start, start + _COPY_BYTES))


# ---- ranges, the latest of which are kept

_kept: OrderedDict[tuple[str, int, int], bytes] = OrderedDict()
_lock = threading.Lock()


def read_range(path: str, start: int, size: int) -> bytes:
    """So many bytes of a file or an object; raises as `open_file` does."""
    if not is_address(path):
        with open(path, 'rb') as stream:
            stream.seek(start)
            return stream.read(size)
    key = path, start, size
    with _lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    if (cached := _from_cache(path)) is not None:
        with cached:
            return os.pread(cached.fileno(), size, start)
    data = fetch(path, start, start + size)
    with _lock:
        _kept[key] = data
        while sum(map(len, _kept.values())) > _KEPT_BYTES and len(_kept) > 1:
            _kept.popitem(last=False)
    return data


def fetch_ahead(readers: Sequence[Callable[[], object]]) -> None:
    """Call functions that read objects, several at once; what they raise is raised when the objects are read."""

    def quietly(reader: Callable[[], object]) -> None:
        try:
            reader()
        except Exception:  # noqa: BLE001 - whoever reads it next gets the same, with its reason
            return

    if readers:
        with ThreadPoolExecutor(min(_READERS, len(readers))) as pool:
            list(pool.map(quietly, readers))


def forget_ranges() -> None:
    """Drop the bytes that are kept in this process."""
    with _lock:
        _kept.clear()
