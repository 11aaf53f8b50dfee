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
"""What an evaluation means: text ability kept, a verdict with its reasons, and what the manifest of the model says."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_vtb.checkpoint.archive import change_sections
from nemo_vtb.evaluation.result import Evaluation, Row, finite

LEVELS = ('green', 'amber', 'red')
# percent of the base LLM's text ability: the goal of joint training, and the least that is acceptable
KEPT_GOAL, KEPT_FLOOR = 98.0, 90.0
# word error rate of the best source: recognises speech, and does not
WER_GOAL, WER_LIMIT = 20.0, 60.0
_SUITE_MEAN = 'mean over the text suite'
_INFO = ('datasets', 'limit', 'max_new_tokens', 'suites', 'judge')


@dataclass(frozen=True, slots=True)
class Verdict:
    """One of `LEVELS`, the sentence for the top of the page, and every reason with its own level."""

    level: str
    sentence: str
    reasons: tuple[tuple[str, str], ...] = field(default_factory=tuple)


def text_kept(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Every measure of text ability beside the base LLM: what is kept, in percent, with its interval.

    Args:
        evaluation: The result.

    Returns:
        Records of name, metric, n, base, ours, kept, low, high, p_value; an interval is None where there is none.
    """
    found = []
    for row in evaluation.rows:
        if row.task == 'text' and row.base:
            # results that were made before rows were drawn in pairs have no interval of what is kept
            kept, low, high = row.kept or (_kept(row.base, row.ours, row.higher_is_better), None, None)
            found.append(_record(f'chats: {row.source}', row.metric, row.n, row.base, row.ours) | _of(kept, low, high))
    suite = evaluation.suites.get('text_suite') or {}
    for name, task in (suite.get('tasks') or {}).items():
        base, higher = (task.get('base') or {}).get('value'), task.get('higher_is_better', True)
        low, high = (task.get('change') or {}).get('interval') or (None, None)
        ends = [None if e is None or base is None else _kept(base, base + e, higher) for e in (low, high)]
        record = _record(name, task.get('metric', ''), task.get('n', 0), base, task.get('value'))
        kept = _kept(base, task.get('value'), higher)
        found.append(record | _of(kept, *(ends if higher else ends[::-1])) | {'p_value': task.get('p_value')})
    if suite.get('retention') is not None:
        low, high = (None if e is None else 100 * e for e in suite.get('retention_interval') or (None, None))
        count = sum(task.get('n', 0) for task in suite['tasks'].values())
        found.append(_record(_SUITE_MEAN, 'mean', count, None, None) | _of(100 * suite['retention'], low, high))
    return found


def _record(name: str, metric: str, n: int, base: float | None, ours: float | None) -> dict[str, Any]:
    return {'name': name, 'metric': metric, 'n': n, 'base': base, 'ours': ours, 'p_value': None}


def _of(kept: float | None, low: float | None, high: float | None) -> dict[str, Any]:
    return {'kept': kept, 'low': low, 'high': high}


def verdict_of(evaluation: Evaluation, base: Evaluation | None = None, base_name: str = '') -> Verdict:
    """The verdict on a model: does it recognise speech, did it keep its text ability, is it worse than the other one.

    Red: it kept less than 90 % of the text ability, by an interval that ends under 100 %, or its best word error rate
    is above 60 %. Green: it kept at least 98 % and no source has a word error rate above 60 %, the best at most 20 %.
    All else is amber.

    Args:
        evaluation: What was measured of the model.
        base: That of a model to compare with, None for the base LLM alone.
        base_name: What the sentences call that model.
    """
    reasons = [_hearing(evaluation), _reading(evaluation)]
    if base is not None:
        reasons += _compared(evaluation, base, base_name)
    level = max((level for level, _ in reasons), key=LEVELS.index)
    sentence = f'{reasons[0][1]} {reasons[1][1]}'
    return Verdict(level, sentence, tuple(reasons))


# ---- the manifest of a model


