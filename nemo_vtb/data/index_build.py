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
"""Builds the index of a source: stretches of its files are counted by several processes, each once.

What was counted is kept beside the index to be until all is there, so that a killed build goes on, and several nodes
can count. With durations trusted it stays in the index, for the next one with some of the same files.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import time
import zipfile
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nemo_vtb.data.addresses import is_address
from nemo_vtb.data.conversation import BOM, Conversation, at_speed, parse_line
from nemo_vtb.data.counting import Meter
from nemo_vtb.data.faults import Reason, audio_fault
from nemo_vtb.data.filters import check_filters
from nemo_vtb.data.index_integrity import audio_identity, write_meta
from nemo_vtb.data.limits import read_line
from nemo_vtb.data.sources import SourceSpec, has_offset
from nemo_vtb.data.stores import object_identity
from nemo_vtb.errors import VtbDataError
from nemo_vtb.io import atomic_replace, file_digest, head_tail_digest, json_line

INDEX_VERSION = 4
_CHUNK_BYTES = 4 << 20
_PARALLEL_BYTES = 8 << 20  # below this a second process costs more than it saves
_PARTS = 'parts'
_STALE_S = 7 * 24 * 3600
# name -> (type code of `array`, dtype); lengths are tokens, seconds are of audio
COLUMNS: Mapping[str, tuple[str, type]] = {
    'file': ('i', np.int32),
    'offset': ('q', np.int64),
    'nbytes': ('i', np.int32),
    'length': ('i', np.int32),
    'text': ('i', np.int32),
    'supervised': ('i', np.int32),
    'frames': ('i', np.int32),
    'clips': ('i', np.int32),
    'seconds': ('f', np.float32),
    'audio_bytes': ('q', np.int64),
    'audio_stamp': ('q', np.int64),
}


def columns_of(spec: SourceSpec) -> Mapping[str, tuple[str, type]]:
    """Columns of a source: with other speeds, the frames at each."""
    return {**COLUMNS} | {frames_at(speed): ('i', np.int32) for speed in spec.speeds[1:]}


def frames_at(speed: float) -> str:
    """Name of the column of frames at a speed."""
    return f'frames_{speed:g}'


def index_fingerprint(spec: SourceSpec, meter: Meter) -> str:
    """SHA-256 of all that decides the contents of an index: files, how they are read, and how tokens are counted."""
    files = [_identity_of(path) for path in (*spec.files, *spec.tars)]
    return _digest({'version': INDEX_VERSION, 'files': files, 'source': spec.describe(), 'meter': meter.fingerprint()})


def _identity_of(path: str) -> list[Any]:
    if is_address(path):
        return object_identity(path)
    stat = os.stat(path)
    return [os.path.abspath(path), stat.st_size, stat.st_mtime_ns, head_tail_digest(path)]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(slots=True)
class _Part:
    """What one stretch of a file holds."""

    columns: dict[str, array]
    faults: list[dict[str, Any]] = field(default_factory=list)
    lines: int = 0  # that are not blank
    numbered: int = 0  # all
    omitted: int = 0  # by _skipme

    def save(self, path: Path) -> None:
        """Write it to a file that is whole or not there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        counts = {'lines': self.lines, 'numbered': self.numbered, 'omitted': self.omitted, 'faults': self.faults}
        # without `file`, whose number may be another one in the next index
        columns: dict[str, Any] = {name: np.asarray(c) for name, c in self.columns.items() if name != 'file'}
        with atomic_replace(path) as temporary:
            np.savez_compressed(temporary, counts=np.frombuffer(json.dumps(counts).encode(), np.uint8), **columns)

    @classmethod
    def load(cls, path: Path, spec: SourceSpec, file: int) -> '_Part | None':
        """Read it, as of file number `file`; None where there is none, or it was changed: archives check each byte."""
        part = cls({})
        try:
            with np.load(path, allow_pickle=False) as stored:
                for name, (code, dtype) in columns_of(spec).items():
                    part.columns[name] = array(code)
                    if name != 'file':
                        part.columns[name].frombytes(stored[name].astype(dtype).tobytes())
                counts = json.loads(stored['counts'].tobytes())
            part.lines, part.numbered, part.omitted, part.faults = (
                counts[name] for name in ('lines', 'numbered', 'omitted', 'faults')
            )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return None
        part.columns['file'] = array('i', [file]) * len(part.columns['offset'])
        return part


