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
"""The files that a source names: shard patterns; gzip and lhotse Shar, unpacked once into the cache for random access.

A copy is keyed by path, size, time and contents of its original, so that a changed original is unpacked anew.
"""

import gzip
import hashlib
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import IO, Any

from nemo_vtb.data.limits import read_line
from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.io import atomic_replace, cache_dir, head_tail_digest

_PATTERN = re.compile(r'[{}]|_OP_|_CL_|[\[(<][^/]*\.\.')
_BRACES = {'(': '{', '[': '{', '<': '{', '_OP_': '{', ')': '}', ']': '}', '>': '}', '_CL_': '}'}
_CHUNK = 1 << 20
# text compresses ten times, or thirty where it repeats itself: what grows beyond this was made to fill a disk
_MAX_GROWTH, _FREE_GROWTH = 100, 1 << 28
_CUTS, _RECORDING = 'cuts', 'recording'


def manifest_cache() -> Path:
    """Where unpacked copies are kept."""
    return cache_dir() / 'manifests'


def expand_paths(value: str | Path | Sequence[str]) -> list[str]:
    """Expand NeMo's shard patterns (`shard__OP_0..9_CL_.jsonl`, braces, lists) into paths, in order."""
    if isinstance(value, str | Path):
        text = str(value)
        if not _PATTERN.search(text):
            return [text]
        # what NeMo's expand_sharded_filepaths does; importing it from NeMo costs half a minute
        from braceexpand import braceexpand

        for mark, brace in _BRACES.items():
            text = text.replace(mark, brace)
        return list(braceexpand(text, escape=False))
    return [path for item in value for path in expand_paths(item if isinstance(item, str | Path) else str(item[0]))]


def unpack_gzip(path: str) -> str:
    """Path of the unpacked copy of a gzip file; made on first use, whole or not at all.

    Raises:
        VtbDataError: It is cut off or damaged, or grows beyond any text.
    """

    def fill(out: IO[bytes]) -> None:
        with gzip.open(path, 'rb') as stream:
            while block := stream.read(_CHUNK):
                out.write(block)
                _check_growth(path, out.tell())

    return _cached([path], Path(path).name.removesuffix('.gz'), fill)


def shar_shards(value: Any, where: str) -> list[tuple[str, str]]:
    """Manifest and archive of each shard of a lhotse Shar data set, in the order of the shards.

    Args:
        value: NeMo's `shar_path`: a folder, a list of folders (or of [folder, weight]), or {cuts: ..., recording: ...}
            with patterns.
        where: What an error names.

    Raises:
        VtbConfigError: No cuts or no recordings, or not as many of them.
        VtbDataError: A folder does not exist.
    """
    if isinstance(value, Mapping):
        fields = {name: expand_paths(value.get(name) or []) for name in (_CUTS, _RECORDING)}
        return _paired(fields[_CUTS], fields[_RECORDING], where, value)
    shards = []
    for folder in expand_paths(value):
        if not Path(folder).is_dir():
            raise VtbDataError('The folder does not exist.', field=where, got=folder, remedy='correct the path')
        names = sorted(p.name for p in Path(folder).iterdir() if p.is_file())
        cuts, archives = (
            [f'{folder}/{n}' for n in names if n.split('.')[0] == field] for field in (_CUTS, _RECORDING)
        )
        shards += _paired(cuts, archives, where, folder)
    return shards


def unpack_shar(cuts: str, archive: str) -> str:
    """Path of a JSONL file with the cuts of one shard whose recordings are named as members of its archive.

    Lhotse lays cuts and recordings out in the same order and names both by the cut's id; this is checked.

    Raises:
        VtbDataError: A file is cut off or damaged, or the two do not belong together.
    """

    def fill(out: IO[bytes]) -> None:
        members = _recordings(archive)
        with gzip.open(cuts, 'rb') if cuts.endswith('.gz') else open(cuts, 'rb') as stream:
            for number in count(1):
                raw = read_line(stream, _FREE_GROWTH)[0]
                if not raw:
                    break
                out.write(_with_member(raw, next(members, None), archive, f'{cuts}:{number}') + b'\n')
                _check_growth(cuts, out.tell())

    return _cached([cuts, archive], f'{Path(cuts).name.removesuffix(".gz")}', fill)


