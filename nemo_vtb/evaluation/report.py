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
"""The forgetting report: what a model hears, what it kept of its text ability, and one sentence that says so."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nemo_vtb.errors import VtbDataError
from nemo_vtb.evaluation.result import Evaluation, Row, finite, write_json
from nemo_vtb.io import write_atomically

FORMAT_VERSION = 1
LEVELS = ('green', 'amber', 'red')
# percent of the base LLM's text ability: the goal of joint training, and what nobody would take
KEPT_GOAL, KEPT_FLOOR = 98.0, 90.0
# word error rate of the source that is heard best: good ears, and none
HEARS, DEAF = 20.0, 60.0
_SUITE_MEAN = 'mean over the text suite'
_SPEECH_TASKS = ('asr', 'ast', 'speech_qa', 'mixed_modal')


@dataclass(frozen=True, slots=True)
class Subject:
    """A measured model.

    Args:
        name: What the report calls it.
        evaluation: What `vtb eval` found.
        ledger: What it was trained on (`ledger.json`, or the manifest's), None where it is not known.
        history: Records of `history.jsonl`, [] where there are none.
    """

    name: str
    evaluation: Evaluation
    ledger: Mapping[str, Any] | None = None
    history: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """One of `LEVELS`, the sentence for the top of the page, and every reason with its own level."""

    level: str
    sentence: str
    reasons: tuple[tuple[str, str], ...] = field(default_factory=tuple)


def read_subject(path: str | Path, name: str | None = None) -> Subject:
    """Read a result of `vtb eval`, and what lies beside it or beside its model: ledger and history.

    Args:
        path: An `.eval.json` file.
        name: What the report calls it; None: the file's name, or its folder's where that says nothing.

    Raises:
        VtbDataError: The file is missing or no result.
    """
    from nemo_vtb.training.history import read_history

    path = Path(path)
    evaluation = Evaluation.from_json(path)
    model = Path((evaluation.info.get('file') or {}).get('model') or path.with_name(f'{name_of(path)}.nemo'))
    folders = list(dict.fromkeys((path.parent, path.parent.parent, model.parent, model.parent.parent)))
    history = next((h for folder in folders if (h := read_history(folder / 'history.jsonl'))), [])
    ledger = _manifest_ledger(model) or _first_json([folder / 'ledger.json' for folder in folders])
    return Subject(name or name_of(path), evaluation, ledger, history)


def name_of(path: Path) -> str:
    """`run` for `run.eval.json`, the folder's name for a file that is just called eval, model or the like."""
    stem = path.name.removesuffix('.json').removesuffix('.eval').removesuffix('.nemo')
    folder = path.parent.parent if path.parent.name == 'checkpoints' else path.parent
    return folder.name if stem in ('eval', 'model', 'result') and folder.name else stem


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


def judge(subject: Subject, base: Subject | None = None) -> Verdict:
    """The verdict on a model: does it hear, does it read as before, is it worse than the one it is compared with.

    Red: it kept less than 90 % of the text ability, by an interval that ends under 100 %, or its best word error rate
    is above 60 %. Green: it kept at least 98 % and no source has a word error rate above 60 %, the best at most 20 %.
    All else is amber.

    Args:
        subject: The model.
        base: A model to compare with, None for the base LLM alone.
    """
    reasons = [_hearing(subject.evaluation), _reading(subject.evaluation)]
    if base is not None:
        reasons += _compared(subject.evaluation, base)
    level = max((level for level, _ in reasons), key=LEVELS.index)
    sentence = f'{reasons[0][1]} {reasons[1][1]}'
    return Verdict(level, sentence, tuple(reasons))


def make_report(subjects: Sequence[Subject], base: Subject | None = None) -> dict[str, Any]:
    """Everything that the page shows, as plain values (and what `report.json` holds).

    Args:
        subjects: The models.
        base: A model to compare with, None for the base LLM alone.

    Raises:
        VtbDataError: No model, or two of one name.
    """
    from nemo_vtb.evaluation.report_examples import worst_examples

    names = [s.name for s in (*subjects, *([base] if base else []))]
    if not subjects or len(set(names)) < len(names):
        raise VtbDataError(
            'A report needs models of different names.', field='models', got=names, remedy='name them: NAME=FILE'
        )
    entries: list[dict[str, Any]] = []
    for subject in (*([base] if base else []), *subjects):
        is_base = subject is base
        verdict = judge(subject, None if is_base else base)
        entries.append(
            {
                'name': subject.name,
                'is_base': is_base,
                'verdict': {'level': verdict.level, 'sentence': verdict.sentence, 'reasons': list(verdict.reasons)},
                'info': dict(subject.evaluation.info),
                'speech': [asdict(r) for r in subject.evaluation.rows if r.task in _SPEECH_TASKS],
                'text': text_kept(subject.evaluation),
                'suites': {k: v for k, v in subject.evaluation.suites.items() if k != 'text_suite'},
                'ledger': dict(subject.ledger) if subject.ledger else None,
                'curves': _curves(subject.history),
                'worst': [] if is_base else worst_examples(subject.evaluation, 3 if len(subjects) == 1 else 1),
            }
        )
    judged = [e['verdict'] for e in entries if not e['is_base']]
    worst = max(judged, key=lambda v: LEVELS.index(v['level']))
    return {
        'format_version': FORMAT_VERSION,
        'base': base.name if base else None,
        'verdict': {'level': worst['level'], 'sentence': worst['sentence']},
        'models': entries,
    }


def write_report(report: Mapping[str, Any], folder: str | Path) -> dict[str, Path]:
    """Write `report.html` (one self-contained page), `report.md` and `report.json`.

    Args:
        report: From `make_report`.
        folder: Where they go.

    Returns:
        html, md, json -> path.
    """
    from nemo_vtb.evaluation.report_html import render_page
    from nemo_vtb.evaluation.report_markdown import render_markdown

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / f'report.{kind}' for kind in ('html', 'md', 'json')}
    write_atomically(paths['html'], render_page(report))
    write_atomically(paths['md'], render_markdown(report))
    # the recordings are in the page; a JSON file is read by programs
    slim = [
        m | {'worst': [{k: v for k, v in w.items() if k != 'players'} for w in m['worst']]} for m in report['models']
    ]
    write_json(paths['json'], finite({**report, 'models': slim}))
    return paths


