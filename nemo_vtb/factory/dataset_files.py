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
"""Writes the data set of a finished stage: JSONL or tar shards with indexes, splits, rejected items, data card.

Everything here is a function of the journals, so that it may be interrupted and repeated; the files do not depend on
the number of workers, shards or interruptions.
"""

import hashlib
import json
import shutil
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nemo_vtb.constants import SAMPLE_RATE
from nemo_vtb.data.conversation import Audio
from nemo_vtb.errors import VtbDataError
from nemo_vtb.factory.settings import Common
from nemo_vtb.factory.stage import KEPT, WORK, Outcome, Stage, file_name, open_work_list, read_journals, read_outcomes
from nemo_vtb.io import atomic_replace, file_lock, json_line, parse_json_lines, write_atomically

SPLITS = ('train', 'validation', 'test')
_BINS = 20
_COUNTED = ('lang', 'target_lang', 'task', 'voice', 'question_type', 'form', 'position', 'policy', 'source', 'format')
_SUMMED = ('requests', 'retries', 'invalid', 'prompt_tokens', 'completion_tokens', 'cost')
_SHARES = {'p50': 0.5, 'p95': 0.95, 'max': 1.0}


class DataCard:
    """Counts outcomes one by one.

    Args:
        kind: Kind of data.
        made_by: Settings and inputs.
    """

    def __init__(self, kind: str, made_by: Mapping[str, Any]) -> None:
        self.kind, self.made_by = kind, made_by
        self.reasons: Counter[str] = Counter()
        self.splits: dict[str, Counter[str]] = defaultdict(Counter)
        self.values: dict[str, Counter[str]] = defaultdict(Counter)
        self.sums: Counter[str] = Counter()
        self.durations: list[float] = []
        self.wers: dict[str, list[float]] = defaultdict(list)

    def add(self, outcome: Outcome, split: str) -> None:
        """Count one outcome."""
        self.reasons[outcome.reason] += 1
        facts = outcome.facts
        self.sums.update({name: facts[name] for name in _SUMMED if name in facts})
        for span in facts.get('spans', ()):
            if span.get('wer') is not None:
                self.wers[span.get('voice', '')].append(span['wer'])
        if outcome.reason != KEPT or outcome.line is None:
            return
        for name in _COUNTED:
            if facts.get(name) is not None:
                self.values[name][str(facts[name])] += 1
        seconds = [entry['duration'] for entry in outcome.line['conversations'] if entry['type'] == 'audio']
        self.durations += seconds
        count = self.splits[split]
        count['conversations'] += 1
        count['recordings'] += len(seconds)
        count['seconds'] += sum(seconds)
        count['turns'] += sum(entry['from'] == 'Assistant' for entry in outcome.line['conversations'])

    def to_json(self) -> dict[str, Any]:
        """All numbers as plain values."""
        all_wers = [wer for wers in self.wers.values() for wer in wers]
        return {
            'kind': self.kind,
            'outcomes': sum(self.reasons.values()),
            'kept': self.reasons[KEPT],
            'reasons': dict(self.reasons.most_common()),
            'splits': {split: _rounded(count) for split, count in sorted(self.splits.items())},
            'seconds': _quantiles(self.durations),
            'wer': _quantiles(all_wers),
            'wer_by_voice': {voice: _quantiles(wers) for voice, wers in sorted(self.wers.items())},
            **{name: dict(counts.most_common()) for name, counts in sorted(self.values.items())},
            **({'language_model': _rounded(self.sums)} if self.sums else {}),
            'made_by': self.made_by,
        }

    def write(self, out: Path) -> None:
        """Write the card's three files."""
        facts = self.to_json()
        write_atomically(out / 'card.json', json.dumps(facts, indent=2, ensure_ascii=False) + '\n')
        self._draw(out / 'card.png')
        write_atomically(out / 'card.md', self._markdown(facts))

    def _markdown(self, facts: Mapping[str, Any]) -> str:
        lines = [f'# {self.kind}: {facts["kept"]:,} conversations of {facts["outcomes"]:,} made', '']
        lines += _table(('split', 'conversations', 'answers', 'recordings', 'hours'), [
            (split, f'{c["conversations"]:,}', f'{c["turns"]:,}', f'{c["recordings"]:,}', f'{c["seconds"] / 3600:.3f}')
            for split, c in facts['splits'].items()
        ])  # fmt: skip
        lines += ['', '## Yield', '']
        total = max(facts['outcomes'], 1)
        lines += _table(
            ('outcome', 'count', 'share'),
            [(reason, f'{count:,}', f'{count / total:.1%}') for reason, count in facts['reasons'].items()],
        )
        if self.wers:
            rows = [('all', facts['wer']), *facts['wer_by_voice'].items()]
            lines += ['', '## Word error rate of synthesised spans, transcribed back', '']
            lines += _table(
                ('voice', 'spans', 'mean', 'median', '95 %'),
                [(v, f'{q["n"]:,}', f'{q["mean"]:.3f}', f'{q["p50"]:.3f}', f'{q["p95"]:.3f}') for v, q in rows],
            )
        for name in sorted(self.values):
            lines += ['', f'## {name.replace("_", " ").capitalize()}', '']
            lines += _table((name, 'conversations'), [(v, f'{n:,}') for v, n in self.values[name].most_common(30)])
        if self.sums:
            lines += ['', '## Language model', '']
            lines += _table(('what', 'sum'), [(name, f'{value:,}') for name, value in facts['language_model'].items()])
        lines += ['', '## Distributions', '', '![distributions](card.png)', '', '## Made by', '', '```json']
        lines += [json.dumps(facts['made_by'], indent=1, ensure_ascii=False), '```', '']
        return '\n'.join(lines)

    def _draw(self, path: Path) -> None:
        from matplotlib.figure import Figure

        charts: list[tuple[str, Any]] = [('yield', self.reasons)]
        charts += [('seconds of a recording', self.durations)] if self.durations else []
        charts += [('word error rate of spans', [w for wers in self.wers.values() for w in wers])] if self.wers else []
        charts += [(name.replace('_', ' '), self.values[name]) for name in sorted(self.values)]
        columns = 3
        rows = -(-len(charts) // columns)
        figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout='constrained')
        for number, (title, values) in enumerate(charts):
            axes = figure.add_subplot(rows, columns, number + 1)
            axes.set_title(title, fontsize=10)
            if isinstance(values, Counter):
                top = values.most_common(10)[::-1]
                axes.barh([name[:28] for name, _ in top], [count for _, count in top], color='#4477aa')
            else:
                axes.hist(values, bins=_BINS, color='#4477aa')
            axes.tick_params(labelsize=8)
        # no date inside, so that equal runs have equal files
        figure.savefig(path, dpi=110, metadata={'Software': None})


