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
import multiprocessing
import os
import re
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nemo_vtb.config.schema import DataSettings
from nemo_vtb.data.audio import DURATION_TOLERANCE_S, clip_span, probe, trusted_samples
from nemo_vtb.data.conversation import Audio, Conversation, parse_line
from nemo_vtb.data.faults import Reason, audio_fault, data_fault, guarded, skip_table
from nemo_vtb.data.filters import check_filters
from nemo_vtb.data.index_integrity import META, audio_identity, index_damage, read_sealed, sealed, write_meta
from nemo_vtb.data.limits import LIMITS, Limits, read_line
from nemo_vtb.data.permutation import block_starts
from nemo_vtb.data.sources import SourceSpec, has_offset
from nemo_vtb.data.template import ChatRenderer
from nemo_vtb.errors import VtbDataError, VtbError, VtbIndexError, disk_fault
from nemo_vtb.io import (
    atomic_replace,
    clear_leftovers,
    file_digest,
    head_tail_digest,
    json_line,
    map_array,
    owned_name,
    read_json_lines,
    write_atomically,
)

logger = logging.getLogger(__name__)

INDEX_VERSION = 4
_CHUNK_BYTES = 4 << 20
_BLOCK_BYTES = 64 << 20
_PCM_BYTES = 32_000  # of a second at 16 kHz
_WHOLE_SHARD = 1 << 62
_PARALLEL_BYTES = 8 << 20  # below this a second process costs more than it saves
_BOM = b'\xef\xbb\xbf'
_LONGEST = int(np.iinfo(np.int32).max)  # what a column can hold
# name -> (type code of `array`, dtype); lengths are tokens, seconds are of audio
_COLUMNS = {
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


def _columns(spec: SourceSpec) -> Mapping[str, tuple[str, type]]:
    """Those of a source: with other speeds, the frames at each."""
    return _COLUMNS | {_frames_at(speed): ('i', np.int32) for speed in spec.speeds[1:]}


def _frames_at(speed: float) -> str:
    return f'frames_{speed:g}'


@dataclass(frozen=True, slots=True)
class Meter:
    """Counts what a conversation takes in a row; the loader makes exactly that, or the conversation is refused.

    Args:
        renderer: The one renderer.
        frame_counter: Samples of a clip -> frames that the perception returns for it.
        sample_rate: Rate in Hz at which the encoder reads.
        resample: Whether recordings of another rate are resampled, or refused.
        on_duration_mismatch: See `DataSettings`.
        limits: The largest line, conversation and clip.
    """

    renderer: ChatRenderer
    frame_counter: Callable[[int], int]
    sample_rate: int = 16000
    resample: bool = True
    on_duration_mismatch: str = 'quarantine'
    limits: Limits = LIMITS

    @classmethod
    def of(cls, settings: DataSettings, renderer: ChatRenderer, frame_counter: Callable[[int], int]) -> 'Meter':
        """The meter of the settings."""
        read = (settings.sample_rate, settings.resample, settings.on_duration_mismatch)
        return cls(renderer, frame_counter, *read, Limits.of(settings))

    def measure(self, conversation: Conversation, *, segments: bool = True) -> dict[str, int | float]:
        """Length, text tokens, supervised tokens, frames, clips and seconds of one conversation.

        Args:
            conversation: Headers of its recordings are read.
            segments: Whether a duration shorter than the recording means a segment, or must be a lie.

        Raises:
            VtbDataError: The conversation cannot be trained on; `error.reason` says why.
        """
        with guarded(Reason.OTHER, f'conversation {conversation.id}'):
            return self._measure(conversation, segments)

    def _measure(self, conversation: Conversation, segments: bool) -> dict[str, int | float]:
        self.limits.check_turns(conversation)
        frames, seconds = self._heard(conversation, segments)
        counted = self.renderer.count(conversation)
        text, supervised = counted.text, counted.supervised
        if not supervised:
            raise data_fault(
                Reason.NOTHING_TO_LEARN, field=f'conversation {conversation.id}', got='0 supervised tokens'
            )
        if text + frames > _LONGEST:
            got = f'{text + frames} tokens'
            raise data_fault(
                Reason.OVERLONG, field=f'conversation {conversation.id}', got=got, allowed=f'<= {_LONGEST}'
            )
        return {
            'length': text + frames,
            'text': text,
            'supervised': supervised,
            'frames': frames,
            'clips': counted.audios,
            'seconds': seconds,
        }

    def frames(self, conversation: Conversation, *, segments: bool = True) -> int:
        """Frames of all its recordings; arguments and errors as of `measure`."""
        with guarded(Reason.OTHER, f'conversation {conversation.id}'):
            return self._heard(conversation, segments)[0]

    def _heard(self, conversation: Conversation, segments: bool) -> tuple[int, float]:
        """Frames and seconds of its recordings."""
        frames, seconds = 0, 0.0
        for audio in conversation.audios:
            samples = self._samples(audio, segments)
            if (count := self.frame_counter(samples)) < 1:
                raise audio_fault(Reason.AUDIO_TOO_SHORT, field='audio', got=f'{samples} samples: {audio.path}')
            frames += count
            seconds += samples / self.sample_rate
        return frames, seconds

    def _samples(self, audio: Audio, segments: bool) -> int:
        if audio.trusted:
            samples = trusted_samples(audio, self.sample_rate)
            self.limits.check_clip(audio.path, samples, self.sample_rate, 1)
            return samples
        header = probe(audio.path)
        if header.sample_rate != self.sample_rate and not self.resample:
            got = f'{header.sample_rate} Hz: {audio.path}'
            raise audio_fault(Reason.AUDIO_WRONG_RATE, field='audio', got=got, allowed=f'{self.sample_rate} Hz')
        span = clip_span(audio, header, self.sample_rate)
        self.limits.check_clip(audio.path, span.count, header.sample_rate, header.num_channels)
        if audio.duration_s is not None and not segments and self.on_duration_mismatch != 'segment':
            if header.duration_s - audio.duration_s > DURATION_TOLERANCE_S:
                got = f'duration {audio.duration_s} s, recording {header.duration_s:.3f} s: {audio.path}'
                raise audio_fault(
                    Reason.DURATION_MISMATCH, field='duration', got=got, allowed=f'+-{DURATION_TOLERANCE_S} s'
                )
        return span.num_samples

    def fingerprint(self) -> dict[str, Any]:
        """What decides lengths; the frame counter is known by what it answers."""
        probes = [*range(0, 4000, 80), *(round(1.07**n) for n in range(60, 250))]
        answers = []
        for samples in probes:
            try:
                answers.append(self.frame_counter(samples))
            except VtbError:
                answers.append(-1)
        return {
            'renderer': self.renderer.fingerprint,
            'frames': hashlib.sha256(json.dumps(answers).encode()).hexdigest(),
            'sample_rate': self.sample_rate,
            'resample': self.resample,
            'on_duration_mismatch': self.on_duration_mismatch,
            # only where they differ: runs that began before there were bounds go on
            **({} if self.limits == LIMITS else {'limits': asdict(self.limits)}),
        }


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
        for name in _columns(spec):
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
            tokens[at] += self.column(_frames_at(speed))[lines[at]] - self.column('frames')[lines[at]]
            seconds[at] /= speed
        return tokens, supervised, seconds

    def lengths(self) -> np.ndarray:
        """Tokens of all entries, (len(self),)."""
        return self.column('length') if len(self.spec.speeds) == 1 else self.measure(np.arange(len(self)))[0]

    def frames(self, entry: int) -> int:
        """Frames of audio of one entry."""
        speed, line = divmod(entry, self.lines)
        return int(self.column(_frames_at(self.spec.speeds[speed]) if speed else 'frames')[line])

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
        conversation = self.spec.read(parse_line(raw.strip().removeprefix(_BOM), where), file, where)
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
        files, lines, seconds = (
            np.asarray(self.column(name) if entries is None else self.column(name)[entries])
            for name in ('file', 'nbytes', 'seconds')
        )
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
    fingerprint = _fingerprint(spec, meter)
    stem = re.sub(r'[^\w.-]+', '_', spec.name)[:64]
    path = Path(folder) / f'{stem}-{fingerprint[:20]}'
    there = path.exists()
    damage = index_damage(path) if there else 'there is none'
    if damage:
        if there:
            logger.warning('The index %s is not as it was written (%s): it is built anew.', path, damage)
        if not build:
            older = sorted(p.name for p in Path(folder).glob(f'{stem}-*'))
            raise VtbDataError(
                'There is no index of this source for the present files, template and frame rate.',
                field=f'source {spec.name}',
                got=f'{path.name}: {damage}' + (f'; others: {", ".join(older)}' if older else ''),
                remedy='run `vtb data index`, or set data.build_index=true',
            )
        clear_leftovers(folder)
        if there:
            _put_away(path)
        _build(spec, meter, path, fingerprint, workers, quiet)
    return SourceIndex(spec, path)


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


def at_speed(conversation: Conversation, speed: float) -> Conversation:
    """The conversation with its recordings heard faster or slower."""
    if speed == 1:
        return conversation
    turns = (
        replace(turn, parts=tuple(replace(p, speed=speed) if isinstance(p, Audio) else p for p in turn.parts))
        for turn in conversation.turns
    )
    return replace(conversation, turns=tuple(turns))


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


def _fingerprint(spec: SourceSpec, meter: Meter) -> str:
    files = []
    for path in (*spec.files, *spec.tars):
        stat = os.stat(path)
        files.append([os.path.abspath(path), stat.st_size, stat.st_mtime_ns, head_tail_digest(path)])
    content = {'version': INDEX_VERSION, 'files': files, 'source': spec.describe(), 'meter': meter.fingerprint()}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(slots=True)
class _Part:
    """What one stretch of a file holds."""

    columns: dict[str, array]
    faults: list[dict[str, Any]] = field(default_factory=list)
    lines: int = 0  # that are not blank
    numbered: int = 0  # all
    omitted: int = 0  # by _skipme


@dataclass(frozen=True, slots=True)
class _Task:
    file: int
    start: int
    end: int


def _build(spec: SourceSpec, meter: Meter, path: Path, fingerprint: str, workers: int, quiet: bool) -> None:
    sizes = [os.path.getsize(file) for file in spec.files]
    tasks = [
        _Task(file, start, min(start + _CHUNK_BYTES, size))
        for file, size in enumerate(sizes)
        for start in range(0, size, _CHUNK_BYTES)
    ]
    if not workers:
        workers = len(os.sched_getaffinity(0)) if sum(sizes) > _PARALLEL_BYTES else 1
    parts = list(_with_progress(_scan_all(spec, meter, tasks, workers), tasks, spec.name, quiet))
    _number_lines(tasks, parts)
    with atomic_replace(path, folder=True, keep_existing=True) as folder:
        digest = hashlib.sha256(json.dumps(spec.describe(), sort_keys=True, default=str).encode())
        for name, (_, dtype) in _columns(spec).items():
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
                for f, s, c in zip(spec.files, sizes, contents, strict=True)
            ],
            'entries': sum(len(p.columns['length']) for p in parts),
            'archives': [head_tail_digest(tar) for tar in spec.tars],
            'lines': sum(p.lines for p in parts),
            'left_out': sum(p.omitted for p in parts),
            'quarantined': dict(Counter(fault['reason'] for fault in faults)),
            'totals': {
                name: float(np.load(folder / f'{name}.npy').sum(dtype=np.float64))
                for name in ('length', 'supervised', 'frames', 'clips', 'seconds')
            },
        }
        write_meta(folder, meta)


