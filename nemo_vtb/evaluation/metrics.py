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
"""Metrics made of statistics that add up over examples, with seeded intervals and paired tests.

An example contributes a few numbers (errors and words, n-gram counts, a hit and 1); the value is a function of their
sums. So a corpus metric, its bootstrap over examples and the test of two models on the same examples are one thing.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np

from nemo_vtb.data.normalizers import get_normalizer, normalize_answer, normalizer_for
from nemo_vtb.errors import VtbDataError

Statistics = tuple[float, ...]
"""What one example contributes to a metric."""

RESAMPLES = 1000
SWAPS = 1000
_FLIPS = 10_000
# chrF has 18 counts for each example and a slow formula
CHRF_RESAMPLES = 200
_LONG_WORDS = 12
_BLEU_TOKENIZERS = {'zh': 'zh', 'yue': 'zh', 'ja': 'char', 'ko': 'char', 'th': 'char', 'lo': 'char', 'my': 'char'}

Interval = tuple[float | None, float | None]
"""Lower and upper end of a 95 % interval; None where there is none."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric: what an example contributes, and the value of the sums.

    Args:
        name: As in 'WER'.
        statistics: (references, answer) -> what this example contributes, (K,).
        value: Sums over examples (K,) -> the value.
        higher_is_better: Its direction.
        unit: '%' or ''.
        signature: What another person needs to reproduce it: normaliser, tokeniser, version.
        resamples: How often the bootstrap draws.
        nothing: What is said where the second sums are 0, as there is nothing to divide by; '' where that may be.
    """

    name: str
    statistics: Callable[[Sequence[str], str], Statistics]
    value: Callable[[np.ndarray], float]
    higher_is_better: bool = True
    unit: str = '%'
    signature: str = ''
    resamples: int = RESAMPLES
    nothing: str = ''

    def of(self, reference: str, answer: str) -> float:
        """The value of one answer."""
        return self.value(np.asarray(self.statistics((reference,), answer), dtype=float))


@dataclass(frozen=True, slots=True)
class Score:
    """The value of a metric over examples, with its interval.

    Args:
        metric: Name, such as 'WER'.
        value: The number.
        low: Lower end of the 95 % interval, None where there is none.
        high: Upper end.
        n: Examples.
        higher_is_better: Its direction.
        signature: As of `Measure`.
    """

    metric: str
    value: float
    low: float | None
    high: float | None
    n: int
    higher_is_better: bool
    signature: str


@dataclass(frozen=True, slots=True)
class Paired:
    """Two models on the same examples: value of the other one, difference, its interval and the p-value of chance."""

    base: float
    change: float
    interval: Interval
    p: float


def aggregate(measure: Measure, rows: Sequence[Statistics], groups: Sequence[Hashable] | None = None) -> Score:
    """The value over examples, and its interval.

    Args:
        measure: The metric.
        rows: Statistics of the examples, (n, K).
        groups: Of the examples; those of one group (a speaker, a recording, a dialogue) are drawn together. None draws
            each by itself.

    Raises:
        VtbDataError: No example, or nothing in them to score.
    """
    if not len(rows):
        raise VtbDataError('A metric needs at least one example.', field=measure.name, got=0)
    sums = _grouped(rows, groups)
    if measure.nothing and sums[:, 1].sum() <= 0:
        raise VtbDataError(measure.nothing, field=measure.name, got=f'{len(rows)} examples')
    low, high = bootstrap_interval(
        lambda chosen: measure.value(sums[chosen].sum(0)), len(sums), resamples=measure.resamples
    )
    value = measure.value(sums.sum(0))
    return Score(measure.name, value, low, high, len(rows), measure.higher_is_better, measure.signature)


def compare_pairs(
    measure: Measure,
    ours: Sequence[Statistics],
    base: Sequence[Statistics],
    groups: Sequence[Hashable] | None = None,
) -> Paired:
    """Two models on the same examples, drawn and swapped together.

    Args:
        measure: The metric.
        ours: Statistics of one model, (n, K).
        base: Those of the other one, in the same order.
        groups: As of `aggregate`.

    Raises:
        VtbDataError: Lists of different lengths, or none.
    """
    _check_pairs(measure.name, base, ours)
    a, b = _grouped(ours, groups), _grouped(base, groups)

    def change(chosen: Any) -> float:
        return measure.value(a[chosen].sum(0)) - measure.value(b[chosen].sum(0))

    interval = bootstrap_interval(change, len(a), resamples=measure.resamples)
    everything = np.arange(len(a))
    return Paired(measure.value(b.sum(0)), change(everything), interval, _p_value(measure, a, b))


def _p_value(measure: Measure, a: np.ndarray, b: np.ndarray) -> float:
    """How often chance alone, swapping the two models in each example, makes a difference as large."""
    if a.shape[1] == 2 and np.array_equal(a[:, 1], b[:, 1]) and len(set(a[:, 1])) == 1:  # a mean
        return paired_p_value(a[:, 0].tolist(), b[:, 0].tolist())
    if np.array_equal(a, b):
        return 1.0
    swapped = np.random.default_rng(0).integers(0, 2, (SWAPS, len(a)))
    seen = abs(measure.value(a.sum(0)) - measure.value(b.sum(0))) - 1e-12
    ours, base = a.sum(0) + swapped @ (b - a), b.sum(0) + swapped @ (a - b)
    hits = sum(abs(measure.value(x) - measure.value(y)) >= seen for x, y in zip(ours, base, strict=True))
    return (hits + 1) / (SWAPS + 1)


def _grouped(rows: Sequence[Statistics], groups: Sequence[Hashable] | None) -> np.ndarray:
    matrix = np.asarray(rows, dtype=float)
    if groups is None or len(set(groups)) == len(groups):
        return matrix
    numbers = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    sums = np.zeros((len(numbers), matrix.shape[1]))
    np.add.at(sums, [numbers[group] for group in groups], matrix)
    return sums


def corpus(measure: Measure, references: Sequence[str], hypotheses: Sequence[str]) -> Score:
    """A metric on lists of references and answers.

    Raises:
        VtbDataError: Lists of different lengths, or nothing to score.
    """
    _check_pairs(measure.name, references, hypotheses)
    return aggregate(measure, [measure.statistics((r,), h) for r, h in zip(references, hypotheses, strict=True)])


# ---- recognition


@cache
def error_rate(lang: str = 'en', normalizer: str | None = None, metric: str = 'WER') -> Measure:
    """Word (or character) error rate: wrong, missing and added ones over those of all references.

    Args:
        lang: Language code; decides the normaliser.
        normalizer: Name of a normaliser instead.
        metric: 'WER' or 'CER'.

    Raises:
        VtbConfigError: Unknown normaliser.
    """
    import jiwer

    name = normalizer or normalizer_for(lang)
    normalize = get_normalizer(name)
    process = jiwer.process_words if metric == 'WER' else jiwer.process_characters

    def statistics(references: Sequence[str], answer: str) -> Statistics:
        reference, hypothesis = normalize(references[0]), normalize(answer)
        if not reference.strip():
            # jiwer refuses an empty reference; all that was recognised is then too much
            return (float(len(hypothesis.split()) if metric == 'WER' else len(hypothesis)), 0.0)
        out = process(reference, hypothesis)
        return (
            float(out.substitutions + out.deletions + out.insertions),
            float(out.hits + out.substitutions + out.deletions),
        )

    return Measure(
        metric, statistics, percent, False, '%', f'jiwer {version("jiwer")}, normaliser {name}',
        nothing='All references are empty after normalisation.',
    )  # fmt: skip


# ---- translation


@cache
def bleu_of(lang: str = 'en') -> Measure:
    """Corpus BLEU by sacrebleu with its signature; `lang` of the target decides the tokeniser."""
    from sacrebleu.metrics import BLEU

    tokenizer = _BLEU_TOKENIZERS.get(re.split(r'[-_]', lang.lower())[0], '13a')
    return _sacrebleu('BLEU', BLEU(tokenize=tokenizer), RESAMPLES)


@cache
def chrf_of() -> Measure:
    """Corpus chrF by sacrebleu with its signature."""
    from sacrebleu.metrics import CHRF

    return _sacrebleu('chrF', CHRF(), CHRF_RESAMPLES)


def _sacrebleu(name: str, metric: Any, resamples: int) -> Measure:
    def statistics(references: Sequence[str], answer: str) -> Statistics:
        # what sacrebleu itself adds up over segments
        [counts] = metric._extract_corpus_statistics([answer], [[r] for r in references])
        return tuple(float(c) for c in counts)

    def value(sums: np.ndarray) -> float:
        return float(metric._compute_score_from_stats([round(s) for s in sums]).score)

    # the signature of a metric that has scored nothing lacks the number of references
    metric.corpus_score(['a'], [['a']])
    return Measure(name, statistics, value, True, '', str(metric.get_signature()), resamples)


# ---- answers


def percent(sums: np.ndarray) -> float:
    """100 times the first sum over the second: a rate, or a mean where each example counts 1."""
    return 100.0 * float(sums[0]) / max(float(sums[1]), 1.0)


def quotient(sums: np.ndarray) -> float:
    """The first sum over the second: a mean of marks."""
    return float(sums[0]) / max(float(sums[1]), 1.0)


def scored(
    name: str,
    value: Callable[[np.ndarray], float] | None = None,
    *,
    unit: str = '%',
    higher_is_better: bool = True,
    signature: str = '',
    nothing: str = '',
) -> Measure:
    """A measure whose statistics do not follow from references: those of a likelihood, a judge, a rule.

    Args:
        name: As of `Measure`; so are the others.
        value: Sums -> the value; None is one sum over the other, in percent where that is the unit.
        unit: '%' or ''.
        higher_is_better: Its direction.
        signature: What another person needs to reproduce it.
        nothing: What is said where there is nothing to divide by.
    """

    def statistics(references: Sequence[str], answer: str) -> Statistics:
        raise TypeError(f'{name} is not read off an answer')

    value = value or (percent if unit == '%' else quotient)
    return Measure(name, statistics, value, higher_is_better, unit, signature, nothing=nothing)


def mean_of(name: str, score: Callable[[Sequence[str], str], float], *, signature: str = '') -> Measure:
    """The mean of a score from 0 to 1, in percent."""

    def statistics(references: Sequence[str], answer: str) -> Statistics:
        return float(score(references, answer)), 1.0

    return Measure(name, statistics, percent, True, '%', signature)


def _hit(references: Sequence[str], answer: str) -> float:
    return float(any(normalize_answer(r) == normalize_answer(answer) for r in references))


def _f1(references: Sequence[str], answer: str) -> float:
    return max(_shared(r, answer) for r in references)


def _shared(reference: str, answer: str) -> float:
    wanted, got = normalize_answer(reference).split(), normalize_answer(answer).split()
    if not wanted or not got:
        return float(wanted == got)
    shared = sum((Counter(wanted) & Counter(got)).values())
    return 2 * shared / (len(wanted) + len(got))


EXACT_MATCH = mean_of('exact match', _hit, signature='SQuAD normalisation')
"""Share of answers that equal a reference in SQuAD's form."""

