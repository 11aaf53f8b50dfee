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
"""What the page of a report shows, from its records; `page.html.j2` and `page.css` say how it looks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_vtb.constants import KIND_COLOURS
from nemo_vtb.evaluation.report.plots import loss_curve
from nemo_vtb.evaluation.result import Evaluation, Metric
from nemo_vtb.evaluation.retention import parts_of
from nemo_vtb.evaluation.tables import SUITE_TITLES, number, side_by_side, suites_in, title_of

SERIES = ('var(--s1)', 'var(--s2)', 'var(--s3)', 'var(--s4)', 'var(--s5)', 'var(--s6)')
_TASKS = {
    'asr': 'Transcribe speech',
    'ast': 'Translate speech',
    'speech_qa': 'Answer about speech',
    'mixed_modal': 'Typed + spoken chat',
}
_KINDS = {'text': 'Typed chats', 'asr_ast': 'Transcribe, translate', 'speech_qa': 'Questions', 'mixed_modal': 'Mixed'}
_TITLES = {'speech': 'What it hears', 'retention': 'What it kept of its text ability'}
_NOTES = {
    'speech': 'Held-out recordings, in percent. The band is the 95 % interval; the base LLM cannot hear.',
    'retention': 'The same items to the base LLM and to the model: percent of the base LLM, on a line from 50 to '
    '110 %. The band is the 95 % interval; items are drawn in pairs. Retention is the least of the held-out chats and '
    'the mean over the text tasks.',
    'text': 'The tasks of lm-eval, to the model and to its base LLM.',
    'instruct': 'Whether the answer keeps what was asked (length, form, words), checked by a program.',
    'emergent': 'Wordings, forms and tasks that no training data has; the base LLM reads what the model hears.',
    'ladder': 'What is lost on the way from a typed question to a noisy spoken one, and to one a turn after the '
    'recording.',
    'symptoms': 'Share of answers that are empty, endless, copied, in another language, or one for all recordings.',
}
# marks of judges and of COMET; all else is in percent
_SCALES = {
    'judge: redundancy': (1.0, 10.0),
    'rating (1 to 5)': (1.0, 5.0),
    'score (1 to 10)': (1.0, 10.0),
    'score of the reference': (1.0, 10.0),
    'COMET': (0.0, 1.0),
}
_BASES = {'retention': 'the base LLM: 100 %'}
_BASE = 'the base LLM, where it can read the question'


def render_page(report: Mapping[str, Any]) -> str:
    """The page of a report.

    Args:
        report: From `make_report`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(__file__).parent
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    css = (folder / 'page.css').read_text(encoding='utf-8')
    return environment.get_template('page.html.j2').render(_view(report), css=css) + '\n'


def _view(report: Mapping[str, Any]) -> dict[str, Any]:
    models = report['models']
    judged = [m for m in models if not m['is_base']]
    evaluations = [Evaluation(tuple(m['metrics'])) for m in models]
    colours = {m['name']: SERIES[i % len(SERIES)] for i, m in enumerate(models)}
    named = list(colours.items()) if len(models) > 1 else []
    order = ['speech', 'retention', *(s for s in suites_in(evaluations) if s not in ('speech', 'retention'))]
    known = [m for m in models if m['ledger']]
    return {
        'title': ', '.join(m['name'] for m in judged),
        **_verdict(report, judged),
        'tiles': _tiles(judged[0]),
        'sections': [_section(suite, evaluations, named, colours) for suite in order],
        'models': named,
        'ledgers': [(m['name'], {'kinds': {}, **m['ledger']}, _kinds(m['ledger'])) for m in known],
        'colours': KIND_COLOURS,
        'rest': SERIES[5],
        'curves': _curves(models, colours),
        'worst': [(m['name'], m['worst']) for m in judged if m['worst']],
        'tasks': _TASKS,
        'footer': [line for m in models for line in _footer(m)],
    }


