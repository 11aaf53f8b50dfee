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
"""Draws packed rows as they will be trained on: one line per row, conversations in the colours of their kinds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nemo_vtb.constants import KIND_COLOURS, KINDS
from nemo_vtb.data.index import FittedSource
from nemo_vtb.data.sampler import RowPlan

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


@dataclass(frozen=True, slots=True)
class Block:
    """One conversation in a row: its kind and source, its tokens, and how many of them are supervised."""

    kind: str
    source: str
    tokens: int
    supervised: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """One packed row."""

    index: int
    blocks: tuple[Block, ...]
    max_tokens: int

    @property
    def tokens(self) -> int:
        """Positions that are used."""
        return sum(block.tokens for block in self.blocks)

    @property
    def fill(self) -> float:
        """Share of the positions that are used."""
        return self.tokens / self.max_tokens


def describe_rows(plans: Sequence[RowPlan], sources: Sequence[FittedSource], max_tokens: int) -> list[Row]:
    """What stands in each planned row, from the indexes alone: no recording is read."""
    rows = []
    for plan in plans:
        blocks = []
        for number, entry in plan.items:
            source = sources[number]
            tokens, supervised, seconds = (float(v[0]) for v in source.measure(np.array([entry])))
            blocks.append(Block(source.kind, source.name, int(tokens), int(supervised), seconds))
        rows.append(Row(plan.index, tuple(blocks), max_tokens))
    return rows


def print_rows(rows: Sequence[Row], requested: dict[str, float], console: 'Console') -> None:
    """Print the rows as bars over the width of the console, then the shares.

    Args:
        rows: What to show.
        requested: Share of each kind.
        console: Where to show it.
    """
    from rich.text import Text

    label = max((len(str(row.index)) for row in rows), default=1) + 5
    width = max(20, console.width - label - 26)
    for row in rows:
        line = Text(f'row {row.index}'.ljust(label))
        line.append_text(_bar(row, width))
        line.append(f' {row.fill:6.1%}  {len(row.blocks):>3} conversations')
        console.print(line, no_wrap=True, crop=False)
    legend = Text('\n')
    for kind in (kind for kind in KINDS if kind in requested):
        legend.append('██ ', style=KIND_COLOURS[kind])
        legend.append(f'{kind}  ')
    legend.append('░ empty', style='dim')
    console.print(legend)
    total = sum(row.tokens for row in rows)
    for kind, share in requested.items():
        tokens = sum(block.tokens for row in rows for block in row.blocks if block.kind == kind)
        console.print(
            f'{kind:<12} requested {share:6.1%}   in these rows {tokens / max(1, total):6.1%}', highlight=False
        )
    empty = 1 - total / max(1, sum(row.max_tokens for row in rows))
    console.print(f'{total:,} tokens in {len(rows)} rows, padding {empty:.2%}', highlight=False)


def draw_rows(rows: Sequence[Row], requested: dict[str, float], path: str | Path) -> Path:
    """Draw the rows as a PNG; the lower, darker edge of a conversation is the part that is supervised."""
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    figure = Figure(figsize=(11, 1.6 + 0.34 * len(rows)), layout='constrained')
    axes = figure.subplots()
    longest = max((row.max_tokens for row in rows), default=1)
    for place, row in enumerate(rows):
        axes.add_patch(Rectangle((0, place - 0.38), row.max_tokens, 0.76, facecolor='#EEEEEE', edgecolor='none'))
        at = 0
        for block in row.blocks:
            colour = KIND_COLOURS[block.kind]
            box = Rectangle((at, place - 0.38), block.tokens, 0.76, facecolor=colour, edgecolor='white', linewidth=0.7)
            axes.add_patch(box)
            dark = [0.55 * channel for channel in to_rgb(colour)]
            axes.add_patch(Rectangle((at, place + 0.24), block.supervised, 0.14, facecolor=dark, edgecolor='none'))
            at += block.tokens
        text = f'{row.fill:.1%}, {len(row.blocks)} conversations'
        axes.annotate(text, (longest, place), (8, 0), textcoords='offset points', va='center', fontsize=8)
    axes.set_xlim(0, longest)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [f'row {row.index}' for row in rows], fontsize=8)
    axes.set_xlabel('positions (tokens and audio frames)')
    axes.spines[['top', 'right', 'left']].set_visible(False)
    axes.tick_params(axis='y', length=0)
    total = sum(row.tokens for row in rows)
    empty = 1 - total / max(1, sum(row.max_tokens for row in rows))
    axes.set_title(f'{len(rows)} packed rows, {total:,} tokens, padding {empty:.2%}', fontsize=11, loc='left')
    handles = [
        Patch(color=KIND_COLOURS[kind], label=f'{kind} (requested {share:.1%})') for kind, share in requested.items()
    ]
    handles += [Patch(color='#444444', label='supervised'), Patch(color='#EEEEEE', label='empty')]
    figure.legend(handles=handles, loc='outside lower center', ncols=len(handles), frameon=False, fontsize=8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return Path(path)


def _bar(row: Row, width: int) -> 'Text':
    """One character is `max_tokens / width` positions; neighbours of one kind alternate between two shades."""
    from rich.text import Text

    bar, at, used = Text(), 0, 0
    for number, block in enumerate(row.blocks):
        used += block.tokens
        end = round(width * used / row.max_tokens)
        bar.append(('█' if number % 2 else '▓') * (end - at), style=KIND_COLOURS[block.kind])
        at = end
    bar.append('░' * (width - at), style='dim')
    return bar
