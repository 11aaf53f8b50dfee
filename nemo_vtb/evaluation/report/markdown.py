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
"""The report as markdown: verdicts and figures."""

from collections.abc import Mapping
from typing import Any

from nemo_vtb.evaluation.result import Evaluation, Metric
from nemo_vtb.evaluation.tables import SUITE_TITLES, interval, number, side_by_side, suites_in


def render_markdown(report: Mapping[str, Any]) -> str:
    """The whole report without recordings and curves."""
    lines = ['# What it hears and what it kept', '']
    for model in report['models']:
        verdict = model['verdict']
        lines += [f'**{_cell(model["name"])}: {verdict["level"].upper()}.** {_cell(verdict["sentence"])}', '']
    names = [_cell(m['name']) for m in report['models']]
    evaluations = [Evaluation(tuple(m['metrics'])) for m in report['models']]
    for suite in suites_in(evaluations):
        lines += [f'## {SUITE_TITLES.get(suite, suite)}', '']
        lines += [
            f'| task | source | measure | n | base LLM | {" | ".join(names)} |',
            '| --- ' * (5 + len(names)) + '|',
        ]
        for cells in side_by_side(evaluations, suite):
            m = next(m for m in cells if m is not None)
            head = f'{_cell(m.title or m.task)} | {_cell(m.source)} | {_cell(m.name)} | {m.n} | {number(m.base, m)}'
            lines.append(f'| {head} | {" | ".join(map(_value, cells))} |')
        lines.append('')
    return '\n'.join(lines)


def _value(m: Metric | None) -> str:
    """A value with its interval."""
    if m is None or m.value is None:
        return '-'
    unit = ' %' if m.unit == '%' else ''
    return f'{number(m.value, m)}{unit}' + ('' if interval(m) == '-' else f' ({interval(m)})')


def _cell(text: str) -> str:
    """Text that cannot leave its cell: a name may hold marks of markdown."""
    return ''.join(f'\\{c}' if c in '|*_`<>[]#\\' else ' ' if c in '\r\n' else c for c in str(text))
