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

import bz2
import gzip
import hashlib
import json
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import IO, Any

from nemo_vtb.data.addresses import is_address, malformed, without_query
from nemo_vtb.data.limits import read_line
from nemo_vtb.data.object_files import copy_object, open_file
from nemo_vtb.data.stores import facts_of_all, file_facts, object_identity, object_names
from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.io import atomic_replace, cache_dir, head_tail_digest

_PATTERN = re.compile(r'[{}]|_OP_|_CL_|^\[\[|[\[(<][^/]*(\.\.|,)')
_BRACES = {'(': '{', '[': '{', '<': '{', '_OP_': '{', ')': '}', ']': '}', '>': '}', '_CL_': '}'}
_CHUNK = 1 << 20
# text compresses ten times, or thirty where it repeats itself: what grows beyond this was made to fill a disk
_MAX_GROWTH, _FREE_GROWTH = 100, 1 << 28
_CUTS, _RECORDING = 'cuts', 'recording'
# how NeMo's reader of tarred manifests finds out which archive belongs to which manifest
_MANIFEST_NUMBER, _ARCHIVE_NUMBER = (
    re.compile(r'manifest[^/]*_(\d+)[^/]*\.json'),
    re.compile(r'audio[^/]*_(\d+)[^/]*\.tar'),
)
_OPENERS: dict[bytes, Any] = {b'\x1f\x8b': gzip.open, b'BZh': bz2.open, b'\xfd7zXZ': lzma.open}
_LIST_KEYS = ('shar_path', 'manifest_filepath', 'cuts_path')
_TARS = 'tarred_audio_filepaths'


def manifest_cache() -> Path:
    """Where unpacked copies are kept."""
    return cache_dir() / 'manifests'


def expand_paths(value: str | Path | Sequence[str]) -> list[str]:
    """Expand NeMo's shard patterns (`shard__OP_0..9_CL_.jsonl`, braces, lists) into paths, in order."""
    if isinstance(value, str | Path):
        text = str(value)
        if not _PATTERN.search(text) or os.path.exists(text):
            return [text]
        # what NeMo's expand_sharded_filepaths does; importing it from NeMo costs half a minute
        from braceexpand import braceexpand

        for mark, brace in _BRACES.items():
            text = text.replace(mark, brace)
        return list(braceexpand(text, escape=False))
    return [path for item in value for path in expand_paths(item if isinstance(item, str | Path) else str(item[0]))]


