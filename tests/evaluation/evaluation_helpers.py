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
"""Records as a small evaluation has them, and tasks asked by hand."""

from collections.abc import Sequence
from typing import Any

from nemo_vtb.evaluation.answers import AnswerCache
from nemo_vtb.evaluation.result import Evaluation, ExampleScore, Metric
from nemo_vtb.evaluation.retention import retention_metrics
from nemo_vtb.evaluation.runner import Plan, run_suites
from nemo_vtb.training.retention import retention


def heard(wer: float, source: str = 'calls') -> Metric:
    """A word error rate."""
    return Metric('speech', 'asr', source, 'WER', 40, wer, (wer - 5, wer + 5), higher_is_better=False)


def kept(
    value: float, interval: tuple[float | None, float | None] = (None, None), task: str = 'chats'
) -> list[Metric]:
    """A part of retention, and the retention that follows from it alone [%]."""
    whole = retention({task: value / 100})
    assert whole is not None
    return [
        Metric('retention', task, '', 'kept', 40, value, interval),
        Metric('retention', 'retention', '', 'kept', 40, 100 * whole, interval),
    ]


def perplexity(ours: float, base: float = 10.0) -> Metric:
    """A perplexity beside the base LLM's."""
    return Metric(
        'speech', 'text', 'chats', 'perplexity', 40, ours, (ours - 1, ours + 1), base, ours - base,
        higher_is_better=False, unit='',
    )  # fmt: skip


def simple(wer: float, ours: float, interval: tuple[float | None, float | None] = (None, None)) -> Evaluation:
    """A result with one word error rate and one perplexity, 10 for the base LLM."""
    return Evaluation((heard(wer), perplexity(ours), *kept(1000 / ours, interval)))


def ask(model: Any, suite: str, cache: AnswerCache | None = None, on_task: Any = None, **plan: Any) -> Evaluation:
    """One suite on a model."""
    return run_suites(model, Plan((suite,), **plan), cache=cache, on_task=on_task)


def text_scores(task: str, ours: Sequence[float], base: Sequence[float], name: str = 'acc') -> list[ExampleScore]:
    """What the items of a task of lm-eval contribute."""
    return [
        ExampleScore('text', task, '', str(i), {name: (a, 1.0)}, {name: (b, 1.0)})
        for i, (a, b) in enumerate(zip(ours, base, strict=True))
    ]


def text_metric(task: str, ours: Sequence[float], base: Sequence[float], *, higher: bool = True) -> Metric:
    """Its figure."""
    a, b = (100 * sum(side) / len(side) for side in (ours, base))
    return Metric('text', task, '', 'acc', len(ours), a, base=b, change=a - b, higher_is_better=higher)


def kept_of(metrics: Sequence[Metric], scores: Sequence[ExampleScore]) -> dict[str, Metric]:
    """Task (and source) -> what is kept."""
    return {m.source or m.task: m for m in retention_metrics(metrics, scores)}
