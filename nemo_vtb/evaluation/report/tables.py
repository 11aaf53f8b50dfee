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
"""Tables of a report, each cell one model: what page and markdown both show."""

from collections.abc import Mapping
from typing import Any

SUITE_TITLES = {
    'instruct': 'Instructions that a program checks, typed and spoken',
    'emergent': 'What was never taught',
    'ladder': 'Modality ladder: the same questions typed and spoken',
}


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
    """Names of the suites that any model has results of."""
    return list(dict.fromkeys(name for model in report['models'] for name in model['suites']))


def suite_table(
    report: Mapping[str, Any], suite: str
) -> list[tuple[str, int, float | None, list[Mapping[str, Any] | None]]]:
    """Rows of title, n, value of the base LLM (None where it has none) and one record for each model."""
    tables = [(model['suites'].get(suite) or {}).get('tasks') or {} for model in report['models']]
    found = []
    for name, first in {name: task for tasks in tables for name, task in tasks.items()}.items():
        cells: list[Mapping[str, Any] | None] = []
        for tasks in tables:
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
