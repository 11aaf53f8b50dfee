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
"""Lengths of the data, from its indexes: what NeMo's estimators of duration and token bins say."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nemo_vtb.constants import KIND_COLOURS
from nemo_vtb.data.index import SourceIndex

if TYPE_CHECKING:
    from rich.console import Console

PERCENTILES = (1, 5, 25, 50, 75, 95, 99, 99.9)
BUCKETS = 30
"""NeMo's default of `num_buckets`."""

_HISTOGRAM_BINS = 40


@dataclass(frozen=True, slots=True)
class Spread:
    """How some lengths are spread.

    Args:
        mean: Of all; 0 where there are none, as all other figures.
        std: Standard deviation of the population.
        min: The smallest.
        max: The largest.
        total: Their sum.
        percentiles: Percentile -> length, interpolated linearly.
        edges: Of the histogram, one more than it has bins.
        counts: Of the histogram.
        bins: Upper bounds between buckets of equal sums, as lhotse and NeMo estimate them.
    """

    mean: float
    std: float
    min: float
    max: float
    total: float
    percentiles: Mapping[str, float]
    edges: Sequence[float]
    counts: Sequence[int]
    bins: Sequence[float]

    @classmethod
    def of(cls, values: np.ndarray, buckets: int = BUCKETS) -> 'Spread':
        """Describe lengths, (n,)."""
        values = np.sort(np.asarray(values, dtype=np.float64))
        if not len(values):
            return cls(0.0, 0.0, 0.0, 0.0, 0.0, {f'{p:g}': 0.0 for p in PERCENTILES}, [0.0, 0.0], [0], [])
        counts, edges = np.histogram(values, bins=_HISTOGRAM_BINS)
        found = np.percentile(values, PERCENTILES)
        return cls(
            float(values.mean()),
            float(values.std()),
            float(values[0]),
            float(values[-1]),
            float(values.sum()),
            {f'{p:g}': round(float(v), 4) for p, v in zip(PERCENTILES, found, strict=True)},
            [round(float(edge), 4) for edge in edges],
            counts.tolist(),
            [round(bound, 4) for bound in bucket_bounds(values, buckets)],
        )


def bucket_bounds(values: np.ndarray, buckets: int) -> list[float]:
    """Bounds between buckets whose lengths have about equal sums; `bucket_duration_bins` of NeMo and lhotse.

    A bound is the first length behind a bucket that has more than its part of the sum.

    Args:
        values: (n,) ascending.
        buckets: How many; there are at most one bound less.
    """
    sums = np.cumsum(values)
    part = sums[-1] / buckets
    bounds: list[float] = []
    before = 0.0
    while True:
        at = int(np.searchsorted(sums, before + part, side='right')) + 1
        if at >= len(values):
            return bounds
        bounds.append(float(values[at]))
        before = float(sums[at - 1])


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of a source, of a kind, or of all data.

    Args:
        conversations: How many.
        with_audio: How many of them have recordings.
        overlong: How many are longer than `data.max_tokens`.
        duration_s: Seconds of audio of those that have some.
        tokens: Positions in a row, frames of audio included.
        text_tokens: Of them, text.
        supervised_tokens: Of them, supervised.
    """

    conversations: int
    with_audio: int
    overlong: int
    duration_s: Spread
    tokens: Spread
    text_tokens: Spread
    supervised_tokens: Spread
    kind: str = ''

    @classmethod
    def of(cls, indexes: Sequence[SourceIndex], max_tokens: int, buckets: int = BUCKETS, kind: str = '') -> 'Lengths':
        """Describe some sources together; each conversation counts once, at its own speed."""

        def joined(name: str) -> np.ndarray:
            return np.concatenate([np.asarray(index.column(name)) for index in indexes])

        seconds, tokens = joined('seconds'), joined('length')
        heard = seconds[seconds > 0]
        return cls(
            len(tokens),
            len(heard),
            int((tokens > max_tokens).sum()),
            Spread.of(heard, buckets),
            Spread.of(tokens, buckets),
            Spread.of(joined('text'), buckets),
            Spread.of(joined('supervised'), buckets),
            kind,
        )


@dataclass(frozen=True, slots=True)
class Stats:
    """Lengths by source, by kind, and of all."""

    max_tokens: int
    buckets: int
    total: Lengths
    kinds: Mapping[str, Lengths] = field(default_factory=dict)
    sources: Mapping[str, Lengths] = field(default_factory=dict)

    @classmethod
    def of(cls, indexes: Sequence[SourceIndex], max_tokens: int, buckets: int = BUCKETS) -> 'Stats':
        """Describe the indexes of a training."""
        by_kind = {
            kind: [i for i in indexes if i.kind == kind]
            for kind in KIND_COLOURS
            if any(i.kind == kind for i in indexes)
        }
        return cls(
            max_tokens,
            buckets,
            Lengths.of(indexes, max_tokens, buckets),
            {kind: Lengths.of(each, max_tokens, buckets, kind) for kind, each in by_kind.items()},
            {index.name: Lengths.of([index], max_tokens, buckets, index.kind) for index in indexes},
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def print_stats(stats: Stats, console: 'Console') -> None:
    """A line for each source and kind, then the bins for NeMo's bucketing sampler."""
    from rich.table import Table

    table = Table(title='Lengths of conversations', title_justify='left')
    for name in ('source', 'kind'):
        table.add_column(name)
    audio = ('audio (h)', 'mean (s)', '50 %', '95 %', '99 %', 'max')
    for name in ('conversations', *audio, 'tokens', '50 %', '95 %', '99 %', 'max', 'supervised', 'overlong'):
        table.add_column(name, justify='right')
    for name, lengths in stats.sources.items():
        table.add_row(name, lengths.kind, *_cells(lengths))
    table.add_section()
    for kind, lengths in stats.kinds.items():
        table.add_row('all', kind, *_cells(lengths))
    if len(stats.kinds) > 1:
        table.add_row('all', 'all', *_cells(stats.total))
    console.print(table)
    for kind, lengths in {**stats.kinds, 'all': stats.total}.items():
        for name, spread in (('bucket_duration_bins', lengths.duration_s), ('token bins', lengths.tokens)):
            if spread.total:
                bounds = ','.join(f'{bound:.4g}' for bound in spread.bins)
                console.print(f'{kind}: {name} ({stats.buckets} buckets)=[{bounds}]', highlight=False, soft_wrap=True)


