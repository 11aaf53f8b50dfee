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
"""From answers to records: figures of each source of a task, what each example contributed, and the answers."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nemo_vtb.data.conversation import Audio, Text
from nemo_vtb.data.faults import Reason, guarded
from nemo_vtb.errors import VtbDataError
from nemo_vtb.evaluation.metrics import (
    Interval,
    Measure,
    Statistics,
    aggregate,
    bootstrap_interval,
    compare_pairs,
    paired_interval,
    paired_p_value,
)
from nemo_vtb.evaluation.result import ExampleScore, Metric, Sample, readable
from nemo_vtb.evaluation.task import Answer, Example, Task

RIGHT = 'P(right)'
"""Name of the statistics of the right choice's probability, of multiple-choice tasks of lm-eval."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a task."""

    metrics: Sequence[Metric]
    samples: Sequence[Sample] = ()
    scores: Sequence[ExampleScore] = ()


def record_of(
    task: Task, examples: Sequence[Example], ours: Sequence[Answer | None], base: Sequence[Answer | None]
) -> Record:
    """Figures and answers of a task.

    Args:
        task: The task.
        examples: Its examples.
        ours: Answers of the model.
        base: Those of its base LLM, None where it was not asked.
    """
    if task.request == 'lm_eval':
        [mine], [theirs] = ours, base
        assert isinstance(mine, Mapping)
        return _of_lm_eval(task, mine, theirs)
    groups: dict[str, list[int]] = {}
    for i, example in enumerate(examples):
        groups.setdefault(example.source, []).append(i)
    metrics: list[Metric] = []
    scores: list[ExampleScore] = []
    for source, chosen in groups.items():
        found, contributed = _of_source(task, source, [examples[i] for i in chosen], [ours[i] for i in chosen],
                                        [base[i] for i in chosen])  # fmt: skip
        metrics += found
        scores += contributed
    samples = []
    if task.request == 'generate':
        checks = {(s.source, s.id): s for s in scores}
        samples = [
            _sample(task, e, str(a), b, checks.get((e.source, e.id)))
            for e, a, b in zip(examples, ours, base, strict=True)
        ]
    return Record(metrics, samples, scores)


def _of_source(
    task: Task,
    source: str,
    examples: Sequence[Example],
    ours: Sequence[Answer | None],
    base: Sequence[Answer | None],
) -> tuple[list[Metric], list[ExampleScore]]:
    name = Metric(task.suite, task.name, source, 'n/a', len(examples), None, title=task.title)
    try:
        with guarded(Reason.OTHER, f'{task.name} of {source}'):
            measures = task.measures(examples)
            if not measures:
                return [], []
            mine = [task.score(e, a) for e, a in zip(examples, ours, strict=True) if a is not None]
            theirs = [None if b is None else task.score(e, b) for e, b in zip(examples, base, strict=True)]
            groups = [e.group or number for number, e in enumerate(examples)]
            metrics = [_figure(name, m, mine, theirs, groups) for m in measures]
    except VtbDataError as error:  # this source alone; the others have their numbers
        return [replace(name, signature=f'n/a: {" ".join(str(error).split())[:200]}')], []
    scores = [
        ExampleScore(task.suite, task.name, source, e.id, a, b, e.group)
        for e, a, b in zip(examples, mine, theirs, strict=True)
    ]
    return metrics, scores


def figure_of(
    name: Metric, measure: Measure, rows: Sequence[Statistics], groups: Sequence[Hashable] | None = None
) -> Metric:
    """The figure of a measure over examples.

    Args:
        name: Suite, task and source.
        measure: The measure.
        rows: Statistics of the examples, (n, K); those of 0 alone leave an example out.
        groups: Of the examples: drawn together by the bootstrap, and left out only together, as parts of a recording.

    Raises:
        VtbDataError: There is nothing to score.
    """
    found = aggregate(measure, rows, groups)
    groups = range(len(rows)) if groups is None else groups
    known = [group for group, row in zip(groups, rows, strict=True) if any(row)]
    left_out = len(set(groups) - set(known))
    return replace(
        name, name=measure.name, n=len(known), value=found.value, interval=(found.low, found.high),
        unit=measure.unit, higher_is_better=measure.higher_is_better,
        signature=f'{measure.signature}, {left_out} left out' if left_out else measure.signature,
    )  # fmt: skip


