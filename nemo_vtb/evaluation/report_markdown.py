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
"""The report as markdown: the same numbers as the page, for a pull request or a model card."""

from collections.abc import Mapping
from typing import Any

SUITE_TITLES = {
    'instruct': 'Instructions that a program checks, typed and spoken',
    'emergent': 'What was never taught',
    'ladder': 'Modality ladder: the same questions typed and spoken',
}

_MARKS = {'green': 'GREEN', 'amber': 'AMBER', 'red': 'RED'}


def render_markdown(report: Mapping[str, Any]) -> str:
    """The whole report without recordings and curves."""
    lines = ['# What it hears and what it kept', '']
    for model in report['models']:
        verdict = model['verdict']
        lines += [f'**{_cell(model["name"])}: {_MARKS[verdict["level"]]}.** {_cell(verdict["sentence"])}', '']
    names = [_cell(m['name']) for m in report['models']]
    lines += [
        '## Speech',
        '',
        f'| task | source | measure | n | {" | ".join(names)} |',
        '| --- ' * (4 + len(names)) + '|',
    ]
    for task, source, metric, n, cells in speech_table(report):
        lines.append(f'| {task} | {_cell(source)} | {metric} | {n} | {" | ".join(number(c) for c in cells)} |')
    lines += ['', '## Text', '', '| measure | model | n | base LLM | model | kept |', '| --- ' * 6 + '|']
    for model in report['models']:
        for t in model['text']:
            values = f'{plain_number(t["base"])} | {plain_number(t["ours"])}'
            kept = number({'ours': t['kept'], 'low': t['low'], 'high': t['high']})
            lines.append(
                f'| {_cell(t["name"])}, {t["metric"]} | {_cell(model["name"])} | {t["n"]} | {values} | {kept} % |'
            )
    for suite in suites_in(report):
        lines += ['', f'## {SUITE_TITLES.get(suite, suite)} (percent)', '']
        lines += [f'| task | n | base LLM | {" | ".join(names)} |', '| --- ' * (3 + len(names)) + '|']
        for title, n, base, cells in suite_table(report, suite):
            shown = '-' if base is None else f'{base:.1f}'
            lines.append(f'| {_cell(title)} | {n} | {shown} | {" | ".join(number(c) for c in cells)} |')
    return '\n'.join(lines) + '\n'


def speech_table(report: Mapping[str, Any]) -> list[tuple[str, str, str, int, list[Mapping[str, Any] | None]]]:
    """Rows of task, source, metric, n and one record for each model, None where it was not measured."""
    keys: dict[tuple[str, str, str], int] = {}
    for model in report['models']:
        for row in model['speech']:
            keys.setdefault((row['task'], row['source'], row['metric']), row['n'])
    found = []
    for (task, source, metric), n in keys.items():
        cells = [
            next((r for r in m['speech'] if (r['task'], r['source'], r['metric']) == (task, source, metric)), None)
            for m in report['models']
        ]
        found.append((task, source, metric, n, cells))
    return found


def suites_in(report: Mapping[str, Any]) -> list[str]:
    """Names of the suites that any model was asked."""
    return list(dict.fromkeys(name for model in report['models'] for name in model['suites']))


def suite_table(
    report: Mapping[str, Any], suite: str
) -> list[tuple[str, int, float | None, list[Mapping[str, Any] | None]]]:
    """Rows of title, n, value of the base LLM (None where it cannot be asked) and one record for each model."""
    asked = [(model['suites'].get(suite) or {}).get('tasks') or {} for model in report['models']]
    found = []
    for name, first in {name: task for tasks in asked for name, task in tasks.items()}.items():
        cells: list[Mapping[str, Any] | None] = []
        for tasks in asked:
            low, high = (tasks.get(name) or {}).get('interval') or (None, None)
            cells.append({'ours': _percent(tasks[name]['value']), 'low': _percent(low), 'high': _percent(high)}
                         if name in tasks else None)  # fmt: skip
        base = _percent((first.get('base') or {}).get('value'))
        found.append((first.get('title', name.replace('_', ' ')), first['n'], base, cells))
    return found


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def plain_number(value: float | None) -> str:
    """A number for people: as many digits as say something."""
    if value is None:
        return '-'
    return f'{value:.3g}' if abs(value) >= 1000 else f'{value:.2f}' if abs(value) < 30 else f'{value:.1f}'


def number(cell: Mapping[str, Any] | None) -> str:
    """A value with its interval."""
    if cell is None or cell['ours'] is None:
        return '-'
    if cell.get('low') is None or cell.get('high') is None:
        return f'{cell["ours"]:.1f}'
    return f'{cell["ours"]:.1f} ({cell["low"]:.1f} to {cell["high"]:.1f})'


def _cell(text: str) -> str:
    """Text that cannot leave its cell: a name may hold marks of markdown."""
    return ''.join(f'\\{c}' if c in '|*_`<>[]#\\' else ' ' if c in '\r\n' else c for c in str(text))