def _scan_all(spec: SourceSpec, meter: Meter, tasks: Sequence[_Task], workers: int) -> Iterator[_Part]:
    if workers <= 1 or len(tasks) <= 1:
        yield from (_scan(spec, meter, task) for task in tasks)
        return
    # fork: the tokenizer is there already, and each process keeps what its renderer has learnt of layouts
    options: dict[str, Any] = {'mp_context': multiprocessing.get_context('fork')}
    options |= {'initializer': _start_process, 'initargs': (spec, meter)}
    with ProcessPoolExecutor(min(workers, len(tasks)), **options) as pool:
        yield from pool.map(_scan_in_process, tasks)


_of_process: tuple[SourceSpec, Meter] | None = None


def _start_process(spec: SourceSpec, meter: Meter) -> None:
    global _of_process
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # rayon must not be used in a forked child
    _of_process = spec, meter


def _scan_in_process(task: _Task) -> _Part:
    assert _of_process is not None
    return _scan(*_of_process, task)


def _scan(spec: SourceSpec, meter: Meter, task: _Task) -> _Part:
    """Read the lines that begin in [start, end) of one file."""
    part = _Part({name: array(code) for name, (code, _) in _columns(spec).items()})
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
            if stripped := raw.removeprefix(_BOM).strip():
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
            measured[_frames_at(speed)] = meter.frames(at_speed(conversation, speed), segments=segments)
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
