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
"""Retention as records: the definition of `nemo_vtb/training/retention.py` on the examples of an evaluation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from nemo_vtb.evaluation.metrics import RESAMPLES, Interval, bootstrap_interval
from nemo_vtb.evaluation.result import ExampleScore, Metric
from nemo_vtb.evaluation.scoring import RIGHT
from nemo_vtb.training.retention import kept_of_chats, kept_of_tasks, retention

_SEED = 0
_DEFINITION = 'docs/evaluation.md#retention'


def retention_metrics(metrics: Sequence[Metric], scores: Sequence[ExampleScore]) -> list[Metric]:
    """`chats` of each source and the least, `tasks` each and their mean, and `retention`, in percent of the base LLM.

    Args:
        metrics: All figures; those of the tasks of lm-eval are used.
        scores: What each example contributed.

    Returns:
        [] where nothing was measured beside the base LLM.
    """
    chats = [s for s in scores if (s.suite, s.task) == ('speech', 'text') and s.base and 'perplexity' in s.scores]
    parts = [*_chats(chats), *_tasks([m for m in metrics if m.suite == 'text'], scores)]
    wholes = {m.task: m for m in parts if not m.source}
    value = retention({name: None if m.value is None else m.value / 100 for name, m in wholes.items()})
    if value is None:
        return []
    least = min(wholes.values(), key=lambda m: m.value if m.value is not None else -1.0)
    signature = f'the least of {", ".join(wholes)}; here {least.task}; {_DEFINITION}'
    return [*parts, _kept('retention', '', least.n, 100 * value, least.interval, signature)]


def _kept(task: str, source: str, n: int, value: float | None, interval: Interval, signature: str) -> Metric:
    return Metric('retention', task, source, 'kept', n, value, interval, signature=signature)


def _chats(chats: Sequence[ExampleScore]) -> list[Metric]:
    sources = dict.fromkeys(s.source for s in chats)
    found = [_chats_of(source, [s for s in chats if s.source == source]) for source in sources]
    if not found:
        return []
    least = min(found, key=lambda m: m.value or 0.0)
    return [*found, replace(least, source='', signature=f'the least of the sets: {least.source}')]


def _chats_of(source: str, chats: Sequence[ExampleScore]) -> Metric:
    sums = np.array([[*(s.base or {})['perplexity'][:1], *s.scores['perplexity']] for s in chats])  # (n, 3)

    def of(chosen: np.ndarray) -> float:
        base, ours, targets = sums[chosen].sum(0)
        return 100 * kept_of_chats(base, ours, max(targets, 1))

    interval = bootstrap_interval(of, len(sums))
    return _kept('chats', source, len(sums), of(np.arange(len(sums))), interval, 'perplexity, base LLM by model')


def _tasks(metrics: Sequence[Metric], scores: Sequence[ExampleScore]) -> list[Metric]:
    """Each task by its base LLM, and the mean of all; intervals draw the items of a task in pairs."""
    items = {m.task: [s for s in scores if (s.suite, s.task) == ('text', m.task) and s.base] for m in metrics}
    draws: dict[str, Callable[[np.random.Generator], float | None]] = {}
    ours: dict[str, float] = {}
    base: dict[str, float] = {}
    found = []
    for m in metrics:
        if m.base is None or m.value is None:
            continue
        name = RIGHT if items[m.task] and all(RIGHT in s.scores for s in items[m.task]) else m.name
        pairs = np.array([[s.scores[name][0], (s.base or {})[name][0]] for s in items[m.task]])  # (n, 2)
        a, b = (float(x) for x in pairs.mean(0)) if name == RIGHT else (m.value, m.base)
        if not m.higher_is_better:  # the inverse is better where it is higher
            a, b = (1 / a if a else np.inf), (1 / b if b else 0.0)
        ours[m.task], base[m.task] = a, b
        one = _ratio(pairs, m.higher_is_better)
        draws[m.task] = one
        value = 100 * a / b if b else None
        interval = _drawn(lambda rng, one=one: one(rng)) if len(pairs) > 1 and b else (None, None)  # type: ignore[misc]
        found.append(_kept('tasks', m.task, m.n, value, interval, f'{name}, model by base LLM'))
    mean = kept_of_tasks(ours, base)
    if mean is None:
        return found
    able = [draws[name] for name, value in base.items() if value > 0]
    complete = all(len(items[name]) > 0 for name, value in base.items() if value > 0)
    interval = _drawn(lambda rng: _mean([one(rng) for one in able])) if complete else (None, None)
    return [*found, _kept('tasks', '', sum(m.n for m in metrics), 100 * mean, interval, 'mean over the text tasks')]


def _ratio(pairs: np.ndarray, higher: bool) -> Callable[[np.random.Generator], float | None]:
    """Draws items with repetition: model by base LLM on them, None where the base LLM has 0."""

    def draw(rng: np.random.Generator) -> float | None:
        a, b = pairs[rng.integers(0, len(pairs), len(pairs))].mean(0)
        if not higher:
            a, b = b, a
        return float(a / b) if b else None

    return draw


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _drawn(draw: Callable[[np.random.Generator], float | None]) -> Interval:
    rng = np.random.default_rng(_SEED)
    values = [100 * v for v in (draw(rng) for _ in range(RESAMPLES)) if v is not None]
    if not values:
        return None, None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def parts_of(metrics: Sequence[Metric]) -> Mapping[str, Metric]:
    """The figures that retention is made of, by name: `chats`, `tasks`."""
    return {m.task: m for m in metrics if m.suite == 'retention' and not m.source and m.task != 'retention'}
