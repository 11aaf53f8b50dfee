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
"""Metrics of speech and text tasks, each with a bootstrap 95 % interval, comparable with published numbers."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from nemo_vtb.data.normalizers import get_normalizer, normalize_answer, normalizer_for
from nemo_vtb.errors import VtbDataError

RESAMPLES = 1000
# resampling chrF means scoring the corpus anew each time
CHRF_RESAMPLES = 200
_LONG_WORDS = 12
_BLEU_TOKENIZERS = {'zh': 'zh', 'yue': 'zh', 'ja': 'char', 'ko': 'char', 'th': 'char', 'lo': 'char', 'my': 'char'}


@dataclass(frozen=True, slots=True)
class Score:
    """A number with its interval.

    Args:
        metric: Name, such as 'WER'.
        value: The number; percent for all but perplexity.
        low: Lower end of the 95 % interval, None where there is none.
        high: Upper end.
        n: How many answers it rests on; target tokens for the perplexity.
        higher_is_better: Its direction.
        signature: What another person needs to reproduce it: normaliser, tokeniser, version.
    """

    metric: str
    value: float
    low: float | None
    high: float | None
    n: int
    higher_is_better: bool
    signature: str


# ---- recognition


def wer(
    references: Sequence[str], hypotheses: Sequence[str], *, lang: str = 'en', normalizer: str | None = None
) -> Score:
    """Word error rate in percent: wrong, missing and added words over the words of all references.

    Args:
        references: What was said.
        hypotheses: What was recognised, in the same order.
        lang: Language code; decides the normaliser.
        normalizer: Name of a normaliser instead.

    Raises:
        VtbConfigError: Unknown normaliser.
        VtbDataError: Lists of different lengths, or nothing to score.
    """
    return _error_rate('WER', references, hypotheses, normalizer or normalizer_for(lang))


def cer(
    references: Sequence[str], hypotheses: Sequence[str], *, lang: str = 'en', normalizer: str | None = None
) -> Score:
    """Character error rate in percent; arguments and errors as those of `wer`."""
    return _error_rate('CER', references, hypotheses, normalizer or normalizer_for(lang))


def _error_rate(metric: str, references: Sequence[str], hypotheses: Sequence[str], normalizer: str) -> Score:
    import jiwer

    _check_pairs(metric, references, hypotheses)
    normalize = get_normalizer(normalizer)
    process = jiwer.process_words if metric == 'WER' else jiwer.process_characters
    errors, units = [], []
    for reference, hypothesis in zip(map(normalize, references), map(normalize, hypotheses), strict=True):
        if not reference.strip():
            # jiwer refuses an empty reference; all that was recognised is then too much
            errors.append(len(hypothesis.split()) if metric == 'WER' else len(hypothesis))
            units.append(0)
            continue
        out = process(reference, hypothesis)
        errors.append(out.substitutions + out.deletions + out.insertions)
        units.append(out.hits + out.substitutions + out.deletions)
    if not sum(units):
        raise VtbDataError(
            'All references are empty after normalisation.', field=metric, got=list(references)[:3], allowed='words'
        )
    value, low, high = _ratio(errors, units)
    return Score(metric, value, low, high, len(errors), False, f'jiwer {version("jiwer")}, normaliser {normalizer}')


# ---- translation


def bleu(references: Sequence[str], hypotheses: Sequence[str], *, lang: str = 'en') -> Score:
    """Corpus BLEU by sacrebleu with its signature; arguments and errors as those of `wer`, `lang` of the target."""
    from sacrebleu.metrics import BLEU

    _check_pairs('BLEU', references, hypotheses)
    tokenizer = _BLEU_TOKENIZERS.get(re.split(r'[-_]', lang.lower())[0], '13a')
    metric = BLEU(tokenize=tokenizer)
    value = metric.corpus_score(list(hypotheses), [list(references)]).score
    # n-gram counts add up over sentences, so that a resample need not be tokenised again
    per_sentence = BLEU(tokenize=tokenizer, effective_order=True)
    scores = [per_sentence.sentence_score(h, [r]) for h, r in zip(hypotheses, references, strict=True)]
    counts = np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in scores])  # (n, 10)

    def of(chosen: np.ndarray) -> float:
        total = counts[chosen].sum(0).tolist()
        return BLEU.compute_bleu(total[:4], total[4:8], int(total[8]), int(total[9]), smooth_method='exp').score

    low, high = bootstrap_interval(of, len(scores))
    return Score('BLEU', value, low, high, len(scores), True, str(metric.get_signature()))


def chrf(references: Sequence[str], hypotheses: Sequence[str]) -> Score:
    """Corpus chrF by sacrebleu with its signature; arguments and errors as those of `wer`."""
    from sacrebleu.metrics import CHRF

    _check_pairs('chrF', references, hypotheses)
    metric = CHRF()

    def of(chosen: np.ndarray) -> float:
        return metric.corpus_score([hypotheses[i] for i in chosen], [[references[i] for i in chosen]]).score

    low, high = bootstrap_interval(of, len(references), resamples=CHRF_RESAMPLES)
    value = of(np.arange(len(references)))
    return Score('chrF', value, low, high, len(references), True, str(metric.get_signature()))


# ---- answers


def exact_match(references: Sequence[str], hypotheses: Sequence[str]) -> Score:
    """Share of answers in percent that equal the reference in SQuAD's form; arguments and errors as those of `wer`."""
    _check_pairs('exact match', references, hypotheses)
    hits = [normalize_answer(r) == normalize_answer(h) for r, h in zip(references, hypotheses, strict=True)]
    value, low, high = _ratio(hits, [1] * len(hits))
    return Score('exact match', value, low, high, len(hits), True, 'SQuAD normalisation')


