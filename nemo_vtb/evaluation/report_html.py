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
"""The report as one page that needs nothing but itself; all text of models and users is escaped."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from nemo_vtb.evaluation.report_markdown import SUITE_TITLES, plain_number, speech_table, suite_table, suites_in
from nemo_vtb.evaluation.report_parts import (
    SERIES,
    Line,
    curve,
    fold,
    frame,
    hero,
    legend,
    measure,
    section,
    table,
    tile,
)

_TASKS = {
    'asr': 'Transcribe speech',
    'ast': 'Translate speech',
    'speech_qa': 'Answer about speech',
    'mixed_modal': 'Typed + spoken chat',
}
_KINDS = {'text': 'Typed chats', 'asr_ast': 'Transcribe, translate', 'speech_qa': 'Questions', 'mixed_modal': 'Mixed'}
_KIND_COLOURS = {kind: SERIES[i] for i, kind in enumerate(_KINDS)}
_LOWER = ('WER', 'CER')
_NOTES = {
    'instruct': 'Whether the answer keeps what was asked (length, form, words), checked by a program.',
    'emergent': 'Wordings, forms and tasks that no training data has; the base LLM reads what the model hears.',
    'ladder': 'What is lost on the way from a typed question to a noisy spoken one, and to one a turn after the '
    'recording.',
}


def render_page(report: Mapping[str, Any]) -> str:
    """The page of a report.

    Args:
        report: From `make_report`.
    """
    models = report['models']
    judged = [m for m in models if not m['is_base']]
    parts = [_verdicts(report, judged), _tiles(judged[0])]
    parts += [_speech(report), _text(models), *(_suite(report, name) for name in suites_in(report))]
    parts += [_ledger(models), _curves(models)]
    parts += [_worst(m) for m in judged]
    parts.append(_footer(models))
    title = ', '.join(m['name'] for m in judged)
    return frame(f'Report: {title}', ''.join(parts))


def _verdicts(report: Mapping[str, Any], judged: Sequence[Mapping[str, Any]]) -> str:
    against = report['base'] or 'its base LLM'
    first = judged[0]['verdict']
    if len(judged) == 1:
        return hero(first['level'], first['sentence'], first['reasons'][2:], f'{judged[0]["name"]}, beside {against}')
    reasons = [(m['verdict']['level'], f'{m["name"]}: {m["verdict"]["sentence"]}') for m in judged]
    count = {level: sum(m['verdict']['level'] == level for m in judged) for level in ('green', 'amber', 'red')}
    good = f'{count["green"]} of {len(judged)} models hear and read as before'
    rest = [f'{count[level]} {text}' for level, text in (('amber', 'with reserve'), ('red', 'failed')) if count[level]]
    return hero(
        report['verdict']['level'], f'{", ".join([good, *rest])}.', reasons, f'{len(judged)} models, beside {against}'
    )


def _tiles(model: Mapping[str, Any]) -> str:
    """The large numbers of the first model."""
    tiles = []
    levels = [level for level, _ in model['verdict']['reasons']]
    rates = [r for r in model['speech'] if r['metric'] in _LOWER and r['ours'] is not None]
    if rates:
        best = min(rates, key=lambda r: r['ours'])
        tiles.append(tile(f'{best["ours"]:.1f} %', f'{best["metric"]}, {best["source"]}', levels[0]))
    kept = [t for t in model['text'] if t['metric'] == 'perplexity']
    if kept:
        least = min(kept, key=lambda t: -1.0 if t['kept'] is None else t['kept'])
        value = '0 %' if least['kept'] is None else f'{least["kept"]:.1f} %'
        tiles.append(tile(value, f'text kept, {least["name"]}', levels[1]))
    mean = next((t for t in model['text'] if t['metric'] == 'mean'), None)
    if mean:
        tiles.append(tile(f'{mean["kept"]:.1f} %', f'text kept, {mean["name"]}'))
    for task, label in (('speech_qa', 'questions about speech, exact'), ('mixed_modal', 'typed + spoken, exact')):
        row = next((r for r in model['speech'] if (r['task'], r['metric']) == (task, 'exact match')), None)
        if row and row['ours'] is not None:
            tiles.append(tile(f'{row["ours"]:.1f} %', f'{label}, {row["source"]}'))
    ledger = model['ledger']
    if ledger and ledger.get('tokens'):
        hours = sum(s.get('audio_s', 0.0) for s in ledger['sources']) / 3600
        tiles.append(tile(f'{hours:.2f} h', f'of speech in {ledger["tokens"]:,} tokens of training'))
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ''


def _colours(models: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {m['name']: SERIES[i % len(SERIES)] for i, m in enumerate(models)}


def _speech(report: Mapping[str, Any]) -> str:
    rows: list[str] = []
    before = None
    for task, source, metric, n, cells in speech_table(report):
        if rows:
            rows.append('<hr>' if before != task or len(report['models']) > 1 else '')
        before = task
        first = next(cell for cell in cells if cell is not None)
        better = 'higher is better' if first['higher_is_better'] else 'lower is better'
        # the judge's marks go from 1 to 10; all else is in percent
        scale = (1.0, 10.0) if metric.endswith('redundancy') else (0.0, 100.0)
        label = f'{_TASKS.get(task, task)}: {source}'
        rows.append(measure(label, f'{metric}, {better}, n = {n}', _lines(report['models'], cells), scale))
    if not rows:
        return section('Speech', 'Not measured.', '', 'speech')
    note = 'Held-out recordings, in percent. The band is the 95 % interval; the base LLM cannot hear.'
    return section('What it hears', note, _legend(report['models']) + _rows(rows), 'speech')


def _rows(rows: Sequence[str]) -> str:
    return f'<div class="rows">{"".join(rows)}</div>'


def _legend(models: Sequence[Mapping[str, Any]], base: str | None = None) -> str:
    named = list(_colours(models).items()) if len(models) > 1 else []
    return legend(named, base) if named or base else ''


def _lines(
    models: Sequence[Mapping[str, Any]], cells: Sequence[Mapping[str, Any] | None], base: float | None = None
) -> list[Line]:
    """One line for each model."""
    lines = []
    for (name, colour), cell in zip(_colours(models).items(), cells, strict=True):
        who = name if len(models) > 1 else ''
        if cell is None or cell['ours'] is None:
            lines.append(Line(None, '-', base=base, colour=colour, who=who))
        else:
            lines.append(Line(cell['ours'], f'{cell["ours"]:.1f}', cell['low'], cell['high'], base, colour, who))
    return lines


def _text(models: Sequence[Mapping[str, Any]]) -> str:
    names = {t['name']: t for model in models for t in model['text']}
    rows: list[str] = []
    for name, first in names.items():
        records = [next((t for t in model['text'] if t['name'] == name), None) for model in models]
        lines = []
        for (who, colour), record in zip(_colours(models).items(), records, strict=True):
            who = who if len(models) > 1 else ''
            if record is None or record['kept'] is None:
                lines.append(
                    Line(
                        None,
                        '-' if record is None else 'base 0' if record['base'] == 0 else 'nothing',
                        base=100.0,
                        colour=colour,
                        who=who,
                    )
                )
            else:
                shown = f'{record["kept"]:.1f} %'
                lines.append(Line(record['kept'], shown, record['low'], record['high'], 100.0, colour, who))
        rows += ['<hr>'] if rows and len(models) > 1 else []
        rows.append(measure(name, _change(first, records), lines, (50.0, 110.0)))
    if not rows:
        return section('What it kept of its text ability', 'Not measured.', '', 'text')
    note = (
        'The same questions to the base LLM and to the model: percent of the base LLM, on a line from 50 to 110 %. '
        'The band is the 95 % interval; questions are drawn in pairs.'
    )
    head = _legend(models, 'the base LLM: 100 %')
    return section('What it kept of its text ability', note, head + _rows(rows), 'text')


def _change(first: Mapping[str, Any], records: Sequence[Mapping[str, Any] | None]) -> str:
    """How the measure moved, where one model is shown; what it is, where there are several."""
    if first['base'] is None or len(records) > 1:
        base = '' if first['base'] is None else f' (base {plain_number(first["base"])})'
        return f'{first["metric"]}{base}, n = {first["n"]}'
    p = '' if first['p_value'] is None else f', p = {first["p_value"]:.3f}'
    return f'{first["metric"]} {plain_number(first["base"])} \u2192 {plain_number(first["ours"])}, n = {first["n"]}{p}'


def _suite(report: Mapping[str, Any], name: str) -> str:
    models = report['models']
    rows: list[str] = []
    for title, n, base, cells in suite_table(report, name):
        rows += ['<hr>'] if rows and len(models) > 1 else []
        rows.append(measure(title, f'n = {n}', _lines(models, cells, base)))
    head = _legend(models, 'the base LLM, where it can read the question')
    note = f'{_NOTES.get(name, "")} In percent, with 95 % intervals.'
    return section(SUITE_TITLES.get(name, name), note, head + _rows(rows), name)


def _ledger(models: Sequence[Mapping[str, Any]]) -> str:
    known = [model for model in models if model['ledger']]
    if not known:
        return ''
    alone, parts = len(known) == 1, []
    for model in known:
        kinds = model['ledger'].get('kinds') or {}
        title = '' if alone else f'<h3>{escape(model["name"])}</h3>'
        bars = ''.join(f'<span>{key}</span>{_split(kinds, key)}' for key in ('asked', 'delivered'))
        bars = f'<div class="shares">{bars}</div>'
        entries = [
            (f'{_KINDS.get(k, k)} {100 * v["delivered"]:.1f} %', _KIND_COLOURS.get(k, SERIES[5]))
            for k, v in kinds.items()
            if v['asked'] or v['delivered']
        ]
        shares = _shares(model['ledger'])
        parts.append(title + bars + legend(entries))
        parts.append(shares if alone else f'<details><summary>every source</summary>{shares}</details>')
    note = 'Shares of all tokens (text and audio frames) that the model was trained on, as asked and as delivered.'
    return section('Trained on', note, ''.join(parts), 'ledger')


def _split(kinds: Mapping[str, Mapping[str, float]], key: str) -> str:
    pieces = ''.join(
        f'<i style="--c:{_KIND_COLOURS.get(kind, SERIES[5])};flex:{share[key]:.4f}" '
        f'title="{escape(kind)} {100 * share[key]:.1f} %"></i>'
        for kind, share in kinds.items()
        if share.get(key, 0.0) > 0
    )
    return f'<div class="split">{pieces}</div>'


def _shares(ledger: Mapping[str, Any]) -> str:
    rows = [
        [
            str(s['name']), str(s['kind']), f'{100 * s.get("asked", 0):.1f} %', f'{100 * s.get("delivered", 0):.1f} %',
            f'{s.get("tokens", 0):,}', f'{s.get("audio_s", 0) / 3600:.2f} h', f'{s.get("epochs", 0):.2f}',
            str(sum((s.get('skips') or {}).values())),
        ]
        for s in ledger['sources']
    ]  # fmt: skip
    head = ('source', 'kind', 'asked', 'delivered', 'tokens', 'speech', 'times seen', 'left out')
    return table(head, rows, 2)


def _curves(models: Sequence[Mapping[str, Any]]) -> str:
    """A panel for each kind: in the colour of the kind, or of the models where there are several."""
    trained = [(m, _colours(models)[m['name']]) for m in models if m['curves']]
    panels = []
    for kind in _KINDS:
        series = [(m['curves'][kind], colour) for m, colour in trained if kind in m['curves']]
        if not series:
            continue
        detail = ''
        if len(models) == 1:
            ends = (('last', 'train'), ('held out', 'validation'))
            detail = ', '.join(f'{name} {series[0][0][key][-1][1]:.2f}' for name, key in ends if series[0][0][key])
            series = [(series[0][0], _KIND_COLOURS[kind])]
        panels.append(curve(_KINDS[kind], detail, [{**c, 'colour': colour} for c, colour in series]))
    if not panels:
        return ''
    note = 'Loss of each target token, over steps. The diamond is a validation.'
    body = f'<div class="curves">{"".join(panels)}</div>'
    return section('Loss of each kind of data', note, _legend(models) + body, 'curves')


def _worst(model: Mapping[str, Any]) -> str:
    cards = ''.join(_example(w) for w in model['worst'])
    if not cards:
        return ''
    note = 'The answers furthest from their references, of every task and source: look here before you trust a mean.'
    return section(f'Worst answers: {model["name"]}', note, cards, 'worst')


def _example(worst: Mapping[str, Any]) -> str:
    players = ''
    for p in worst['players']:
        seconds = '' if p['seconds'] is None else f' ({p["seconds"]:.1f} s)'
        sound = f'<audio controls preload="none" src="{escape(p["uri"])}"></audio>' if p['uri'] else ''
        missing = '' if p['uri'] else ' - the recording is no longer there'
        players += f'{sound}<small class="said">{escape(p["name"])}{seconds}{missing}</small>'
    tags = {'same': '{}', 'missing': '<del>{}</del>', 'wrong': '<ins>{}</ins>'}
    answer = ' '.join(tags[kind].format(escape(text)) for kind, text in worst['diff']) or '<ins>(nothing)</ins>'
    said = [s for s in worst['said'] if s]
    pairs = [('Asked', escape(worst['prompt']))]
    # what was said is what should be written where speech is transcribed
    pairs += [('Said', escape(' / '.join(said)))] if said and said != [worst['reference']] else []
    pairs += [('Should be', escape(worst['reference'])), ('Answer', answer)]
    rows = ''.join(f'<dt>{name}</dt><dd>{value}</dd>' for name, value in pairs)
    prompt = fold('The prompt as the LLM read it', worst['rendered']) if worst['rendered'] else ''
    task = _TASKS.get(worst['task'], worst['task'])
    return (
        f'<article class="example"><div class="head"><span class="chip">{escape(task)}</span>'
        f'{escape(worst["source"])}<span>{escape(worst["id"])}</span></div>'
        f'{players}<dl class="pair">{rows}</dl>{prompt}</article>'
    )


def _footer(models: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for model in models:
        info = model['info']
        llm = str(info.get('model', '?')).rstrip('/').rpartition('/')[2]
        limit = info.get('limit')
        size = f'at most {limit} conversations of each source' if limit else 'all held-out conversations'
        lines.append(
            f'{escape(model["name"])}: base LLM {escape(llm)}, {size}, answers of at most '
            f'{escape(str(info.get("max_new_tokens", "?")))} tokens, greedy.'
        )
        lines += [f'Left out: {escape(name)}. {escape(why)}' for name, why in (info.get('left_out') or {}).items()]
    return f'<footer>{"<br>".join(lines)}</footer>'