def _verdict(report: Mapping[str, Any], judged: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    against = report['base'] or 'its base LLM'
    first = judged[0]['verdict']
    if len(judged) == 1:
        kicker = f'{judged[0]["name"]}, beside {against}'
        return {
            'level': first['level'],
            'sentence': first['sentence'],
            'reasons': first['reasons'][2:],
            'kicker': kicker,
        }
    count = {level: sum(m['verdict']['level'] == level for m in judged) for level in ('green', 'amber', 'red')}
    good = f'{count["green"]} of {len(judged)} models hear and read as before'
    rest = [f'{count[level]} {text}' for level, text in (('amber', 'with reserve'), ('red', 'failed')) if count[level]]
    return {
        'level': report['verdict']['level'],
        'sentence': f'{", ".join([good, *rest])}.',
        'reasons': [(m['verdict']['level'], f'{m["name"]}: {m["verdict"]["sentence"]}') for m in judged],
        'kicker': f'{len(judged)} models, beside {against}',
    }


def _tiles(model: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The large numbers of a model: value, label, tone."""
    found = Evaluation(tuple(model['metrics']))
    levels = [level for level, _ in model['verdict']['reasons']]
    tiles = []
    rates = [m for m in found.of('speech', 'asr') if m.name in ('WER', 'CER') and m.value is not None]
    if rates:
        best = min(rates, key=lambda m: m.value or 0.0)
        tiles.append((f'{best.value:.1f} %', f'{best.name}, {best.source}', levels[0]))
    parts = parts_of(found.metrics)
    least = min(parts, key=lambda name: parts[name].value or 0.0, default='')
    labels = {'chats': 'text kept, held-out chats', 'tasks': 'text kept, mean over the text tasks'}
    for name, part in parts.items():
        tiles.append((f'{part.value or 0.0:.1f} %', labels.get(name, name), levels[1] if name == least else ''))
    for task, label in (('speech_qa', 'questions about speech, exact'), ('mixed_modal', 'typed + spoken, exact')):
        m = next((m for m in found.of('speech', task) if m.name == 'exact match' and m.value is not None), None)
        if m:
            tiles.append((f'{m.value:.1f} %', f'{label}, {m.source}', ''))
    ledger = model['ledger']
    if ledger and ledger.get('tokens'):
        hours = sum(s.get('audio_s', 0.0) for s in ledger['sources']) / 3600
        tiles.append((f'{hours:.2f} h', f'of speech in {ledger["tokens"]:,} tokens of training', ''))
    return tiles


def _section(
    suite: str, evaluations: Sequence[Evaluation], named: Sequence[tuple[str, str]], colours: Mapping[str, str]
) -> dict[str, Any]:
    """A suite as rows with one line for each model."""
    rows: list[dict[str, Any]] = []
    task = None
    for cells in side_by_side(evaluations, suite):
        first = next(m for m in cells if m is not None)
        # perplexities are shown as what is kept; a difference of two rows that are there needs no line of its own
        if (suite == 'speech' and first.task == 'text') or first.name == 'points':
            continue
        ruled = bool(rows) and (len(cells) > 1 or suite == 'speech' and task != first.task)
        label, detail = _labels(first, cells, evaluations)
        lines = [_line(suite, m, who if named else '', colour)
                 for m, (who, colour) in zip(cells, colours.items(), strict=True)]  # fmt: skip
        rows.append({'label': label, 'detail': detail, 'lines': lines, 'ruled': ruled})
        task = first.task
    title, note = _TITLES.get(suite, SUITE_TITLES.get(suite, suite)), _NOTES.get(suite, 'With 95 % intervals.')
    base = '' if suite in ('speech', 'symptoms') else _BASES.get(suite, _BASE)
    return {'anchor': suite, 'title': title, 'note': note if rows else 'Not measured.', 'rows': rows, 'legend': named,
            'base': base}  # fmt: skip


def _labels(m: Metric, cells: Sequence[Metric | None], evaluations: Sequence[Evaluation]) -> tuple[str, str]:
    """What a row is called, and how it was measured; how it moved from the base LLM, where one model is shown."""
    better = 'higher is better' if m.higher_is_better else 'lower is better'
    if m.suite == 'retention':
        name = {'chats': 'held-out chats', 'tasks': 'text tasks', 'retention': 'Retention'}.get(m.task, m.task)
        figure = next(
            (f for f in evaluations[0].of('speech', 'text') if m.task == 'chats' and f.source == m.source), None
        )
        detail = f'{m.signature.split(";")[0]}, n = {m.n}'
        moved = _moved(figure) if figure is not None and len(cells) == 1 else detail
        return f'{name}: {m.source}' if m.source else name, moved
    label = _TASKS.get(m.task, title_of(m)) if m.suite == 'speech' else title_of(m)
    if m.suite == 'text' and m.base is not None and len(cells) == 1:
        return label, _moved(m)
    return f'{label}: {m.source}' if m.source else label, f'{m.name}, {better}, n = {m.n}'


def _moved(m: Metric) -> str:
    p = '' if m.p is None else f', p = {m.p:.3f}'
    return f'{m.name} {number(m.base, m)} \u2192 {number(m.value, m)}, n = {m.n}{p}'


def _line(suite: str, m: Metric | None, who: str, colour: str) -> dict[str, Any]:
    """A value on a line from left to right: its interval as a band, the base LLM as an upright mark."""
    low, high = (50.0, 110.0) if suite == 'retention' else _SCALES.get(m.name if m else '', (0.0, 100.0))

    def at(value: float) -> float:
        return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 2)

    base = 100.0 if suite == 'retention' else None if m is None else m.base
    line: dict[str, Any] = {'who': who, 'colour': colour, 'base': None if base is None else at(base)}
    if m is None or m.value is None:
        return line | {'at': None, 'range': None, 'shown': '-', 'interval': ''}
    ends = m.interval
    unit = ' %' if suite == 'retention' else ''
    shown = 'nothing' if suite == 'retention' and not m.value else f'{number(m.value, m)}{unit}'
    if ends[0] is None or ends[1] is None:
        return line | {'at': at(m.value), 'range': None, 'shown': shown, 'interval': ''}
    width = max(0.4, at(ends[1]) - at(ends[0]))
    interval = f'{ends[0]:.1f} to {ends[1]:.1f}'
    return line | {'at': at(m.value), 'range': (at(ends[0]), round(width, 2)), 'shown': shown, 'interval': interval}


def _kinds(ledger: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (f'{_KINDS.get(k, k)} {100 * v["delivered"]:.1f} %', KIND_COLOURS.get(k, SERIES[5]))
        for k, v in (ledger.get('kinds') or {}).items()
        if v['asked'] or v['delivered']
    ]


def _curves(models: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """A panel for each kind: in the colour of the kind, or of the models where there are several."""
    panels = []
    for kind, title in _KINDS.items():
        series = [(m['curves'][kind], colours[m['name']]) for m in models if kind in m['curves']]
        if not any(c[key] for c, _ in series for key in c):
            continue
        detail = ''
        if len(models) == 1:
            ends = (('last', 'train'), ('held out', 'validation'))
            detail = ', '.join(f'{name} {series[0][0][key][-1][1]:.2f}' for name, key in ends if series[0][0][key])
            series = [(series[0][0], KIND_COLOURS[kind])]
        panels.append((title, detail, loss_curve(title, series)))
    return panels


def _footer(model: Mapping[str, Any]) -> list[str]:
    info = model['info']
    llm = str(info.get('model', '?')).rstrip('/').rpartition('/')[2]
    limit = info.get('limit')
    size = f'at most {limit} conversations of each source' if limit else 'all held-out conversations'
    tokens = info.get('max_new_tokens', '?')
    search = f'{info["num_beams"]} beams' if info.get('num_beams') else 'greedy'
    return [
        f'{model["name"]}: base LLM {llm}, {size}, answers of at most {tokens} tokens, {search}.',
        *(f'Left out: {name}. {why}' for name, why in (info.get('left_out') or {}).items()),
        *(f'Contamination: {told}.' for told in info.get('contamination') or ()),
    ]
