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
"""Measures of the benchmarks: those of a kind (recognition, translation, free answers) and those of single scorers."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nemo_vtb.data.normalizers import get_normalizer, normalizer_for
from nemo_vtb.evaluation.metrics import Measure, Statistics, bleu_of, chrf_of, error_rate, mean_of, percent, scored

HALLUCINATED_WORDS = 5
"""As many added words in a row make an utterance count as hallucinated."""

_PROMPTS = tuple(f'{form}, {what}' for form in ('strict', 'loose') for what in ('prompts', 'instructions'))

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    'squad': ('exact match', 'F1'),
    'voicebench_choice': ('accuracy', 'no answer'),
    'voicebench_bbh': ('accuracy', 'no answer'),
    'voicebench_refusal': ('refusal rate',),
    'voicebench_ifeval': _PROMPTS,
    'speech_ifeval': ('following rate',),
    'mmau': ('accuracy',),
    'label': ('accuracy',),
    'voicebench_open': ('rating (1 to 5)',),
    'voicebench_qa': ('judged correct',),
    'speech_ifeval_reasoning': ('following rate',),
    'air_bench_chat': ('score (1 to 10)', 'score of the reference', 'win rate'),
    'air_bench_choice': ('accuracy', 'no answer'),
    'comet': ('COMET',),
}
"""Scorer -> its metrics."""


@cache
def measures_of(name: str, lang: str) -> tuple[Measure, ...]:
    """The measures of a scorer or a kind; `lang` of the answers decides normaliser and tokeniser."""
    if name in ATTRIBUTES:
        return tuple(_scored(metric, name) for metric in ATTRIBUTES[name])
    if name == 'asr':
        rate = error_rate(lang, metric='CER' if normalizer_for(lang) == 'characters' else 'WER')
        return (rate, *(_added(metric, lang) for metric in ('insertions', 'hallucinated')))
    if name == 'ast':
        return bleu_of(lang), chrf_of()
    return bleu_of(lang), _rouge()


def _scored(metric: str, scorer: str) -> Measure:
    """A share in percent, or a mean of marks."""
    unit = '' if metric.startswith(('rating', 'score', 'COMET')) else '%'
    return scored(
        metric, unit=unit, higher_is_better=metric != 'no answer', signature=f'scorer {scorer}',
        nothing='No answer could be scored.',
    )  # fmt: skip


def _added(metric: str, lang: str) -> Measure:
    """Added words in percent of those of the references; or utterances with many added words in a row."""
    import jiwer

    normalize = get_normalizer(normalizer_for(lang))

    def statistics(references: Sequence[str], answer: str) -> Statistics:
        reference, hypothesis = normalize(references[0]), normalize(answer)
        if not reference.strip():
            return (float(len(hypothesis.split())), 0.0) if metric == 'insertions' else (0.0, 1.0)
        out = jiwer.process_words(reference, hypothesis)
        if metric == 'insertions':
            return float(out.insertions), float(out.hits + out.substitutions + out.deletions)
        longest = max((c.hyp_end_idx - c.hyp_start_idx for c in out.alignments[0] if c.type == 'insert'), default=0)
        return float(longest >= HALLUCINATED_WORDS), 1.0

    return Measure(metric, statistics, percent, False, '%', f'normaliser {normalizer_for(lang)}')


def _rouge() -> Measure:
    # absl, which it imports, closes what was stderr at its import when logging is configured anew: a redirected one
    with redirect_stderr(sys.__stderr__):
        from rouge_score.rouge_scorer import RougeScorer

    scorer: Any = RougeScorer(['rougeL'])
    best: Callable[[Sequence[str], str], float] = lambda references, answer: max(  # noqa: E731
        scorer.score(reference, answer)['rougeL'].fmeasure for reference in references
    )
    return mean_of('ROUGE-L', best, signature='rouge_score')


def comet_checkpoint(data_root: Path | None) -> Path | None:
    """The checkpoint of COMET below `--data-root`, where `unbabel-comet` is installed; else None."""
    if data_root is None or find_spec('comet') is None:
        return None
    return next(iter(sorted((data_root / 'comet').rglob('*.ckpt'))), None)


def comet_scores(rows: Sequence[tuple[str, str, str]], checkpoint: Path) -> list[float]:
    """COMET of (source, answer, reference) triples; nothing is downloaded."""
    import torch
    from comet import load_from_checkpoint

    data = [{'src': source, 'mt': answer, 'ref': reference} for source, answer, reference in rows]
    model = load_from_checkpoint(str(checkpoint))
    found = model.predict(data, batch_size=8, gpus=int(torch.cuda.is_available()), progress_bar=False)
    return [float(score) for score in found.scores]