F1 = mean_of('F1', _f1, signature='SQuAD normalisation')
"""Mean F1 of the words that answer and reference share; the best of several references."""


def is_long(references: Sequence[str]) -> bool:
    """Whether references are sentences rather than names: those are never answered word by word."""
    return sum(len(r.split()) for r in references) > _LONG_WORDS * len(references)


# ---- likelihood


def _exponential(sums: np.ndarray) -> float:
    mean = sums[0] / max(sums[1], 1)
    return math.exp(mean) if mean < 700 else math.inf


PERPLEXITY = scored(
    'perplexity', _exponential, unit='', higher_is_better=False, signature='targets: answers and their end of turn',
    nothing='There is no target to measure the perplexity on.',
)  # fmt: skip
"""exp(nll / targets); an example contributes the sum of its negative log-likelihoods (nats) and its targets."""


# ---- intervals


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    n: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """95 % percentile bootstrap over examples, drawn by scipy.

    Args:
        statistic: Maps the numbers (n,) of the examples drawn, with repetition, to a value.
        n: How many examples there are; fewer than two have no interval.
        resamples: How often they are drawn.
        seed: Seed of the draws; equal seeds draw equal examples, so that two models can be compared in pairs.

    Returns:
        Lower and upper end, or (None, None).
    """
    if n < 2:
        return None, None
    import warnings

    from scipy import stats

    with warnings.catch_warnings():
        # scipy warns of values that are not finite and of samples that are all equal; both are fine here
        warnings.simplefilter('ignore')
        found = stats.bootstrap(
            (np.arange(n),), statistic, n_resamples=resamples, batch=50, vectorized=False, method='percentile',
            rng=np.random.default_rng(seed),
        )  # fmt: skip
    # 'nearest' returns a value that occurred, so infinities stay infinities instead of becoming NaN
    low, high = np.percentile(found.bootstrap_distribution, [2.5, 97.5], method='nearest')
    return float(low), float(high)


