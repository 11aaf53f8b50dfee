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
"""NeMo ASR and AST manifests to conversations: many phrasings, three positions, plain, JSON and timed answers."""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from nemo_vtb.data.audio import clip_span, probe
from nemo_vtb.data.conversation import Audio, is_number
from nemo_vtb.data.faults import Reason, data_fault, guarded, is_unicode
from nemo_vtb.data.lhotse_manifests import corpus_rows, source_of
from nemo_vtb.errors import VtbAudioError, VtbDataError
from nemo_vtb.factory.prompts import BANK_LANGUAGES, Bank, draw, load_bank
from nemo_vtb.factory.settings import AsrAst, SpeechQa
from nemo_vtb.factory.stage import InputStage, Item, Outcome, audio_turn, broken_item, text_turn

_PUNCTUATED = re.compile(r'[.!?,;:。！？]')


@dataclass
class AsrAstStage(InputStage):
    """Makes `asr_ast` conversations.

    Args:
        settings: What to make.
        inputs: NeMo manifests, or lhotse's.
    """

    settings: AsrAst
    kind: str = 'asr_ast'

    def items(self) -> Iterator[Item]:
        """One item for each recording and task."""
        broken: list[Item] = []
        for name, row in manifest_rows(self.inputs, self.settings.lang, broken):
            for task in self.settings.tasks:
                if task == 'asr' or row.get('translation'):
                    yield Item(f'{task}-{name}', row['group'], {**row, 'task': task})
        yield from broken

    def _make(self, item: Item) -> Outcome:
        row, settings = item.data, self.settings
        rng = Random(f'{settings.seed}:{item.id}')
        facts: dict[str, Any] = {'task': row['task'], **row_facts(row)}
        reason = recording_reason(row, settings)
        if reason is None:
            reason = self.avoid_list.reason([row['text'], row.get('translation') or ''], [audio_span(row)])
        if reason is not None:
            return Outcome(item.id, item.group, None, reason, facts)
        answer, wording, worded = word_request(rng, row, settings)
        facts |= worded
        audio = audio_turn(row['audio'], row['duration'], row['text'], row['offset'])
        entries = [text_turn('User', part) if part else audio for part in wording]
        entries.append(text_turn('Assistant', answer))
        custom = {'kind': self.kind, **facts}
        return Outcome(item.id, item.group, {'id': item.id, 'conversations': entries, 'custom': custom}, facts=facts)


def recording_reason(row: Mapping[str, Any], settings: AsrAst | SpeechQa) -> str | None:
    """Why a row of `manifest_rows` is not used, by its duration, words and recording; None if it is."""
    if row['duration'] is None:
        return 'no_duration'
    if not settings.min_s <= row['duration'] <= settings.max_s:
        return 'too_short' if row['duration'] < settings.min_s else 'too_long'
    if len(row['text'].split()) < settings.min_words:
        return 'too_few_words'
    try:
        path, offset, duration = audio_span(row)
        clip_span(Audio(path, duration, offset), probe(path))
    except VtbAudioError as error:
        return str(error.reason)
    return None


def word_request(
    rng: Random, row: Mapping[str, Any], settings: AsrAst
) -> tuple[str, list[str | None], dict[str, Any]]:
    """Word one request.

    Args:
        rng: Source of randomness.
        row: As `manifest_rows` gives it, and `task`.
        settings: Bank and shares.

    Returns:
        The answer; the user's parts in their order, None standing for the recording; form, position, target language.
    """
    task = row['task']
    target = row['target_lang'] if task == 'ast' else row['lang']
    bank = _bank(rng, row['lang'], settings)
    names = {'source': bank.names.get(row['lang'], row['lang']), 'target': bank.names.get(target, target)}
    named = row['lang'] in bank.names and rng.random() < settings.named_share
    text = row['translation'] if task == 'ast' else row['text']
    form = draw(rng, settings.forms, 'forms')
    if form == 'timestamps' and (task == 'ast' or not row.get('words')):
        form = 'plain'  # there are no times to ask for
    position = draw(rng, settings.positions, 'positions')
    instruction = bank.pick(rng, f'{task}_named' if named else task, **names)
    if instruction.endswith(':'):
        position = 'before'
    extra, answer = [], text
    if form != 'timestamps' and rng.random() < settings.punctuation_share:
        wanted = 'on' if _PUNCTUATED.search(text) and rng.random() < 0.5 else 'off'
        extra.append(bank.pick(rng, f'punctuation_{wanted}'))
        answer = text if wanted == 'on' else strip_punctuation(text)
    if form == 'json':
        key = 'translation' if task == 'ast' else 'transcript'
        extra.append(bank.pick(rng, 'json', key=key))
        answer = json.dumps({key: answer}, ensure_ascii=False)
    elif form == 'timestamps':
        extra.append(bank.pick(rng, 'timestamps'))
        answer = ' '.join(f'[{begin:.2f} {end:.2f}] {word}' for word, begin, end in row['words'])
    facts: dict[str, Any] = {'form': form, 'position': position}
    facts |= {'target_lang': target} if task == 'ast' else {}
    # a colon points to the recording
    asked = ' '.join([*extra, instruction] if instruction.endswith(':') else [instruction, *extra])
    before, after = [asked, None], [None, asked]
    around = [bank.pick(rng, 'lead'), None, asked]
    return answer, {'before': before, 'after': after, 'around': around}[position], facts


