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
"""Reads a corpus back: every line, every recording, and that no recording, message or sentence is in two splits."""

import hashlib
import json
import wave
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nemo_vtb.errors import VtbDataError

_TOLERANCE_S = 1e-6
_ROLES = ('System', 'User', 'Assistant')


@dataclass(slots=True)
class _Seen:
    """What has been met so far, to find the same thing in two places."""

    ids: set[str] = field(default_factory=set)
    files: dict[str, tuple[str, float]] = field(default_factory=dict)
    split_of: dict[tuple[str, str], str] = field(default_factory=dict)
    stems: dict[str, str] = field(default_factory=dict)

    def claim(self, what: str, value: str, split: str) -> None:
        """Note that a value belongs to a split. Raises VtbDataError when it belongs to another already."""
        owner = self.split_of.setdefault((what, value), split)
        if owner != split:
            raise VtbDataError(f'A {what} is in two splits.', field=what, got=f'{value}: {owner} and {split}')


def check_corpus(folder: Path) -> dict:
    """Check a corpus and count it.

    Args:
        folder: Folder with ``<kind>.<split>.jsonl`` files and ``wav/``.

    Returns:
        ``files``: counts for each file; ``splits``: distinct recordings and their seconds for each split.

    Raises:
        VtbDataError: A line is broken, a recording is missing or not as long as written, an identity is used twice,
            or a recording (by name or by content), a message or a command is in two splits.
    """
    seen, files = _Seen(), {}
    for path in sorted(folder.glob('*.*.jsonl')):
        name, split = path.stem.rsplit('.', 1)
        count: dict[str, float] = defaultdict(int)
        sources: Counter = Counter()
        for place, line in _lines(path):
            _check_line(folder, place, line, split, seen, count)
            sources[line['custom']['source']] += 1
        files[f'{name}.{split}'] = {**_rounded(count), 'sources': dict(sorted(sources.items()))}
    splits: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(int))
    for split, seconds in seen.files.values():
        _add(splits[split], recordings=1, seconds=seconds)
    return {'files': files, 'splits': {split: _rounded(count) for split, count in sorted(splits.items())}}


def _lines(path: Path) -> Iterator[tuple[str, dict]]:
    with path.open(encoding='utf-8') as file:
        for number, text in enumerate(file, 1):
            place = f'{path.name}:{number}'
            try:
                yield place, json.loads(text)
            except ValueError as error:
                raise VtbDataError('A line is not JSON.', field=place, got=text, allowed=str(error)) from error


def _check_line(folder: Path, place: str, line: dict, split: str, seen: _Seen, count: dict[str, float]) -> None:
    entries, custom = line['conversations'], line['custom']
    if line['id'] in seen.ids:
        raise VtbDataError('An identity is used twice.', field=place, got=line['id'])
    seen.ids.add(line['id'])
    _check_roles(place, entries)
    _add(count, conversations=1)
    if 'key' in custom:
        seen.claim('message key', custom['key'], split)
    for entry in entries:
        if entry['type'] == 'audio':
            seconds = _check_audio(folder, place, entry, split, seen)
            _add(count, audios=1, seconds=seconds, spoken_words=len(entry['text'].split()))
        elif entry['from'] == 'User':
            _add(count, typed_words=len(entry['value'].split()))
        else:
            _add(count, answer_words=len(entry['value'].split()))
    _add(count, answers=sum(entry['from'] == 'Assistant' for entry in entries))
    if custom['source'] == 'commands':
        seen.claim('command', entries[-1]['value'], split)


def _check_roles(place: str, entries: list[dict]) -> None:
    roles = [entry['from'] for entry in entries]
    known = all(role in _ROLES for role in roles)
    if not known or not roles or roles[0] == 'Assistant' or roles[-1] != 'Assistant':
        raise VtbDataError('Turns are not in order.', field=place, got=roles, allowed='User ... Assistant')
    for entry in entries:
        if not entry['value'].strip() or (entry['type'] == 'audio' and entry['from'] != 'User'):
            raise VtbDataError('A turn is empty or spoken by the assistant.', field=place, got=entry)


def _check_audio(folder: Path, place: str, entry: dict, split: str, seen: _Seen) -> float:
    value = entry['value']
    if value not in seen.files:
        path = folder / value
        try:
            with wave.open(str(path), 'rb') as file:
                rate, frames = file.getframerate(), file.getnframes()
                digest = hashlib.sha256(file.readframes(frames)).hexdigest()
        except (OSError, EOFError, wave.Error) as error:
            raise VtbDataError('A recording cannot be read.', field=place, got=value) from error
        if rate != 16000 or frames == 0:
            raise VtbDataError('A recording is empty or of a wrong rate.', field=place, got=(value, rate, frames))
        if seen.stems.setdefault(path.stem, value) != value:
            raise VtbDataError('Two recordings share a file stem.', field=place, got=(value, seen.stems[path.stem]))
        seen.claim('recording', digest, split)
        seen.files[value] = (split, frames / rate)
    owner, seconds = seen.files[value]
    if owner != split:
        raise VtbDataError('A recording is in two splits.', field=place, got=f'{value}: {owner} and {split}')
    if abs(seconds - entry['duration']) > _TOLERANCE_S:
        raise VtbDataError('A duration is wrong.', field=place, got=entry['duration'], allowed=seconds)
    return seconds


def _add(count: dict[str, float], **numbers: float) -> None:
    for key, value in numbers.items():
        count[key] += value


def _rounded(count: dict[str, float]) -> dict[str, float]:
    numbers = {key: round(value, 3) for key, value in count.items()}
    return {**numbers, 'hours': round(count.get('seconds', 0.0) / 3600, 4)}