@dataclass(frozen=True, slots=True)
class _Reader:
    """The outcomes of all chunks, one chunk in memory at a time."""

    places: Sequence[tuple[Path, int]]

    def __iter__(self) -> Iterator[Outcome]:
        seen: set[bytes] = set()
        for path, offset in self.places:
            for outcome in read_outcomes(path, offset):
                if outcome.unique and outcome.reason == KEPT:
                    digest = hashlib.blake2b(outcome.unique.encode(), digest_size=12).digest()
                    if digest in seen:
                        outcome = replace(outcome, line=None, reason='duplicate')
                    seen.add(digest)
                yield outcome


def ordered_outcomes(out: Path, chunks: int) -> _Reader:
    """All outcomes in the order of the work list, later ones of the same text marked as duplicates.

    Args:
        out: The output folder.
        chunks: Number of chunks in the work list.

    Raises:
        VtbDataError: A chunk is not made yet.
    """
    places = read_journals(out)
    missing = [chunk for chunk in range(chunks) if chunk not in places]
    if missing:
        raise VtbDataError(
            'The stage is not complete.', field='chunks', got=f'{len(missing)} of {chunks} are missing',
            remedy='run the missing shards',
        )  # fmt: skip
    return _Reader([places[chunk] for chunk in range(chunks)])


def split_of(group: str, seed: int, validation_share: float, test_share: float) -> str:
    """The split of everything made from one recording or conversation: a function of its name and the seed alone."""
    digest = hashlib.sha256(f'{seed}:{group}'.encode()).digest()
    place = int.from_bytes(digest[:8], 'big') / 2**64
    if place < test_share:
        return 'test'
    return 'validation' if place < test_share + validation_share else 'train'


def finish(stage: Stage, settings: Common, out: Path) -> DataCard:
    """Write the data set of a complete stage and its card.

    Args:
        stage: What was made.
        settings: Its shares and its form.
        out: The output folder.

    Returns:
        The card: counts, yield by reason, distributions.

    Raises:
        VtbDataError: A chunk is not made yet.
    """
    work = open_work_list(stage, out)
    with file_lock(out / WORK / 'finish.lock'):
        reader = ordered_outcomes(out, len(work))
        card = DataCard(stage.kind, stage.describe())
        parts = {split: out / WORK / f'{stage.kind}.{split}.jsonl' for split in SPLITS}
        streams = {split: path.open('w', encoding='utf-8') for split, path in parts.items()}
        rejected: list[str] = []
        for outcome in reader:
            split = outcome.facts.get('split') or split_of(
                outcome.group, settings.seed, settings.validation_share, settings.test_share
            )
            card.add(outcome, split)
            if outcome.line is not None:
                streams[split].write(json_line(outcome.line))
                continue
            facts = {'id': outcome.id, 'reason': outcome.reason, **outcome.facts}
            rejected.append(json_line(facts))
            for file in outcome.files:
                (out / file).unlink(missing_ok=True)
        for stream in streams.values():
            stream.close()
        write_atomically(out / 'rejected.jsonl', ''.join(rejected))
        for split, path in parts.items():
            _publish(path, out, f'{stage.kind}.{split}', settings)
        card.write(out)
        # what an interruption left half written, here or in the folder of recordings
        beside = (path for name in (stage.kind, 'rejected', 'card') for path in out.glob(f'.{name}.*'))
        for leftover in (*beside, *(out / 'wav').glob('**/.*')):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    return card


