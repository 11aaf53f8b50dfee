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
"""Parts of a self-contained page: style, frame, meters and curves. No script, no font, no picture from elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

SERIES = ('var(--s1)', 'var(--s2)', 'var(--s3)', 'var(--s4)', 'var(--s5)', 'var(--s6)')
_SIGNS = {'green': '\u2713', 'amber': '!', 'red': '\u2715'}

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
