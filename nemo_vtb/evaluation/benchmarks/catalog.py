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
"""Public benchmarks as tasks: rows of `catalog.yaml`, each a layout on the user's disk, a prompt and a scorer."""

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

from nemo_vtb.constants import LANGUAGES
from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn
from nemo_vtb.data.faults import Reason
from nemo_vtb.data.normalizers import get_normalizer, normalizer_for
from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.evaluation.answers import AnswerCache
from nemo_vtb.evaluation.benchmarks.judged import judge_answers, missed_verdicts
from nemo_vtb.evaluation.benchmarks.layouts import Item, Layout, read_items
from nemo_vtb.evaluation.benchmarks.measures import ATTRIBUTES, comet_checkpoint, comet_scores, measures_of
from nemo_vtb.evaluation.benchmarks.rules import LEFT_OUT, RULES, one, protocol_of
from nemo_vtb.evaluation.judge import Judge
from nemo_vtb.evaluation.metrics import Measure, Statistics
from nemo_vtb.evaluation.task import Answer, Context, Example, Task
from nemo_vtb.io import read_yaml

logger = logging.getLogger(__name__)

FILE = Path(__file__).with_name('catalog.yaml')

# marks of noises in TED-LIUM
_NOISE = re.compile(r'\{\w+\}')
# the Open ASR leaderboard leaves such references out
_NOT_SCORED = ('', 'ignore time segment in scoring')
_PROMPTS = {'asr': 'Transcribe the speech.\n{audio}', 'ast': 'Translate the speech to {language}.\n{audio}'}
_TOKENS = {'asr': 256, 'ast': 256, 'qa': 128}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One task of the catalog; the head of `catalog.yaml` says what the keys are."""

    suite: str
    name: str
    kind: str
    rule: str = ''
    folder: str = '.'
    needs: str = ''
    get: str = ''
    parts: str = ''
    target: str = ''
    system: str = ''
    prompt: str = ''
    base: str = ''
    reference: str = ''
    source_text: str = ''
    repository: str = ''
    texts: Mapping[str, str] = field(default_factory=dict)
    chunk_s: float | None = None
    max_new_tokens: int | None = None
    dataset: str = ''
    layout: Layout = Layout()


@cache
def catalog() -> Mapping[str, tuple[Row, ...]]:
    """Suite -> its rows.

    Raises:
        VtbConfigError: The file has a key that nobody reads.
    """
    of_layout, of_row = ({f.name for f in fields(cls)} for cls in (Layout, Row))
    found: dict[str, tuple[Row, ...]] = {}
    for suite, common in read_yaml(FILE).items():
        rows = []
        for name, own in common['tasks'].items():
            values = {key: _frozen(value) for key, value in {**common, **own}.items() if key != 'tasks'}
            if unknown := values.keys() - of_layout - of_row:
                raise VtbConfigError('Unknown key.', field=f'{FILE.name}: {suite}', got=sorted(unknown))
            layout = Layout(**{key: value for key, value in values.items() if key in of_layout})
            more = {key: value for key, value in values.items() if key in of_row}
            rows.append(Row(suite=suite, name=str(name), layout=layout, **more))
        found[suite] = tuple(rows)
    return found


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


# ---- places


def place_of(row: Row, data_root: Path | None) -> Path:
    """The folder of a benchmark below `--data-root`, or `--data-root` itself.

    Raises:
        VtbDataError: It is not there; the error says what stands in it and where it is to be had.
    """
    if data_root is not None:
        pattern = row.dataset or re.sub(r'\{\w+\}', '*', row.parts or row.layout.files[0])
        below = () if row.folder == '.' else sorted(data_root.glob(row.folder))
        for folder in (*below, data_root):
            if any(folder.glob(pattern)):
                return folder
    raise VtbDataError(
        f'The benchmark {row.suite} is not on this machine, and nothing is downloaded.', field='data_root',
        got=None if data_root is None else str(data_root), allowed=f'{row.folder}: {row.needs}',
        remedy=f'get it from {row.get}, and name the folder above it with --data-root',
    )  # fmt: skip


def parts_of(row: Row, folder: Path) -> list[dict[str, str]]:
    """Settings of each part that is there (languages, directions, subsets); a single one where there are no parts."""
    fixed = {'target': row.target} if row.target else {}
    if not row.parts:
        return [fixed]
    names = re.sub(r'\\\{(\w+)\\\}', r'(?P<\1>[^/]+?)', re.escape(row.parts)).replace(r'\*', '.*')
    found: list[dict[str, str]] = []
    for path in sorted(folder.glob(re.sub(r'\{\w+\}', '*', row.parts))):
        match = re.fullmatch(names, path.relative_to(folder).as_posix())
        if match and (settings := fixed | match.groupdict()) not in found:
            found.append(settings)
    return [settings for settings in found if settings.get('target', 'any') != settings.get('lang')]


def language_code(name: str) -> str:
    """'de' of german, de_de or de-DE."""
    names = {full.lower(): code for code, full in LANGUAGES.items()}
    code = names.get(name.lower()) or re.split(r'[-_]', name.lower())[0]
    return {'cmn': 'zh'}.get(code, code)


# ---- tasks


class BenchmarkTask(Task):
    """A row of the catalog as a task; each of its parts is a source.

    Args:
        row: The row.
        only: The part that is measured; '' for all that are there.
    """

    def __init__(self, row: Row, only: str = '') -> None:
        self.row, self.only = row, only
        self.suite, self.name = row.suite, row.name
        self.max_new_tokens = row.max_new_tokens or _TOKENS.get(row.kind, 64)
        self.metrics = tuple(ATTRIBUTES.get(row.rule, ())) or tuple(m.name for m in measures_of(row.kind, 'en'))
        self._repository = Path()
        self._comet: Path | None = None
        self._judge: Judge | None = None
        self._judged_by = ''
        self._cache = AnswerCache(None)
        self._settled: dict[tuple[str, str], Mapping[str, Statistics]] = {}
        self._heard: dict[str, dict[int, str]] = {}

    def examples(self, context: Context) -> Sequence[Example]:
        """The examples of all parts.

        Raises:
            VtbDataError: The data is not there, not complete, or has another layout; or the judge does not answer.
            VtbConfigError: The benchmark needs a judge, and there is none.
        """
        folder = place_of(self.row, context.data_root)
        self._comet = comet_checkpoint(context.data_root) if self.row.kind == 'ast' else None
        self._repository = folder / self.row.repository
        found: list[Example] = []
        for settings in parts_of(self.row, folder):
            source = '-'.join(value for name, value in settings.items() if name != 'target' or not self.row.target)
            if not self.only or self.only in (source, source.replace('-', '_')):
                items = self._part(folder, settings, source or self.name, context)
                found += chain.from_iterable(islice(items, context.limit))
        if not found:
            raise VtbDataError(
                'A benchmark has no such part.', field='suite', got=f'{self.suite}:{self.only}',
                allowed=[list(settings.values()) for settings in parts_of(self.row, folder)], remedy=self.row.needs,
            )  # fmt: skip
        if self.row.kind == 'judged':
            self._use_judge(context)
        return found

    def _part(
        self, folder: Path, settings: Mapping[str, str], source: str, context: Context
    ) -> Iterator[list[Example]]:
        """The examples of each item: one, or those of the spans of a long recording."""
        row = self.row
        extracted = (context.folder or folder) / 'recordings' / row.suite / row.name / source
        lang = language_code(settings.get('target') if row.kind == 'ast' else settings.get('lang', 'en'))  # type: ignore[arg-type]
        texts = {
            name: str(protocol_of(self._repository, file, row.get).values(name)[0]) for name, file in row.texts.items()
        }
        texts |= {'language': LANGUAGES.get(lang, lang)}
        normalize = get_normalizer(normalizer_for(lang))
        for number, item in enumerate(read_items(row.layout, folder, settings, extracted)):
            values = {**item.fields, **settings, **texts, 'id': item.id}
            references = _references(values, row.reference.format(**settings) or ('text' if row.kind == 'asr' else ''))
            if row.kind == 'asr':
                references = (_NOISE.sub(' ', references[0]).strip(),)
                if normalize(references[0]).strip() in _NOT_SCORED:
                    continue
            values['references'] = references
            yield list(self._examples_of(item, f'{source}-{number:06d}', values, references, source, lang))

    def _examples_of(
        self, item: Item, name: str, values: dict[str, Any], references: tuple[str, ...], source: str, lang: str
    ) -> Iterator[Example]:
        row = self.row
        template = row.prompt or _PROMPTS[row.kind]
        base = _conversation(row.base, row.system, (), values, name, row) if row.base else None
        spans = list(_spans(item.audios, row.chunk_s))
        for number, audios in enumerate(spans):
            part = {'call': name, 'chunk': number, 'chunks': len(spans)} if row.chunk_s else {}
            id_ = f'{name}-{number:04d}' if part else name
            prompt = _conversation(template, row.system, audios, values, id_, row)
            group = name if part else ''
            yield Example(id_, prompt, references, source, base, group=group, lang=lang, extra=values | part)

    def measures(self, examples: Sequence[Example]) -> Sequence[Measure]:
        """Those of the row's kind, for the language of the examples."""
        found = measures_of(self.row.rule or self.row.kind, examples[0].lang)
        if self._judged_by:
            found = tuple(replace(measure, signature=f'{measure.signature}, {self._judged_by}') for measure in found)
        return found if self._comet is None else (*found, *measures_of('comet', ''))

    def score(self, example: Example, answer: Answer) -> Mapping[str, Statistics]:
        """By the rule of the row, by its judge, or by the measures of its kind; a long recording in its last chunk."""
        if self.row.kind == 'rule':
            return RULES[self.row.rule](example.extra, str(answer), self._repository)
        if self.row.kind == 'judged':
            return self._settled.get((example.id, str(answer)), dict.fromkeys(self.metrics, LEFT_OUT))
        if 'call' in example.extra:
            heard = self._heard.setdefault(example.extra['call'], {})
            heard[example.extra['chunk']] = str(answer)
            if example.extra['chunk'] + 1 < example.extra['chunks']:
                return dict.fromkeys(self.metrics, LEFT_OUT)
            answer = ' '.join(heard[number] for number in sorted(heard))
        measures = measures_of(self.row.kind, example.lang)
        scored = {m.name: m.statistics(example.references, str(answer)) for m in measures}
        return scored | dict(self._settled.get((example.id, str(answer)), {}))

    def settle(self, examples: Sequence[Example], answers: Sequence[Answer]) -> None:
        """Get what `score` needs of all answers together: verdicts, and COMET where it is installed.

        Raises:
            VtbDataError: The judge does not answer.
        """
        texts = [str(answer) for answer in answers]
        scored: Sequence[Mapping[str, Statistics]] = ()
        if self._comet is not None and examples:
            source = self.row.source_text.format(**examples[0].extra)
            triples = [(str(e.extra[source]), a, e.references[0]) for e, a in zip(examples, texts, strict=True)]
            scored = [{'COMET': one(score)} for score in comet_scores(triples, self._comet)]
        elif self._judge is not None and examples:
            rows = [(e.extra, answer) for e, answer in zip(examples, texts, strict=True)]
            scored = judge_answers(self.row.rule, rows, self._judge, self._cache, self._repository)
        self._settled |= {(e.id, a): found for e, a, found in zip(examples, texts, scored, strict=False)}

    def _use_judge(self, context: Context) -> None:
        """Try the judge on known verdicts, before the model answers anything."""
        judge: Judge | None = context.settings.get('judge')
        if judge is None:
            raise VtbConfigError(
                'The answers of this benchmark are judged by a language model.', field='judge.url',
                got=f'{self.suite}/{self.name}', remedy='name a server and a model: --judge-url, --judge-model',
            )  # fmt: skip
        self._judge, self._cache = judge, context.settings.get('cache') or AnswerCache(None)
        self._judged_by = f'judge {judge.model}'
        if missed := missed_verdicts(self.row.rule, judge, self._cache, self._repository):
            self._judged_by += f' (unreliable: {", ".join(missed)})'
            logger.warning('%s/%s: %s', self.suite, self.name, self._judged_by)


