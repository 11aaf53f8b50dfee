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
"""Manifests of lhotse: the sound of a cut, and what `lhotse prepare CORPUS` writes, as rows of a NeMo manifest.

A prepared corpus is a pair of files for each part: `CORPUS_recordings_PART.jsonl.gz` and
`CORPUS_supervisions_PART.jsonl.gz`. A cut manifest holds both in each line.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_vtb.constants import LANGUAGES, SAMPLE_RATE
from nemo_vtb.data.addresses import is_address
from nemo_vtb.data.conversation import parse_line, read_jsonl
from nemo_vtb.data.faults import Reason, data_fault, guarded
from nemo_vtb.data.manifest_files import unpack_gzip
from nemo_vtb.errors import VtbDataError

_CUT_TYPES = ('Cut', 'MixedCut', 'MonoCut', 'MultiCut', 'PaddingCut')
_RECORDINGS, _SUPERVISIONS = 'recordings', 'supervisions'
# parts of published corpora that nobody trains on; Common Voice's `validated` is none of them
_PARTS = {
    'validation': re.compile(r'(dev|val|valid|validation)(?![a-z])', re.IGNORECASE),
    'test': re.compile(r'(test|eval)(?![a-z])', re.IGNORECASE),
}
_TRANSLATION_KEYS = ('source_lang', 'target_lang', 'translation', 'target_text', 'answer')
_CODES = {name.lower(): code for code, name in LANGUAGES.items()}


# ---- which files


def manifest_files(inputs: Sequence[str]) -> list[str]:
    """The manifests that inputs name: a folder stands for what `lhotse prepare` wrote to it, and a file of recordings
    or supervisions for both.

    Raises:
        VtbDataError: A folder without manifests, or with cuts beside supervisions, which would be read twice.
    """
    found: dict[str, None] = {}
    for word in inputs:
        files = _files_in(Path(word)) if Path(word).is_dir() else [word]
        for file in files:
            found |= dict.fromkeys([file, *(str(path) for path in _partners(Path(file)) if path.is_file())])
    return list(found)


def part_of(path: str | Path) -> str | None:
    """The split that the part of a prepared corpus belongs to by its name: 'validation', 'test'; None: any other."""
    _, mark, part = _stem(path).rpartition(f'_{_SUPERVISIONS}_')
    if not mark:
        _, mark, part = _stem(path).rpartition('_cuts_')
    return next((split for split, names in _PARTS.items() if mark and names.match(part)), None)


def source_of(path: str | Path) -> str:
    """Name of a manifest as a source: `librispeech_train-clean-5` for `librispeech_supervisions_train-clean-5`."""
    return _stem(path).replace(f'_{_SUPERVISIONS}', '')


def _stem(path: str | Path) -> str:
    return Path(str(path).removesuffix('.gz')).stem


def _partners(path: Path) -> Iterator[Path]:
    for name, other in ((_RECORDINGS, _SUPERVISIONS), (_SUPERVISIONS, _RECORDINGS)):
        before, mark, after = path.name.rpartition(name)
        if mark:
            yield path.with_name(before + other + after)


def _files_in(folder: Path) -> list[str]:
    files = [str(path) for path in sorted(folder.rglob('*.jsonl*')) if path.name.endswith(('.jsonl', '.jsonl.gz'))]
    both = {name: [file for file in files if name in Path(file).name] for name in (_SUPERVISIONS, 'cuts')}
    if all(both.values()):
        raise VtbDataError(
            'The folder holds cuts and supervisions, which may be of the same recordings.',
            field='INPUT',
            got=f'{both["cuts"][0]}, {both[_SUPERVISIONS][0]}',
            remedy='name the files to be read in place of the folder',
        )
    if not any(both.values()):
        raise VtbDataError(
            'There are no manifests of lhotse in this folder.',
            field='INPUT',
            got=str(folder),
            allowed='*_supervisions_*.jsonl.gz with *_recordings_*.jsonl.gz, or *cuts*.jsonl.gz',
            remedy='`lhotse prepare CORPUS ...` writes them; name other manifests file by file',
        )
    return [file for files in both.values() for file in files]


# ---- rows


def corpus_rows(
    path: str | Path, on_fault: Callable[[int, VtbDataError], object] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a manifest as those of a NeMo manifest, which pass as they are.

    A supervision becomes a row; a file of recordings gives none, for they are read where their supervisions are.

    Args:
        path: NeMo manifest, lhotse's cuts, supervisions or recordings; gzipped or not.
        on_fault: Told the number of a broken line and what is wrong; the line is skipped. None: it ends the reading.

    Yields:
        Line number from 1, and `audio_filepath`, `offset`, `duration`, `text`, `lang`, `id`, `group` (the recording),
        `words`, `translation` with `target_lang`, `split` where the part of the corpus is one for tests.

    Raises:
        VtbDataError: No file, or supervisions without their recordings; without `on_fault`, a broken line.
    """
    recordings: dict[str, bytes] | None = None
    plain = unpack_gzip(str(path)) if str(path).endswith('.gz') else path
    facts = {'split': split} if (split := part_of(path)) else {}
    for number, _, line in read_jsonl(plain, on_fault):
        if 'sources' in line:
            return
        if not is_cut(line) and 'recording_id' not in line:
            yield number, line
            continue
        if recordings is None:
            recordings = {} if is_cut(line) else _recordings_of(Path(path))
        try:
            with guarded(Reason.OTHER, f'{path}:{number}'):
                rows = list(_rows_of_cut(_as_cut(line, recordings, f'{path}:{number}'), f'{path}:{number}'))
        except VtbDataError as error:
            if on_fault is None:
                raise
            on_fault(number, error)
            continue
        for row in rows:
            yield number, row | facts


