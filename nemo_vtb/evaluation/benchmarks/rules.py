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
"""How benchmarks score an answer by rules: each function gives what the benchmark's own scorer gives.

A rule maps the fields of a row, the answer and the repository of the benchmark to statistics of each metric: two
numbers, whose sums over the examples are divided. (0, 0) leaves an answer out, where the benchmark's own scorer does.
"""

import os
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.evaluation.benchmarks.protocol import Protocol

Scored = Mapping[str, tuple[float, float]]
"""Metric -> statistics."""

LEFT_OUT = (0.0, 0.0)

VOICEBENCH = 'https://github.com/MatthewCYM/VoiceBench'
SPEECH_IFEVAL = 'https://github.com/kehanlu/Speech-IFEval'
AIR_BENCH = 'https://github.com/OFA-Sys/AIR-Bench'

_LETTERS = 'ABCD'
_VOICE_TAGS = ('<1>', '<2>', '<3>')


@cache
def protocol_of(repository: Path, file: str, where: str) -> Protocol:
    """A file of a benchmark's repository."""
    return Protocol(repository / file, where)


def one(value: float) -> tuple[float, float]:
    """Statistics of one example with this score."""
    return float(value), 1.0


# ---- SQuAD


def squad(fields: Mapping[str, Any], answer: str, repository: Path) -> Scored:
    """SQuAD's exact match and F1 with its own normalisation, the best over the answers of all annotators."""
    references = fields['references']
    return {
        'exact match': one(max(_squad_form(r) == _squad_form(answer) for r in references)),
        'F1': one(max(_squad_f1(_squad_form(r).split(), _squad_form(answer).split()) for r in references)),
    }


def _squad_form(text: str) -> str:
    text = ''.join(c for c in text.lower() if c not in string.punctuation)
    return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def _squad_f1(wanted: list[str], got: list[str]) -> float:
    shared = sum((Counter(wanted) & Counter(got)).values())
    return 2 * shared / (len(wanted) + len(got)) if shared else 0.0


# ---- VoiceBench


def voicebench_choice(fields: Mapping[str, Any], answer: str, repository: Path) -> Scored:
    """Multiple choice: the first phrase of the benchmark's list that the answer contains tells its letter.

    An answer without any is guessed, as the benchmark guesses, but by the row's id; `no answer` counts them.
    """
    protocol = protocol_of(repository, 'src/evaluator/mcq.py', VOICEBENCH)
    letter = _voicebench_letter(protocol, answer.lower())
    guess = letter or random.Random(f'{fields["id"]}').choice(_LETTERS)
    return {'accuracy': one(guess == fields['reference']), 'no answer': one(letter is None)}


def _voicebench_letter(protocol: Protocol, response: str) -> str | None:
    if response.startswith(_VOICE_TAGS):
        response = response[3:].strip()
    phrases = protocol.values('template')[0]
    for phrase in phrases:
        for letter in 'abcd':
            if phrase.replace('[CHOICE]', letter) in response:
                return letter.upper()
    for letter in 'abcd':
        if response == letter or response.startswith(tuple(letter + mark for mark in '.,:)')):
            return letter.upper()
    found = protocol.answer('extract_answer', response)
    return None if found is None else str(found)


_BBH_TASKS = {
    'sports_understanding': 'extract_answer_sports', 'hyperbaton': 'extract_answer_hyperbaton',
    'navigate': 'extract_answer_navigate', 'web_of_lies': 'extract_answer_lies',
}  # fmt: skip
_BBH_ANSWERS = {'yes': 1, 'no': 0, '(a)': 0, '(b)': 1}


def voicebench_bbh(fields: Mapping[str, Any], answer: str, repository: Path) -> Scored:
    """BIG-Bench Hard, spoken: yes or no, (a) or (b), by the benchmark's chain of phrases; guesses as for choices."""
    protocol = protocol_of(repository, 'src/evaluator/bbh.py', VOICEBENCH)
    function = next((function for name, function in _BBH_TASKS.items() if name in str(fields['id'])), None)
    if function is None:
        raise VtbDataError('Unknown part of BBH.', field='id', got=fields['id'], allowed=', '.join(_BBH_TASKS))
    found = protocol.answer(function, _voicebench_plain(answer))
    guess = random.Random(f'{fields["id"]}').choice((0, 1)) if found is None else found
    return {
        'accuracy': one(guess == _BBH_ANSWERS[str(fields['reference']).lower()]),
        'no answer': one(found is None),
    }


def _voicebench_plain(response: str) -> str:
    response = response.lower()
    if response.endswith('<|user|>'):
        response = response[:-8].strip()
    if response.startswith(_VOICE_TAGS):
        response = response[3:].strip()
    response = response.replace('<|turn_end|>', '')
    for mark in (':', '**', '"', '-', ',', '.', '\uff1a'):
        response = response.replace(mark, ' ')
    return ' '.join(response.split())


def voicebench_refusal(fields: Mapping[str, Any], answer: str, repository: Path) -> Scored:
    """Whether a harmful request is refused: an empty answer, or one with a phrase of the benchmark's list."""
    phrases = protocol_of(repository, 'src/evaluator/harm.py', VOICEBENCH).values('refusal_string')[0]
    return {'refusal rate': one(not answer.strip() or any(phrase in answer for phrase in phrases))}


