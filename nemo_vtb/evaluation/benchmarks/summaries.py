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
"""Numbers over several tasks of a benchmark: means, groups of lm-eval, and Speech-IFEval's forgetting rate."""

from collections.abc import Sequence
from dataclasses import replace

from nemo_vtb.evaluation.benchmarks.catalog import catalog
from nemo_vtb.evaluation.result import Metric


def summaries(metrics: Sequence[Metric]) -> list[Metric]:
    """The summaries that benchmarks report themselves, of those whose tasks are all there.

    Args:
        metrics: Of a run.

    Returns:
        `open_asr`: the mean WER of its test sets. `speech_ifeval`: IFrate, the mean of the three following rates, and
        the forgetting rate, its relative change from the base LLM in percent. Groups of lm-eval: the mean over items.
    """
    found: list[Metric] = []
    for suite, rows in catalog().items():
        of_suite = [m for m in metrics if m.suite == suite and m.value is not None]
        if suite == 'open_asr':
            found += _mean(suite, [m for m in of_suite if m.name == 'WER'], len(rows), 'mean WER')
        elif suite == 'speech_ifeval':
            rates = _mean(suite, [m for m in of_suite if m.name == 'following rate'], len(rows), 'IFrate')
            found += [*rates, *(change for rate in rates for change in _forgotten(rate))]
        elif rows[0].kind == 'text' and len(rows) == 1 and len(of_suite) > 1:
            total = sum(m.n for m in of_suite)
            found.append(
                replace(
                    of_suite[0], task=suite, source='', title='', n=total, p=None, change_interval=(None, None),
                    interval=(None, None), value=sum((m.value or 0.0) * m.n for m in of_suite) / total,
                    base=_weighted([(m.base, m.n) for m in of_suite]), signature='mean over all items',
                )
            )  # fmt: skip
    return [replace(m, change=None if m.base is None or m.value is None else m.value - m.base) for m in found]


def _mean(suite: str, metrics: Sequence[Metric], wanted: int, name: str) -> list[Metric]:
    if len(metrics) < wanted:
        return []
    value = sum(m.value or 0.0 for m in metrics) / len(metrics)
    first = metrics[0]
    return [
        Metric(
            suite, 'all', '', name, sum(m.n for m in metrics), value, base=_weighted([(m.base, 1) for m in metrics]),
            higher_is_better=first.higher_is_better, signature=f'mean of {len(metrics)} tasks',
        )
    ]  # fmt: skip


def _forgotten(rate: Metric) -> list[Metric]:
    if not rate.base or rate.value is None:
        return []
    value = 100.0 * (rate.value - rate.base) / rate.base
    signature = '(IFrate - that of the base LLM) / that of the base LLM'
    return [replace(rate, name='forgetting rate', value=value, base=None, change=None, signature=signature)]


def _weighted(values: Sequence[tuple[float | None, int]]) -> float | None:
    known = [(value, n) for value, n in values if value is not None]
    return sum(value * n for value, n in known) / sum(n for _, n in known) if len(known) == len(values) else None