def _recordings_of(supervisions: Path) -> dict[str, bytes]:
    """The line of each recording by its id; parsed when it is needed, since a corpus may have millions."""
    for path in _partners(supervisions):
        if path.is_file():
            plain = unpack_gzip(str(path)) if path.suffix == '.gz' else str(path)
            with open(plain, 'rb') as stream:
                return {str(parse_line(raw.strip(), str(path))['id']): raw for raw in stream if raw.strip()}
    raise VtbDataError(
        'The recordings of these supervisions are not beside them.',
        field='INPUT',
        got=str(supervisions),
        allowed=' or '.join(str(path) for path in _partners(supervisions)) or '*_supervisions_*.jsonl.gz',
        remedy='keep the two files of `lhotse prepare` in one folder, under the names that it gives them',
    )


def _as_cut(line: Mapping[str, Any], recordings: Mapping[str, bytes], where: str) -> Mapping[str, Any]:
    """A cut; of a supervision, the span of its recording."""
    if is_cut(line):
        return line
    raw = recordings.get(str(line['recording_id']))
    if raw is None:
        raise data_fault(
            Reason.AUDIO_MISSING, field=f'{where}: recording_id', got=line['recording_id'],
            allowed=f'one of the {len(recordings):,} recordings', remedy='prepare the corpus again',
        )  # fmt: skip
    span = {'start': line['start'], 'duration': line['duration'], 'channel': line.get('channel', 0)}
    return {'recording': parse_line(raw.strip(), where), **span, 'supervisions': [{**line, 'start': 0.0}]}


