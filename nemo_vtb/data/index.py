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
"""One memory-mapped table per source: where each conversation stands, how many tokens it takes, what was skipped.

Columns are separate `.npy` files, so that planning touches only the two that it needs: ten million conversations cost
80 MB. An index is named after the fingerprint of everything that decided its contents.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nemo_vtb.config.schema import DataSettings
from nemo_vtb.data.conversation import BOM, Conversation, at_speed, parse_line
from nemo_vtb.data.counting import Meter
from nemo_vtb.data.faults import Reason, data_fault, skip_table
from nemo_vtb.data.index_build import build_index, columns_of, frames_at, index_fingerprint
from nemo_vtb.data.index_integrity import META, audio_identity, index_damage, read_sealed, sealed
from nemo_vtb.data.permutation import block_starts
from nemo_vtb.data.sources import SourceSpec
from nemo_vtb.errors import VtbDataError, VtbIndexError, disk_fault
from nemo_vtb.io import clear_leftovers, map_array, owned_name, read_json_lines, write_atomically

logger = logging.getLogger(__name__)

_BLOCK_BYTES = 64 << 20
_PCM_BYTES = 32_000  # of a second at 16 kHz
_WHOLE_SHARD = 1 << 62


class SourceIndex:
    """The table of one source. Memory-mapped; opened again by itself in a loader process.

    Where its recordings are heard at several speeds, there is an entry for each line and speed: those of the first
    speed for all lines, then those of the next.
    """

    def __init__(self, spec: SourceSpec, folder: str | Path) -> None:
        self.spec, self.folder = spec, Path(folder)
        self.meta: dict[str, Any] = json.loads((self.folder / META).read_text(encoding='utf-8'))
        self.name, self.kind, self.weight, self.max_repeats = spec.name, spec.kind, spec.weight, spec.max_repeats
        self.digest: str = self.meta['digest']
        self._columns: dict[str, np.ndarray] = {}
        # before loader processes are forked: then the index may vanish while they work
        for name in columns_of(spec):
            self.column(name)

    def __len__(self) -> int:
        return self.lines * len(self.spec.speeds)

    @property
    def lines(self) -> int:
        """Conversations, each counted once."""
        return int(self.meta['entries'])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_columns': {}}  # a loader process maps the files itself

    def column(self, name: str) -> np.ndarray:
        """One column, with a value for each line: file, offset, nbytes, length, text, supervised, frames, clips, ...

        Raises:
            VtbIndexError: The index was removed or changed while it was in use.
        """
        if name not in self._columns:
            try:
                self._columns[name] = map_array(self.folder / f'{name}.npy')
            except (OSError, ValueError, EOFError) as error:
                what, _ = disk_fault(error) or (str(error), '')
                raise VtbIndexError(
                    'The index was removed or changed while it was in use.',
                    field=f'source {self.name}',
                    got=f'{self.folder / name}.npy: {what}',
                    remedy='start again: it is built anew, and the run resumes from its last checkpoint',
                ) from error
        return self._columns[name]

    def measure(self, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, supervised tokens and seconds of audio of some entries, each (len(entries),)."""
        speeds, lines = np.divmod(entries, self.lines)
        columns = ('length', 'supervised', 'seconds')
        tokens, supervised, seconds = (np.asarray(self.column(name)[lines]) for name in columns)
        for number, speed in enumerate(self.spec.speeds[1:], start=1):
            at = np.flatnonzero(speeds == number)
            tokens[at] += self.column(frames_at(speed))[lines[at]] - self.column('frames')[lines[at]]
            seconds[at] /= speed
        return tokens, supervised, seconds

    def lengths(self) -> np.ndarray:
        """Tokens of all entries, (len(self),)."""
        return self.column('length') if len(self.spec.speeds) == 1 else self.measure(np.arange(len(self)))[0]

    def frames(self, entry: int) -> int:
        """Frames of audio of one entry."""
        speed, line = divmod(entry, self.lines)
        return int(self.column(frames_at(self.spec.speeds[speed]) if speed else 'frames')[line])

    def place(self, entry: int) -> tuple[int, int]:
        """Where the line of an entry stands: number of the file, and byte in it."""
        line = entry % self.lines
        return int(self.column('file')[line]), int(self.column('offset')[line])

    def read(self, entry: int) -> Conversation:
        """Read one conversation from its manifest.

        Raises:
            VtbDataError: The line is not as it was when it was indexed.
        """
        speed, line = divmod(entry, self.lines)
        file, offset = self.place(entry)
        path = self.spec.files[file]
        where = f'{path}: byte {offset}'
        try:
            with open(path, 'rb') as stream:
                stream.seek(offset)
                raw = stream.read(int(self.column('nbytes')[line]))
        except OSError as error:
            raise data_fault(Reason.LINE_CHANGED, field=where, got=error.strerror) from error
        conversation = self.spec.read(parse_line(raw.strip().removeprefix(BOM), where), file, where)
        if conversation is None:
            raise data_fault(Reason.LINE_CHANGED, field=where, got='_skipme')
        return at_speed(conversation, self.spec.speeds[speed])

    def audio_changed(self, entry: int, conversation: Conversation) -> bool:
        """Whether a recording has another size or time than when it was indexed; one that is gone is no change.

        Of a recording whose duration was trusted nothing was noted: its duration is checked when it is read.
        """
        try:
            known = int(self.column('audio_stamp')[entry % self.lines])
            return audio_identity(conversation.audios)['audio_stamp'] != known
        except OSError:
            return False

    def blocks(self, entries: np.ndarray | None = None) -> np.ndarray:
        """First entries of the blocks that are read together: a tar shard, else about 64 MiB of neighbours.

        Args:
            entries: Those that are left, ascending; None: all.

        Returns:
            (B,) int64, places among the entries that are left.
        """
        at = (np.arange(len(self)) if entries is None else entries) % self.lines
        files, lines, seconds = (np.asarray(self.column(name)[at]) for name in ('file', 'nbytes', 'seconds'))
        audio = (seconds * _PCM_BYTES).astype(np.int64)  # what the recordings take is not known without a look
        return block_starts(files, lines + audio, _WHOLE_SHARD if self.spec.tars else _BLOCK_BYTES)

    @cached_property
    def audio_digest(self) -> str:
        """SHA-256 over the sizes of all recordings, and the first and last bytes of archives; times do not count."""
        digest = hashlib.sha256(self.column('audio_bytes').tobytes())
        digest.update(json.dumps(self.meta.get('archives')).encode())
        return digest.hexdigest()

    def quarantined(self) -> Iterator[dict[str, Any]]:
        """What was skipped when the index was built: source, file, line, byte_offset, id, reason, detail."""
        for fault in read_json_lines(self.folder / 'quarantine.jsonl'):
            yield fault | {'source': self.name}

    @property
    def broken(self) -> int:
        """Lines that cannot be trained on; what a filter refused is none of them."""
        counts = self.meta['quarantined']
        return sum(counts.values()) - counts.get(Reason.FILTERED, 0)

    def check(self, max_skip_ratio: float) -> None:
        """Stop when too much of the source is broken, or when nothing is left of it.

        Raises:
            VtbDataError: With a table of the reasons.
        """
        bad, lines = self.broken, self.meta['lines']
        table = skip_table({self.name: self.meta['quarantined']})
        if not len(self):
            raise VtbDataError(
                'A source has no usable conversation.' + (f'\n{table}' if table else ''),
                field=f'source {self.name}',
                got=f'{lines} lines in {", ".join(self.spec.files)}',
                remedy='correct its manifest, or take it out of input_cfg',
            )
        if bad > max_skip_ratio * lines:
            raise VtbDataError(
                f'Too many conversations of a source are broken.\n{table}',
                field=f'source {self.name}',
                got=f'{bad} of {lines} ({bad / lines:.2%})',
                allowed=f'data.max_skip_ratio {max_skip_ratio:.2%}',
                remedy=f'mend the lines listed in {self.folder / "quarantine.jsonl"}, or raise data.max_skip_ratio',
            )