def paired_interval(ours: Sequence[float], base: Sequence[float]) -> Interval:
    """95 % interval of the mean difference of two models on the same items, which are drawn together."""
    difference = np.asarray(ours, dtype=float) - np.asarray(base, dtype=float)
    return bootstrap_interval(lambda chosen: float(difference[chosen].mean()), len(difference))


def paired_p_value(ours: Sequence[float], base: Sequence[float]) -> float:
    """How often chance alone makes two models differ as much on the same items: a two-sided sign-flip test.

    Up to 12 items that differ are enumerated; of more, all signs are flipped at random many times.

    Raises:
        VtbDataError: Lists of different lengths, or none.
    """
    _check_pairs('p-value', base, ours)
    difference = np.asarray(ours, dtype=float) - np.asarray(base, dtype=float)
    difference = difference[difference != 0]
    if not difference.size:
        return 1.0
    seen = abs(difference.sum()) - 1e-12
    if difference.size <= 12:
        signs = 1 - 2 * ((np.arange(2**difference.size)[:, None] >> np.arange(difference.size)) & 1)
        return float((np.abs(signs @ difference) >= seen).mean())
    signs = np.random.default_rng(0).choice((-1.0, 1.0), (_FLIPS, difference.size))
    return float(((np.abs(signs @ difference) >= seen).sum() + 1) / (_FLIPS + 1))


def _check_pairs(metric: str, references: Sequence, hypotheses: Sequence) -> None:
    if len(references) != len(hypotheses) or not len(references):
        raise VtbDataError(
            'A metric needs as many answers as references, and at least one.',
            field=metric,
            got=f'{len(references)} references, {len(hypotheses)} answers',
        )