def _cells(lengths: Lengths) -> list[str]:
    seconds, tokens = lengths.duration_s, lengths.tokens
    share = lengths.supervised_tokens.total / tokens.total if tokens.total else 0.0
    return [
        f'{lengths.conversations:,}',
        f'{seconds.total / 3600:,.2f}',
        f'{seconds.mean:.2f}',
        *(f'{seconds.percentiles[p]:.2f}' for p in ('50', '95', '99')),
        f'{seconds.max:.2f}',
        f'{tokens.total:,.0f}',
        *(f'{tokens.percentiles[p]:,.0f}' for p in ('50', '95', '99')),
        f'{tokens.max:,.0f}',
        f'{share:.1%}',
        f'{lengths.overlong:,}',
    ]


def draw_stats(stats: Stats, path: str | Path) -> Path:
    """Draw the histograms of seconds, tokens and supervised tokens of each kind as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.2 + 1.9 * len(stats.kinds)), layout='constrained')
    panels = figure.subplots(len(stats.kinds), 3, squeeze=False)
    for row, (kind, lengths) in zip(panels, stats.kinds.items(), strict=True):
        named = (('s of audio', lengths.duration_s), ('tokens', lengths.tokens))
        for axes, (name, spread) in zip(row, (*named, ('supervised tokens', lengths.supervised_tokens)), strict=True):
            axes.stairs(spread.counts, spread.edges, fill=True, color=KIND_COLOURS[kind])
            middle, high = spread.percentiles['50'], spread.percentiles['99']
            for at, style in ((middle, '-'), (high, ':')):
                axes.axvline(at, color='#333333', linewidth=0.9, linestyle=style)
            axes.set_title(f'{kind}: {name}, median {middle:.4g}, 99 % {high:.4g}', fontsize=8, loc='left')
            axes.tick_params(labelsize=7)
            axes.spines[['top', 'right']].set_visible(False)
            axes.set_ylim(bottom=0)
            if math.isclose(spread.edges[0], spread.edges[-1]):  # nothing of it
                axes.set_xticks([])
    figure.suptitle(f'{stats.total.conversations:,} conversations', fontsize=10)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return Path(path)
