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
"""What is wrong with answers whatever their scores say: empty, endless, copied, in another language, all the same."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from nemo_vtb.data.normalizers import normalize_answer
from nemo_vtb.evaluation.result import Metric, Sample
from nemo_vtb.evaluation.task import Example
from nemo_vtb.factory.language import is_language

SYMPTOMS = {
    'empty': 'It answers nothing',
    'endless repetition': 'It repeats itself without end',
    'copy of the prompt': 'It repeats the prompt',
    'another language': 'It answers in another language',
    'one answer to all': 'It gives different recordings one answer',
}
"""Name of a symptom, and how a verdict says it."""

_LOOP = re.compile(r'(.{1,60}?)\1{3,}', re.DOTALL)
_LOOP_CHARS = 16
_COPY_WORDS = 2
# one answer may be right for a few examples
_SAME = 0.5


def symptom_metrics(samples: Sequence[Sample], examples: Mapping[tuple[str, str, str], Example]) -> list[Metric]:
    """The share of answers with each symptom, of every task with answers; those without any are left out.

    Args:
        samples: All answers.
        examples: (suite, task, id) -> what was asked.
    """
    found = []
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.suite, sample.task), []).append(sample)
    for (suite, task), group in groups.items():
        asked = [examples[s.suite, s.task, s.id] for s in group]
        counts = {name: sum(has(s, e) for s, e in zip(group, asked, strict=True)) for name, has in _CHECKS.items()} | {
            'one answer to all': _same(group)
        }
        title = task if suite == 'speech' else f'{suite}: {task}'
        found += [
            Metric('symptoms', title, '', name, len(group), 100 * count / len(group), higher_is_better=False)
            for name, count in counts.items()
            if count
        ]
    return found


def is_endless(text: str) -> bool:
    """Whether most of a text is one piece over and over."""
    loop = max(_LOOP.finditer(text), key=lambda m: len(m[0]), default=None)
    return loop is not None and len(loop[0].strip()) >= max(_LOOP_CHARS, len(text) / 2)


def _endless(sample: Sample, example: Example) -> bool:
    return is_endless(sample.hypothesis) and not any(map(is_endless, example.references))


def _copied(sample: Sample, example: Example) -> bool:
    asked, answer = normalize_answer(example.prompt.turns[-1].text), normalize_answer(sample.hypothesis)
    if len(asked.split()) < _COPY_WORDS or any(asked in normalize_answer(r) for r in example.references):
        return False
    return asked in answer


def _foreign(sample: Sample, example: Example) -> bool:
    known = [r for r in example.references if is_language(r, example.lang)]
    return bool(known) and not is_language(sample.hypothesis, example.lang)


def _same(group: Sequence[Sample]) -> int:
    """Answers equal to the commonest one, where that is half of them and the references differ."""
    heard = [s for s in group if s.audios and s.hypothesis.strip()]
    if len(heard) < 3:
        return 0
    [(answer, count)] = Counter(normalize_answer(s.hypothesis) for s in heard).most_common(1)
    wanted = {normalize_answer(s.reference) for s in heard if normalize_answer(s.hypothesis) == answer}
    return count if count >= _SAME * len(heard) and len(wanted) > count / 2 else 0


_CHECKS: Mapping[str, Callable[[Sample, Example], bool]] = {
    'empty': lambda sample, _: not sample.hypothesis.strip(),
    'endless repetition': _endless,
    'copy of the prompt': _copied,
    'another language': _foreign,
}
