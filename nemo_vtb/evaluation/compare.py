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
"""Runs and published numbers side by side: each figure with its change from the first run, in pairs of examples."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_vtb.errors import VtbDataError
from nemo_vtb.evaluation.metrics import (
    PERPLEXITY,
    Measure,
    Paired,
    Statistics,
    bleu_of,
    chrf_of,
    compare_pairs,
    scored,
)
from nemo_vtb.evaluation.result import Evaluation, Metric, finite
from nemo_vtb.evaluation.tables import plain
from nemo_vtb.io import read_yaml

if TYPE_CHECKING:
    from rich.console import Console

Key = tuple[str, str, str, str]
"""Suite, task, source and metric."""


@dataclass(frozen=True, slots=True)
class Run:
    """What was measured of one model.

    Args:
        name: As the table calls it.
        metrics: Its figures.
        items: Statistics of the examples of a figure, by their ids.
    """

    name: str
    metrics: Mapping[Key, Metric]
    items: Mapping[Key, Mapping[str, Statistics]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of all runs.

    Args:
        key: Which.
        metric: Of the first run that has it; None for a number that is only published.
        values: Run or publication -> number.
        changes: Run -> difference to the first run on the same examples.
    """

    key: Key
    metric: Metric | None
    values: Mapping[str, float]
    changes: Mapping[str, Paired]


def compare_runs(runs: Sequence[Run], published: Mapping[str, Mapping[Key, float]] | None = None) -> list[Line]:
    """The figures of runs and publications, those of the first run first.

    A change is given where both runs answered the same examples with the same measure; the examples are drawn and
    swapped in pairs.

    Args:
        runs: At least one; the first is the baseline.
        published: Name -> figures, of `read_published`.
    """
    published = published or {}
    keys = dict.fromkeys(key for run in (*runs, *(Run(n, v) for n, v in published.items())) for key in run.metrics)  # type: ignore[arg-type]
    lines = []
    for key in keys:
        values = {run.name: run.metrics[key].value for run in runs if key in run.metrics}
        values |= {name: numbers[key] for name, numbers in published.items() if key in numbers}
        metric = next((run.metrics[key] for run in runs if key in run.metrics), None)
        changes = {run.name: change for run in runs[1:] if (change := _change(key, runs[0], run)) is not None}
        lines.append(Line(key, metric, {name: v for name, v in values.items() if v is not None}, changes))
    return lines


def _change(key: Key, base: Run, run: Run) -> Paired | None:
    ours, theirs = run.items.get(key), base.items.get(key)
    if not ours or not theirs or ours.keys() != theirs.keys():
        return None
    if run.metrics[key].signature != base.metrics[key].signature:
        return None
    return compare_pairs(_measure(run.metrics[key]), list(ours.values()), [theirs[id_] for id_ in ours])


def _measure(metric: Metric) -> Measure:
    """How the sums of a figure's statistics make its value."""
    if metric.name == 'BLEU':
        return bleu_of(
            {'zh': 'zh', 'char': 'ja'}.get((re.findall(r'tok:(\w+)', metric.signature) or ['13a'])[0], 'en')
        )
    if metric.name in ('chrF', 'perplexity'):
        return chrf_of() if metric.name == 'chrF' else PERPLEXITY
    return scored(metric.name, unit=metric.unit, higher_is_better=metric.higher_is_better)


