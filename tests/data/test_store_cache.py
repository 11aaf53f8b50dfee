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
"""Objects as files: read ahead, and kept in a folder that never grows beyond its limit, by several processes."""

import errno
import io
import multiprocessing
import os
import tarfile
import time
from pathlib import Path
from typing import BinaryIO

import pytest
from data_helpers import write_tar

from nemo_vtb.config.schema import DataSettings
from nemo_vtb.data import object_files
from nemo_vtb.data.object_files import RangeFile, copy_object, open_file, read_range, use_cache
from nemo_vtb.data.store_cache import StoreCache
from nemo_vtb.data.stores import Facts
from nemo_vtb.errors import VtbStoreError
from nemo_vtb.testing.s3_server import S3Server, StoreFault

pytestmark = pytest.mark.unit
SIZE = 1000


def kept(cache: StoreCache, name: str, size: int = SIZE, tag: str = '1') -> bytes | None:
    """What the cache gives of an object whose bytes are its name; None where it is not kept."""

    def copy(out: BinaryIO) -> None:
        out.write(name.encode()[:1] * size)

    stream = cache.open(f's3://b/{name}', Facts(size, tag), copy)
    if stream is None:
        return None
    with stream:
        return stream.read()


def never(out: BinaryIO) -> None:
    raise AssertionError('it was there')


def test_an_object_is_fetched_once(tmp_path: Path) -> None:
    cache = StoreCache(tmp_path, 10 * SIZE)
    assert kept(cache, 'a') == b'a' * SIZE
    with cache.open('s3://b/a', Facts(SIZE, '1'), never) as stream:
        assert stream.read() == b'a' * SIZE
    assert kept(cache, 'a', tag='2') == b'a' * SIZE and cache.used() == 2 * SIZE, 'another version is another file'


def test_the_limit_holds_and_the_least_used_goes(tmp_path: Path) -> None:
    cache = StoreCache(tmp_path, 10 * SIZE)
    for number, name in enumerate('abcdefghij'):
        kept(cache, name)
        os.utime(cache._path(f's3://b/{name}', Facts(SIZE, '1')), (number, number))
    with open_of(cache, 'b') as stream:
        os.utime(cache._path('s3://b/b', Facts(SIZE, '1')), (1, 1))
        kept(cache, 'a')  # used again
        assert kept(cache, 'k') == b'k' * SIZE
        assert stream.read() == b'b' * SIZE, 'who has it open can read it'
    there = {name for name in 'abcdefghijk' if cache._path(f's3://b/{name}', Facts(SIZE, '1')).exists()}
    assert there >= set('aijk') and not there & set('bc')
    assert cache.used() <= 10 * SIZE


def open_of(cache: StoreCache, name: str) -> BinaryIO:
    stream = cache.open(f's3://b/{name}', Facts(SIZE, '1'), never)
    assert stream is not None
    return stream


def test_what_is_larger_than_the_limit_is_not_kept(tmp_path: Path) -> None:
    assert kept(StoreCache(tmp_path, 10 * SIZE), 'x', 11 * SIZE) is None


def test_a_broken_copy_leaves_nothing(tmp_path: Path) -> None:
    cache = StoreCache(tmp_path, 10 * SIZE)

    def cut(out: BinaryIO) -> None:
        out.write(b'1')
        raise VtbStoreError('gone', busy=True)

    with pytest.raises(VtbStoreError):
        cache.open('s3://b/a', Facts(SIZE, '1'), cut)
    assert cache.used() == 0
    assert kept(cache, 'a') == b'a' * SIZE


def test_a_full_disk_is_no_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def full(out: BinaryIO) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    cache = StoreCache(tmp_path, 10 * SIZE)
    assert cache.open('s3://b/a', Facts(SIZE, '1'), full) is None
    assert cache.used() == 0


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    cache = StoreCache(tmp_path, 10 * SIZE)
    for name in 'abcdefgh':
        kept(cache, name)
    process = multiprocessing.get_context('fork').Process(target=_die_while_copying, args=(cache,))
    process.start()
    process.join()
    assert cache.used() == 10 * SIZE
    kept(cache, 'y')
    assert cache.used() <= 9 * SIZE


def _die_while_copying(cache: StoreCache) -> None:
    cache.open('s3://b/z', Facts(2 * SIZE, '1'), lambda out: os._exit(1))


