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
"""A verdict on a model by fixed rules over its figures, and the sections of its manifest."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_vtb.checkpoint.archive import change_sections
from nemo_vtb.evaluation.result import Evaluation, Metric, finite
from nemo_vtb.evaluation.retention import parts_of
from nemo_vtb.evaluation.symptoms import SYMPTOMS
from nemo_vtb.evaluation.tables import record

LEVELS = ('green', 'amber', 'red')
# percent of the base LLM's text ability: the goal of joint training, and the least that is acceptable
KEPT_GOAL, KEPT_FLOOR = 98.0, 90.0
# word error rate of the best source: recognises speech, and does not
WER_GOAL, WER_LIMIT = 20.0, 60.0
# percent of the answers of a task with a symptom: worth a word, and worth nothing else
ILL_SOME, ILL_MOST = 10.0, 50.0
_FEW = 3
# nobody was trained for these: what is wrong there stands in the table
_UNTAUGHT = ('emergent: ', 'ladder: ')
_PARTS = {'chats': 'held-out chats', 'tasks': 'mean over the text tasks'}
_INFO = ('datasets', 'limit', 'max_new_tokens', 'suites', 'judge', 'contamination')


@dataclass(frozen=True, slots=True)
class Verdict:
    """One of `LEVELS`, the sentence for the top of the page, and every reason with its own level."""

    level: str
    sentence: str
    reasons: tuple[tuple[str, str], ...] = field(default_factory=tuple)


def verdict_of(evaluation: Evaluation, base: Evaluation | None = None, base_name: str = '') -> Verdict:
    """The verdict on a model: does it recognise speech, did it keep its text ability, is it worse than the other one.

    Red: it kept less than 90 % of the text ability, by an interval that ends under 100 %, or its best word error rate
    is above 60 %, or most answers of a task are empty, endless, copied, in another language or all the same. Green: it
    kept at least 98 % and no source has a word error rate above 60 %, the best at most 20 %. All else is amber.

    Args:
        evaluation: What was measured of the model.
        base: That of a model to compare with, None for the base LLM alone.
        base_name: What the sentences call that model.
    """
    ill = _symptoms(evaluation)
    reasons = [_hearing(evaluation), _reading(evaluation), *ill]
    if base is not None:
        reasons += _compared(evaluation, base, base_name)
    level = max((level for level, _ in reasons), key=LEVELS.index)
    first = [text for _, text in ill[:1]]
    return Verdict(level, ' '.join([*first, reasons[0][1], reasons[1][1]]), tuple(reasons))


# ---- the manifest of a model


def manifest_sections(result: Evaluation) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The sections `evaluation` and `retention` of a manifest.

    Args:
        result: Of `vtb eval`.

    Returns:
        `rows` (a record for each figure) with `info` on the settings; `verdict` and the figures of retention, None
        where there are none.
    """
    rows = [record(m) for m in result.metrics if m.suite != 'retention']
    kept = [record(m) for m in result.of('retention')]
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


def _symptoms(evaluation: Evaluation) -> list[tuple[str, str]]:
    """The worst first."""
    found = sorted(evaluation.of('symptoms'), key=lambda m: -(m.value or 0.0))
    return [
        ('red' if (m.value or 0.0) >= ILL_MOST else 'amber', f'{SYMPTOMS[m.name]} ({m.value:.0f} % of {m.task}).')
        for m in found
        if m.n >= _FEW and (m.value or 0.0) >= ILL_SOME and m.name in SYMPTOMS and not m.task.startswith(_UNTAUGHT)
    ]


def _hearing(evaluation: Evaluation) -> tuple[str, str]:
    rates = {
        m.source: (math.inf if m.value is None else m.value, m.name)
        for m in evaluation.of('speech', 'asr')
        if m.name in ('WER', 'CER')
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
    # single tasks have few items and may lie near chance: only what retention is made of is judged
    parts = parts_of(evaluation.metrics)
    if not parts:
        return 'amber', 'What it kept of its text ability was not measured.'
    name, least = min(parts.items(), key=lambda item: -1.0 if item[1].value is None else item[1].value)
    value, (low, high) = least.value or 0.0, least.interval
    interval = '' if low is None or high is None else f', {low:.1f} to {high:.1f}'
    sets = [m.source for m in evaluation.of('retention', name) if m.source and m.value == least.value]
    where = f'{_PARTS.get(name, name)}{f": {sets[0]}" if sets and name == "chats" else ""}'
    said = f'{value:.1f} % of the base LLM\'s text ability ({where}{interval})'
    if value >= KEPT_GOAL:
        return 'green', f'It reads as before: it kept at least {said}.'
    if high is not None and high >= 100:
        return 'amber', f'It may have forgotten something: it kept {said}.'
    if value >= KEPT_FLOOR:
        return 'amber', f'It has forgotten a little: it kept {said}.'
    return 'red', f'It has forgotten how to read: it kept {said}.'


def _compared(evaluation: Evaluation, base: Evaluation, name: str) -> list[tuple[str, str]]:
    """Where it is worse than the other model beyond both intervals."""
    others = {(m.task, m.source, m.name): m for m in base.of('speech')}
    found = []
    for m in evaluation.of('speech'):
        other = others.get((m.task, m.source, m.name))
        if other is not None and _worse(m, other):
            found.append(
                ('amber', f'Worse than {name}: {m.name} on {m.source} {m.value:.1f}, there {other.value:.1f}.')
            )
    return found or [('green', f'Nowhere worse than {name} beyond the intervals.')]


def _worse(one: Metric, other: Metric) -> bool:
    (low, high), (other_low, other_high) = one.interval, other.interval
    if low is None or high is None or other_low is None or other_high is None:
        return False
    return high < other_low if one.higher_is_better else low > other_high
