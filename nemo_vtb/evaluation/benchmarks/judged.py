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
"""Benchmarks whose answers a language model judges, with the benchmark's own prompt, which its repository holds.

Before it is relied on, the judge is tried on an answer that is right and one that is wrong (ADR 0038).
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_vtb.errors import VtbDataError
from nemo_vtb.evaluation.answers import AnswerCache
from nemo_vtb.evaluation.benchmarks.measures import ATTRIBUTES
from nemo_vtb.evaluation.benchmarks.rules import (
    AIR_BENCH,
    LEFT_OUT,
    SPEECH_IFEVAL,
    VOICEBENCH,
    Scored,
    one,
    protocol_of,
)
from nemo_vtb.evaluation.benchmarks.rules import air_bench_choice as _air_bench_choice
from nemo_vtb.evaluation.judge import Judge, ask_each, reply_of
from nemo_vtb.factory.endpoint import Endpoint

Fields = Mapping[str, Any]
Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Verdicts:
    """How a benchmark asks its judge, and what it makes of the replies.

    Args:
        requests: (fields, answer, repository) -> the conversations that the judge gets, one request each.
        scored: (fields, the judge's replies) -> statistics; replies without the form leave the answer out.
        sampling: Temperature and so on of the benchmark's own requests.
        control: Fields, a right and a wrong answer, whose verdicts are known.
        copies: How often each request is sent, where the benchmark samples several replies.
    """

    requests: Callable[[Fields, str, Path], Sequence[Sequence[Message]]]
    scored: Callable[[Fields, Sequence[str]], Scored]
    sampling: Mapping[str, Any]
    control: tuple[Fields, str, str]
    copies: int = 1


def _filled(text: str, **values: Any) -> str:
    """A prompt of a benchmark with its fields; other braces stay."""
    return re.sub(r'\{(\w+)\}', lambda match: str(values.get(match[1], match[0])), text)


def _user(*texts: str) -> list[Message]:
    roles = ('user',) if len(texts) == 1 else ('system', 'user')
    return [{'role': role, 'content': text} for role, text in zip(roles, texts, strict=True)]


# ---- VoiceBench

_ASSISTANT = "You are a helpful assistant who tries to help answer the user's question."
_QUESTION: Fields = {'prompt': 'What is the capital of France?', 'reference': 'Paris'}


def _voicebench(name: str) -> Callable[[Fields, str, Path], Sequence[Sequence[Message]]]:
    def requests(fields: Fields, answer: str, repository: Path) -> Sequence[Sequence[Message]]:
        prompt = protocol_of(repository, 'api_judge.py', VOICEBENCH).values(name)[0]
        values = {'prompt': fields['prompt'], 'reference': fields.get('reference', ''), 'response': answer}
        return [_user(_ASSISTANT, _filled(prompt, **values))]

    return requests


def _rating(fields: Fields, replies: Sequence[str]) -> Scored:
    found = [re.search(r'\[\[(\d+)\]\]', r) or re.fullmatch(r'\s*(\d+(?:\.\d+)?)\s*', r) for r in replies]
    ratings = [float(match[1]) for match in found if match]
    return {'rating (1 to 5)': one(sum(ratings) / len(ratings)) if ratings else LEFT_OUT}


def _yes(fields: Fields, replies: Sequence[str]) -> Scored:
    """What most of the replies say."""
    said = Counter(reply.strip().lower() for reply in replies if reply)
    return {'judged correct': one(max(said, key=lambda word: said[word]) == 'yes') if said else LEFT_OUT}


# ---- Speech-IFEval


def _reasoning(fields: Fields, answer: str, repository: Path) -> Sequence[Sequence[Message]]:
    protocol = protocol_of(repository, 'script/llm_evaluation.py', SPEECH_IFEVAL)
    # three kinds of answers are judged there; reasoning is the last
    system, content = protocol.values('system_prompt')[-1], protocol.values('content')[-1]
    return [_user(system, _filled(content, instruction=fields['instruction'], model_response=answer))]


def _result(fields: Fields, replies: Sequence[str]) -> Scored:
    found = re.search(r'(?i)(?<=result:\s)(yes|no)', replies[0])
    return {'following rate': one(found[0].lower() == 'yes') if found else LEFT_OUT}


# ---- AIR-Bench


def _air_bench(fields: Fields, answer: str, repository: Path) -> Sequence[Sequence[Message]]:
    """Both orders: the reference first, and second, since a judge prefers one of two places."""
    prompt = str(protocol_of(repository, 'score_chat.py', AIR_BENCH).values('system_prompt')[0])
    pairs = ((fields['answer_gt'], answer), (answer, fields['answer_gt']))
    return [
        _user(
            prompt.replace('XAudioX', str(fields['meta_info'])).replace('XQuestionX', fields['question'])
            .replace('XAssistant1X', first).replace('XAssistant2X', second)
        )
        for first, second in pairs
    ]  # fmt: skip


def _two_scores(fields: Fields, replies: Sequence[str]) -> Scored:
    pairs = [re.fullmatch(r'\s*(\d+) (\d+)\s*', reply) for reply in replies]
    if not all(pair and max(int(pair[1]), int(pair[2])) <= 10 for pair in pairs):
        return {'score (1 to 10)': LEFT_OUT, 'score of the reference': LEFT_OUT, 'win rate': LEFT_OUT}
    (first, second) = ([int(pair[1]), int(pair[2])] for pair in pairs if pair)
    ours, theirs = (first[1], second[0]), (first[0], second[1])
    return {
        'score (1 to 10)': (float(sum(ours)), 2.0),
        'score of the reference': (float(sum(theirs)), 2.0),
        'win rate': (float(sum(a > b for a, b in zip(ours, theirs, strict=True))), 2.0),
    }


def _align(fields: Fields, answer: str, repository: Path) -> Sequence[Sequence[Message]]:
    protocol = protocol_of(repository, 'align_in_foundation.py', AIR_BENCH)
    text = str(protocol.values('system_prompt')[0]).replace('ANSWER', answer).replace('QUESTION', fields['question'])
    letters = 'abcd' if fields.get('choice_c') is not None and fields.get('choice_d') is not None else 'ab'
    options = [f'{letter.upper()}. {fields[f"choice_{letter}"]}' for letter in letters]
    return [_user('\n'.join([text, *options, str(protocol.values('attention')[0])]))]


def _aligned(fields: Fields, replies: Sequence[str]) -> Scored:
    return _air_bench_choice(fields, replies[0], Path())


_CLIP: Fields = {
    'question': 'What animal is heard?', 'answer_gt': 'A dog that barks.', 'meta_info': 'A dog barks twice.',
}  # fmt: skip
_SAMPLED = {'temperature': 0.5, 'top_p': 0.95, 'max_tokens': 1024}

VERDICTS: Mapping[str, Verdicts] = {
    'voicebench_open': Verdicts(
        _voicebench('meta_prompt_open'), _rating, _SAMPLED,
        (_QUESTION, 'The capital of France is Paris.', 'Bananas are yellow.'), copies=3,
    ),
    'voicebench_qa': Verdicts(
        _voicebench('meta_prompt_qa'), _yes, _SAMPLED, (_QUESTION, 'Paris it is.', 'Berlin.'),
        copies=3,
    ),
    'speech_ifeval_reasoning': Verdicts(
        _reasoning, _result, {},
        (
            {'instruction': 'Is the speaker a man or a woman?\nThink step by step.'},
            'First, the pitch is low. Second, the voice is deep. Both are usual for men. So: a man.', 'Man',
        ),
    ),
    'air_bench_chat': Verdicts(
        _air_bench, _two_scores,
        {'temperature': 1.0, 'max_tokens': 1024}, (_CLIP, 'A dog barks.', 'A piano plays.'),
    ),
    'air_bench_choice': Verdicts(
        _align, _aligned, {'temperature': 1.0, 'max_tokens': 1024},
        (
            {'question': 'What is heard?', 'choice_a': 'a dog', 'choice_b': 'a piano', 'answer_gt': 'a dog'},
            'It is a dog.', 'It is a piano.',
        ),
    ),
}  # fmt: skip
"""Judged scorers by name."""


def ask_all(
    judge: Judge,
    requests: Sequence[Sequence[Message]],
    cache: AnswerCache,
    sampling: Mapping[str, Any],
    copies: int = 1,
) -> list[str]:
    """The judge's replies, in order, those to copies of a request one after the other.

    Args:
        judge: The judge.
        requests: Conversations.
        cache: Keeps replies.
        sampling: Of the benchmark; what the configuration of the judge leaves out (null) is not sent.
        copies: How often each request is sent.

    Returns:
        '' for what the server refuses: too long, or filtered.

    Raises:
        VtbDataError: The server does not answer, or refuses everything; replies so far are kept.
    """
    sent = {k: v for k, v in sampling.items() if getattr(judge, k, v) is not None}

    def key_of(question: tuple[Sequence[Message], int]) -> str:
        return AnswerCache.key('benchmark judge', judge.model, sent, *question)

    async def ask(endpoint: Endpoint, client: Any, question: tuple[Sequence[Message], int]) -> str:
        body = {'model': judge.model, 'messages': [dict(m) for m in question[0]], **sent}
        response, _ = await endpoint.post(client, 'chat/completions', body)
        return reply_of(response)[0]

    questions = [(messages, copy) for messages in requests for copy in range(copies)]
    replies = ask_each(judge, questions, key_of, ask, cache)
    return ['' if isinstance(reply, VtbDataError) else reply for reply in replies]


def judge_answers(
    name: str, rows: Sequence[tuple[Fields, str]], judge: Judge, cache: AnswerCache, repository: Path
) -> list[Scored]:
    """Statistics of answers by the benchmark's judge.

    Args:
        name: Out of `VERDICTS`.
        rows: Fields and answer of each example.
        judge: The judge.
        cache: Keeps replies.
        repository: The benchmark's.

    Raises:
        VtbDataError: The prompts cannot be read, or the judge does not answer.
    """
    verdicts = VERDICTS[name]
    asked = [verdicts.requests(fields, answer, repository) for fields, answer in rows]
    requests = [request for part in asked for request in part]
    replies = iter(ask_all(judge, requests, cache, verdicts.sampling, verdicts.copies))
    return [
        verdicts.scored(fields, [next(replies) for _ in range(verdicts.copies * len(part))])
        for (fields, _), part in zip(rows, asked, strict=True)
    ]


def missed_verdicts(name: str, judge: Judge, cache: AnswerCache, repository: Path) -> list[str]:
    """The known verdicts of a benchmark that a judge misses, asked before the model answers anything; [] if none.

    Raises:
        VtbDataError: The prompts cannot be read, or the judge does not answer.
    """
    verdicts = VERDICTS[name]
    fields, right, wrong = verdicts.control
    found = judge_answers(name, [(fields, right), (fields, wrong)], judge, cache, repository)
    good, bad = (scored[ATTRIBUTES[name][0]] for scored in found)
    if not good[1] or not bad[1]:
        return ['a verdict without the form']
    return [] if good[0] / good[1] > bad[0] / bad[1] else ['a wrong answer is judged no worse than a right one']