def open_index(
    spec: SourceSpec, meter: Meter, folder: str | Path, *, build: bool = True, workers: int = 0, quiet: bool = False
) -> SourceIndex:
    """Open the index of a source, building it where there is none for the present files and tokenizer.

    Args:
        spec: The source.
        meter: Counts tokens.
        folder: Where indexes are kept.
        build: Whether it may be built.
        workers: Processes that build it; 0 is one for each core when the files are large.
        quiet: Whether to show no progress bar.

    Raises:
        VtbDataError: There is none and `build` is false, or a duration field lies and that is to be an error.
    """
    path, fingerprint = index_path(spec, meter, folder)
    there = path.exists()
    damage = index_damage(path) if there else 'there is none'
    if damage:
        if there:
            logger.warning('The index %s is not as it was written (%s): it is built anew.', path, damage)
        if not build:
            older = sorted(p.name for p in Path(folder).glob(f'{path.name.rpartition("-")[0]}-*'))
            raise VtbDataError(
                'There is no index of this source for the present files, template and frame rate.',
                field=f'source {spec.name}',
                got=f'{path.name}: {damage}' + (f'; others: {", ".join(older)}' if older else ''),
                remedy='run `vtb data index`, or set data.build_index=true',
            )
        clear_leftovers(folder)
        if there:
            _put_away(path)
        build_index(spec, meter, path, fingerprint, workers, quiet)
    return SourceIndex(spec, path)