def _rows_of_cut(cut: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    path, channel = sound_of_cut(cut, where)
    if channel is not None:
        raise unsupported_cut(where, 'channel', channel, 'cuts.save_audios(folder), one file for each channel')
    # lhotse counts relative paths from the working folder; a corpus may have been prepared in another one
    path = str(Path(path).absolute()) if Path(path).is_file() else path
    recording, supervisions = str(cut['recording'].get('id')), cut.get('supervisions')
    if not supervisions:
        raise data_fault(Reason.MISSING_KEY, field=f'{where}: supervisions', got=supervisions, allowed='[{"text"}]')
    for supervision in supervisions:
        begin, custom = float(supervision.get('start') or 0.0), supervision.get('custom') or {}
        row = {
            'id': supervision.get('id'),
            'group': recording,
            'audio_filepath': path,
            'offset': float(cut.get('start') or 0.0) + begin,
            'duration': supervision.get('duration', cut.get('duration')),
            'text': supervision.get('text'),
            'lang': language_code(supervision.get('language')),
            **{key: custom[key] for key in _TRANSLATION_KEYS if key in custom},
        }
        # iwslt22_ta and others of lhotse's recipes: {language: text}
        for target, text in (custom.get('translated_text') or {}).items():
            row |= {'target_lang': language_code(target), 'translation': text}
        words = [_word(each, row['offset']) for each in (supervision.get('alignment') or {}).get('word') or ()]
        # in a cut that was cut again, times may count from elsewhere: better none than wrong ones
        if words and all(0 <= word['start'] <= word['end'] <= row['duration'] for word in words):
            row['words'] = words
        yield row


def _word(item: Any, offset: float) -> dict[str, Any]:
    """An item of lhotse's alignments, [symbol, start in the recording, duration, score]; the row counts from 0."""
    symbol, start, seconds = item[:3]
    begin = round(float(start) - offset, 3)
    return {'word': symbol, 'start': begin, 'end': round(begin + float(seconds), 3)}


def language_code(language: Any) -> str | None:
    """The two letters of a language that lhotse's recipes write as `English`, `english`, `en_us` or `en`."""
    if not isinstance(language, str):
        return None
    return _CODES.get(language.lower()) or re.split('[-_]', language)[0].lower()


# ---- the sound of a cut


def is_cut(line: Mapping[str, Any]) -> bool:
    """Whether a line is a cut of lhotse, not a row of a NeMo manifest."""
    return 'recording' in line or line.get('type') in _CUT_TYPES


def sound_of_cut(cut: Mapping[str, Any], where: str) -> tuple[Any, int | None]:
    """Path and channel of what lhotse would load for a cut; None where the file is this channel alone.

    Raises:
        VtbDataError: With the reason `unsupported_cut`, or another one.
    """
    recording, channel = cut.get('recording'), cut.get('channel', 0)
    if cut.get('type', 'MonoCut') not in ('Cut', 'MonoCut', 'MultiCut'):
        raise unsupported_cut(where, 'type', cut.get('type'), 'cuts.save_audios(folder)')
    if recording is None:
        raise unsupported_cut(where, 'recording', 'a cut of features alone', 'add recordings to the cuts')
    sources = recording.get('sources') if isinstance(recording, Mapping) else None
    if not isinstance(sources, list) or not sources or not all(isinstance(each, Mapping) for each in sources):
        raise data_fault(
            Reason.MISSING_KEY, field=f'{where}: recording.sources', got=sources, allowed='[{"type", "source"}]'
        )
    if isinstance(channel, list) and len(channel) == 1:
        channel = channel[0]
    if not isinstance(channel, int) or isinstance(channel, bool):
        remedy = 'one cut for each channel, or cut.to_mono(mono_downmix=True) and cuts.save_audios(folder)'
        raise unsupported_cut(where, 'channel', channel, remedy)
    if changed := [each for each in recording.get('transforms') or () if not _keeps_sound(each)]:
        raise unsupported_cut(where, 'recording.transforms', changed, 'cuts.save_audios(folder)')
    for source in sources:
        fetched = source.get('type') == 'url' and is_address(str(source.get('source')))
        if source.get('type') != 'file' and not fetched:
            raise data_fault(
                Reason.REFUSED_PATH, field=f'{where}: recording.sources', got=source, allowed='type "file" or "url"'
            )
        channels = source.get('channels', [0])
        if isinstance(channels, list) and channel in channels:
            return source.get('source'), channels.index(channel) if len(channels) > 1 else None
    raise data_fault(
        Reason.AUDIO_NO_CHANNEL,
        field=f'{where}: channel',
        got=channel,
        allowed=[source.get('channels') for source in sources],
    )


def _keeps_sound(transform: Any) -> bool:
    """Whether a transform leaves what an encoder at 16 kHz hears: the loader resamples by itself."""
    if not isinstance(transform, Mapping) or transform.get('name') != 'Resample':
        return False
    rate = (transform.get('kwargs') or {}).get('target_sampling_rate')
    return isinstance(rate, int) and rate >= SAMPLE_RATE


def unsupported_cut(where: str, field: str, got: object, remedy: str) -> VtbDataError:
    """The error of a cut that is more than a span of a recording with its words."""
    return data_fault(
        Reason.UNSUPPORTED_CUT,
        field=f'{where}: {field}',
        got=got,
        allowed='a MonoCut of a recording, one supervision, no transforms but Resample to 16 kHz or more',
        remedy=f'write it out with lhotse: {remedy}',
    )
