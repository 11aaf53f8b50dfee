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


def _between(count: int, at_least: int = 0, at_most: int = 10**9) -> bool:
    return at_least <= count <= at_most


def _places(answer: str, text: str) -> int:
    """How often the words of a text stand in an answer."""
    wanted, words = ([word.lower() for word in _words(part)] for part in (text, answer))
    return sum(words[i : i + len(wanted)] == wanted for i in range(len(words) - len(wanted) + 1))


def _bullets(answer: str, at_least: int = 1, at_most: int = 10**9) -> bool:
    return _between(sum(bool(_BULLET.match(line)) for line in answer.splitlines()), at_least, at_most)


def _json(answer: str, keys: Sequence[str] = ()) -> bool:
    # a fence around it is customary
    text = re.sub(r'^```(?:json)?\s*|\s*```$', '', answer.strip())
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict | list) and (not keys or (isinstance(value, dict) and set(keys) <= value.keys()))


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


KINDS: Mapping[str, Callable[..., bool]] = {
    'upper': lambda answer: any(map(str.isalpha, answer)) and answer == answer.upper(),
    'lower': lambda answer: any(map(str.isalpha, answer)) and answer == answer.lower(),
    'words': lambda answer, **limits: _between(len(_words(answer)), **limits),
    'sentences': lambda answer, **limits: _between(len(_SENTENCE.findall(answer)), **limits),
    'bullets': _bullets,
    'json': _json,
    'includes': lambda answer, text: _places(answer, text) > 0,
    'excludes': lambda answer, text: not _places(answer, text),
    'one_of': lambda answer, texts: any(_places(answer, text) for text in texts),
    'starts': lambda answer, text: answer.lower().startswith(text.lower()),
    'ends': lambda answer, text: answer.rstrip().lower().endswith(text.lower()),
    'no_commas': lambda answer: ',' not in answer,
    'repeats': lambda answer, text, times: _places(answer, text) == times,
    'wer': _wer,
    'chrf': _chrf,
    'last_number': _last_number,
    'quoted': lambda answer: len(answer) > 2 and answer[0] == answer[-1] == '"',
}
"""Kinds of constraints: name -> check(answer, values of the constraint)."""
