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
"""Transcripts to questions and answers: a language model writes, filters keep what can be answered by listening."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from nemo_vtb.data.normalizers import normalize_answer
from nemo_vtb.factory.asr_ast import audio_span, manifest_rows, recording_reason, row_facts
from nemo_vtb.factory.contamination import ngrams
from nemo_vtb.factory.language import LANGUAGES, is_language
from nemo_vtb.factory.prompts import draw
from nemo_vtb.factory.settings import SpeechQa
from nemo_vtb.factory.stage import WORK, InputStage, Item, Outcome, audio_turn, text_turn
from nemo_vtb.factory.text_generation import Reply, Request, TextGenerator, load_generator
from nemo_vtb.io import read_yaml

_TEXTS = read_yaml(Path(__file__).with_suffix('.yaml'))
QUESTION_TYPES: Mapping[str, str] = _TEXTS['question_types']
REFUSALS = {lang: tuple(facts['refusals']) for lang, facts in LANGUAGES.items()}
_NO_QUESTION = re.compile(r'^(none|null|n/?a|no question)\W*$', re.IGNORECASE)
_POSITIONS = (True, True, False)
_INSTRUCTIONS = frozenset(gram for text in (_TEXTS['system'], *QUESTION_TYPES.values()) for gram in ngrams(text, 5))


@dataclass
class SpeechQaStage(InputStage):
    """Makes `speech_qa` conversations.

    Args:
        settings: What to make.
        inputs: NeMo ASR manifests.
        cache: Folder of the cached replies; set when the first chunk is made.
    """

    settings: SpeechQa
    kind: str = 'speech_qa'
    cache: Path | None = None

    def describe(self) -> dict[str, Any]:
        """Settings and digests of the inputs; how a server is reached does not matter, which model answers does."""
        described = super().describe()
        ways = ('url', 'api_key_env', 'concurrency', 'requests_per_minute', 'timeout_s', 'tries')
        llm = {name: value for name, value in described['settings']['llm'].items() if name not in ways}
        return {**described, 'settings': {**described['settings'], 'llm': llm}}

    def items(self) -> Iterator[Item]:
        """One item for each question that is to be requested of a recording; types drawn without repetition."""
        broken: list[Item] = []
        for name, row in manifest_rows(self.inputs, self.settings.lang, broken):
            rng = Random(f'{self.settings.seed}:{name}')
            shares = dict(self.settings.types)
            for number in range(self.settings.questions):
                if not sum(shares.values()):
                    shares = dict(self.settings.types)
                type_ = draw(rng, shares, 'types')
                shares[type_] = 0.0
                yield Item(f'qa-{name}-{number}', row['group'], {**row, 'type': type_})
        yield from broken

    @cached_property
    def _generator(self) -> TextGenerator:
        assert self.cache is not None
        return load_generator(self.settings.llm, self.cache)

    def _make_all(self, items: Sequence[Item], out: Path) -> list[Outcome]:
        """Request all pairs of a chunk at once, then judge those that pass the cheap filters."""
        self.cache = out / WORK
        reasons = [self._unfit(item.data) for item in items]
        requested = [item for item, reason in zip(items, reasons, strict=True) if reason is None]
        requests = [
            question_request(item.data, item.data['type'], _seed(self.settings.seed, item.id)) for item in requested
        ]
        replies = dict(zip((item.id for item in requested), self._generator.generate(requests), strict=True))
        found = {item.id: self._first_reason(item, replies[item.id]) for item in requested}
        judged = self._judge([item for item in requested if found[item.id] is None], replies)
        outcomes = []
        for item, unfit in zip(items, reasons, strict=True):
            reason = unfit or found[item.id] or judged.get(item.id, (None, None))[0]
            usage = [reply for reply in (replies.get(item.id), judged.get(item.id, (None, None))[1]) if reply]
            outcomes.append(self._outcome(item, replies.get(item.id), reason, usage))
        return outcomes

    def _unfit(self, row: Mapping[str, Any]) -> str | None:
        reason = recording_reason(row, self.settings)
        if reason is None and len(row['text'].split()) > self.settings.max_words:
            reason = 'too_long'
        return reason or self.avoid_list.reason([row['text']], [audio_span(row)])

    def _first_reason(self, item: Item, reply: Reply) -> str | None:
        if reply.values is None:
            return 'invalid_json'
        reason = pair_reason(reply.values['question'], reply.values['answer'], item.data, self.settings)
        return reason or self.avoid_list.reason([reply.values['question']])

    def _judge(
        self, items: Sequence[Item], replies: Mapping[str, Reply]
    ) -> dict[str, tuple[str | None, Reply | None]]:
        """Whether each question can be answered from the recording (or cannot, where it must not be)."""
        settings = self.settings
        if settings.judge == 'none':
            return {}
        pairs = {item.id: replies[item.id].values or {} for item in items}
        if settings.judge == 'overlap':
            # only facts must be in the words of the recording; a question without an answer needs a reader to judge
            return {
                item.id: ('not_answerable', None)
                for item in items
                if item.data['type'] == 'factual'
                and overlap(pairs[item.id]['answer'], item.data['text']) < settings.min_overlap
            }
        requests = [
            Request(
                _TEXTS['judge'], f'Transcript: {item.data["text"]}\n\nQuestion: {pairs[item.id]["question"]}',
                ('answerable', 'answer'), _seed(settings.seed, f'judge-{item.id}'),
            )
            for item in items
        ]  # fmt: skip
        verdicts = self._generator.generate(requests)
        return {item.id: (_verdict(item, one), one) for item, one in zip(items, verdicts, strict=True)}

    def _outcome(self, item: Item, reply: Reply | None, reason: str | None, usage: Sequence[Reply]) -> Outcome:
        row, llm = item.data, self.settings.llm
        facts: dict[str, Any] = {**row_facts(row), 'question_type': row['type']}
        if usage:
            read, written = sum(r.prompt_tokens for r in usage), sum(r.completion_tokens for r in usage)
            for name in ('requests', 'retries', 'invalid'):
                facts[name] = sum(getattr(one, name) for one in usage)
            facts |= {'prompt_tokens': read, 'completion_tokens': written}
            facts['cost'] = (read * llm.price_prompt + written * llm.price_completion) / 1e6
        if reason is not None or reply is None or reply.values is None:
            said = {'raw': reply.raw} if reply and reply.raw else dict(reply.values or {}) if reply else {}
            return Outcome(item.id, item.group, None, reason or 'invalid_json', facts | said)
        rng = Random(f'{self.settings.seed}:{item.id}')
        question, answer = reply.values['question'], reply.values['answer']
        if row['type'] == 'unanswerable':
            answer = rng.choice(REFUSALS.get(row['lang'], REFUSALS['en']))
        audio = audio_turn(row['audio'], row['duration'], row['text'], row['offset'])
        text = text_turn('User', question)
        user = [audio, text] if rng.choice(_POSITIONS) else [text, audio]
        entries = [*user, text_turn('Assistant', answer)]
        custom = {'kind': self.kind, 'lang': row['lang'], 'source': row['source'], 'task': row['type']}
        line = {'id': item.id, 'conversations': entries, 'custom': custom}
        unique = f'{item.group}\n{normalize_answer(question)}'
        return Outcome(item.id, item.group, line, facts=facts, unique=unique)


def question_request(row: Mapping[str, Any], type_: str, seed: int) -> Request:
    """The request for one question of a type about one transcript."""
    lang = _TEXTS['language_names'].get(row['lang'], row['lang'])
    user = (
        f'Transcript of the recording: {row["text"]}\n\n{QUESTION_TYPES[type_]}\n'
        f'Write both in {lang}. If the transcript has no meaning that one could ask about, the question is "none".\n'
        'The JSON object has two text fields, "question" and "answer".'
    )
    return Request(_TEXTS['system'], user, ('question', 'answer'), seed)


def pair_reason(question: str, answer: str, row: Mapping[str, Any], settings: SpeechQa) -> str | None:
    """Why a pair is rejected before its answerability is judged; None if it is not."""
    text, question, answer = row['text'], question.strip(), answer.strip()
    if not question or _NO_QUESTION.match(question):
        return 'no_question'
    if not answer or _NO_QUESTION.match(answer) or answer.endswith(':'):
        return 'no_answer'
    if len(question.split()) > settings.max_question_words or len(answer.split()) > settings.max_answer_words:
        return 'pair_too_long'
    if not re.search(r'[?？]', question):
        return 'no_question'
    asked, answered, said = (normalize_answer(part) for part in (question, answer, text))
    if asked == answered or asked == said or (asked and asked in said):
        return 'copy'
    # a short answer in the words of the recording is wanted; most of a long recording said again is not
    words = len(said.split())
    if words >= 12 and (said in answered or (answered in said and len(answered.split()) > settings.max_copy * words)):
        return 'copy'
    if any(gram in _INSTRUCTIONS for part in (question, answer) for gram in ngrams(part, 5)):
        return 'echoes_instructions'
    if re.search(r'\b(transcript|transcription|the text|passage)\b', question, re.IGNORECASE):
        return 'mentions_transcript'
    if not is_language(f'{question} {answer}', row['lang']):
        return 'wrong_language'
    return None


def overlap(answer: str, text: str) -> float:
    """Share of the answer's words of more than two letters that are in the text (stems of five letters)."""
    words = [word[:5] for word in normalize_answer(answer).split() if len(word) > 2 or word.isdigit()]
    known = {word[:5] for word in normalize_answer(text).split()}
    return sum(word in known for word in words) / len(words) if words else 0.0


def _verdict(item: Item, reply: Reply) -> str | None:
    if reply.values is None:
        return 'invalid_verdict'
    answerable = reply.values['answerable'].lower().startswith('y')
    if item.data['type'] == 'unanswerable':
        return 'answerable' if answerable else None
    return None if answerable else 'not_answerable'


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f'{seed}:{name}'.encode()).digest()[:4], 'big') % 2**31