def _publish(part: Path, out: Path, name: str, settings: Common) -> None:
    """Give a part its final form and place; an empty one leaves no file."""
    lines = part.read_text(encoding='utf-8')
    part.unlink()
    if not lines:
        return
    if settings.form == 'tar':
        write_tars(parse_json_lines(lines), out, out / name, settings.shard_size)
    else:
        write_lines(out / f'{name}.jsonl', lines)


def write_lines(path: Path, text: str) -> None:
    """Write a JSONL file and beside it `.idx`, the offsets of its lines as NeMo's indexed readers take them."""
    write_atomically(path, text)
    _index_lines(path)


def _index_lines(path: Path) -> None:
    offsets, place = [], 0
    with path.open('rb') as stream:
        for raw in stream:
            offsets.append(place)
            place += len(raw)
    _write_index(path, offsets)


def _index_tar(path: Path) -> None:
    with tarfile.open(path, 'r:') as tar:
        # a recording and its .json are one sample, which begins with the recording
        _write_index(path, [member.offset for member in tar if not member.name.endswith('.json')])


def _write_index(path: Path, offsets: list[int]) -> None:
    """`PATH.idx`: little-endian uint64 offsets of the samples, and the size of the file."""
    np.asarray([*offsets, path.stat().st_size], dtype='<u8').tofile(f'{path}.idx')


def write_tars(lines: Sequence[dict[str, Any]], base: Path, folder: Path, shard_size: int) -> None:
    """Write `manifest_N.jsonl` and `audio_N.tar` as NeMo's tarred multimodal_conversation, with indexes.

    Recordings are stored as FLAC at 16 kHz in the order of the turns, which NeMo's reader relies on.

    Args:
        lines: multimodal_conversation lines.
        base: Folder to which their audio paths refer.
        folder: Where to write; replaced when complete.
        shard_size: Conversations of a shard.
    """
    with atomic_replace(folder, folder=True) as new:
        for number, begin in enumerate(range(0, len(lines), shard_size)):
            manifest, tar = new / f'manifest_{number}.jsonl', new / f'audio_{number}.tar'
            packed = _write_tar(lines[begin : begin + shard_size], base, tar)
            _index_tar(tar)
            write_lines(manifest, ''.join(map(json_line, packed)))


def _write_tar(lines: Sequence[dict[str, Any]], base: Path, path: Path) -> Sequence[dict[str, Any]]:
    from lhotse import AudioSource, Recording
    from lhotse.shar.writers import AudioTarWriter

    from nemo_vtb.data.audio import read_audio

    with AudioTarWriter(str(path), shard_size=None, format='flac') as writer:
        for line in lines:
            for number, entry in enumerate(line['conversations']):
                if entry['type'] != 'audio':
                    continue
                source = Audio(str(base / entry['value']), entry.get('duration'), entry.get('offset') or 0.0)
                samples = read_audio(source, SAMPLE_RATE)
                # a name of its own for each span: NeMo keys recordings by file stem
                key = f'{file_name(line["id"])}-{number}'
                source_of_shar = [AudioSource('memory', [0], '')]  # what it holds is in the archive
                recording = Recording(key, source_of_shar, SAMPLE_RATE, len(samples), len(samples) / SAMPLE_RATE)
                writer.write(key, samples, SAMPLE_RATE, recording)
                entry.pop('offset', None)
                entry |= {'value': f'{key}.flac', 'duration': len(samples) / SAMPLE_RATE}
        if not writer.tar_writer.num_items_total:
            # text alone: the reader still wants an archive
            writer.tar_writer._next_stream()
    return lines


def _quantiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {'n': 0}
    ordered = sorted(values)
    pick = {name: ordered[min(int(share * len(ordered)), len(ordered) - 1)] for name, share in _SHARES.items()}
    mean = sum(ordered) / len(ordered)
    return {'n': len(ordered), 'mean': round(mean, 4), **{name: round(value, 4) for name, value in pick.items()}}


def _rounded(counts: Mapping[str, float]) -> dict[str, float]:
    return {name: value if isinstance(value, int) else round(value, 4) for name, value in counts.items()}


def _table(headings: tuple[str, ...], rows: list[tuple]) -> list[str]:
    lines = [f'| {" | ".join(headings)} |', f'|{" --- |" * len(headings)}']
    return lines + [f'| {" | ".join(str(cell).replace("|", "/") for cell in row)} |' for row in rows]