def index_path(spec: SourceSpec, meter: Meter, folder: str | Path) -> tuple[Path, str]:
    """The folder of the index of a source for its present files, and the fingerprint that it is named after."""
    fingerprint = index_fingerprint(spec, meter)
    stem = re.sub(r'[^\w.-]+', '_', spec.name)[:64]
    return Path(folder) / f'{stem}-{fingerprint[:20]}', fingerprint


def _put_away(path: Path) -> None:
    """Remove an index that is damaged; processes that have mapped it keep what they have."""
    if index_damage(path) is None:
        return  # another rank has built it anew
    aside = path.with_name(f'.{path.name}.{owned_name()}')
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return  # there is none, or another rank was faster
    shutil.rmtree(aside, ignore_errors=True)


def open_source(
    spec: SourceSpec, settings: DataSettings, meter: Meter, *, check: bool = True, quiet: bool = False
) -> SourceIndex:
    """Open the index of a source, building it where that is needed and allowed.

    Raises:
        VtbDataError: There is none and it may not be built; or, with `check`, too much of the source is broken.
    """
    index = open_index(
        spec,
        meter,
        settings.index_folder,
        build=settings.build_index,
        workers=settings.index_workers,
        quiet=quiet,
    )
    if check:
        index.check(settings.max_skip_ratio)
    return index


def keep_exchanges(conversation: Conversation, count: int) -> Conversation:
    """The conversation up to the answer of its exchange number `count`; a system turn is kept."""
    turns, answers = [], 0
    for turn in conversation.turns:
        turns.append(turn)
        answers += turn.role == 'assistant'
        if answers == count:
            break
    return Conversation(conversation.id, tuple(turns), conversation.kind, conversation.source, conversation.custom)


