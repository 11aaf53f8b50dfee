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
"""Readers of published layouts: tables, nested JSON, parquet, lines side by side, AMI by lhotse.

A row of the catalog says which files a data set has and which columns matter; nothing here knows a data set by name.
"""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from nemo_vtb.data.audio import probe
from nemo_vtb.data.conversation import Audio
from nemo_vtb.data.faults import Reason
from nemo_vtb.errors import VtbDataError, first_line
from nemo_vtb.io import atomic_replace, parse_json_lines

_DELIMITERS = {'.tsv': '\t', '.txt': '\t', '.csv': ',', '.nlp': '|'}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a data set keeps its recordings and texts, relative to its folder.

    `{field}` in a path is a column of the row, or a setting of the benchmark (`lang`, `target`).

    Args:
        files: Globs of its tables (.tsv, .csv, .json, .jsonl, .parquet, .nlp), read one after the other; or, with
            `beside`, files of as many lines.
        audio: Path of a row's recordings; with `*` all that match, in the order of their numbers; with `**/` searched
            by name below the folder. Without it, `audio_column`, or the recipe says.
        audio_column: Column of a parquet file with `bytes` and `path`.
        columns: Names of the columns where a table has no head; of a line's words with `beside`.
        delimiter: Between columns; decided by the ending without it. With a space, the last column is the rest of
            the line.
        nested: Keys of nested lists in a JSON file, outermost first; the fields of a parent are those of its
            children, too, and KEY_index is the number of an entry.
        where: Only rows with these values (or with one of a list in them).
        start: Column with the seconds at which a row begins in its recording; `end` or `duration` goes with it.
        end: Column with its end.
        duration: Column with its length.
        join: Column whose values make one text of a whole file, for recordings transcribed word by word.
        beside: Whether the files are read side by side, line by line: the first has `columns`, the others one text
            each, named by their endings (`segments.de` has the field `de`).
        other: A second table: `files`, `columns`, `on` (column of both), and `take` (its column -> new field).
        recipe: `ami`, whose annotations lhotse reads; all of the above is then without meaning.
    """

    files: tuple[str, ...] = ()
    audio: str = ''
    audio_column: str = ''
    columns: tuple[str, ...] = ()
    delimiter: str = ''
    nested: tuple[str, ...] = ()
    where: Mapping[str, Any] = field(default_factory=dict)
    start: str = ''
    end: str = ''
    duration: str = ''
    join: str = ''
    beside: bool = False
    other: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = ''


@dataclass(frozen=True, slots=True)
class Item:
    """One line of a data set: its id, recordings, and all of its fields."""

    id: str
    audios: tuple[Audio, ...]
    fields: Mapping[str, Any]


def read_items(layout: Layout, folder: Path, settings: Mapping[str, str], extracted: Path) -> Iterator[Item]:
    """The items of a data set in the order of its files.

    Args:
        layout: Its layout.
        folder: Where it lies.
        settings: Values for `{...}` in paths and conditions.
        extracted: Folder for recordings that stand inside a parquet file.

    Raises:
        VtbDataError: A file or a recording is missing, or a row lacks a column.
    """
    if layout.recipe == 'ami':
        yield from _from_ami(folder)
        return
    files = _find(layout.files, folder, settings)
    rows = _beside(files, layout.columns) if layout.beside else (row for file in files for row in _rows(file, layout))
    second = _second(layout.other, folder, settings) if layout.other else None
    wanted = {
        name: value.format(**settings) if isinstance(value, str) else value for name, value in layout.where.items()
    }
    finder = _finder(folder, layout.audio, settings) if layout.audio else None
    for number, row in enumerate(rows):
        if any(not _is(row.get(name), value) for name, value in wanted.items()):
            continue
        if second is not None:
            if (more := second.get(row.get(layout.other['on']))) is None:
                continue  # a sentence that the other language does not have
            row |= more
        name = str(row.get('id') or row.get('uniq_id') or row.get('key') or number)
        try:
            if finder is not None:
                paths: Sequence[Path] = finder(row)
            else:
                paths = [_from_column(row.pop(layout.audio_column), extracted, f'{number:06d}')]
            audios = tuple(_audio(path, row, layout) for path in paths)
        except VtbDataError:
            raise
        except (KeyError, ValueError, TypeError) as error:
            raise VtbDataError(
                'A row of a data set has not the columns of its layout.', reason=Reason.MISSING_KEY,
                field=f'{folder}, row {number}', got=f'{type(error).__name__} {error}; columns {sorted(row)}',
            ) from error  # fmt: skip
        yield Item(name, audios, row)


# ---- rows


def _find(globs: Iterable[str], folder: Path, settings: Mapping[str, str]) -> list[Path]:
    found: list[Path] = []
    for pattern in globs:
        pattern = pattern.format(**settings)
        matches = sorted(folder.glob(pattern))
        if not matches:
            raise VtbDataError(
                'A file of a data set is missing.', field='data_root', got=str(folder / pattern), allowed='its layout'
            )
        found += matches
    return found


def _rows(file: Path, layout: Layout) -> Iterator[dict[str, Any]]:
    """The rows of one table as dictionaries."""
    if file.suffix == '.parquet':
        import pyarrow.parquet

        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=64):
            yield from batch.to_pylist()
        return
    if file.suffix in ('.json', '.jsonl'):
        yield from _from_json(file, layout.nested)
        return
    if layout.delimiter == ' ':
        for line in _lines(file):
            yield dict(zip(layout.columns, line.split(maxsplit=len(layout.columns) - 1), strict=False))
        return
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with file.open(encoding='utf-8', newline='') as stream:
        delimiter = layout.delimiter or _DELIMITERS[file.suffix]
        # only commas come with quotation marks: in a TSV file of transcripts, a mark is a mark
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if delimiter == ',' else csv.QUOTE_NONE
        table = csv.DictReader(stream, layout.columns or None, delimiter=delimiter, quoting=quoting)
        if layout.join:
            words = [str(row[layout.join]) for row in table if row.get(layout.join)]
            yield {'id': file.stem, 'stem': file.stem, 'text': ' '.join(words)}
        else:
            yield from table


def _from_json(file: Path, nested: Sequence[str]) -> Iterator[dict[str, Any]]:
    text = file.read_text(encoding='utf-8')
    try:
        value = json.loads(text)
    except ValueError:
        value = parse_json_lines(text)
    if nested:
        yield from _flat(value, nested, {})
    else:
        yield from value if isinstance(value, list) else [value]


def _flat(value: Mapping[str, Any], keys: Sequence[str], above: dict[str, Any]) -> Iterator[dict[str, Any]]:
    fields = above | {name: part for name, part in value.items() if name != (keys[0] if keys else None)}
    if not keys:
        yield fields
        return
    for number, part in enumerate(value.get(keys[0], ())):
        yield from _flat(part, keys[1:], fields | {f'{keys[0]}_index': number})


def _lines(file: Path) -> list[str]:
    """Lines of a text, which may hold U+2028 and other characters that `str.splitlines` cuts at."""
    with file.open(encoding='utf-8') as stream:
        return [line.removesuffix('\n') for line in stream]


def _beside(files: Sequence[Path], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    tables = [_lines(file) for file in files]
    if len({len(lines) for lines in tables}) > 1:
        raise VtbDataError(
            'Files that belong together have different numbers of lines.', field=str(files[0].parent),
            got={file.name: len(lines) for file, lines in zip(files, tables, strict=True)},
        )  # fmt: skip
    for first, *texts in zip(*tables, strict=True):
        names = [file.suffix.removeprefix('.') for file in files[1:]]
        yield dict(zip(columns, first.split(), strict=False)) | dict(zip(names, texts, strict=True))


def _second(other: Mapping[str, Any], folder: Path, settings: Mapping[str, str]) -> dict[Any, dict[str, Any]]:
    table = Layout(columns=tuple(other.get('columns', ())), delimiter=other.get('delimiter', ''))
    found: dict[Any, dict[str, Any]] = {}
    for file in _find(other['files'], folder, settings):
        for row in _rows(file, table):
            found.setdefault(row[other['on']], {new: row[old] for old, new in other['take'].items()})
    return found


def _is(value: Any, wanted: Any) -> bool:
    return wanted in value if isinstance(value, list) else value == wanted


# ---- recordings


def _finder(folder: Path, template: str, settings: Mapping[str, str]) -> Callable[[Mapping[str, Any]], list[Path]]:
    """Row -> its recordings, which exist."""
    base, searched, name = template.partition('**/')

    @cache
    def names_in(top: Path) -> dict[str, Path]:
        files = [path for path in sorted(top.rglob('*')) if path.is_file()]
        return {path.stem: path for path in files} | {path.name: path for path in files}

    def find(row: Mapping[str, Any]) -> list[Path]:
        values = {**settings, **row}
        wanted = template.format(**values)
        if searched:
            last = Path(name.format(**values))
            known = names_in(folder / base.format(**values))
            paths = [path] if (path := known.get(last.name) or known.get(last.stem)) else []
        elif '*' in wanted:
            paths = sorted(folder.glob(wanted), key=lambda path: [int(n) for n in re.findall(r'\d+', path.stem)])
        else:
            paths = [path for path in (folder / wanted,) if path.is_file()]
        if not paths:
            raise VtbDataError(
                'A recording of a data set is missing.', reason=Reason.AUDIO_MISSING, field='data_root',
                got=str(folder / wanted), remedy='complete the data set: part of it is not the benchmark',
            )  # fmt: skip
        return paths

    return find


def _from_column(value: Any, extracted: Path, name: str) -> Path:
    """The recording of a parquet cell as a file, written once."""
    content = value['bytes']
    path = extracted / f'{name}{Path(value.get("path") or "").suffix or ".wav"}'
    if not path.is_file() or path.stat().st_size != len(content):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_replace(path) as temporary:
            temporary.write_bytes(content)
    return path


def _audio(path: Path, row: Mapping[str, Any], layout: Layout) -> Audio:
    if not layout.start:
        return Audio(str(path), probe(path).duration_s)
    start = float(row[layout.start])
    length = float(row[layout.duration]) if layout.duration else float(row[layout.end]) - start
    return Audio(str(path), round(length, 6), start)


def _from_ami(folder: Path) -> Iterator[Item]:
    """Segments of the headsets of AMI's test meetings, with lhotse's reader of its annotations.

    lhotse's recipe itself wants the recordings of training, too.
    """
    from lhotse.recipes.ami import PARTITIONS, parse_ami_annotations

    meetings = PARTITIONS['full-corpus-asr']['test']
    try:
        notes = parse_ami_annotations(folder / 'ami_public_manual_1.6.2', normalize='none')
    except (OSError, SyntaxError, KeyError, ValueError) as error:
        raise VtbDataError(
            'A data set has not its published layout.', field='data_root', got=f'{folder}: {first_line(error)}',
            remedy='complete ami_public_manual_1.6.2',
        ) from error  # fmt: skip
    find = _finder(folder, 'wav_db/{meeting}/audio/{meeting}.Headset-{channel}.wav', {})
    for (meeting, speaker, channel), segments in sorted(notes.items()):
        for number, part in enumerate(segments if meeting in meetings else ()):
            if (length := part.end_time - part.start_time) > 0:
                [path] = find({'meeting': meeting, 'channel': channel})
                name = f'{meeting}-{speaker}-{number}'
                audio = Audio(str(path), round(length, 4), round(part.start_time, 4))
                yield Item(name, (audio,), {'id': name, 'text': part.text})
