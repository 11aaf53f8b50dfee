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
"""Answers that a program can check, in the manner of IFEval: `{'kind': 'upper'}`, `{'kind': 'words', 'at_most': 5}`.

Shared by the typed instructions of the text suite, the spoken ones, and the suite of emergent abilities.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nemo_vtb.errors import VtbDataError

_BULLET = re.compile(r'^\s*([-*•]|\d+[.)])\s+\S')
_SENTENCE = re.compile(r'[^.!?]*[\w)"\'][^.!?]*[.!?]')

_SMALL = (
    'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen '
    'eighteen nineteen'
).split()
_TENS = 'twenty thirty forty fifty sixty seventy eighty ninety'.split()


def follows(answer: str, constraints: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an answer satisfies every constraint; an empty one satisfies none.

    Raises:
        VtbDataError: A constraint is of an unknown kind or lacks a value.
    """
    answer = answer.strip()
    return bool(answer) and all(_check(answer, dict(constraint)) for constraint in constraints)


def _check(answer: str, constraint: dict[str, Any]) -> bool:
    kind = constraint.pop('kind', None)
    if kind not in KINDS:
        raise VtbDataError('Unknown constraint.', field='kind', got=kind, allowed=', '.join(sorted(KINDS)))
    try:
        return bool(KINDS[kind](answer, **constraint))
    except TypeError as error:
        raise VtbDataError('A constraint has wrong values.', field=kind, got=f'{constraint}: {error}') from error


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’]\w+)*", text)


def _upper(answer: str) -> bool:
    return any(c.isalpha() for c in answer) and answer == answer.upper()


def _lower(answer: str) -> bool:
    return any(c.isalpha() for c in answer) and answer == answer.lower()


def _count_words(answer: str, at_least: int = 0, at_most: int = 10**9) -> bool:
    return at_least <= len(_words(answer)) <= at_most


def _count_sentences(answer: str, at_least: int = 0, at_most: int = 10**9) -> bool:
    return at_least <= len(_SENTENCE.findall(answer)) <= at_most


def _bullets(answer: str, at_least: int = 1, at_most: int = 10**9) -> bool:
    return at_least <= sum(bool(_BULLET.match(line)) for line in answer.splitlines()) <= at_most


def _json(answer: str, keys: Sequence[str] = ()) -> bool:
    # a fence around it is customary
    text = re.sub(r'^```(?:json)?\s*|\s*```$', '', answer.strip())
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict | list) and (not keys or (isinstance(value, dict) and set(keys) <= value.keys()))


def _includes(answer: str, text: str) -> bool:
    wanted, words = [w.lower() for w in _words(text)], [w.lower() for w in _words(answer)]
    return any(words[i : i + len(wanted)] == wanted for i in range(len(words) - len(wanted) + 1))


def _one_of(answer: str, texts: Sequence[str]) -> bool:
    return any(_includes(answer, text) for text in texts)


def _wer(answer: str, text: str, at_most: float, lang: str = 'en') -> bool:
    from nemo_vtb.evaluation.metrics import error_rate

    # The clip says: "...": a sentence around the transcript is no error of hearing
    candidates = (answer, *re.findall(r'["“„«]([^"“”„«»]+)["”“»]', answer))
    return min(error_rate(lang).of(text, candidate) for candidate in candidates) <= at_most


def _chrf(answer: str, text: str, at_least: float, unlike: str = '') -> bool:
    from nemo_vtb.evaluation.metrics import chrf_of

    value = chrf_of().of(text, answer)
    # between related languages an untranslated sentence is not far from the translation
    return value >= at_least and (not unlike or value > chrf_of().of(unlike, answer))


def _last_number(answer: str, value: int) -> bool:
    numbers = _numbers(answer)
    return bool(numbers) and numbers[-1] == value


def _numbers(text: str) -> list[float]:
    """Numbers in digits and, up to ninety-nine, in English words."""
    found: list[float] = []
    tens = False  # whether the word before was one of twenty ... ninety
    for word in re.findall(r'\d+(?:\.\d+)?|[a-z]+', text.lower()):
        if word in _SMALL and tens and 0 < _SMALL.index(word) < 10:
            found[-1] += _SMALL.index(word)
        elif word in _SMALL:
            found.append(_SMALL.index(word))
        elif word in _TENS:
            found.append(10 * (_TENS.index(word) + 2))
        elif word[0].isdigit():
            found.append(float(word))
        tens = word in _TENS
    return found


def _repeats(answer: str, text: str, times: int) -> bool:
    wanted = [w.lower() for w in _words(text)]
    words = [w.lower() for w in _words(answer)]
    hits = sum(words[i : i + len(wanted)] == wanted for i in range(len(words) - len(wanted) + 1))
    return hits == times


KINDS: Mapping[str, Callable[..., bool]] = {
    'upper': _upper,
    'lower': _lower,
    'words': _count_words,
    'sentences': _count_sentences,
    'bullets': _bullets,
    'json': _json,
    'includes': _includes,
    'excludes': lambda answer, text: not _includes(answer, text),
    'one_of': _one_of,
    'starts': lambda answer, text: answer.lower().startswith(text.lower()),
    'ends': lambda answer, text: answer.rstrip().lower().endswith(text.lower()),
    'no_commas': lambda answer: ',' not in answer,
    'repeats': _repeats,
    'wer': _wer,
    'chrf': _chrf,
    'last_number': _last_number,
    'quoted': lambda answer: len(answer) > 2 and answer[0] == answer[-1] == '"',
}
"""Kinds of constraints: name -> check(answer, values of the constraint)."""
