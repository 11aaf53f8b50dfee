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
"""A stage of the factory, its work list and its journal of finished chunks, exact after a kill at any moment.

The unit of work is a *chunk* of the work list: a fixed group of items. What is made of a chunk depends on nothing but
its items and the settings, so it does not matter which process makes it, when, or after how many interruptions. A
chunk is finished when its line is complete in a journal; a line that was cut off is removed and the chunk repeated.
"""

import fcntl
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from nemo_vtb.config import settings_dict
from nemo_vtb.data.faults import Reason, guarded
from nemo_vtb.errors import VtbDataError
from nemo_vtb.factory.contamination import AvoidList, load_avoid_list
from nemo_vtb.factory.settings import Common
from nemo_vtb.io import file_digest, file_lock, json_line, parse_json_lines, write_atomically

KEPT = 'kept'
WORK = '.work'


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to make.

    Args:
        id: Unique in the work list.
        group: What it is made from (a recording, a chat): all of a group goes into one split.
        data: Plain values.
    """

    id: str
    group: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an item, or of a part of it.

    Args:
        id: Of the conversation.
        group: Of the item.
        line: NeMo's multimodal_conversation line; None if nothing is kept.
        reason: `KEPT`, or why there is no line.
        facts: Measurements for the card and for whoever asks why.
        files: Recordings that were written for it, relative to the output folder.
        unique: Later outcomes with the same text are duplicates; '' is never one.
    """

    id: str
    group: str
    line: Mapping[str, Any] | None = None
    reason: str = KEPT
    facts: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    unique: str = ''

    def to_json(self) -> list[Any]:
        """Plain values, in the order of the fields."""
        return [self.id, self.group, self.line, self.reason, dict(self.facts), list(self.files), self.unique]

    @classmethod
    def from_json(cls, values: Sequence[Any]) -> 'Outcome':
        """The reverse of `to_json`."""
        id_, group, line, reason, facts, files, unique = values
        return cls(id_, group, line, reason, facts, tuple(files), unique)


class Stage(Protocol):
    """How one kind of data is made. Picklable: each worker process gets a copy and loads its models by itself."""

    kind: str

    @property
    def chunk(self) -> int:
        """Items of a chunk."""
        ...

    def describe(self) -> dict[str, Any]:
        """All that decides what is made: settings, and digests of the inputs."""
        ...

    def items(self) -> Iterator[Item]:
        """The work list, always in the same order."""
        ...

    def make(self, items: Sequence[Item], out: Path) -> list[Outcome]:
        """Make one chunk; recordings go under `out`."""
        ...


FAULT = 'fault'
"""Key of an item that stands for a broken line of an input: why it is broken."""


def broken_item(where: str, error: VtbDataError) -> Item:
    """The item of a line that cannot be read, so that it is counted and listed like all others that are rejected."""
    return Item(where, where, {FAULT: error.facts})


def rejected(item: Item, error: VtbDataError | None = None) -> Outcome:
    """What becomes of an item whose line is broken, or that an error kept from being made."""
    facts = dict(item.data[FAULT] if error is None else error.facts)
    return Outcome(item.id, item.group, None, facts.pop('reason'), facts)


T = TypeVar('T')


def attempt(item: Item, make: Callable[[Item], T]) -> T | Outcome:
    """What `make` returns; whatever it raises costs this item alone, which is rejected with the reason."""
    try:
        with guarded(Reason.OTHER, item.id):
            return make(item)
    except VtbDataError as error:
        return rejected(item, error)


@dataclass
class InputStage:
    """What the stages that read input files have in common.

    Args:
        settings: What to make; each kind has its own class.
        inputs: Files: manifests or conversations.
        kind: Kind of data.
    """

    settings: Common
    inputs: tuple[str, ...]
    kind: str

    @property
    def chunk(self) -> int:
        """Items of a chunk."""
        return self.settings.chunk

    def describe(self) -> dict[str, Any]:
        """Settings, and digests of the inputs."""
        return {'settings': settings_dict(self.settings), 'inputs': input_digests(self.inputs)}

    def make(self, items: Sequence[Item], out: Path) -> list[Outcome]:
        """Make one chunk; recordings go under `out`, and broken lines are rejected."""
        broken = [item for item in items if FAULT in item.data]
        return [*self._make_all([item for item in items if FAULT not in item.data], out), *map(rejected, broken)]

    def _make_all(self, items: Sequence[Item], out: Path) -> list[Outcome]:
        """Make items whose lines could be read, one after the other."""
        return [attempt(item, self._make) for item in items]

    def _make(self, item: Item) -> Outcome:
        raise NotImplementedError

    @cached_property
    def avoid_list(self) -> AvoidList:
        """The evaluation sets that nothing may overlap with; read once in each process."""
        return load_avoid_list(self.settings.avoid)


class WorkList:
    """The items of a stage, on disk; chunks are read by offset.

    Args:
        path: The file, one item a line.
        chunk: Items of a chunk.
    """

    def __init__(self, path: Path, chunk: int) -> None:
        self.path, self.chunk = path, chunk
        offsets, place = [], 0
        with path.open('rb') as stream:
            for number, raw in enumerate(stream):
                if number % chunk == 0:
                    offsets.append(place)
                place += len(raw)
        self._offsets = np.asarray([*offsets, place], dtype=np.int64)

    def __len__(self) -> int:
        """Number of chunks."""
        return len(self._offsets) - 1

    def read(self, chunk: int) -> list[Item]:
        """The items of one chunk."""
        begin, end = int(self._offsets[chunk]), int(self._offsets[chunk + 1])
        with self.path.open('rb') as stream:
            stream.seek(begin)
            return [Item(*values) for values in parse_json_lines(stream.read(end - begin))]