def _figure(
    name: Metric,
    measure: Measure,
    ours: Sequence[Mapping[str, Statistics]],
    base: Sequence[Mapping[str, Statistics] | None],
    groups: Sequence[Hashable],
) -> Metric:
    mine = [score[measure.name] for score in ours]
    metric = figure_of(name, measure, mine, groups)
    theirs = [score[measure.name] for score in base if score is not None]
    if len(theirs) < len(mine):
        return metric
    pairs = compare_pairs(measure, mine, theirs, groups)
    return replace(metric, base=pairs.base, change=pairs.change, change_interval=pairs.interval, p=pairs.p)


def _sample(task: Task, example: Example, answer: str, base: Answer | None, score: ExampleScore | None) -> Sample:
    prompt = example.prompt
    parts = prompt.turns[-1].parts
    constraints = example.extra.get('constraints') or ()
    passed = [None if s is None or not constraints else bool(s[task.metrics[0]][0])
              for s in ((score.scores, score.base) if score else (None, None))]  # fmt: skip
    return Sample(
        example.id,
        task.name,
        example.source,
        readable(prompt),
        next(iter(example.references), ''),
        answer,
        tuple(a.path for a in prompt.audios),
        tuple(a.text or '' for a in prompt.audios),
        any(isinstance(p, Audio) for p in parts) and any(isinstance(p, Text) for p in parts),
        None if base is None else str(base),
        suite=task.suite,
        base_prompt='' if example.base is None or example.base == prompt else readable(example.base),
        constraints=tuple(constraints),
        right=passed[0],
        base_right=passed[1],
    )


def differences(tasks: Sequence[Task], scores: Sequence[ExampleScore]) -> list[Metric]:
    """For each task that names another to subtract: the mean difference on the same examples, in points."""
    found = []
    for task in tasks:
        if not task.minus:
            continue
        name = task.metrics[0]
        of = {
            t: [s.scores[name] for s in scores if (s.suite, s.task) == (task.suite, t)]
            for t in (task.name, task.minus)
        }
        one, other = ([100 * hit for hit, _ in rows] for rows in of.values())
        if one and len(one) == len(other):
            change = float(np.mean(one) - np.mean(other))
            interval, p = paired_interval(one, other), paired_p_value(one, other)
            found.append(
                Metric(task.suite, task.difference, '', 'points', len(one), change, interval, p=p, unit='',
                       title=task.difference.replace('_', ' '))
            )  # fmt: skip
    return found


# ---- lm-eval


def _of_lm_eval(task: Task, ours: Mapping[str, Any], base: Any) -> Record:
    """lm-eval's own figures of a task; a share of items becomes percent."""
    share = bool(ours['items']) and all(0 <= item <= 1 for item in ours['items'])
    scale = 100.0 if share else 1.0
    metric = Metric(
        task.suite, task.name, '', ours['metric'], ours['n'], scale * ours['value'], _interval(ours, scale),
        higher_is_better=ours['higher_is_better'], unit='%' if share else '',
        signature=f'lm-eval, version {ours["version"]}, filter {ours["filter"]}',
    )  # fmt: skip
    if base is not None:
        metric = replace(metric, base=scale * base['value'], change=scale * (ours['value'] - base['value']))
        if ours['items'] and len(ours['items']) == len(base['items']):
            a, b = ours['items'], base['items']
            low, high = paired_interval(a, b)
            ends = (None, None) if low is None or high is None else (scale * low, scale * high)
            metric = replace(metric, change_interval=ends, p=paired_p_value(a, b))
    sides = [_items(side) if side is not None else None for side in (ours, base)]
    scores = [
        ExampleScore(task.suite, task.name, '', str(i), mine, sides[1][i] if sides[1] else None)
        for i, mine in enumerate(sides[0] or ())
    ]
    return Record([metric], (), scores)


def _items(side: Mapping[str, Any]) -> list[dict[str, Statistics]]:
    found: list[dict[str, Statistics]] = [{side['metric']: (item, 1.0)} for item in side['items']]
    for item, chance in zip(found, side['right'], strict=False):
        item[RIGHT] = (chance, 1.0)
    return found


def _interval(result: Mapping[str, Any], scale: float) -> Interval:
    items = np.asarray(result['items'])
    # a metric that is no mean of its items (corpus BLEU, perplexity) has lm-eval's own standard error
    if len(items) and abs(float(items.mean()) - result['value']) < 1e-9:
        return bootstrap_interval(lambda chosen: scale * float(items[chosen].mean()), len(items))
    if result['stderr'] is not None:
        return scale * (result['value'] - 1.96 * result['stderr']), scale * (result['value'] + 1.96 * result['stderr'])
    return None, None
