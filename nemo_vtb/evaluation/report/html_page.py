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
"""The report as one page that needs nothing but itself: no script, no font, no picture from elsewhere.

All text of models and users is escaped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from nemo_vtb.constants import KIND_COLOURS
from nemo_vtb.evaluation.report.tables import SUITE_TITLES, plain_number, speech_table, suite_table, suites_in

SERIES = ('var(--s1)', 'var(--s2)', 'var(--s3)', 'var(--s4)', 'var(--s5)', 'var(--s6)')
_SIGNS = {'green': '\u2713', 'amber': '!', 'red': '\u2715'}
_TASKS = {
    'asr': 'Transcribe speech',
    'ast': 'Translate speech',
    'speech_qa': 'Answer about speech',
    'mixed_modal': 'Typed + spoken chat',
}
_KINDS = {'text': 'Typed chats', 'asr_ast': 'Transcribe, translate', 'speech_qa': 'Questions', 'mixed_modal': 'Mixed'}
_LOWER = ('WER', 'CER')
_NOTES = {
    'instruct': 'Whether the answer keeps what was asked (length, form, words), checked by a program.',
    'emergent': 'Wordings, forms and tasks that no training data has; the base LLM reads what the model hears.',
    'ladder': 'What is lost on the way from a typed question to a noisy spoken one, and to one a turn after the '
    'recording.',
}

CSS = """
:root{--bg:#f6f5f2;--card:#fff;--ink:#1c1e21;--soft:#5d646e;--line:#e4e2dc;--track:#eceae4;
--green:#12805c;--green-bg:#e3f4ec;--amber:#a15c00;--amber-bg:#fdf0d9;--red:#b3261e;--red-bg:#fce8e6;
--s1:#1f6f8b;--s2:#d2691e;--s3:#6a4c93;--s4:#3b8a4b;--s5:#b23a6b;--s6:#7a7a3a;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--bg:#14161a;--card:#1d2026;--ink:#e8e8e6;--soft:#9ba3ae;--line:#31353d;
--track:#2a2e36;--green:#5fd3a6;--green-bg:#16332a;--amber:#f2b65a;--amber-bg:#3a2c14;--red:#ff8a80;
--red-bg:#3d1d1b;--s1:#63b8d6;--s2:#f2a25c;--s3:#b79ae0;--s4:#82cf8f;--s5:#ec8fb3;--s6:#cfcf7a}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;
overflow-wrap:anywhere}
main{max-width:1080px;margin:0 auto;padding:28px 18px 64px}
header p.kicker{margin:0 0 14px;color:var(--soft);font-size:.9rem;letter-spacing:.02em}
h1{font-size:clamp(1.35rem,3.4vw,2.05rem);line-height:1.25;margin:0;font-weight:650;text-wrap:balance}
h2{font-size:1.18rem;margin:0 0 4px;font-weight:650}
h3{font-size:.98rem;margin:16px 0 6px;font-weight:620}
p.note{margin:0 0 16px;color:var(--soft);font-size:.92rem;max-width:72ch}
.hero{display:grid;grid-template-columns:auto 1fr;gap:18px;align-items:start;border-radius:16px;padding:22px 22px;
border:1px solid var(--line);background:var(--card);border-left:7px solid var(--tone)}
.sign{width:46px;height:46px;border-radius:50%;display:grid;place-items:center;font-size:1.5rem;font-weight:700;
color:var(--tone);background:var(--tone-bg)}
.green{--tone:var(--green);--tone-bg:var(--green-bg)}.amber{--tone:var(--amber);--tone-bg:var(--amber-bg)}
.red{--tone:var(--red);--tone-bg:var(--red-bg)}
.hero ul{margin:12px 0 0;padding:0;list-style:none;color:var(--soft);font-size:.94rem}
.hero li{margin:4px 0}
.dot{display:inline-block;width:.62em;height:.62em;border-radius:50%;background:var(--tone);margin-right:.5em}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:16px 0 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:14px 16px}
.tile b{display:block;font-size:1.75rem;line-height:1.2;font-weight:640;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:.85rem;line-height:1.35;display:block}
.tile b.tone{color:var(--tone)}
section{background:var(--card);border:1px solid var(--line);border-radius:16px;padding:22px;margin-top:18px}
.rows{display:grid;gap:4px 18px;grid-template-columns:minmax(150px,16em) 1fr auto;align-items:center}
.rows .label{font-size:.92rem;line-height:1.3;align-self:start;padding-top:1px}
.rows .label small{display:block;color:var(--soft)}
.rows .value{font-variant-numeric:tabular-nums;font-size:.92rem;text-align:right;white-space:nowrap;line-height:1.3}
.rows .value small{color:var(--soft);display:inline-block;min-width:8.2em;margin-left:.7em}
.rows .value em{font-style:normal;color:var(--soft);float:left;margin-right:1em}
.rows hr{grid-column:1/-1;border:0;border-top:1px solid var(--line);margin:6px 0;width:100%}
.meter{position:relative;height:20px;min-width:0}
.meter::before{content:"";position:absolute;inset:8px 0;background:var(--track);border-radius:3px}
.meter i{position:absolute;display:block}
.meter .fill{top:8px;height:4px;left:0;border-radius:3px;background:var(--c);opacity:.45}
.meter .range{top:5px;height:10px;border-radius:5px;background:var(--c);opacity:.28}
.meter .point{top:4px;width:12px;height:12px;margin-left:-6px;border-radius:50%;background:var(--c);
border:2px solid var(--card)}
.meter .base{top:2px;width:2px;height:16px;margin-left:-1px;background:var(--ink);opacity:.65}
.legend{display:flex;flex-wrap:wrap;gap:6px 18px;color:var(--soft);font-size:.86rem;margin:0 0 14px;
padding:0;list-style:none}
.legend i{display:inline-block;width:.75em;height:.75em;border-radius:50%;background:var(--c);margin-right:.45em}
.legend i.bar{width:2px;height:1em;border-radius:0;vertical-align:-2px}
.scroll{overflow-x:auto;margin:0 -4px}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:7px 10px;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;color:var(--soft);font-size:.82rem}
td.n,th.n{text-align:right;white-space:nowrap}
.curves{display:grid;grid-template-columns:repeat(auto-fit,minmax(212px,1fr));gap:18px}
figure{margin:0}figcaption{font-size:.9rem;font-weight:600;margin-bottom:2px}
figcaption span{color:var(--soft);font-weight:400}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{fill:var(--soft);font-size:11px;font-family:inherit}
.shares{display:grid;grid-template-columns:5.2em 1fr;gap:5px 8px;align-items:center;margin-bottom:9px;
font-size:.86rem}
.shares span{color:var(--soft)}
.split{display:flex;height:16px;border-radius:5px;overflow:hidden;gap:2px;background:var(--card)}
.split i{display:block;background:var(--c);min-width:2px}
.example{border:1px solid var(--line);border-radius:12px;padding:14px 16px;margin-top:14px}
.example .head{display:flex;flex-wrap:wrap;gap:4px 10px;align-items:baseline;color:var(--soft);font-size:.86rem}
.chip{background:var(--track);color:var(--ink);border-radius:99px;padding:1px 10px;font-size:.82rem;font-weight:600}
.example audio{width:100%;max-width:440px;height:38px;display:block;margin:8px 0 4px}
.pair{display:grid;grid-template-columns:6.6em 1fr;gap:2px 12px;margin:8px 0 0;font-size:.95rem}
.pair dt{color:var(--soft)}.pair dd{margin:0}
ins{text-decoration:none;background:var(--red-bg);color:var(--red);border-radius:4px;padding:0 3px}
del{color:var(--amber);text-decoration-thickness:1px;opacity:.9}
.said{color:var(--soft);font-size:.84rem;display:block;margin:2px 0 8px}
details{margin-top:10px}summary{cursor:pointer;color:var(--soft);font-size:.88rem}
pre{white-space:pre-wrap;background:var(--track);border-radius:8px;padding:10px 12px;font-size:.8rem;line-height:1.5;
margin:8px 0 0;font-family:ui-monospace,SFMono-Regular,Menlo,monospace}
footer{color:var(--soft);font-size:.84rem;margin-top:26px}
@media(max-width:640px){.hero{grid-template-columns:1fr;padding:18px}section{padding:16px}
.rows{grid-template-columns:minmax(60px,1fr) auto}.rows .label{grid-column:1/-1;grid-row:auto!important}
.rows .value small{min-width:0}.pair{grid-template-columns:1fr}.pair dt{margin-top:6px;font-size:.84rem}}
@media print{body{background:#fff}section{break-inside:avoid}}
"""


# ---- parts of the page


def frame(title: str, body: str) -> str:
    """The whole page. The policy forbids the browser to fetch or to run anything.

    Args:
        title: Of the window.
        body: HTML of the page.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'; media-src data:; img-src data:"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        # an empty picture, so that no browser asks for one
        '<link rel="icon" href="data:,">'
        f'<title>{escape(title)}</title><style>{CSS}</style></head><body><main>{body}</main></body></html>\n'
    )


def hero(level: str, sentence: str, reasons: Sequence[tuple[str, str]] = (), kicker: str = '') -> str:
    """The verdict at the top: one sentence, its colour, and what it rests on."""
    items = ''.join(
        f'<li class="{escape(tone)}"><span class="dot"></span>{escape(text)}</li>' for tone, text in reasons
    )
    level = escape(level)
    return (
        f'<header><p class="kicker">{escape(kicker)}</p><div class="hero {level}" data-verdict="{level}">'
        f'<div class="sign" role="img" aria-label="{level}">{_SIGNS.get(level, "")}</div>'
        f'<div><h1>{escape(sentence)}</h1>{f"<ul>{items}</ul>" if items else ""}</div></div></header>'
    )


def tile(value: str, label: str, level: str | None = None) -> str:
    """One large number."""
    tone = f' class="tone {escape(level)}"' if level else ''
    return f'<div class="tile"><b{tone}>{escape(value)}</b><span>{escape(label)}</span></div>'


def section(title: str, note: str, body: str, anchor: str = '') -> str:
    """A card with a heading and one line that says how to read it."""
    return (
        f'<section id="{escape(anchor)}"><h2>{escape(title)}</h2>'
        + (f'<p class="note">{escape(note)}</p>' if note else '')
        + f'{body}</section>'
    )


def legend(entries: Sequence[tuple[str, str]], base: str | None = None) -> str:
    """Colours and what they stand for; `base` explains the upright mark."""
    items = ''.join(f'<li><i style="--c:{colour}"></i>{escape(name)}</li>' for name, colour in entries)
    if base:
        items += f'<li><i class="bar" style="--c:var(--ink)"></i>{escape(base)}</li>'
    return f'<ul class="legend">{items}</ul>'


@dataclass(frozen=True, slots=True)
class Line:
    """A value on a line from left to right: its interval as a band, the base LLM as an upright mark.

    Args:
        value: None where there is none.
        shown: The value as text.
        low: Lower end of the interval.
        high: Upper end.
        base: Where the upright mark stands.
        colour: Of the model.
        who: Name of the model, '' where there is one alone.
    """

    value: float | None
    shown: str
    low: float | None = None
    high: float | None = None
    base: float | None = None
    colour: str = SERIES[0]
    who: str = ''


def measure(label: str, detail: str, lines: Sequence[Line], scale: tuple[float, float] = (0.0, 100.0)) -> str:
    """A measure with one line for each model."""
    note = f'<small>{escape(detail)}</small>' if detail else ''
    cells = [f'<div class="label" style="grid-row:span {len(lines)}">{escape(label)}{note}</div>']
    for line in lines:
        interval = '' if line.low is None or line.high is None else f'{line.low:.1f} to {line.high:.1f}'
        who = f'<em>{escape(line.who)}</em> ' if line.who else ''
        small = f'<small>{escape(interval)}</small>' if interval else ''
        cells.append(f'<div class="meter" style="--c:{line.colour}">{_marks(line, scale)}</div>')
        cells.append(f'<div class="value">{who}{escape(line.shown)}{small}</div>')
    return ''.join(cells)


def _marks(line: Line, scale: tuple[float, float]) -> str:
    def at(number: float) -> float:
        return 100 * min(1.0, max(0.0, (number - scale[0]) / (scale[1] - scale[0])))

    marks = ''
    if line.value is not None:
        marks += f'<i class="fill" style="width:{at(line.value):.2f}%"></i>'
        if line.low is not None and line.high is not None:
            width = max(0.4, at(line.high) - at(line.low))
            marks += f'<i class="range" style="left:{at(line.low):.2f}%;width:{width:.2f}%"></i>'
    if line.base is not None:
        marks += f'<i class="base" style="left:{at(line.base):.2f}%"></i>'
    if line.value is not None:
        marks += f'<i class="point" style="left:{at(line.value):.2f}%"></i>'
    return marks


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric_from: int = 1) -> str:
    """A table that scrolls within itself where the window is narrow."""

    def cells(values: Sequence[str], tag: str) -> str:
        return ''.join(
            f'<{tag}{" class=n" if i >= numeric_from else ""}>{escape(v)}</{tag}>' for i, v in enumerate(values)
        )

    body = ''.join(f'<tr>{cells(row, "td")}</tr>' for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells(head, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


def fold(summary: str, text: str) -> str:
    """Text that is shown on demand."""
    return f'<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>'


def curve(title: str, detail: str, series: Sequence[Mapping[str, object]], width: int = 320, height: int = 170) -> str:
    """Losses over steps: faint raw values, a smooth line, diamonds for the validations.

    Args:
        title: Of the panel.
        detail: Beside the title.
        series: Records of colour, train ([[step, loss]]) and validation.
        width: Of the drawing, in its own units.
        height: Likewise.
    """
    left, bottom, top = 34, 22, 8
    points = [p for s in series for key in ('train', 'validation') for p in s[key]]  # type: ignore[attr-defined]
    if not points:
        return ''
    steps = max(p[0] for p in points) or 1
    ordered = sorted(p[1] for p in points)
    ceiling = 1.08 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] or 1.0

    def place(step: float, loss: float) -> str:
        x = left + (width - left - 6) * step / steps
        y = top + (height - top - bottom) * (1 - min(loss, ceiling) / ceiling)
        return f'{x:.1f},{y:.1f}'

    marks = []
    for tick in (0.0, ceiling / 2, ceiling):
        y = place(0, tick).split(',')[1]
        marks.append(f'<line x1="{left}" x2="{width - 6}" y1="{y}" y2="{y}" stroke="var(--line)"/>')
        marks.append(f'<text x="{left - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{tick:.1f}</text>')
    for s in series:
        train: list[list[float]] = s['train']  # type: ignore[assignment]
        raw = ' '.join(place(*p) for p in train)
        smooth = ' '.join(place(p[0], v) for p, v in zip(train, _smooth([p[1] for p in train]), strict=True))
        # the raw values of several runs would hide each other
        faint = '.3' if len(series) == 1 else '0'
        marks.append(
            f'<polyline points="{raw}" fill="none" stroke="{s["colour"]}" stroke-width="1" opacity="{faint}"/>'
        )
        marks.append(
            f'<polyline points="{smooth}" fill="none" stroke="{s["colour"]}" stroke-width="2.4" '
            'stroke-linejoin="round" stroke-linecap="round"/>'
        )
        for step, loss in s['validation']:  # type: ignore[attr-defined]
            x, y = place(step, loss).split(',')
            shape = f'M{x} {float(y) - 5:.1f}l5 5l-5 5l-5 -5z'
            marks.append(f'<path d="{shape}" fill="{s["colour"]}" stroke="var(--card)" stroke-width="1.5"/>')
    marks.append(f'<text x="{left}" y="{height - 5}">0</text>')
    marks.append(f'<text x="{width - 6}" y="{height - 5}" text-anchor="end">{steps:,.0f} steps</text>')
    return (
        f'<figure><figcaption>{escape(title)} <span>{escape(detail)}</span></figcaption>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}: loss over steps">'
        f'{"".join(marks)}</svg></figure>'
    )


def _smooth(values: Sequence[float]) -> list[float]:
    """Exponential mean without the bias of its start."""
    decay = 1 - 1 / max(2.0, len(values) / 15)
    total = count = 0.0
    out = []
    for value in values:
        total, count = decay * total + value, decay * count + 1
        out.append(total / count)
    return out


# ---- the page


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
            (f'{_KINDS.get(k, k)} {100 * v["delivered"]:.1f} %', KIND_COLOURS.get(k, SERIES[5]))
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
        f'<i style="--c:{KIND_COLOURS.get(kind, SERIES[5])};flex:{share[key]:.4f}" '
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
            series = [(series[0][0], KIND_COLOURS[kind])]
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