def _paired(cuts: list[str], archives: list[str], where: str, got: Any) -> list[tuple[str, str]]:
    if not cuts or len(cuts) != len(archives):
        raise VtbConfigError(
            'This is no lhotse Shar data set.',
            field=where,
            got=f'{got}: {len(cuts)} manifests of cuts, {len(archives)} archives of recordings',
            allowed='cuts.NNNNNN.jsonl.gz and recording.NNNNNN.tar for each shard',
            remedy='name the folder that lhotse wrote (CutSet.to_shar), with recordings among its fields',
        )
    return list(zip(cuts, archives, strict=True))


def _recordings(archive: str) -> Iterator[str]:
    """Names of the members that hold sound, in order; an archive that is cut off simply has fewer."""
    try:
        with tarfile.open(archive, 'r:') as tar:
            for item in tar:
                if item.isfile() and not item.name.endswith(('.json', '.nometa')):
                    yield item.name
    except (tarfile.TarError, OSError):
        return


def _with_member(raw: bytes, member: str | None, archive: str, where: str) -> bytes:
    """The line with the path of its recording; a line that is broken is passed on as it is, to be counted as such."""
    line = raw.strip()
    try:
        cut = json.loads(line)
        id_, recording = str(cut['id']), cut['recording']
    except (ValueError, KeyError, TypeError):
        return line
    if member is None:
        member = f'{id_}.missing'  # the index reports it: not in the archive
    elif os.path.splitext(member.removeprefix('./'))[0] != id_:
        raise VtbDataError(
            'Cuts and recordings of a shard do not belong together.',
            field=where,
            got=f'cut {id_}, recording {member}',
            allowed='the same ids in the same order',
            remedy='write the shard anew with lhotse, or pair the files that belong together',
        )
    # the archive holds the cut's own channel, with its transforms done
    channels = [cut['channel']] if isinstance(cut.get('channel'), int) else cut.get('channel', [0])
    recording['sources'] = [{'type': 'file', 'channels': channels, 'source': f'{Path(archive).absolute()}!/{member}'}]
    return json.dumps(cut, ensure_ascii=False).encode()


def _check_growth(path: str, size: int) -> None:
    allowed = os.path.getsize(path) * _MAX_GROWTH + _FREE_GROWTH
    if size > allowed:
        raise VtbDataError(
            'A compressed manifest unpacks to more than text ever does; the copy is removed.',
            field='manifest',
            got=f'{path}: {size} bytes so far',
            allowed=f'<= {allowed} bytes: {_MAX_GROWTH} times its size, and {_FREE_GROWTH >> 20} MiB',
            remedy='ask its author what it was meant to do; a manifest that is right can be unpacked by hand',
        )


def _cached(originals: list[str], name: str, fill: Any) -> str:
    digest = hashlib.sha256()
    for path in originals:
        if not os.path.isfile(path):
            raise VtbDataError('The manifest does not exist.', field='manifest', got=path, remedy='correct the path')
        stat = os.stat(path)
        digest.update(f'{Path(path).absolute()}:{stat.st_size}:{stat.st_mtime_ns}'.encode())
        digest.update(head_tail_digest(path).encode())
    folder = manifest_cache() / digest.hexdigest()[:24]
    if not (folder / name).is_file():
        try:
            with atomic_replace(folder, folder=True, keep_existing=True) as new, open(new / name, 'wb') as out:
                fill(out)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise VtbDataError(
                'A compressed manifest is cut off or damaged.',
                field='manifest',
                got=f'{originals[0]} ({error})',
                remedy='copy or write it anew',
            ) from error
    return str(folder / name)