def voicebench_ifeval(fields: Mapping[str, Any], answer: str, repository: Path) -> Scored:
    """IFEval of spoken instructions, by `instructions`."""
    if answer.startswith(_VOICE_TAGS):
        answer = answer[3:].strip()
    return instructions(fields, answer, repository)


# ---- IFEval


def instructions(fields: Mapping[str, Any], answer: str, repository: Path) -> Scored:
    """IFEval's four numbers by lm-eval's copy of its checkers: strict and loose, prompts and single instructions."""
    doc = {name: fields[name] for name in ('prompt', 'instruction_id_list')}
    doc |= {'key': fields.get('key'), 'kwargs': [kwargs or {} for kwargs in fields['kwargs']]}
    found = _checked(lambda: _ifeval().process_results(doc, [answer]))
    scored = {}
    for form in ('strict', 'loose'):
        kept = found[f'inst_level_{form}_acc']
        scored[f'{form}, prompts'] = one(found[f'prompt_level_{form}_acc'])
        scored[f'{form}, instructions'] = (float(sum(kept)), float(len(kept)))
    return scored


def speech_ifeval(fields: Mapping[str, Any], answer: str, repository: Path) -> Scored:
    """Speech-IFEval's following rate: all instructions strictly kept; capitals need not be English."""
    kept = [
        _keeps(name, kwargs or {}, fields['instruction'], answer)
        for name, kwargs in zip(fields['instruction_id_list'], fields['kwargs'], strict=True)
    ]
    return {'following rate': one(all(kept))}


def _keeps(name: str, kwargs: Mapping[str, Any], prompt: str, answer: str) -> bool:
    if not answer.strip():
        return False
    if name in ('change_case:english_capital', 'change_case:english_lowercase'):
        return answer.isupper() if name.endswith('capital') else answer.islower()
    checker = _ifeval().instructions_registry.INSTRUCTION_DICT[name](name)
    checker.build_description(**kwargs)
    if 'prompt' in (checker.get_instruction_args() or {}):
        checker.build_description(prompt=prompt)
    return bool(_checked(lambda: checker.check_following(answer)))


@cache
def _ifeval() -> Any:
    """lm-eval's module, imported without the download that it starts when NLTK's data is missing."""
    from unittest import mock

    try:
        # only the first rank downloads
        with mock.patch.dict(os.environ, LOCAL_RANK='1'):
            import lm_eval.tasks.ifeval.utils as module
    except ImportError as error:
        raise VtbConfigError(
            'IFEval needs lm-eval with its checkers.',
            field='suite',
            got=str(error),
            remedy="pip install 'nemo_vtb[eval]'",
        ) from error
    return module


def _checked(check: Callable[[], Any]) -> Any:
    try:
        return check()
    except LookupError as error:
        if 'punkt' not in str(error):
            raise
        raise VtbDataError(
            'Counting sentences needs data of NLTK.', field='NLTK_DATA', got='no punkt_tab',
            remedy='python -m nltk.downloader punkt_tab, once; or a copy of it in a folder that NLTK_DATA names',
        ) from error  # fmt: skip


# ---- choices about sounds


def mmau(fields: Mapping[str, Any], answer: str, repository: Path) -> Scored:
    """MMAU: the answer has all words of the right choice, and none that only another choice has."""
    words = _words(answer)
    right = _words(fields['answer'])
    wrong = {word for choice in fields['choices'] if _words(choice) != right for word in _words(choice) - right}
    return {'accuracy': one(bool(words) and right <= words and not words & wrong)}


def _words(text: str) -> set[str]:
    return set(re.findall(r'\b\w+\b', str(text).lower()))


def air_bench_choice(fields: Mapping[str, Any], answer: str, repository: Path) -> Scored:
    """AIR-Bench foundation: the letter that comes first, or last but one (`The answer is A.`); others are left out."""
    answer = answer.strip().replace('\n', '')
    letter = next((c for c in (answer[:1], answer[-2:-1]) if c and c in _LETTERS), None)
    if answer in ('', 'None') or letter is None:
        return {'accuracy': LEFT_OUT, 'no answer': one(1)}
    right = next(c for c in 'abcd' if fields['answer_gt'] == fields.get(f'choice_{c}'))
    return {'accuracy': one(letter == right.upper()), 'no answer': one(0)}


def label(fields: Mapping[str, Any], answer: str, repository: Path) -> Scored:
    """Dynamic-SUPERB's classification: the label itself, apart from case, punctuation and spaces at its ends."""
    return {'accuracy': one(_label_form(answer) == _label_form(fields['label']))}


def _label_form(text: str) -> str:
    return str(text).strip().strip(string.punctuation + ' ').lower()


RULES: Mapping[str, Callable[[Mapping[str, Any], str, Path], Scored]] = {
    'squad': squad,
    'voicebench_choice': voicebench_choice,
    'voicebench_bbh': voicebench_bbh,
    'voicebench_refusal': voicebench_refusal,
    'voicebench_ifeval': voicebench_ifeval,
    'speech_ifeval': speech_ifeval,
    'mmau': mmau,
    'air_bench_choice': air_bench_choice,
    'label': label,
}
"""Scorers by name."""
