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
"""A task without a model: statistics add up to corpus metrics, groups are drawn together, pairs are tested."""

from collections.abc import Sequence

import numpy as np
import pytest

from nemo_vtb.data.conversation import Conversation, Text, Turn
from nemo_vtb.errors import VtbDataError
from nemo_vtb.evaluation.metrics import (
    EXACT_MATCH,
    Measure,
    aggregate,
    bleu_of,
    compare_pairs,
    corpus,
    error_rate,
    scored,
)
from nemo_vtb.evaluation.result import Metric
from nemo_vtb.evaluation.scoring import figure_of
from nemo_vtb.evaluation.task import Context, Example, Task

REFERENCES = ['turn on the lamp', 'the cat sat on the mat', 'yes']
ANSWERS = ['turn on lamp', 'a cat sat on the mat', 'no no no']


class Repeat(Task):
    suite, name, metrics = 'mine', 'repeat', ('WER',)

    def examples(self, context: Context) -> Sequence[Example]:
        prompt = Conversation('c', (Turn('user', (Text('Say it.'),)),), 'text', 'mine')
        return [Example(str(i), prompt, (r,)) for i, r in enumerate(REFERENCES)][: context.limit]

    def measures(self, examples: Sequence[Example]) -> Sequence[Measure]:
        return [error_rate(examples[0].lang)]


def test_scores_of_examples_add_up_to_the_corpus() -> None:
    task = Repeat()
    examples = task.examples(Context())
    rows = [task.score(e, a)['WER'] for e, a in zip(examples, ANSWERS, strict=True)]
    assert rows == [(1.0, 4.0), (1.0, 6.0), (3.0, 1.0)]
    assert aggregate(task.measures(examples)[0], rows) == corpus(error_rate(), REFERENCES, ANSWERS)
    assert len(task.examples(Context(limit=2))) == 2


def test_bleu_is_tested_in_pairs() -> None:
    measure = bleu_of('en')
    ours = [measure.statistics((r,), a) for r, a in zip(REFERENCES * 9, REFERENCES * 9, strict=True)]
    base = [measure.statistics((r,), a) for r, a in zip(REFERENCES * 9, ANSWERS * 9, strict=True)]
    found = compare_pairs(measure, ours, base)
    assert found.base == corpus(measure, REFERENCES * 9, ANSWERS * 9).value
    assert found.change == pytest.approx(100 - found.base) and found.p < 0.01
    assert compare_pairs(measure, base, base).p == 1.0


def test_examples_of_a_group_are_drawn_together() -> None:
    hits = [EXACT_MATCH.statistics(('a',), 'a' if i < 20 else 'b') for i in range(40)]
    alone = aggregate(EXACT_MATCH, hits)
    grouped = aggregate(EXACT_MATCH, hits, [i // 10 for i in range(40)])
    assert alone.value == grouped.value == 50 and grouped.n == 40
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_two_models_of_equal_means_differ_by_chance_alone() -> None:
    draws = np.random.default_rng(0).random((2, 50))
    a, b = ([(x, 1.0) for x in row] for row in draws)
    assert compare_pairs(EXACT_MATCH, a, b).p > 0.05
    assert compare_pairs(EXACT_MATCH, [(x + 0.5, 1.0) for x, _ in b], b).p < 0.01


def test_what_is_left_out_is_counted() -> None:
    rating = scored('rating', unit='', signature='judge m', nothing='No answer could be scored.')
    name = Metric('mine', 'open', 'x', '', 3, None)
    found = figure_of(name, rating, [(4.0, 1.0), (0.0, 0.0), (3.0, 1.0)])
    assert (found.n, found.value, found.signature) == (2, 3.5, 'judge m, 1 left out')
    # the parts of a recording are scored in the last one
    found = figure_of(name, rating, [(0.0, 0.0), (4.0, 1.0), (3.0, 1.0)], ['call', 'call', 'other'])
    assert (found.n, found.value, found.signature) == (2, 3.5, 'judge m')
    with pytest.raises(VtbDataError, match='No answer could be scored'):
        figure_of(name, rating, [(0.0, 0.0)] * 2)
