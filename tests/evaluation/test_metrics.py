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
"""The metrics against hand-made expectations and against the libraries used directly."""

import math

import jiwer
import numpy as np
import pytest
import sacrebleu

from nemo_vtb.data.normalizers import get_normalizer
from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.evaluation import metrics
from nemo_vtb.evaluation.metrics import aggregate, corpus, error_rate

REFERENCES = ['Turn on the lamp.', "Don't go, Mister Smith!", 'Twenty two cats sat on the mat.']
HYPOTHESES = ['turn on lamp', 'do not go mr smith', '22 cats sat on a mat']


def test_wer_counts_words_over_the_whole_corpus() -> None:
    # one word missing of 4, contractions and titles are equal for Whisper's normaliser, one of 6 wrong
    score = corpus(error_rate(), REFERENCES, HYPOTHESES)
    normalize = get_normalizer('english')
    expected = jiwer.wer([normalize(r) for r in REFERENCES], [normalize(h) for h in HYPOTHESES])
    assert score.value == pytest.approx(100 * expected) == pytest.approx(100 * 2 / 15)
    assert score.n == 3 and not score.higher_is_better and 'english' in score.signature
    assert score.low is not None and score.high is not None and score.low <= score.value <= score.high


def test_cer_equals_jiwer() -> None:
    normalize = get_normalizer('basic')
    expected = jiwer.cer([normalize(r) for r in REFERENCES], [normalize(h) for h in HYPOTHESES])
    assert corpus(error_rate('de', metric='CER'), REFERENCES, HYPOTHESES).value == pytest.approx(100 * expected)


def test_words_for_an_empty_reference_are_insertions() -> None:
    assert corpus(error_rate(), ['[noise]', 'a lamp'], ['so much', 'a lamp']).value == pytest.approx(100.0)
    with pytest.raises(VtbDataError, match='empty after normalisation'):
        corpus(error_rate(), ['[noise]'], ['so'])


def test_unknown_normaliser_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(VtbConfigError) as caught:
        metrics.error_rate(normalizer='whisper')
    assert caught.value.got == 'whisper' and 'english' in str(caught.value.allowed)


def test_accents_of_other_languages_are_kept() -> None:
    assert corpus(error_rate('es'), ['¿Qué pasó?'], ['que paso']).value == pytest.approx(100.0)
    assert corpus(error_rate('es'), ['¿Qué pasó?'], ['qué pasó']).value == 0


def test_bleu_and_chrf_equal_sacrebleu() -> None:
    bleu, chrf = (corpus(m, REFERENCES, HYPOTHESES) for m in (metrics.bleu_of(), metrics.chrf_of()))
    assert bleu.value == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert chrf.value == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert 'tok:13a' in bleu.signature and 'nc:6' in chrf.signature
    assert 'tok:zh' in metrics.bleu_of('zh').signature


def test_bleu_interval_resamples_the_same_corpus_score() -> None:
    perfect = corpus(metrics.bleu_of(), REFERENCES, REFERENCES)
    assert perfect.value == perfect.low == perfect.high == pytest.approx(100.0)


@pytest.mark.parametrize(
    ('reference', 'hypothesis', 'equal', 'shared'),
    [
        ('The kitchen.', 'kitchen', 100, 100),
        ('the kitchen', 'The bedroom', 0, 0),
        ('Anna is in the office.', 'Anna is here', 0, 100 * 2 * 2 / (4 + 3)),
        ("It's on", 'its ON!', 100, 100),
        ('Yes.', '', 0, 0),
        ('', '', 100, 100),
    ],
)
def test_exact_match_and_f1(reference: str, hypothesis: str, equal: float, shared: float) -> None:
    assert corpus(metrics.EXACT_MATCH, [reference], [hypothesis]).value == equal
    assert corpus(metrics.F1, [reference], [hypothesis]).value == pytest.approx(shared)


def test_perplexity_is_the_exponential_of_the_mean_over_all_targets() -> None:
    score = aggregate(metrics.PERPLEXITY, [(10.0, 5.0), (2.0, 1.0)])
    assert score.value == pytest.approx(math.exp(2.0)) and score.n == 2
    assert aggregate(metrics.PERPLEXITY, [(1e6, 1.0), (1e6, 1.0)]).value == math.inf
    with pytest.raises(VtbDataError, match='no target'):
        aggregate(metrics.PERPLEXITY, [(0.0, 0.0)])


def test_interval_is_seeded_and_covers_the_mean_of_a_known_distribution() -> None:
    values = np.random.default_rng(1).normal(5.0, 1.0, 400)

    def mean(chosen: np.ndarray) -> float:
        return float(values[chosen].mean())

    low, high = metrics.bootstrap_interval(mean, 400)
    assert (low, high) == metrics.bootstrap_interval(mean, 400)
    assert (low, high) != metrics.bootstrap_interval(mean, 400, seed=1)
    # 1.96 standard errors of 1 / sqrt(400) to each side
    assert high - low == pytest.approx(4 * 0.05, rel=0.15) and low < values.mean() < high
    assert metrics.bootstrap_interval(mean, 1) == (None, None)


@pytest.mark.parametrize('measure', [error_rate(), metrics.bleu_of(), metrics.chrf_of(), metrics.F1])
def test_unequal_or_empty_lists_are_refused(measure: metrics.Measure) -> None:
    for pair in (([], []), (['a'], [])):
        with pytest.raises(VtbDataError, match='as many answers as references'):
            corpus(measure, *pair)