def f1(references: Sequence[str], hypotheses: Sequence[str]) -> Score:
    """Mean F1 in percent of the words shared by answer and reference; arguments and errors as those of `wer`."""
    _check_pairs('F1', references, hypotheses)
    values = [_f1(r, h) for r, h in zip(references, hypotheses, strict=True)]
    value, low, high = _ratio(values, [1] * len(values))
    return Score('F1', value, low, high, len(values), True, 'SQuAD normalisation')


def is_long(references: Sequence[str]) -> bool:
    """Whether references are sentences rather than names: those are never answered word by word."""
    return sum(len(r.split()) for r in references) > _LONG_WORDS * len(references)


def _f1(reference: str, hypothesis: str) -> float:
    wanted, got = normalize_answer(reference).split(), normalize_answer(hypothesis).split()
    if not wanted or not got:
        return float(wanted == got)
    shared = sum((Counter(wanted) & Counter(got)).values())
    return 2 * shared / (len(wanted) + len(got))


# ---- likelihood


def perplexity(nll_sums: Sequence[float], targets: Sequence[float]) -> Score:
    """Perplexity exp(nll / targets) of all chats together; the interval resamples chats.

    Args:
        nll_sums: Sum of the negative log-likelihoods (nats) of each chat's targets.
        targets: Number of targets of each chat.

    Raises:
        VtbDataError: Lists of different lengths, or no target.
    """
    _check_pairs('perplexity', nll_sums, targets)
    sums, counts = np.asarray(nll_sums, dtype=float), np.asarray(targets, dtype=float)
    if counts.sum() <= 0:
        raise VtbDataError(
            'There is no target to measure the perplexity on.', field='perplexity', got=list(targets)[:3]
        )

    def of(chosen: np.ndarray) -> float:
        mean = sums[chosen].sum() / max(counts[chosen].sum(), 1)
        return math.exp(mean) if mean < 700 else math.inf

    low, high = bootstrap_interval(of, len(sums))
    value = of(np.arange(len(sums)))
    return Score('perplexity', value, low, high, int(counts.sum()), False, 'targets: answers and their end of turn')


def perplexity_kept(
    base: Sequence[float], ours: Sequence[float], targets: Sequence[float]
) -> tuple[float, float | None, float | None]:
    """Perplexity of the base LLM by that of the model, in percent (100: nothing is forgotten); chats drawn in pairs.

    Args:
        base: Sum of the base LLM's negative log-likelihoods (nats) of each chat's targets.
        ours: Those of the model.
        targets: Number of targets of each chat.

    Returns:
        Value, lower and upper end of the 95 % interval (None where there is one chat alone).
    """
    _check_pairs('perplexity', base, ours)
    difference, counts = (
        np.asarray(base, dtype=float) - np.asarray(ours, dtype=float),
        np.asarray(targets, dtype=float),
    )

    def of(chosen: np.ndarray) -> float:
        mean = difference[chosen].sum() / max(counts[chosen].sum(), 1)
        return 100 * math.exp(min(mean, 700.0))

    return of(np.arange(len(counts))), *bootstrap_interval(of, len(counts))


# ---- intervals


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    n: int,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float | None, float | None]:
    """Percentile bootstrap over examples.

    Args:
        statistic: Maps the numbers (n,) of the examples drawn, with repetition, to a value.
        n: How many examples there are; fewer than two have no interval.
        resamples: How often they are drawn.
        level: Share of resamples inside the interval.
        seed: Seed of the draws; equal seeds draw equal examples, so that two models can be compared in pairs.

    Returns:
        Lower and upper end, or (None, None).
    """
    if n < 2:
        return None, None
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(0, n, n)) for _ in range(resamples)]
    edge = 100 * (1 - level) / 2
    # 'nearest' returns a value that occurred, so infinities stay infinities instead of becoming NaN
    low, high = np.percentile(values, [edge, 100 - edge], method='nearest')
    return float(low), float(high)


def paired_interval(ours: Sequence[float], base: Sequence[float]) -> tuple[float | None, float | None]:
    """95 % interval of the mean difference of two models on the same items, which are drawn together."""
    difference = np.asarray(ours, dtype=float) - np.asarray(base, dtype=float)
    return bootstrap_interval(lambda chosen: float(difference[chosen].mean()), len(difference))


def paired_p_value(ours: Sequence[float], base: Sequence[float], *, draws: int = 10_000, seed: int = 0) -> float:
    """How often chance alone makes two models differ as much on the same items: a two-sided sign-flip test.

    Args:
        ours: A number for each item.
        base: Those of the other model, in the same order.
        draws: Flips of all signs; up to 12 items that differ are enumerated instead.
        seed: Of the flips.

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
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (draws, difference.size))
    return float(((np.abs(signs @ difference) >= seen).sum() + 1) / (draws + 1))


def _ratio(parts: Sequence[float], wholes: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Percentage sum(parts) / sum(wholes) with its interval."""
    top, bottom = np.asarray(parts, dtype=float), np.asarray(wholes, dtype=float)

    def of(chosen: np.ndarray) -> float:
        return 100.0 * float(top[chosen].sum()) / max(float(bottom[chosen].sum()), 1.0)

    return of(np.arange(len(top))), *bootstrap_interval(of, len(top))


def _check_pairs(metric: str, references: Sequence, hypotheses: Sequence) -> None:
    if len(references) != len(hypotheses) or not len(references):
        raise VtbDataError(
            'A metric needs as many answers as references, and at least one.',
            field=metric,
            got=f'{len(references)} references, {len(hypotheses)} answers',
        )