def manifest_sections(result: Evaluation) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The sections `evaluation` and `retention` of a manifest.

    Args:
        result: Of `vtb eval`.

    Returns:
        `rows` (a record for each measure) with `info` on the settings; `verdict` and what was `kept` of each measure
        of text ability, None where none was made.
    """
    rows = [
        {
            'task': row.task, 'source': row.source, 'measure': row.metric, 'n': row.n, 'base': row.base,
            'model': row.ours, 'low': row.low, 'high': row.high, 'signature': row.signature,
        }
        for row in result.rows
    ]  # fmt: skip
    for suite, found in result.suites.items():
        for name, task in found['tasks'].items():
            low, high = task.get('interval') or (None, None)
            base = (task.get('base') or {}).get('value')
            rows.append(
                {
                    'task': suite, 'source': name, 'measure': task['metric'], 'n': task['n'], 'base': base,
                    'model': task['value'], 'low': low, 'high': high, 'signature': '',
                }
            )  # fmt: skip
    kept = [{key: value for key, value in one.items() if key != 'p_value'} for one in text_kept(result)]
    verdict = verdict_of(result)
    retention = {'verdict': verdict.level, 'sentence': verdict.sentence, 'kept': kept} if kept else None
    return {'rows': rows, 'info': {key: result.info[key] for key in _INFO if key in result.info}}, retention


def write_to_manifest(file: str | Path, result: Evaluation) -> None:
    """Write the numbers into the manifest of the file that was measured; exports carry them in their model card.

    Args:
        file: The `.nemo` file; replaced when the new one is whole.
        result: What was measured.

    Raises:
        VtbCheckpointError: The file is damaged, has no manifest, or cannot be written.
    """
    evaluation, retention = manifest_sections(result)
    change_sections(Path(file), finite({'evaluation': evaluation, 'retention': retention}))


# ---- reasons


def _hearing(evaluation: Evaluation) -> tuple[str, str]:
    rates = {
        f'{r.source}': (math.inf if r.ours is None else r.ours, r.metric)
        for r in evaluation.rows
        if r.task == 'asr' and r.metric in ('WER', 'CER')
    }
    if not rates:
        return 'amber', 'How well it hears was not measured.'
    source, (best, metric) = min(rates.items(), key=lambda item: item[1][0])
    lost = {s: rate for s, (rate, _) in rates.items() if rate > WER_LIMIT}
    said = f'{metric} {best:.1f} % on {source}'
    if best > WER_LIMIT:
        return 'red', f'It does not hear ({said}, and that is its best).'
    if lost:
        others = ', '.join(f'{s} {rate:.0f} %' for s, rate in lost.items())
        return 'amber', f'It hears {source} ({metric} {best:.1f} %), but not {others}.'
    if best > WER_GOAL:
        return 'amber', f'It hears with many mistakes ({said}).'
    return 'green', f'It hears ({said}).'


def _reading(evaluation: Evaluation) -> tuple[str, str]:
    # single tasks of the suite have few items and may lie near chance: only their mean is judged
    kept = [t for t in text_kept(evaluation) if t['metric'] == 'perplexity' or t['name'] == _SUITE_MEAN]
    if not kept:
        return 'amber', 'What it kept of its text ability was not measured.'
    least = min(kept, key=lambda record: -1.0 if record['kept'] is None else record['kept'])
    value, high = least['kept'] or 0.0, least['high']
    interval = '' if high is None else f', {least["low"]:.1f} to {high:.1f}'
    said = f'{value:.1f} % of the base LLM\'s text ability ({least["name"]}{interval})'
    if value >= KEPT_GOAL:
        return 'green', f'It reads as before: it kept at least {said}.'
    if high is not None and high >= 100:
        return 'amber', f'It may have forgotten something: it kept {said}.'
    if value >= KEPT_FLOOR:
        return 'amber', f'It has forgotten a little: it kept {said}.'
    return 'red', f'It has forgotten how to read: it kept {said}.'


def _compared(evaluation: Evaluation, base: Evaluation, name: str) -> list[tuple[str, str]]:
    """Where it is worse than the other model beyond both intervals."""
    others = {(r.task, r.source, r.metric): r for r in base.rows}
    found = []
    for row in evaluation.rows:
        other = others.get((row.task, row.source, row.metric))
        if other is not None and _worse(row, other):
            found.append(
                (
                    'amber',
                    f'Worse than {name}: {row.metric} on {row.source} {row.ours:.1f}, there {other.ours:.1f}.',
                )
            )
    return found or [('green', f'Nowhere worse than {name} beyond the intervals.')]


def _worse(row: Row, other: Row) -> bool:
    if None in (row.low, row.high, other.low, other.high):
        return False
    return bool(row.high < other.low if row.higher_is_better else row.low > other.high)  # type: ignore[operator]


def _kept(base: float | None, ours: float | None, higher_is_better: bool) -> float | None:
    if not base or ours is None or not math.isfinite(ours) or ours <= 0 and not higher_is_better:
        return None
    return 100 * (ours / base if higher_is_better else base / ours)