def split_weighted(entry: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The entries that NeMo's nested lists stand for: `[[path, weight], ...]` is a source for each; [] for all else.

    Without weights NeMo draws by the number of lines, which is what one source of all files does.

    Raises:
        VtbConfigError: Another shape of list, weights for some alone, or another number of archives.
    """
    key = next((name for name in _LIST_KEYS if entry.get(name)), '')
    value: Any = entry.get(key)
    if not _is_list(value):
        return []
    for name in (key, _TARS):
        listed: Any = entry.get(name)
        for item in listed if _is_list(listed) else ():
            weighted = _is_list(item) and len(item) == 2 and name == key and _is_weight(item[1])
            if not isinstance(item, str | Path) and not (
                _is_list(item) and (len(item) == 1 or weighted) and isinstance(item[0], str | Path)
            ):
                allowed = 'a path, [path] or [path, weight]' if name == key else 'a path or [path]'
                raise VtbConfigError('Not a list of files.', field=f'{where}.{name}', got=item, allowed=allowed)
    weights = [item[1] if _is_list(item) and len(item) == 2 else None for item in value]
    if all(weight is None for weight in weights):
        return []
    tars: Any = entry.get(_TARS)
    if None in weights or (tars and (not _is_list(tars) or len(tars) != len(value))):
        raise VtbConfigError(
            'Each file needs its weight, and its archives.', field=f'{where}.{key}', got=value,
            allowed='[[path, weight], ...] for all of them, with as many archives',
        )  # fmt: skip
    parts = [dict(entry) | {key: item[0], 'weight': item[1]} for item in value]
    return [part | {_TARS: tars[n]} for n, part in enumerate(parts)] if tars else parts


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def pair_archives(files: Sequence[str], tars: Sequence[str], where: str) -> tuple[tuple[str, ...], dict[int, int]]:
    """The archive of each manifest; or, for one manifest of many archives, which of them a `shard_id` names.

    Manifests and archives belong together by the numbers in their names (`manifest_3.json`, `audio_3.tar`), where they
    have any, as in NeMo; otherwise by their order.

    Returns:
        Archives in the order of the manifests and {}; or all archives and {shard_id: place}.

    Raises:
        VtbConfigError: They do not belong together.
    """
    wanted, found = _numbers(files, _MANIFEST_NUMBER), _numbers(tars, _ARCHIVE_NUMBER)
    if len(files) == 1 and len(tars) > 1 and found:
        return tuple(tars), found
    if len(files) != len(tars):
        raise VtbConfigError(
            'Each manifest needs its own archive.',
            field=f'{where}.{_TARS}',
            got=f'{len(tars)} archives for {len(files)} manifests',
            allowed='as many, or one manifest whose lines have `shard_id` and archives named audio_N.tar',
        )
    if len(files) == 1 or not wanted or not found:
        return tuple(tars), {}
    if wanted.keys() != found.keys():
        raise VtbConfigError(
            'Manifests and archives have other numbers in their names.', field=f'{where}.{_TARS}',
            got=f'archives {sorted(found.keys() - wanted.keys())}, manifests {sorted(wanted.keys() - found.keys())}',
            allowed='the same numbers: manifest_N.json and audio_N.tar',
        )  # fmt: skip
    return tuple(tars[found[number]] for number in wanted), {}


def _numbers(paths: Sequence[str], pattern: re.Pattern[str]) -> dict[int, int]:
    """Number in the name -> place; {} where a name has none or two have the same."""
    found = [match for path in paths if (match := pattern.search(path))]
    numbers = {int(match[1]): place for place, match in enumerate(found)}
    return numbers if len(numbers) == len(paths) else {}


def check_paths(paths: Sequence[str], field: str, what: str) -> None:
    """Refuse what is neither a file nor an object.

    Raises:
        VtbConfigError: A command, which NeMo would run, or an address of nothing that can be read.
        VtbDataError: The file or the object does not exist, or may not be read.
        VtbStoreError: The store refuses the credentials or has no such bucket, or does not answer.
    """
    for path in paths:
        command = path.startswith('pipe:') or path.rstrip().endswith('|') or ('://' in path and not is_address(path))
        if command or (is_address(path) and malformed(path)):
            raise VtbConfigError(
                f'The {what} is a command or no address.', field=field, got=path,
                allowed='a file, or an object at s3://, gs://, https://, ais:// ...', remedy=malformed(path),
            )  # fmt: skip
    facts_of_all(list(paths))
    for path in paths:
        wrong = 'does not exist'
        try:
            if (file_facts(path).size >= 0 and is_address(path)) or os.path.isfile(path):
                continue
        except FileNotFoundError:
            pass
        except OSError as error:
            wrong = f'cannot be read ({error.strerror})'
        raise VtbDataError(
            f'The {what} {wrong}.',
            field=field,
            got=path,
            remedy='resolve_assets(cfg) before it' if path.startswith('asset:') else 'correct the path',
        )


def check_lines(path: str, field: str) -> None:
    """Refuse a manifest that is no JSON lines; the name does not matter, since NeMo calls them `.json`.

    Raises:
        VtbConfigError: An archive, a parquet file, a JSON list, or one object over several lines.
    """
    with open(path, 'rb') as stream:
        head = stream.read(_CHUNK).lstrip(b'\xef\xbb\xbf \t\r\n')
    first, second = (*head.split(b'\n', 2), b'')[:2]
    found = None
    if path.endswith('.parquet') or head.startswith(b'PAR1'):
        found = 'a parquet file'
    elif path.endswith('.tar') or head[257:262] == b'ustar':
        found = 'an archive'
    elif head.startswith(b'[') and (path.endswith('.json') or second.strip() == b'{'):
        found = 'a JSON list'
    elif first.strip() == b'{' and second.strip().startswith(b'"'):
        found = 'a JSON object over several lines'
    if found:
        raise VtbConfigError(
            'The lines of a manifest are read one by one, at their place in the file.',
            field=field,
            got=f'{path}: {found}',
            allowed='JSON lines: one object on each line, in *.json, *.jsonl or *.jsonl.gz',
            remedy='write one object per line: jq -c ".[]" LIST.json > LINES.jsonl',
        )


def plain_archive(path: str, field: str) -> str:
    """Path of an archive whose members can be read at their place: itself, or its unpacked copy.

    Raises:
        VtbConfigError: It is not called `*.tar`.
        VtbDataError: It is cut off or damaged, or grows beyond any recording.
    """
    name = _name_of(path)
    if is_address(path) and name.endswith('.tar'):  # the name decides: thousands of shards are not looked into
        return path
    with open_file(path) as stream:
        head = stream.read(6)
    opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
    if opener is not None:
        return _unpack(path, opener, f'{name.split(".")[0]}.tar')
    if not name.endswith('.tar'):
        raise VtbConfigError('Not an archive by its name.', field=field, got=path, allowed='*.tar, *.tar.gz, *.tgz')
    return path


def unpack_gzip(path: str) -> str:
    """Path of the unpacked copy of a gzip file; made on first use, whole or not at all.

    Raises:
        VtbDataError: It is cut off or damaged, or grows beyond any text.
    """

    return _unpack(path, gzip.open, _name_of(path).removesuffix('.gz'))


def is_gzip(path: str) -> bool:
    """Whether a manifest is gzipped, by its name."""
    return _name_of(path).endswith('.gz')


def plain_manifest(path: str) -> str:
    """Path of a manifest whose lines can be read at their place: itself, or its copy if it is gzipped or in a store.

    Raises:
        OSError: The object is not there, or may not be read.
        VtbDataError: It is cut off or damaged, or grows beyond any text.
        VtbStoreError: The store refuses the credentials, or does not answer.
    """
    if is_gzip(path):
        return unpack_gzip(path)
    if not is_address(path):
        return path

    def fill(out: IO[bytes], _: Path) -> None:
        copy_object(path, out)  # type: ignore[arg-type]

    return cached_copy([path], _name_of(path), fill)


def _name_of(path: str) -> str:
    return Path(without_query(path) if is_address(path) else path).name


def _unpack(path: str, opener: Any, name: str) -> str:
    def fill(out: IO[bytes], _: Path) -> None:
        with open_file(path) as packed, opener(packed, 'rb') as stream:
            while block := stream.read(_CHUNK):
                out.write(block)
                _check_growth(path, out.tell())

    return cached_copy([path], name, fill)


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
        names = _names_in(folder, where)
        cuts, archives = (
            [f'{folder}/{n}' for n in names if n.split('.')[0] == field] for field in (_CUTS, _RECORDING)
        )
        shards += _paired(cuts, archives, where, folder)
    return shards


def _names_in(folder: str, where: str) -> list[str]:
    try:
        if is_address(folder):
            return object_names(folder)
        return sorted(p.name for p in Path(folder).iterdir() if p.is_file())
    except OSError as error:
        raise VtbDataError(
            'The folder does not exist.', field=where, got=folder, allowed=error.strerror, remedy='correct the path'
        ) from error


def unpack_shar(cuts: str, archive: str) -> str:
    """Path of a JSONL file with the cuts of one shard whose recordings are named as members of its archive.

    Lhotse lays cuts and recordings out in the same order and names both by the cut's id; this is checked.

    Raises:
        VtbDataError: A file is cut off or damaged, or the two do not belong together.
    """

    def fill(out: IO[bytes], _: Path) -> None:
        members = None if is_address(archive) else _recordings(archive)
        with open_file(cuts) as packed, gzip.open(packed, 'rb') if is_gzip(cuts) else packed as stream:
            for number in count(1):
                raw = read_line(stream, _FREE_GROWTH)[0]
                if not raw:
                    break
                member = None if members is None else next(members, '')
                out.write(_with_member(raw, member, archive, f'{cuts}:{number}') + b'\n')
                _check_growth(cuts, out.tell())

    return cached_copy([cuts, archive], _name_of(cuts).removesuffix('.gz'), fill)


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
        member = f'{id_}.*'  # an archive in a store is not looked into before it is read
    elif not member:
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
    place = archive if is_address(archive) else Path(archive).absolute()
    recording['sources'] = [{'type': 'file', 'channels': channels, 'source': f'{place}!/{member}'}]
    return json.dumps(cut, ensure_ascii=False).encode()


def _check_growth(path: str, size: int) -> None:
    allowed = file_facts(path).size * _MAX_GROWTH + _FREE_GROWTH
    if size > allowed:
        raise VtbDataError(
            'A compressed manifest unpacks to more than text ever does; the copy is removed.',
            field='manifest',
            got=f'{path}: {size} bytes so far',
            allowed=f'<= {allowed} bytes: {_MAX_GROWTH} times its size, and {_FREE_GROWTH >> 20} MiB',
            remedy='ask its author what it was meant to do; a manifest that is right can be unpacked by hand',
        )


def cached_copy(
    originals: Sequence[str], name: str, fill: Callable[[IO[bytes], Path], None], variant: str = ''
) -> str:
    """Path of a file in the cache that is made of others; made on first use, whole or not at all.

    Args:
        originals: What it is made of; when one of them changes, it is made anew.
        name: Of the file.
        fill: Writes it: (stream, folder in which it stands in the end). What it puts beside the stream comes along.
        variant: All else that decides its contents.

    Raises:
        VtbDataError: An original does not exist, is cut off or damaged.
    """
    digest = hashlib.sha256(variant.encode())
    for path in originals:
        if is_address(path):
            digest.update(json.dumps(object_identity(path)).encode())
            continue
        if not os.path.isfile(path):
            raise VtbDataError('The manifest does not exist.', field='manifest', got=path, remedy='correct the path')
        stat = os.stat(path)
        digest.update(f'{Path(path).absolute()}:{stat.st_size}:{stat.st_mtime_ns}'.encode())
        digest.update(head_tail_digest(path).encode())
    folder = manifest_cache() / digest.hexdigest()[:24]
    if not (folder / name).is_file():
        try:
            with atomic_replace(folder, folder=True, keep_existing=True) as new, open(new / name, 'wb') as out:
                fill(out, folder)
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
            raise VtbDataError(
                'A compressed manifest is cut off or damaged.',
                field='manifest',
                got=f'{originals[0]} ({error})',
                remedy='copy or write it anew',
            ) from error
    return str(folder / name)
