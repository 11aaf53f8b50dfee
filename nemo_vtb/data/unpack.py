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
"""Formats that are no JSON lines, made into JSON lines once: parquet, WebDataset, plain text, chats with recordings.

Everything behind this reads one line at its place in a file, and one recording as a file or a member of an archive.
Recordings that stand inside rows or lines are put into an archive beside the lines, in the cache folder.
"""

import io
import json
import math
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any

from nemo_vtb.data.addresses import parent_of
from nemo_vtb.data.chats import audio_slot, embedded_recording, is_embedded, pick_prompt
from nemo_vtb.data.conversation import BOM
from nemo_vtb.data.limits import read_line
from nemo_vtb.data.manifest_files import (
    cached_copy,
    check_lines,
    check_paths,
    expand_paths,
    manifest_cache,
    plain_archive,
    plain_manifest,
)
from nemo_vtb.errors import VtbConfigError, VtbDataError

_RECORDINGS = 'recordings.tar'
_LINE_BYTES = 1 << 28
_ROWS = 64
_SUFFIX = re.compile(r'\.\w{1,8}$')
_CHAT_COLUMNS = ('messages', 'conversations')
_ANSWERS = ('answer', 'target_text', 'translation')


@dataclass(frozen=True, slots=True)
class Unpacked:
    """The files of a source as JSON lines.

    Args:
        name: What the source is called where its entry does not say.
        files: JSON lines.
        bases: Folder that relative paths of recordings count from, for each file; () for the folder of the file.
        tars: Archive with the recordings of each file; () where there are none.
    """

    name: str
    files: tuple[str, ...]
    bases: tuple[str, ...] = ()
    tars: tuple[str, ...] = ()


def unpack_entry(entry: Mapping[str, Any], where: str) -> Unpacked | None:
    """The files of an `input_cfg` entry whose type is no JSON lines; None for every other type.

    Raises:
        VtbConfigError: A key is missing, a path is an address, or a column is not there.
        VtbDataError: A file does not exist, is damaged, or the files of a pair do not belong together.
    """
    unpack = _UNPACKERS.get(str(entry.get('type')))
    return None if unpack is None else unpack(entry, where)


def _paths(entry: Mapping[str, Any], keys: Sequence[str], where: str, what: str = 'manifest') -> list[str]:
    """The files that the first of some keys names, unpacked."""
    key = next((name for name in keys if entry.get(name)), keys[0])
    if not entry.get(key):
        raise VtbConfigError(
            'A source needs its files.', field=f'{where}.{key}', got=None, allowed='a path, a pattern or a list'
        )
    paths = expand_paths(entry[key])
    check_paths(paths, f'{where}.{key}', what)
    return paths


# ---- plain text


def _text(entry: Mapping[str, Any], where: str) -> Unpacked:
    paths = _paths(entry, ('paths', 'manifest_filepath'), where, 'text file')
    files = [_lines_of([path], _text_lines) for path in map(plain_manifest, paths)]
    return Unpacked(Path(files[0]).stem, tuple(files))


def _pairs(entry: Mapping[str, Any], where: str) -> Unpacked:
    sources, targets = (_paths(entry, (f'{side}_paths',), where, 'text file') for side in ('source', 'target'))
    if len(sources) != len(targets):
        raise VtbConfigError(
            'Each file of sources needs its file of targets.', field=f'{where}.target_paths',
            got=f'{len(targets)} files for {len(sources)}', allowed='as many',
        )  # fmt: skip
    questions = _paths(entry, ('questions_path',), where, 'text file') if entry.get('questions_path') else []
    pairs = zip(map(plain_manifest, sources), map(plain_manifest, targets), strict=True)
    files = [_lines_of([source, target, *questions], _pair_lines) for source, target in pairs]
    return Unpacked(Path(files[0]).stem, tuple(files))


def _lines_of(originals: Sequence[str], lines: Callable[..., Iterator[bytes]]) -> str:
    """The copy with a line for each line of the originals."""

    def fill(out: IO[bytes], _: Path) -> None:
        for line in lines(*originals):
            out.write(line + b'\n')

    return cached_copy(originals, f'{Path(originals[0]).stem}.jsonl', fill)


def _text_lines(path: str) -> Iterator[bytes]:
    """Each line as a text; one that is not UTF-8 stays as it is, to be counted as broken."""
    for number, raw in enumerate(_stripped(path), start=1):
        said = _decoded(raw)
        yield raw if said is None else _json({'id': f'{Path(path).stem}-{number}', 'text': said}) if said else b''


