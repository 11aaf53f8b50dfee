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

from nemo_vtb.evaluation.report.tables import SUITE_TITLES, plain_number, speech_table, suite_table, suites_in

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
        lines.append(f'| {task} | {_cell(source)} | {metric} | {n} | {" | ".join(_number(c) for c in cells)} |')
    lines += ['', '## Text', '', '| measure | model | n | base LLM | model | kept |', '| --- ' * 6 + '|']
    for model in report['models']:
        for t in model['text']:
            values = f'{plain_number(t["base"])} | {plain_number(t["ours"])}'
            kept = _number({'ours': t['kept'], 'low': t['low'], 'high': t['high']})
            lines.append(
                f'| {_cell(t["name"])}, {t["metric"]} | {_cell(model["name"])} | {t["n"]} | {values} | {kept} % |'
            )
    for suite in suites_in(report):
        lines += ['', f'## {SUITE_TITLES.get(suite, suite)} (percent)', '']
        lines += [f'| task | n | base LLM | {" | ".join(names)} |', '| --- ' * (3 + len(names)) + '|']
        for title, n, base, cells in suite_table(report, suite):
            shown = '-' if base is None else f'{base:.1f}'
            lines.append(f'| {_cell(title)} | {n} | {shown} | {" | ".join(_number(c) for c in cells)} |')
    return '\n'.join(lines) + '\n'


def _number(cell: Mapping[str, Any] | None) -> str:
    """A value with its interval."""
    if cell is None or cell['ours'] is None:
        return '-'
    if cell.get('low') is None or cell.get('high') is None:
        return f'{cell["ours"]:.1f}'
    return f'{cell["ours"]:.1f} ({cell["low"]:.1f} to {cell["high"]:.1f})'


def _cell(text: str) -> str:
    """Text that cannot leave its cell: a name may hold marks of markdown."""
    return ''.join(f'\\{c}' if c in '|*_`<>[]#\\' else ' ' if c in '\r\n' else c for c in str(text))