@dataclass(frozen=True, slots=True)
class _Task:
    """A stretch of one file, and the name under which what it holds is kept."""

    file: int
    start: int
    end: int
    key: str


def _tasks(spec: SourceSpec, meter: Meter) -> list[_Task]:
    how = _digest([INDEX_VERSION, spec.describe(), spec.kind, sorted(spec.shards.items()), meter.fingerprint()])
    tasks = []
    for number, file in enumerate(spec.files):
        tars = spec.tars if spec.shards else spec.tars[number : number + 1]
        of = [how, *(_identity_of(path) for path in (file, *tars))]
        size = os.path.getsize(file)
        for start in range(0, size, _CHUNK_BYTES):
            end = min(start + _CHUNK_BYTES, size)
            tasks.append(_Task(number, start, end, _digest([of, start, end])[:32]))
    return tasks


class _Store:
    """Files of what was counted already: beside the index to be, and in other indexes of the source."""

    def __init__(self, path: Path, spec: SourceSpec) -> None:
        self.folder = path.with_name(f'.{path.name}.{_PARTS}')
        self._stem = path.name.rpartition('-')[0]
        self.keep = spec.options.get('durations') == 'trust'
        self._others = sorted(path.parent.glob(f'{self._stem}-*/{_PARTS}')) if self.keep else []

    def find(self, task: _Task) -> Path | None:
        """The file of a stretch."""
        paths = (folder / f'{task.key}.npz' for folder in (self.folder, *self._others))
        return next((path for path in paths if path.is_file()), None)

    def save(self, task: _Task, part: _Part) -> None:
        part.save(self.folder / f'{task.key}.npz')

    def clear(self) -> None:
        """Remove what is in the index now, and what builds that never ended left long ago."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder in self.folder.parent.glob(f'.{self._stem}-*.{_PARTS}'):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - folder.stat().st_mtime > _STALE_S:
                    shutil.rmtree(folder, ignore_errors=True)

    def move_into(self, folder: Path, tasks: Sequence[_Task]) -> None:
        """Keep the stretches of this index in it."""
        (folder / _PARTS).mkdir()
        for task in tasks:
            if path := self.find(task):
                shutil.copyfile(path, folder / _PARTS / path.name)


def build_index(spec: SourceSpec, meter: Meter, path: Path, fingerprint: str, workers: int, quiet: bool) -> None:
    """Build the index of a source.

    Args:
        spec: The source.
        meter: Counts tokens.
        path: Folder of the index; it appears when all is written.
        fingerprint: Of `index_fingerprint`.
        workers: Processes; 0 is one for each core when the files are large.
        quiet: Whether to show no progress bar.

    Raises:
        VtbDataError: A duration field lies and that is to be an error.
    """
    tasks = _tasks(spec, meter)
    store = _Store(path, spec) if len(tasks) > 1 else None
    parts = list(_with_progress(_scan_all(spec, meter, tasks, workers, store), tasks, spec.name, quiet))
    _number_lines(tasks, parts)
    with atomic_replace(path, folder=True, keep_existing=True) as folder:
        _write(spec, meter, folder, fingerprint, parts)
        if store and store.keep:
            store.move_into(folder, tasks)
    if store:
        store.clear()


def count_shard(
    spec: SourceSpec, meter: Meter, path: Path, shard: tuple[int, int], workers: int, quiet: bool
) -> tuple[int, int]:
    """Count every n-th stretch of a source, for a build that then counts none of them; see `build_index`.

    Args:
        spec: The source.
        meter: Counts tokens.
        path: Folder of the index to be.
        shard: Number of this shard, from 0, and how many there are.
        workers: Processes; 0 is one for each core when the files are large.
        quiet: Whether to show no progress bar.

    Returns:
        How many stretches this shard has, and the source.
    """
    tasks = _tasks(spec, meter)
    store = _Store(path, spec)
    mine = tasks[shard[0] :: shard[1]]
    for _ in _with_progress(_scan_all(spec, meter, mine, workers, store), mine, spec.name, quiet):
        pass
    return len(mine), len(tasks)


def _write(spec: SourceSpec, meter: Meter, folder: Path, fingerprint: str, parts: Sequence[_Part]) -> None:
    digest = hashlib.sha256(json.dumps(spec.describe(), sort_keys=True, default=str).encode())
    for name, (_, dtype) in columns_of(spec).items():
        values = np.concatenate([np.zeros(0, dtype), *(np.frombuffer(p.columns[name], dtype) for p in parts)])
        np.save(folder / f'{name}.npy', values)
        if name in ('length', 'supervised'):
            digest.update(values.tobytes())
    contents = [file_digest(file) for file in spec.files]
    digest.update(json.dumps([contents, meter.fingerprint()], sort_keys=True).encode())
    faults = [fault for part in parts for fault in part.faults]
    (folder / 'quarantine.jsonl').write_text(''.join(map(json_line, faults)), encoding='utf-8')
    meta = {
        'version': INDEX_VERSION,
        'source': spec.name,
        'kind': spec.kind,
        'type': spec.type,
        'fingerprint': fingerprint,
        'digest': digest.hexdigest(),
        'files': [
            {'path': os.path.abspath(f), 'size': s, 'sha256': c}
            for f, s, c in zip(spec.files, map(os.path.getsize, spec.files), contents, strict=True)
        ],
        'entries': sum(len(p.columns['length']) for p in parts),
        'archives': [object_identity(tar) if is_address(tar) else head_tail_digest(tar) for tar in spec.tars],
        'lines': sum(p.lines for p in parts),
        'left_out': sum(p.omitted for p in parts),
        'quarantined': dict(Counter(fault['reason'] for fault in faults)),
        'totals': {
            name: float(np.load(folder / f'{name}.npy').sum(dtype=np.float64))
            for name in ('length', 'supervised', 'frames', 'clips', 'seconds')
        },
    }
    write_meta(folder, meta)


def _scan_all(
    spec: SourceSpec, meter: Meter, tasks: Sequence[_Task], workers: int, store: _Store | None
) -> Iterator[_Part]:
    """The parts of all stretches, in order; those that are not there yet are counted, and kept."""
    files = {task.key: store.find(task) if store else None for task in tasks}
    missing = [task for task in tasks if files[task.key] is None]
    if not workers:
        large = sum(task.end - task.start for task in missing) > _PARALLEL_BYTES
        workers = len(os.sched_getaffinity(0)) if large else 1
    counted = _count(spec, meter, missing, min(workers, len(missing)), store)
    for task in tasks:
        path = files[task.key]
        yield next(counted) if path is None else _Part.load(path, spec, task.file) or _scan(spec, meter, task)


def _count(
    spec: SourceSpec, meter: Meter, tasks: Sequence[_Task], workers: int, store: _Store | None
) -> Iterator[_Part]:
    if workers <= 1:
        yield from (_scan_and_keep(spec, meter, store, task) for task in tasks)
        return
    # fork: the tokenizer is there already, and each process keeps what its renderer has learnt of layouts
    options: dict[str, Any] = {'mp_context': multiprocessing.get_context('fork')}
    options |= {'initializer': _start_process, 'initargs': (spec, meter, store)}
    with ProcessPoolExecutor(workers, **options) as pool:
        yield from pool.map(_scan_in_process, tasks)


_of_process: tuple[SourceSpec, Meter, _Store | None] | None = None


def _start_process(spec: SourceSpec, meter: Meter, store: _Store | None) -> None:
    global _of_process
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # rayon must not be used in a forked child
    _of_process = spec, meter, store


def _scan_in_process(task: _Task) -> _Part:
    assert _of_process is not None
    return _scan_and_keep(*_of_process, task)


def _scan_and_keep(spec: SourceSpec, meter: Meter, store: _Store | None, task: _Task) -> _Part:
    part = _scan(spec, meter, task)
    if store:
        store.save(task, part)
    return part


def _scan(spec: SourceSpec, meter: Meter, task: _Task) -> _Part:
    """Read the lines that begin in [start, end) of one file."""
    part = _Part({name: array(code) for name, (code, _) in columns_of(spec).items()})
    path, limit = spec.files[task.file], meter.limits.max_line_bytes
    with open(path, 'rb') as stream:
        offset = task.start
        if offset:
            stream.seek(offset - 1)
            offset += read_line(stream, limit)[1] - 1  # to the first line that begins here
        while offset < task.end:
            raw, size = read_line(stream, limit)
            if not size:
                break
            part.numbered += 1
            if stripped := raw.removeprefix(BOM).strip():
                part.lines += 1
                _scan_line(spec, meter, part, stripped, (task.file, offset, size))
            offset += size
    return part


def _scan_line(spec: SourceSpec, meter: Meter, part: _Part, raw: bytes, place: tuple[int, int, int]) -> None:
    line: dict[str, Any] = {}
    file, offset, nbytes = place
    path = spec.files[file]
    where = f'{path}: byte {offset}'
    try:
        meter.limits.check_line(nbytes, where)
        line = parse_line(raw, where)
        conversation = spec.read(line, file, where)
        if conversation is None:
            part.omitted += 1
            return
        segments = has_offset(line)
        measured = meter.measure(conversation, segments=segments) | _identity(conversation)
        for speed in spec.speeds[1:]:
            measured[frames_at(speed)] = meter.frames(at_speed(conversation, speed), segments=segments)
        check_filters(spec.options.get('filters') or {}, line, measured, where)
    except VtbDataError as error:
        if error.reason == Reason.DURATION_MISMATCH and meter.on_duration_mismatch == 'error':
            raise
        part.faults.append(
            {
                'source': spec.name,
                'file': path,
                'line': part.numbered,
                'byte_offset': offset,
                'id': str(line['id']) if line.get('id') is not None else None,
                **error.facts,
            }
        )
        return
    row = {'file': file, 'offset': offset, 'nbytes': nbytes} | measured
    for name, column in part.columns.items():
        column.append(row[name])


def _identity(conversation: Conversation) -> dict[str, int]:
    try:
        return audio_identity(conversation.audios)
    except OSError as error:  # it was there a moment ago
        raise audio_fault(Reason.AUDIO_MISSING, field=conversation.id, got=str(error)) from error


def _number_lines(tasks: Sequence[_Task], parts: Sequence[_Part]) -> None:
    """Stretches count their lines from 1; make that the number in the file."""
    before: Counter[int] = Counter()
    for task, part in zip(tasks, parts, strict=True):
        for fault in part.faults:
            fault['line'] += before[task.file]
        before[task.file] += part.numbered


def _with_progress(parts: Iterator[_Part], tasks: Sequence[_Task], name: str, quiet: bool) -> Iterator[_Part]:
    """Show a bar for what takes long; a small file is indexed before one could read it."""
    total = sum(task.end - task.start for task in tasks)
    if quiet or total < _CHUNK_BYTES // 4:
        yield from parts
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn('counting tokens of {task.description}'),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task(name, total=total)
        for task, part in zip(tasks, parts, strict=True):
            progress.advance(bar, task.end - task.start)
            yield part