# ---- verdict


def _hearing(evaluation: Evaluation) -> tuple[str, str]:
    rates = {
        f'{r.source}': (math.inf if r.ours is None else r.ours, r.metric)
        for r in evaluation.rows
        if r.task == 'asr' and r.metric in ('WER', 'CER')
    }
    if not rates:
        return 'amber', 'How well it hears was not measured.'
    source, (best, metric) = min(rates.items(), key=lambda item: item[1][0])
    lost = {s: rate for s, (rate, _) in rates.items() if rate > DEAF}
    said = f'{metric} {best:.1f} % on {source}'
    if best > DEAF:
        return 'red', f'It does not hear ({said}, and that is its best).'
    if lost:
        others = ', '.join(f'{s} {rate:.0f} %' for s, rate in lost.items())
        return 'amber', f'It hears {source} ({metric} {best:.1f} %), but not {others}.'
    if best > HEARS:
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


def _compared(evaluation: Evaluation, base: Subject) -> list[tuple[str, str]]:
    """Where it is worse than the other model beyond both intervals."""
    others = {(r.task, r.source, r.metric): r for r in base.evaluation.rows}
    found = []
    for row in evaluation.rows:
        other = others.get((row.task, row.source, row.metric))
        if other is not None and _worse(row, other):
            found.append(
                (
                    'amber',
                    f'Worse than {base.name}: {row.metric} on {row.source} {row.ours:.1f}, there {other.ours:.1f}.',
                )
            )
    return found or [('green', f'Nowhere worse than {base.name} beyond the intervals.')]


def _worse(row: Row, other: Row) -> bool:
    if None in (row.low, row.high, other.low, other.high):
        return False
    return bool(row.high < other.low if row.higher_is_better else row.low > other.high)  # type: ignore[operator]


# ---- numbers


def _kept(base: float | None, ours: float | None, higher_is_better: bool) -> float | None:
    if not base or ours is None or not math.isfinite(ours) or ours <= 0 and not higher_is_better:
        return None
    return 100 * (ours / base if higher_is_better else base / ours)


def _curves(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Kind -> {train: [[step, loss]], validation: [[step, loss]]}; a long run is thinned to 400 points."""
    curves: dict[str, dict[str, list[list[float]]]] = {}
    for record in history:
        if record.get('type') == 'train':
            for kind, loss in record.get('losses', {}).items():
                curves.setdefault(kind, {'train': [], 'validation': []})['train'].append([record['step'], loss])
        for key, loss in (record.get('metrics') or {}).items():
            if key.startswith('val_loss_'):
                kind = key.removeprefix('val_loss_')
                curves.setdefault(kind, {'train': [], 'validation': []})['validation'].append([record['step'], loss])
    for curve in curves.values():
        step = max(1, len(curve['train']) // 400)
        curve['train'] = curve['train'][::step]
    return curves


def _manifest_ledger(model: Path) -> dict[str, Any] | None:
    """The ledger in the `.nemo` file, None where that has gone."""
    from nemo_vtb.checkpoint.archive import read_info

    if not model.is_file():
        return None
    ledger: dict[str, Any] | None = read_info(model).manifest.get('ledger')
    return ledger


def _first_json(paths: Sequence[Path]) -> dict[str, Any] | None:
    for path in paths:
        if path.is_file():
            value: dict[str, Any] = json.loads(path.read_text(encoding='utf-8'))
            return value
    return None