def open_work_list(stage: Stage, out: Path) -> WorkList:
    """Write the work list of a stage, or open the one that is there.

    Args:
        stage: What is made.
        out: The output folder.

    Raises:
        VtbDataError: The folder holds a data set of other settings or inputs, or two items have one id.
    """
    work = out / WORK
    work.mkdir(parents=True, exist_ok=True)
    described = {'kind': stage.kind, 'chunk': stage.chunk, **stage.describe()}
    stamp, listed = work / 'stamp.json', work / 'work.jsonl'
    with file_lock(work / 'lock'):
        if stamp.exists():
            _check_same(json.loads(stamp.read_text(encoding='utf-8')), json.loads(json.dumps(described)), out)
        else:
            write_atomically(listed, ''.join(_item_lines(stage.items(), out)))
            # last: a list without a stamp may be incomplete
            write_atomically(stamp, json.dumps(described, indent=1, ensure_ascii=False) + '\n')
    return WorkList(listed, stage.chunk)


def _item_lines(items: Iterable[Item], out: Path) -> Iterator[str]:
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise VtbDataError('Two items have one id.', field='id', got=item.id, remedy='name each input file once')
        seen.add(item.id)
        yield json_line([item.id, item.group, dict(item.data)])
    if not seen:
        raise VtbDataError('There is nothing to make.', field=str(out), got='no item in the inputs')


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if not changed:
        return
    name = changed[0]
    old, new = before.get(name), now.get(name)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        inner = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        name, old, new = f'{name}.{inner[0]}', old.get(inner[0]), new.get(inner[0])
    raise VtbDataError(
        'The folder holds a data set that was made with other settings.',
        field=name,
        got=new,
        allowed=old,
        remedy=f'name another folder, or delete {out}',
    )


def input_digests(paths: Sequence[str | Path]) -> dict[str, str]:
    """SHA-256 of each input file, so that a run is never resumed with changed inputs.

    Raises:
        VtbDataError: A file does not exist.
    """
    for path in paths:
        if not Path(path).is_file():
            raise VtbDataError('The file does not exist.', field='INPUT', got=str(path), remedy='correct the path')
    return {str(Path(path).absolute()): file_digest(path) for path in paths}


def text_turn(role: str, text: str) -> dict[str, str]:
    """A text of a conversation; `role` in any case."""
    return {'type': 'text', 'from': role.capitalize(), 'value': text}


def audio_turn(path: str, seconds: float, text: str, offset: float = 0.0) -> dict[str, Any]:
    """A recording of a user turn, in which `text` is said."""
    begin = {'offset': offset} if offset else {}
    return {'type': 'audio', 'from': 'User', 'value': path, 'duration': seconds, **begin, 'text': text}


def file_name(id_: str) -> str:
    """An item's id with only letters, digits, hyphens and underscores."""
    return ''.join(c if c.isalnum() or c in '-_' else '-' for c in id_)


class Journal:
    """The chunks that one shard has made; one line each, written through to the disk before it counts.

    Args:
        out: The output folder.
        name: Of the shard.
    """

    def __init__(self, out: Path, name: str) -> None:
        self.path = out / WORK / f'journal.{name}.jsonl'
        self._stream = self.path.open('a+b')
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._stream.close()
            raise VtbDataError(
                'Another process is working on this shard.', field=str(self.path), remedy='wait for it, or stop it'
            ) from error
        whole = _whole_length(self.path)
        if whole < self.path.stat().st_size:
            self._stream.truncate(whole)
            os.fsync(self._stream.fileno())

    def add(self, chunk: int, outcomes: Sequence[Outcome]) -> None:
        """Note that a chunk is made."""
        body = json_line([chunk, [outcome.to_json() for outcome in outcomes]]).encode()[:-1]
        self._stream.write(b'%08x ' % zlib.crc32(body) + body + b'\n')
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file and release the shard."""
        self._stream.close()

    def __enter__(self) -> 'Journal':
        """For `with`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def read_journals(out: Path) -> dict[int, tuple[Path, int]]:
    """Where the outcomes of each finished chunk stand: journal and offset. A chunk made twice counts once."""
    found: dict[int, tuple[Path, int]] = {}
    for path in sorted((out / WORK).glob('journal.*.jsonl')):
        for offset, body in _whole_lines(path):
            found.setdefault(int(body[1 : body.index(b',')]), (path, offset))
    return found


def read_outcomes(path: Path, offset: int) -> list[Outcome]:
    """The outcomes of the chunk whose line begins at `offset`."""
    with path.open('rb') as stream:
        stream.seek(offset)
        _, values = json.loads(stream.readline()[9:])
    return [Outcome.from_json(value) for value in values]


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Offset and content of every line up to the first that is cut or damaged."""
    offset = 0
    with path.open('rb') as stream:
        for raw in stream:
            body = raw[9:-1]
            if raw[-1:] != b'\n' or raw[:9] != b'%08x ' % zlib.crc32(body):
                return
            yield offset, body
            offset += len(raw)


def _whole_length(path: Path) -> int:
    end = 0
    for offset, body in _whole_lines(path):
        end = offset + 10 + len(body)
    return end