def _spans(audios: Sequence[Audio], longest: float | None) -> Iterator[Sequence[Audio]]:
    """The recordings of an item; of a long one, span after span."""
    if longest is None:
        yield audios
        return
    for audio in audios:
        total = audio.duration_s or 0.0
        for number in range(max(1, math.ceil(total / longest))):
            begin = number * longest
            yield [replace(audio, offset_s=audio.offset_s + begin, duration_s=min(longest, total - begin))]


def _references(values: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The right answers: a text, a list of texts, or SQuAD's lists of answers; () without a column of them.

    Raises:
        VtbDataError: There is no such column.
    """
    if not name:
        return ()
    if (value := values.get(name)) is None:
        raise VtbDataError(
            'A row of a benchmark has no right answer.', reason=Reason.MISSING_KEY, field=name, allowed=sorted(values)
        )
    if isinstance(value, Mapping):
        value = value.get('text', ())
    if isinstance(value, list | tuple):
        return tuple(str(part['text'] if isinstance(part, Mapping) else part) for part in value)
    return (str(value),)


def _conversation(
    template: str, system: str, audios: Sequence[Audio], values: Mapping[str, Any], name: str, row: Row
) -> Conversation:
    shown = {key: ', '.join(map(str, value)) if isinstance(value, list) else value for key, value in values.items()}
    parts: list[Text | Audio] = []
    for number, text in enumerate(template.split('{audio}')):
        parts += audios if number else ()
        if text.strip():
            parts.append(Text(text.strip('\n').format(**shown)))
    turns = [Turn('system', (Text(system),))] if system else []
    return Conversation(name, (*turns, Turn('user', tuple(parts))), 'speech_qa' if audios else 'text', row.suite)