def _pair_lines(source: str, target: str, questions: str | None = None) -> Iterator[bytes]:
    asked = [text for raw in _stripped(questions) if (text := _decoded(raw))] if questions else []
    stem = Path(source).stem
    for number, (before, after) in enumerate(zip_longest(_stripped(source), _stripped(target)), start=1):
        if before is None or after is None:
            raise VtbDataError(
                'The two files of a pair have not as many lines.', field='target_paths',
                got=f'{target if after is None else source} ends before line {number}', allowed='a line for each line',
                remedy='pair the files that belong together',
            )  # fmt: skip
        texts = _decoded(before), _decoded(after)
        if None in texts:
            yield before if texts[0] is None else after
            continue
        said = [('User', texts[0]), ('Assistant', texts[1])]
        if asked:
            said.insert(0, ('User', pick_prompt(asked, before)))
        turns = [{'from': role, 'type': 'text', 'value': value} for role, value in said]
        yield _json({'id': f'{stem}-{number}', 'conversations': turns}) if any(texts) else b''


def _stripped(path: str) -> Iterator[bytes]:
    with open(path, 'rb') as stream:
        for number, raw in enumerate(stream):
            yield (raw if number else raw.removeprefix(BOM)).strip()


def _decoded(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, default=str).encode(errors='surrogatepass')


# ---- chats with recordings inside


def _chats(entry: Mapping[str, Any], where: str) -> Unpacked:
    paths = _paths(entry, ('manifest_filepath', 'paths'), where)
    plain = [plain_manifest(path) for path in paths]
    for path in plain:
        check_lines(path, f'{where}.manifest_filepath')
    folders = tuple(map(parent_of, paths))
    return Unpacked(Path(plain[0]).stem, tuple(map(_with_archive, plain)), folders)


def _with_archive(path: str) -> str:
    """The copy of a file of chats whose recordings in base64 are members of an archive; the file if there are none."""

    def fill(out: IO[bytes], final: Path) -> None:
        with _Recordings(Path(out.name).parent) as recordings, open(path, 'rb') as stream:
            for number in range(1, 1 << 62):
                raw = read_line(stream, _LINE_BYTES)[0]
                if not raw:
                    break
                out.write(_without_recordings(raw.strip(), number, recordings, final) + b'\n')
        if not recordings.count:
            out.truncate(0)

    copy = cached_copy([path], Path(path).name, fill)
    return copy if os.path.getsize(copy) else path


def _without_recordings(raw: bytes, number: int, recordings: '_Recordings', folder: Path) -> bytes:
    if b'audio' not in raw:
        return raw
    try:
        line = json.loads(raw)
        contents = [message.get('content') for message in line['messages']]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return raw  # it is counted as broken
    before = recordings.count
    for content in contents:
        for part in content if isinstance(content, list) else ():
            slot = audio_slot(part)
            value = slot and slot[0].get(slot[1])
            if slot and isinstance(value, str) and is_embedded(value) and (sound := embedded_recording(value)):
                member = recordings.add(f'{number}-{recordings.count - before}', sound)
                slot[0][slot[1]] = f'{folder / _RECORDINGS}!/{member}'
    return _json(line) if recordings.count > before else raw


class _Recordings:
    """An archive of recordings that is being written, beside the lines that name them."""

    def __init__(self, folder: Path) -> None:
        self.count = 0
        self._tar = tarfile.open(folder / _RECORDINGS, 'w')

    def __enter__(self) -> '_Recordings':
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()

    def add(self, name: str, sound: bytes) -> str:
        """Append a recording; returns its name."""
        info = tarfile.TarInfo(name)
        info.size = len(sound)
        self._tar.addfile(info, io.BytesIO(sound))
        self.count += 1
        return name


# ---- WebDataset


def _webdataset(entry: Mapping[str, Any], where: str) -> Unpacked:
    shards = webdataset_shards(entry.get('data_dir'), f'{where}.data_dir')
    tars = tuple(plain_archive(path, f'{where}.data_dir') for path in shards)
    files = tuple(map(_sample_lines, tars))
    return Unpacked(Path(str(entry['data_dir'])).name, files, (), tars)


def webdataset_shards(folder: Any, where: str) -> list[str]:
    """The archives of a WebDataset: as `wids-meta.json` lists them, else all in the folder, by name.

    Raises:
        VtbConfigError: No folder, or none with archives.
        VtbDataError: A shard that is listed does not exist.
    """
    if not folder or not Path(folder).is_dir():
        raise VtbConfigError('A source needs its folder.', field=where, got=folder, allowed='a folder of archives')
    listed = Path(folder) / 'wids-meta.json'
    if listed.is_file():
        try:
            shards = [str(Path(folder) / shard['url']) for shard in json.loads(listed.read_bytes())['shardlist']]
        except (ValueError, KeyError, TypeError) as error:
            raise VtbDataError(
                'The list of shards cannot be read.', field=where, got=f'{listed}: {type(error).__name__} {error}',
                allowed='{"shardlist": [{"url": ...}]}', remedy='remove it: all archives of the folder are read then',
            ) from error  # fmt: skip
    else:
        shards = sorted(map(str, Path(folder).rglob('*.tar')))
    if not shards:
        raise VtbConfigError('There are no archives.', field=where, got=str(folder), allowed='*.tar or wids-meta.json')
    check_paths(shards, where, 'archive')
    return shards