class FittedSource:
    """A source as the plan sees it: entries that fit into a row, some of them cut.

    Entries are numbered anew, 0 ... len-1, when some had to be skipped.

    Args:
        index: The source.
        meter: Measures what is left of a cut conversation.
        max_tokens: Length of a row.
        overlong: `cut`, `drop` or `error`.

    Raises:
        VtbDataError: All conversations are too long, or one is and `overlong` is `error`.
    """

    def __init__(self, index: SourceIndex, meter: Meter, max_tokens: int, overlong: str = 'cut') -> None:
        self.index = index
        self.name, self.kind, self.weight, self.max_repeats = index.name, index.kind, index.weight, index.max_repeats
        heard = json.dumps(augment, sort_keys=True) if (augment := index.spec.options.get('augment')) else ''
        self.digest = hashlib.sha256(f'{index.digest}:{max_tokens}:{overlong}{heard}'.encode()).hexdigest()
        found = self._load(meter, max_tokens, overlong)
        self.dropped: list[dict[str, Any]] = found['dropped']
        self._cut = np.array([c[0] for c in found['cut']], dtype=np.int64)  # entries of the index, sorted
        self._kept = np.array([c[1] for c in found['cut']], dtype=np.int64)  # exchanges
        self._cut_sizes = np.array([c[2:] for c in found['cut']], dtype=np.float64).reshape(-1, 3)
        self._entries: np.ndarray | None = None
        if self.dropped:
            gone = [fault['entry'] for fault in self.dropped]
            self._entries = np.delete(np.arange(len(index), dtype=np.int64), gone)
        if not len(self):
            raise VtbDataError(
                'All conversations of a source are longer than a row.',
                field=f'source {self.name}',
                got=f'shortest {int(index.lengths().min())} tokens',
                allowed=f'data.max_tokens {max_tokens}',
                remedy='raise data.max_tokens',
            )

    def __len__(self) -> int:
        return len(self.index) if self._entries is None else len(self._entries)

    @property
    def in_store(self) -> bool:
        """Whether recordings may have to be fetched."""
        return self.index.spec.in_store

    def skipped(self) -> list[dict[str, Any]]:
        """What is missing from it before training: broken when the index was built, or too long."""
        return [*self.index.quarantined(), *self.dropped]

    @property
    def num_cut(self) -> int:
        """How many conversations lose their last turns."""
        return len(self._cut)

    def measure(self, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, supervised tokens and seconds of audio of some entries, each (len(entries),)."""
        entries = np.asarray(entries) if self._entries is None else self._entries[np.asarray(entries)]
        tokens, supervised, seconds = self.index.measure(entries)
        if len(self._cut):
            at = np.minimum(np.searchsorted(self._cut, entries), len(self._cut) - 1)
            hit = self._cut[at] == entries
            tokens[hit], supervised[hit], seconds[hit] = self._cut_sizes[at[hit]].T
        return tokens, supervised, seconds

    def blocks(self) -> np.ndarray:
        """First entries of the blocks that are read together, (B,)."""
        return self.index.blocks(self._entries)

    def read(self, entry: int) -> Conversation:
        """Read one conversation, cut as planned."""
        return self.read_checked(entry)[0]

    def read_checked(self, entry: int) -> tuple[Conversation, bool]:
        """Read one conversation, cut as planned, and tell whether one of its recordings has changed."""
        entry = entry if self._entries is None else int(self._entries[entry])
        conversation = self.index.read(entry)
        return self._as_planned(entry, conversation), self.index.audio_changed(entry, conversation)

    def _as_planned(self, entry: int, conversation: Conversation) -> Conversation:
        if len(self._cut):
            at = int(np.searchsorted(self._cut, entry))
            if at < len(self._cut) and self._cut[at] == entry:
                return keep_exchanges(conversation, int(self._kept[at]))
        return conversation

    def frames(self, entry: int) -> int | None:
        """Frames of audio of an entry as it was indexed; None for one that was cut."""
        entry = entry if self._entries is None else int(self._entries[entry])
        return None if entry in self._cut else self.index.frames(entry)

    def locate(self, entry: int) -> dict[str, Any]:
        """Where an entry stands: source, file, byte_offset."""
        entry = entry if self._entries is None else int(self._entries[entry])
        file, offset = self.index.place(entry)
        return {'source': self.name, 'file': self.index.spec.files[file], 'byte_offset': offset}

    def _load(self, meter: Meter, max_tokens: int, overlong: str) -> dict[str, list]:
        lengths = self.index.lengths()
        over = np.flatnonzero(lengths > max_tokens)
        if not len(over):
            return {'cut': [], 'dropped': []}
        if overlong == 'error':
            entry = int(over[0])
            raise VtbDataError(
                'A conversation is longer than a row.',
                field=f'source {self.name}, {self.index.read(entry).id}',
                got=f'{int(lengths[entry])} tokens; {len(over)} are too long',
                allowed=f'data.max_tokens {max_tokens}',
                remedy='raise data.max_tokens, or set data.overlong to cut or drop',
            )
        cache = self.index.folder / f'overlong-{overlong}-{max_tokens}.json'
        if stored := read_sealed(cache):
            return stored
        found: dict[str, list] = {'cut': [], 'dropped': []}
        for entry in over.tolist():
            fault = self._fault(entry, int(lengths[entry]), max_tokens)
            try:
                conversation = self.index.read(entry)
                fault['id'] = conversation.id
                kept = self._cut_to(conversation, meter, max_tokens) if overlong == 'cut' else None
            except VtbDataError as error:  # it changed since it was indexed
                kept, fault = None, fault | error.facts
            if kept:
                found['cut'].append([entry, *kept])
            else:
                found['dropped'].append(fault)
        write_atomically(cache, sealed(found))
        return found

    def _cut_to(self, conversation: Conversation, meter: Meter, max_tokens: int) -> tuple | None:
        """The longest beginning of whole exchanges that fits: (exchanges, tokens, supervised tokens, seconds)."""
        answers = sum(turn.role == 'assistant' for turn in conversation.turns)
        for count in range(answers - (conversation.turns[-1].role == 'assistant'), 0, -1):
            size = meter.measure(keep_exchanges(conversation, count))
            if size['length'] <= max_tokens:
                return count, size['length'], size['supervised'], size['seconds']
        return None

    def _fault(self, entry: int, length: int, max_tokens: int) -> dict[str, Any]:
        file, offset = self.index.place(entry)
        return {
            'entry': entry,
            'source': self.name,
            'file': self.index.spec.files[file],
            'line': None,
            'byte_offset': offset,
            'id': None,
            'reason': Reason.OVERLONG.value,
            'detail': f'{length} tokens, max_tokens {max_tokens}',
        }