def read_published(path: str | Path, known: Sequence[Key]) -> dict[str, dict[Key, float]]:
    """Published numbers: a YAML file `NAME: {SUITE/TASK/SOURCE/METRIC: number}`; SOURCE may be left out.

    Args:
        path: The file.
        known: Figures of the runs, which complete the keys.

    Raises:
        VtbDataError: It is no such file, or names a figure that no run has.
    """
    try:
        content = read_yaml(path)
        pairs = [(str(n), str(k), float(v)) for n, numbers in content.items() for k, v in numbers.items()]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise VtbDataError(
            'Published numbers cannot be read.', field=str(path), got=f'{type(error).__name__} {error}',
            allowed='NAME: {SUITE/TASK/SOURCE/METRIC: number}',
        ) from error  # fmt: skip
    short = {'/'.join(key): key for key in known} | {f'{s}/{t}/{m}': (s, t, source, m) for s, t, source, m in known}
    found: dict[str, dict[Key, float]] = {}
    for name, written, value in pairs:
        if written not in short:
            raise VtbDataError(
                'A published number has no counterpart in the runs.', field=f'{path}: {name}', got=written,
                allowed=sorted('/'.join(key) for key in known), remedy='correct the name, or remove the line',
            )  # fmt: skip
        found.setdefault(name, {})[short[written]] = value
    return found


def read_run(value: str) -> Run:
    """A result of `vtb eval`, as FILE or NAME=FILE.

    Raises:
        VtbDataError: There is no such file, or it is no result.
    """
    name, _, file = value.rpartition('=')
    found = Evaluation.read(file)
    metrics = {(m.suite, m.task, m.source, m.name): m for m in found.metrics}
    items: dict[Key, dict[str, Statistics]] = {}
    for score in found.scores:
        for metric, numbers in score.scores.items():
            items.setdefault((score.suite, score.task, score.source, metric), {})[score.id] = tuple(numbers)
    return Run(name or Path(file).name.removesuffix('.jsonl').removesuffix('.eval'), metrics, items)


# ---- shown


def show(lines: Sequence[Line], console: 'Console') -> None:
    """Print a table; `*` marks a change whose interval has no zero."""
    from rich.table import Table

    head, *rows = _rows(lines)
    table = Table(title='Side by side', title_justify='left', header_style='bold')
    for name in head[:2]:
        table.add_column(name.capitalize(), overflow='fold')
    for name in head[2:]:
        table.add_column(plain(name), justify='right')
    for row in rows:
        table.add_row(*map(plain, row))
    console.print(table)
    console.print(
        'In brackets: change from the first run, 95 % interval of the same examples in pairs; * without zero.',
        style='dim', highlight=False,
    )  # fmt: skip


def markdown(lines: Sequence[Line]) -> str:
    """The table as Markdown."""
    head, *rows = _rows(lines)
    table = [head, ['---'] * len(head), *rows]
    return ''.join('| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |\n' for row in table)


def _rows(lines: Sequence[Line]) -> list[list[str]]:
    """The head of the table, and a row for each line."""
    names = list(dict.fromkeys(name for line in lines for name in line.values))
    counts = [str(line.metric.n) if line.metric else '-' for line in lines]
    return [
        ['benchmark', 'metric', 'n', *names],
        *([_where(line), line.key[3], n, *(_cell(line, name) for name in names)]
          for line, n in zip(lines, counts, strict=True)),
    ]  # fmt: skip


def as_json(lines: Sequence[Line]) -> str:
    """The lines as JSON, with signatures."""
    keys = ('suite', 'task', 'source', 'metric')
    entries: list[dict[str, Any]] = [
        dict(zip(keys, line.key, strict=True))
        | {'values': line.values, 'changes': {name: asdict(change) for name, change in line.changes.items()}}
        | ({'n': line.metric.n, 'signature': line.metric.signature} if line.metric else {})
        for line in lines
    ]
    return json.dumps(finite(entries), ensure_ascii=False, indent=1) + '\n'


def _where(line: Line) -> str:
    suite, task, source, _ = line.key
    return '/'.join(dict.fromkeys(part for part in (suite, task, source) if part))


def _cell(line: Line, name: str) -> str:
    if name not in line.values:
        return '-'
    text = f'{line.values[name]:.2f}'
    if (change := line.changes.get(name)) is None:
        return text
    low, high = change.interval
    if low is None or high is None:
        return f'{text} ({change.change:+.2f})'
    mark = '*' if low > 0 or high < 0 else ''
    return f'{text} ({change.change:+.2f}{mark}, {low:+.2f} to {high:+.2f})'