def _sample_lines(tar: str) -> str:
    """The copy with a ShareGPT line for each sample of a shard; recordings stay in the shard."""

    def fill(out: IO[bytes], _: Path) -> None:
        for stem, (said, sounds) in _samples(tar).items():
            out.write(_sample_line(stem, said, sounds) + b'\n')

    return cached_copy([tar], f'{Path(tar).stem}.jsonl', fill)


def _samples(tar: str) -> dict[str, tuple[list[bytes], list[str]]]:
    """For each sample, by the name without suffix: its JSON, and the names of its other members.

    Of a shard that is cut off, what stands before the cut.
    """
    samples: dict[str, tuple[list[bytes], list[str]]] = {}
    try:
        with tarfile.open(tar, 'r:') as archive:
            for item in archive:
                if not item.isfile():
                    continue
                stem, suffix = os.path.splitext(item.name)
                said, sounds = samples.setdefault(stem, ([], []))
                if suffix != '.json':
                    sounds.append(item.name)
                elif (stream := archive.extractfile(item)) is not None:
                    said.append(stream.read())
    except (tarfile.TarError, OSError, EOFError):
        pass
    return samples


def _sample_line(stem: str, said: list[bytes], sounds: list[str]) -> bytes:
    if len(said) != 1:  # counted as broken: no conversation, or nobody knows which
        return _json({'id': stem, 'sound': sounds})
    try:
        line = json.loads(said[0])
    except (ValueError, RecursionError):
        return b' '.join(said[0].split())  # counted as broken
    if not isinstance(line, dict):
        return _json(line)
    line = {'id': stem} | {name: value for name, value in line.items() if name not in ('sound', 'ori_sound')}
    if len(sounds) > 1:
        return _json(line | {'audios': sounds})
    return _json(line | ({'sound': sounds[0]} if sounds else {}))


# ---- parquet