def _bank(rng: Random, source: str, settings: AsrAst) -> Bank:
    lang = {'source': source, 'en': 'en', 'any': rng.choice(BANK_LANGUAGES)}[settings.instruction_lang]
    if settings.bank is None and lang not in BANK_LANGUAGES:
        lang = 'en'
    return load_bank(lang, settings.bank)


def manifest_rows(
    paths: Sequence[str], lang: str, broken: list[Item] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of NeMo manifests, and of what `lhotse prepare` writes, in one form.

    Args:
        paths: The manifests.
        lang: Language of rows that name none.
        broken: Takes an item for each row that cannot be read; None: such a row ends the reading.

    Yields:
        A unique name of the recording, and `audio` (absolute path), `duration`, `offset`, `text`, `lang`,
        `translation`, `target_lang`, `words` (word, begin, end; seconds), `source` (stem of the manifest), `group`
        (what goes into one split), `split` where a corpus says which.

    Raises:
        VtbDataError: A row has no recording or no text, and there is no list for it.
    """

    def fail(number: int, error: VtbDataError) -> None:
        if broken is None:
            raise error
        broken.append(broken_item(f'{path}:{number}', error))

    seen: dict[str, int] = {}
    for path in map(Path, paths):
        for number, row in corpus_rows(path, fail):
            try:
                with guarded(Reason.OTHER, f'{path}:{number}'):
                    name, read = _manifest_row(row, path, f'{path}:{number}', lang)
            except VtbDataError as error:
                fail(number, error)
                continue
            seen[name] = count = seen.get(name, 0) + 1
            name = name if count == 1 else f'{name}-{count}'
            yield name, {'group': name, **read}


def _manifest_row(row: Mapping[str, Any], path: Path, where: str, lang: str) -> tuple[str, dict[str, Any]]:
    file, text = row.get('audio_filepath'), row.get('text')
    for key, value in (('audio_filepath', file), ('text', text)):
        if not isinstance(value, str) or not value.strip():
            raise data_fault(
                Reason.MISSING_KEY, field=f'{where}: {key}', got=value,
                allowed='{"audio_filepath", "duration", "text"}, all filled',
                remedy='correct the row; all others are used, and this one is listed',
            )  # fmt: skip
        if not is_unicode(value):
            raise data_fault(Reason.NOT_UNICODE, field=f'{where}: {key}', got=ascii(value))
    audio = path.parent.absolute() / str(file)
    if row.get('shard_id') is not None and not audio.is_file():
        raise data_fault(
            Reason.AUDIO_MISSING, field=f'{where}: audio_filepath', got=f'{file}, in the archive {row["shard_id"]}',
            allowed='a recording of its own', remedy='unpack the archives beside the manifest: tar -xf audio_N.tar',
        )  # fmt: skip
    duration, offset = row.get('duration'), row.get('offset') or 0.0
    for key, value in (('duration', duration), ('offset', offset)):
        if value is not None and not is_number(value):
            raise data_fault(Reason.BAD_SPAN, field=f'{where}: {key}', got=value, allowed='seconds')
    source = row.get('source_lang') or row.get('lang') or lang
    translation = row.get('translation') or row.get('target_text') or row.get('answer')
    target = row.get('target_lang')
    return str(row.get('id') or f'{path.stem}-{Path(str(file)).stem}'), {
        'audio': str(audio),
        'duration': duration,
        'offset': offset,
        'text': ' '.join(str(text).split()),
        'lang': str(source),
        'translation': translation if target and target != source else None,
        'target_lang': target,
        'words': _words(row),
        'source': source_of(path),
        **{key: row[key] for key in ('group', 'split') if key in row},
    }


def strip_punctuation(text: str) -> str:
    """The text in lower case, without punctuation; apostrophes and hyphens inside words stay."""
    kept = re.sub(r"(?<=\w)['’-](?=\w)", lambda match: f'\0{match[0]}', text)
    out = ''.join(
        character if kept[number - 1] == '\0' or unicodedata.category(character)[0] not in 'P\0' else ' '
        for number, character in enumerate(kept)
    )
    return ' '.join(out.replace('\0', '').lower().split())


def _words(row: Mapping[str, Any]) -> list[tuple[str, float, float]] | None:
    """Word times of a row: a list of `{word|text, start, end|duration}`, or NeMo's `timestamp: {word: [...]}`."""
    listed = row.get('words') or row.get('word_timestamps')
    stamps = row.get('timestamp') or row.get('timestamps')
    if listed is None and isinstance(stamps, Mapping):
        listed = stamps.get('word')
    if not isinstance(listed, list) or not listed:
        return None
    words = []
    for entry in listed:
        word = entry.get('word') or entry.get('text') or entry.get('symbol')
        begin = entry.get('start', entry.get('start_time'))
        end = entry.get('end', entry.get('end_time'))
        if end is None and begin is not None and entry.get('duration') is not None:
            end = begin + entry['duration']
        if word is None or begin is None or end is None:
            return None
        words.append((str(word), float(begin), float(end)))
    return words


def row_facts(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the card counts of a row of `manifest_rows`, and the split that its part of the corpus belongs to."""
    return {key: row[key] for key in ('lang', 'source', 'split') if key in row}


def audio_span(row: Mapping[str, Any]) -> tuple[str, float, float | None]:
    """Path, offset and duration of a row of `manifest_rows`."""
    return row['audio'], row['offset'], row['duration']