def seen(cache: StoreCache) -> int:
    """Bytes at one moment: files do not come and go while they are looked at."""
    with cache._alone():
        return cache.used()


def _use(cache: StoreCache, seed: int, log: Path) -> None:
    def copy(out: BinaryIO) -> None:
        with open(log, 'a') as stream:
            stream.write(f'{name}\n')
        out.write(name.encode() * SIZE)

    for step in range(60):
        name = 'abcdefghijklmnopqrst'[(step * (seed + 3)) % 20]
        with cache.open(f's3://b/{name}', Facts(SIZE, '1'), copy) as stream:
            assert stream.read() == name.encode() * SIZE
        assert seen(cache) <= cache.limit


def test_two_processes_on_one_cache(tmp_path: Path) -> None:
    """Each object is right, the limit holds at every moment, and nobody fetches what the other does."""
    cache, log = StoreCache(tmp_path / 'cache', 40 * SIZE), tmp_path / 'log'
    context = multiprocessing.get_context('fork')
    processes = [context.Process(target=_use, args=(cache, seed, log)) for seed in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(log.read_text().split()) == list('abcdefghijklmnopqrst')
    small = StoreCache(tmp_path / 'small', 7 * SIZE)
    processes = [context.Process(target=_use, args=(small, seed, log)) for seed in (0, 1)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 60
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        assert seen(small) <= small.limit
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


# ---- objects as files


def test_a_tar_is_scanned_with_few_requests(s3: S3Server, tmp_path: Path) -> None:
    members = {f'{number}.wav': os.urandom(20_000 + number) for number in range(60)}
    tar = write_tar(tmp_path / 'x.tar', members)
    s3.put('bucket/x.tar', tar.read_bytes())
    with open_file('s3://bucket/x.tar') as stream, tarfile.open(fileobj=stream, mode='r:') as opened:
        assert [item.name for item in opened] == list(members)
    assert len(s3.of('x.tar', 'GET')) <= 6
    with open_file('s3://bucket/x.tar') as stream, tarfile.open(fileobj=stream, mode='r:') as opened:
        assert opened.extractfile('37.wav').read() == members['37.wav']


def test_an_object_as_a_file_is_a_file(s3: S3Server) -> None:
    content = os.urandom(700_000)
    s3.put('bucket/x', content)
    file, plain = RangeFile('s3://bucket/x'), io.BytesIO(content)
    for step in range(300):
        offset, whence = (step * 7919) % 720_000 - 10 * (step % 3), (0, 1, 2)[step % 3] if step % 5 else 0
        offset = -(offset % 5000) if whence else offset
        try:
            at = plain.seek(offset, whence)
        except ValueError:
            at = plain.seek(0)
        assert file.seek(at) == at
        count = (step * 1237) % 9000
        assert file.read(count) == plain.read(count)
    assert file.read() == plain.read()


def test_ranges_come_from_the_cache(s3: S3Server, tmp_path: Path) -> None:
    content = os.urandom(50_000)
    for name in ('x', 'y'):
        s3.put(f'bucket/{name}', content)
    use_cache(DataSettings(store_cache=str(tmp_path / 'cache'), store_cache_gb=1e-4))
    assert read_range('s3://bucket/x', 100, 50) == content[100:150]
    assert read_range('s3://bucket/x', 40_000, 90_000) == content[40_000:]
    with open_file('s3://bucket/x') as stream:
        assert stream.read() == content
    assert len(s3.of('/x', 'GET')) == 1
    use_cache(DataSettings())
    object_files.forget_ranges()
    assert read_range('s3://bucket/y', 100, 50) == read_range('s3://bucket/y', 100, 50) == content[100:150]
    assert [each.sent for each in s3.of('/y', 'GET')] == [50]


def test_what_a_store_raises_is_kept_for_a_decoder(s3: S3Server) -> None:
    s3.put('bucket/x', bytes(100))
    file = RangeFile('s3://bucket/x')
    s3.faults[:] = [StoreFault(status=503, times=-1)]
    with pytest.raises(VtbStoreError):
        file.read(10)
    assert isinstance(file.error, VtbStoreError)


def test_a_whole_object_is_copied(s3: S3Server) -> None:
    content, out = os.urandom(3 << 20), io.BytesIO()
    s3.put('bucket/x', content)
    copy_object('s3://bucket/x', out)
    assert out.getvalue() == content