def _parquet(entry: Mapping[str, Any], where: str) -> Unpacked:
    named = _paths(entry, ('manifest_filepath',), where, 'parquet file')
    paths = [plain_manifest(path) for path in named]
    columns = [_columns(path, entry, where) for path in paths]
    files = [_rows_of(path, found) for path, found in zip(paths, columns, strict=True)]
    audio = {found.audio is not None for found in columns}
    if len(audio) > 1:
        raise VtbConfigError(
            'Some files have a column of recordings, others have none.', field=f'{where}.manifest_filepath',
            got=list(paths), allowed='files of one kind', remedy='make them two entries',
        )  # fmt: skip
    tars = tuple(str(Path(file).parent / _RECORDINGS) for file in files) if audio == {True} else ()
    return Unpacked(Path(files[0]).stem, tuple(files), tuple(map(parent_of, named)), tars)


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which columns of a parquet file are read: that of the recordings, how, and the others."""

    audio: str | None
    embedded: str
    duration: str
    others: tuple[str, ...]


def _columns(path: str, entry: Mapping[str, Any], where: str) -> _Columns:
    """Check the columns against what the entry asks for.

    Raises:
        VtbConfigError: A column is not there, or holds no recordings.
    """
    import pyarrow

    with _reading(path), open(path, 'rb') as stream:
        schema = pyarrow.parquet.ParquetFile(stream).schema_arrow
    names, is_chat = set(schema.names), any(name in schema.names for name in _CHAT_COLUMNS)
    audio = str(entry.get('audio_field') or 'audio')
    text = str(entry.get('text_field') or 'text')
    wanted = [str(entry[key]) for key in ('audio_field', 'duration_field', 'lang_field') if entry.get(key)]
    wanted += [] if is_chat else [audio]
    wanted += [] if is_chat or names.intersection(_ANSWERS) else [text]
    if missing := [name for name in wanted if name not in names]:
        raise VtbConfigError(
            'A parquet file has no such column.', field=f'{where}.manifest_filepath', got=f'{path}: {missing}',
            allowed=', '.join(schema.names), remedy='name the columns by audio_field, text_field, duration_field',
        )  # fmt: skip
    has_audio = audio in names and not (is_chat and not entry.get('audio_field'))
    embedded = _embedded(schema.field(audio).type, path, f'{where}.audio_field') if has_audio else ''
    others = tuple(name for name in schema.names if name != audio and not _holds_bytes(schema.field(name).type))
    return _Columns(audio if has_audio else None, embedded, str(entry.get('duration_field') or 'duration'), others)


def _embedded(kind: Any, path: str, where: str) -> str:
    """How a column keeps recordings: `struct` (Hugging Face's `Audio`), `bytes` or `path`."""
    from pyarrow import types

    if types.is_struct(kind) and any(field.name == 'bytes' for field in kind):
        return 'struct'
    if types.is_binary(kind) or types.is_large_binary(kind):
        return 'bytes'
    if types.is_string(kind) or types.is_large_string(kind):
        return 'path'
    raise VtbConfigError(
        'A column of a parquet file holds no recordings.', field=where, got=f'{path}: {kind}',
        allowed="Hugging Face's Audio (struct of bytes and path), binary, or a path",
        remedy="from datasets import Audio; data.cast_column('audio', Audio()).to_parquet(FILE)",
    )  # fmt: skip


def _holds_bytes(kind: Any) -> bool:
    """Whether a column has bytes in it, as images have: no JSON, and nothing that is read."""
    from pyarrow import types

    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return True
    return types.is_nested(kind) and any(_holds_bytes(kind.field(n).type) for n in range(kind.num_fields))


class _reading:
    """Whatever pyarrow raises for one file becomes an error that names it."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        import pyarrow.parquet  # noqa: F401 - the first use loads it

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        import pyarrow

        if isinstance(error, pyarrow.ArrowException | OSError | EOFError) and not getattr(error, 'errno', None):
            raise VtbDataError(
                'A parquet file is cut off or damaged.', field='manifest_filepath', got=f'{self._path} ({error})',
                remedy='copy or write it anew',
            ) from error  # fmt: skip


def _rows_of(path: str, columns: _Columns) -> str:
    """The copy with a line for each row; recordings go into an archive beside it."""

    def fill(out: IO[bytes], _: Path) -> None:
        import pyarrow.parquet

        if columns.audio:
            _check_space(path)
        names = [*columns.others, *([columns.audio] if columns.audio else [])]
        with _reading(path), _Recordings(Path(out.name).parent) as recordings:
            file, number = pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20), 0
            for batch in file.iter_batches(batch_size=_ROWS, columns=names, use_threads=False):
                for row in batch.to_pylist():
                    out.write(_row_line(row, number, path, columns, recordings) + b'\n')
                    number += 1

    return cached_copy([path], f'{Path(path).stem}.jsonl', fill, variant=f'{columns.audio}:{columns.duration}')


def _row_line(row: dict[str, Any], number: int, path: str, columns: _Columns, recordings: _Recordings) -> bytes:
    line = {'id': f'{Path(path).stem}_{number}'} | {name: _finite(row[name]) for name in columns.others}
    if columns.duration in line:
        line['duration'] = line[columns.duration]
    if columns.audio:
        line['audio_filepath'] = _sound(row[columns.audio], number, Path(path).parent, columns, recordings)
    return _json(line)


def _sound(value: Any, number: int, folder: Path, columns: _Columns, recordings: _Recordings) -> str | None:
    """Name of a recording in the archive, or its path; None where the row has neither."""
    sound = value.get('bytes') if columns.embedded == 'struct' and value else value
    path = value.get('path') if columns.embedded == 'struct' and value else value
    if columns.embedded != 'path' and sound is not None:
        suffix = _SUFFIX.search(path) if columns.embedded == 'struct' and path else None
        return recordings.add(f'{number}{suffix[0] if suffix else ""}', sound)
    return str(folder.absolute() / path) if isinstance(path, str) and path else None


def _finite(value: Any) -> Any:
    """A value as JSON has it: no NaN."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case list():
            return [_finite(each) for each in value]
        case dict():
            return {str(name): _finite(each) for name, each in value.items()}
    return value


def _check_space(path: str) -> None:
    """Refuse to fill the disk with a copy of the recordings."""
    needed, free = os.path.getsize(path), shutil.disk_usage(manifest_cache()).free
    if needed > free:
        raise VtbDataError(
            'The recordings of a parquet file are unpacked into the cache, and the disk has no room for them.',
            field='NEMO_VTB_CACHE', got=f'{free >> 20} MiB free in {manifest_cache()}',
            allowed=f'{needed >> 20} MiB for {path}', remedy='NEMO_VTB_CACHE=FOLDER on a larger disk',
        )  # fmt: skip


_UNPACKERS: Mapping[str, Callable[[Mapping[str, Any], str], Unpacked]] = {
    'openai_messages': _chats,
    'parquet': _parquet,
    'share_gpt_webdataset': _webdataset,
    'txt': _text,
    'txt_pair': _pairs,
}
