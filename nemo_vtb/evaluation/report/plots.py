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
"""Plots of the report: drawn by matplotlib as SVG, in the colours of the page, which change with its theme."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

# matplotlib knows no variables of CSS: colours stand for them until the drawing is done
_INK = {'#010203': 'var(--soft)', '#010204': 'var(--line)', '#010205': 'var(--card)'}
_SOFT, _LINE, _CARD = _INK


def loss_curve(title: str, series: Sequence[tuple[Mapping[str, Any], str]]) -> str:
    """Losses over steps: faint raw values, a smooth line, diamonds for the validations; an SVG element.

    Args:
        title: Of the panel, for those who cannot see it.
        series: Pairs of curve (train and validation, [[step, loss]]) and colour (a variable of CSS or #rrggbb).
    """
    import matplotlib
    from matplotlib.figure import Figure

    marks = {f'#0203{i:02x}': colour for i, (_, colour) in enumerate(series)}
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': title, 'font.size': 9}):
        figure = Figure(figsize=(3.4, 1.85))
        axes = figure.add_axes((0.11, 0.13, 0.87, 0.82))
        for (curve, _), colour in zip(series, marks, strict=True):
            steps, losses = ([p[i] for p in curve['train']] for i in (0, 1))
            if len(series) == 1:  # the raw values of several runs would hide each other
                axes.plot(steps, losses, color=colour, linewidth=0.8, alpha=0.3)
            axes.plot(steps, _smooth(losses), color=colour, linewidth=2)
            if curve['validation']:
                axes.plot(
                    *zip(*curve['validation'], strict=True), 'D', color=colour, markeredgecolor=_CARD, markersize=6
                )
        every = sorted(p[1] for curve, _ in series for key in ('train', 'validation') for p in curve[key])
        axes.set_ylim(0, 1.08 * every[min(len(every) - 1, int(0.99 * len(every)))] or 1.0)
        axes.set_xlim(left=0)
        axes.set_yticks([round(axes.get_ylim()[1] * share, 1) for share in (0, 0.5, 0.93)])
        last = max(p[0] for curve, _ in series for key in ('train', 'validation') for p in curve[key])
        axes.set_xticks([0, last], ['0', f'{last:,.0f} steps'])
        axes.get_xticklabels()[1].set_horizontalalignment('right')
        axes.grid(axis='y', color=_LINE)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, labelcolor=_SOFT)
        for spine in axes.spines.values():
            spine.set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format='svg', transparent=True, metadata={'Date': None, 'Creator': None})
    svg = text.getvalue()
    svg = svg[svg.index('<svg ') :]
    for stand_in, colour in {**_INK, **marks}.items():
        svg = svg.replace(stand_in, colour)
    return svg.replace('<svg ', f'<svg role="img" aria-label="{title}: loss over steps" ', 1)


def _smooth(values: Sequence[float]) -> list[float]:
    """Exponential mean without the bias of its start."""
    decay = 1 - 1 / max(2.0, len(values) / 15)
    total = count = 0.0
    out = []
    for value in values:
        total, count = decay * total + value, decay * count + 1
        out.append(total / count)
    return out
