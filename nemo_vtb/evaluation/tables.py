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
"""The figures of an evaluation as tables: at the terminal, and rows of several models for the report."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_vtb.evaluation.result import Evaluation, Metric

if TYPE_CHECKING:
    from rich.console import Console

TASK_TITLES = {
    'asr': 'Transcribe speech',
    'ast': 'Translate speech',
    'speech_qa': 'Answer about speech',
    'mixed_modal': 'Text + speech turns',
    'text': 'Text only',
}
"""What tables call the tasks of the suite `speech`."""

SUITE_TITLES = {
    'speech': 'Held-out data: this model beside its base LLM',
    'text': 'Text ability: this model beside its base LLM',
    'instruct': 'Instructions that a program checks, typed and spoken',
    'emergent': 'Tasks outside the training data',
    'ladder': 'Modality ladder: the same questions typed and spoken',
    'retention': 'Text ability kept, in percent of the base LLM',
    'symptoms': 'Answers that no score should hide',
}
"""What tables call the suites."""

_EXPLANATIONS = {
    'WER': 'WER: of 100 words said, so many are wrong, missing or added (0 = perfect).',
    'BLEU': 'BLEU: likeness to the reference translation (0 to 100; above 30 is understandable).',
    'exact match': 'exact match / F1: answers equal to the reference / words shared with it (100 = perfect).',
    'judge: correct': 'judge: answers that are right and no mere copies / redundancy: copied without need (1 to 10).',
    'perplexity': 'perplexity: on held-out text-only conversations; equal to the base = nothing was forgotten.',
    'retention': 'retention: the least of the parts above it; 100 = nothing was forgotten.',
}


def suites_in(evaluations: Sequence[Evaluation]) -> list[str]:
    """The suites that any of them has figures of, in the order of `SUITE_TITLES`, others behind."""
    order = list(SUITE_TITLES)
    found = dict.fromkeys(m.suite for evaluation in evaluations for m in evaluation.metrics)
    return sorted(found, key=lambda suite: order.index(suite) if suite in order else len(order))


def side_by_side(evaluations: Sequence[Evaluation], suite: str) -> list[list[Metric | None]]:
    """Rows of the same figure of each evaluation, None where one lacks it."""
    found = [{(m.task, m.source, m.name): m for m in evaluation.of(suite)} for evaluation in evaluations]
    keys = dict.fromkeys(key for metrics in found for key in metrics)
    return [[metrics.get(key) for metrics in found] for key in keys]


def title_of(metric: Metric) -> str:
    """What a table calls the task of a figure."""
    return metric.title or TASK_TITLES.get(metric.task, metric.task.replace('_', ' '))


def number(value: float | None, metric: Metric) -> str:
    """A value of a figure for people: as many digits as say something."""
    if value is None:
        return '-'
    if abs(value) >= 1000:
        return f'{value:.3g}'
    # percents are small integers at heart; a perplexity of 3.21 against 3.24 is a difference
    return f'{value:.1f}' if metric.unit == '%' or metric.name in ('BLEU', 'chrF') else f'{value:.2f}'


def interval(metric: Metric) -> str:
    """The interval of a figure; '-' where there is none."""
    low, high = metric.interval
    return '-' if low is None or high is None else f'{number(low, metric)} to {number(high, metric)}'


def show(evaluation: Evaluation, console: 'Console', *, examples: bool = True) -> None:
    """Print the figures of every suite, and examples of answers."""
    for suite in suites_in([evaluation]):
        show_table(evaluation, suite, console)
        if suite == 'speech' and examples:
            show_examples(evaluation, console)


def show_table(evaluation: Evaluation, suite: str, console: 'Console') -> None:
    """Print the figures of a suite so that a newcomer understands them."""
    from rich.table import Table

    metrics = evaluation.of(suite)
    table = Table(title=SUITE_TITLES.get(suite, suite), title_justify='left', header_style='bold')
    for name in ('Task', 'Source', 'Measure'):
        table.add_column(name, overflow='fold')
    for name in ('n', 'Base LLM', 'This model', '95 % interval', 'p'):
        table.add_column(name, justify='right', no_wrap=True)
    task = None
    for m in metrics:
        if task not in (None, m.task) and m.source:
            table.add_section()
        arrow = 'higher is better' if m.higher_is_better else 'lower is better'
        change = m.change_percent
        moved = f' ({change:+.1f} %)' if change is not None and m.unit != '%' else ''
        table.add_row(
            title_of(m) if task != m.task else '',
            m.source,
            f'{m.name}{" %" if m.unit == "%" else ""} [dim]({arrow})[/dim]',
            str(m.n),
            number(m.base, m),
            'n/a' if m.value is None else f'[bold]{number(m.value, m)}[/bold]{moved}',
            interval(m),
            '-' if m.p is None else f'{m.p:.3f}',
        )
        task = m.task
    console.print(table)
    names = {m.name for m in metrics} | {m.task for m in metrics}
    lines = [text for name, text in _EXPLANATIONS.items() if name in names]
    if suite == 'speech' and any(m.base is None for m in metrics):
        lines.append('-: no base value, as the base LLM takes no audio.')
    if lines:
        console.print('\n'.join(lines), style='dim', highlight=False)


def show_examples(evaluation: Evaluation, console: 'Console') -> None:
    """Print prompts and answers, with those of the base LLM where it has any."""
    from rich.table import Table

    table = Table(title='Examples', title_justify='left', header_style='bold', show_lines=True)
    table.add_column('Prompt', ratio=5)
    for name in ('Reference', 'This model', 'Base LLM'):
        table.add_column(name, ratio=3)
    for sample in evaluation.examples():
        said = [f'[dim]said: "{plain(text)}"[/dim]' for text in sample.said if text]
        head = f'[bold]{TASK_TITLES.get(sample.task, sample.task)}[/bold] [dim]({plain(sample.source)})[/dim]'
        table.add_row(
            '\n'.join([head, plain(sample.prompt), *said]),
            plain(sample.reference),
            plain(sample.hypothesis),
            '-' if sample.base is None else plain(sample.base),
        )
    console.print(table)


def plain(text: str) -> str:
    """Text that is safe to show: a model may write markup or control codes of the terminal."""
    from rich.markup import escape

    return escape(''.join(c if c.isprintable() or c == '\n' else '\ufffd' for c in text))


def to_tensorboard(evaluation: Evaluation, folder: str | Path, step: int) -> None:
    """Write the figures as scalars `eval/SUITE/TASK/SOURCE/METRIC`, as beside the curves of a run.

    Args:
        evaluation: The result.
        folder: Of the events.
        step: Of the run that made the model.
    """
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for m in evaluation.metrics:
            if m.value is not None and math.isfinite(m.value):
                tag = '/'.join(part for part in ('eval', m.suite, m.task, m.source, m.name) if part)
                writer.add_scalar(tag, m.value, step)


def record(metric: Metric) -> Mapping[str, object]:
    """A figure as a row of a manifest and of a model card: few columns, since they stand in a terminal, too."""
    low, high = metric.interval
    task = metric.task if metric.suite in ('speech', 'retention') else f'{metric.suite}: {metric.task}'
    return {
        'task': task, 'source': metric.source, 'measure': metric.name, 'n': metric.n, 'base': metric.base,
        'model': metric.value, 'low': low, 'high': high, 'signature': metric.signature,
    }  # fmt: skip
