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
"""Requested and delivered shares per kind and source, in tokens; and what was skipped, by reason."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_vtb.constants import KIND_COLOURS, KINDS
from nemo_vtb.io import write_atomically

if TYPE_CHECKING:
    from rich.console import Console

_POINTS = 400  # of the curve that is kept; halved when full, so that a run of any length fits


@dataclass(slots=True)
class SourceAccount:
    """One source: requested share, what was delivered, what was skipped."""

    name: str
    kind: str
    asked: float  # requested share, in the unit of the ledger
    size: int  # conversations that it has
    conversations: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    audio_s: float = 0.0
    skips: dict[str, int] = field(default_factory=dict)

    @property
    def epochs(self) -> float:
        """How often it has been seen from end to end."""
        return self.conversations / self.size if self.size else 0.0


class Ledger:
    """Counts what the whole run was trained on, over all ranks.

    Args:
        accounts: The sources.
        max_tokens: Length of a row.
        unit: What shares are counted in: `tokens` or `supervised_tokens`.
    """

    def __init__(self, accounts: Sequence[SourceAccount], max_tokens: int, unit: str = 'tokens') -> None:
        self.accounts = {account.name: account for account in accounts}
        self.max_tokens, self.unit = max_tokens, unit
        self.rows = self.batches = 0
        self.bad_batches = self.bad_tokens = 0  # global batches whose step was left out, and their tokens
        self._curve: list[list[int]] = []  # [batches, delivered of each source ...]
        self._stride = 1
        self._changes: list[dict[str, Any]] = []

    def change_shares(self, shares: Mapping[str, float]) -> None:
        """From the next batch on other shares are requested; `asked` is the mean over all tokens from then on."""
        before = {name: account.asked for name, account in self.accounts.items()}
        self._changes.append({'batches': self.batches, 'units': self._units, 'asked': before, 'shares': dict(shares)})

    def add(self, source: str, conversations: int, tokens: int, supervised_tokens: int, audio_s: float) -> None:
        """Count conversations of one source; negative numbers take back what could not be loaded."""
        account = self.accounts[source]
        account.conversations += conversations
        account.tokens += tokens
        account.supervised_tokens += supervised_tokens
        account.audio_s += audio_s

    def close_batch(self, rows: int) -> None:
        """Count the rows of a global batch, after its conversations."""
        self.rows += rows
        self.batches += 1
        self._update_requested()
        if self.batches % self._stride == 0:
            self._curve.append([self.batches, *(self._delivered(a) for a in self.accounts.values())])
        if len(self._curve) > _POINTS:
            self._curve, self._stride = self._curve[1::2], self._stride * 2

    def close_bad_batch(self, tokens: int) -> None:
        """Count a global batch whose step was left out: nothing of it was trained on."""
        self.bad_batches += 1
        self.bad_tokens += tokens
        self.close_batch(0)

    @property
    def _units(self) -> int:
        return sum(self._delivered(a) for a in self.accounts.values())

    def _update_requested(self) -> None:
        if not self._changes:
            return
        last, total = self._changes[-1], self._units
        for name, account in self.accounts.items():
            units = last['asked'][name] * last['units'] + last['shares'][name] * (total - last['units'])
            account.asked = units / total if total else last['shares'][name]

    def skip(self, source: str, reason: str, count: int = 1) -> None:
        """Count conversations that were skipped."""
        skips = self.accounts[source].skips
        skips[reason] = skips.get(reason, 0) + count

    @property
    def tokens(self) -> int:
        """Tokens that were trained on."""
        return sum(a.tokens for a in self.accounts.values())

    @property
    def padding(self) -> float:
        """Share of the rows' positions that stayed empty."""
        return 1 - self.tokens / (self.rows * self.max_tokens) if self.rows else 0.0

    @property
    def skipped(self) -> int:
        """Conversations that were skipped."""
        return sum(sum(a.skips.values()) for a in self.accounts.values())

    def shares(self) -> dict[str, float]:
        """Delivered share of each source."""
        return _normalised({name: self._delivered(a) for name, a in self.accounts.items()})

    def kind_shares(self) -> dict[str, tuple[float, float]]:
        """Requested and delivered share of each kind that has a source."""
        delivered = self.shares()
        kinds = [kind for kind in KINDS if any(a.kind == kind for a in self.accounts.values())]
        return {
            kind: (
                sum(a.asked for a in self.accounts.values() if a.kind == kind),
                sum(delivered[a.name] for a in self.accounts.values() if a.kind == kind),
            )
            for kind in kinds
        }

    def short(self) -> str:
        """A few words for a progress line: how far the kind furthest from its share is off, in proportion."""
        pairs = [pair for pair in self.kind_shares().values() if pair[0]]
        off = max((abs(delivered / requested - 1) for requested, delivered in pairs), default=0.0)
        bad = f'  steps left out {self.bad_batches}' if self.bad_batches else ''
        return f'shares off by {off:.1%}  skipped {self.skipped}{bad}'

    def metrics(self) -> dict[str, float]:
        """Figures for a logger."""
        values = {f'ledger/share/{kind}': got for kind, (_, got) in self.kind_shares().items()}
        values |= {f'ledger/epochs/{name}': a.epochs for name, a in self.accounts.items()}
        return values | {
            'ledger/padding': self.padding,
            'ledger/skipped': float(self.skipped),
            'ledger/tokens': float(self.tokens),
            'ledger/audio_hours': sum(a.audio_s for a in self.accounts.values()) / 3600,
        }

    def to_json(self) -> dict[str, Any]:
        """Everything, for people and programs; `from_json` reads it back."""
        delivered = self.shares()
        skips = Counter[str]()
        for account in self.accounts.values():
            skips.update(account.skips)
        return {
            'unit': self.unit,
            'max_tokens': self.max_tokens,
            'batches': self.batches,
            'rows': self.rows,
            'tokens': self.tokens,
            'padding': self.padding,
            'skips': dict(skips),
            'kinds': {k: {'asked': a, 'delivered': d} for k, (a, d) in self.kind_shares().items()},
            'sources': [
                asdict(a) | {'delivered': delivered[a.name], 'epochs': a.epochs} for a in self.accounts.values()
            ],
            'changes': self._changes,
            'curve': self._curve,
            'stride': self._stride,
            **({'bad_batches': self.bad_batches, 'bad_tokens': self.bad_tokens} if self.bad_batches else {}),
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> 'Ledger':
        """Make a ledger from what `to_json` wrote."""
        names = SourceAccount.__slots__
        accounts = [SourceAccount(**{name: source[name] for name in names}) for source in state['sources']]
        ledger = cls(accounts, state['max_tokens'], state['unit'])
        ledger.rows, ledger.batches = state['rows'], state['batches']
        ledger.bad_batches, ledger.bad_tokens = state.get('bad_batches', 0), state.get('bad_tokens', 0)
        ledger._changes = [dict(change) for change in state.get('changes') or ()]
        ledger._curve, ledger._stride = [list(point) for point in state['curve']], state['stride']
        return ledger

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting where a run stopped; sources that are new begin at zero."""
        former = Ledger.from_json(state)
        same = list(former.accounts) == list(self.accounts)
        for name, account in self.accounts.items():
            if name in former.accounts:
                old = former.accounts[name]
                account.conversations, account.tokens = old.conversations, old.tokens
                account.supervised_tokens, account.audio_s = old.supervised_tokens, old.audio_s
                account.skips = old.skips
        if former._changes and same:
            self._changes = former._changes
            for name, account in self.accounts.items():
                account.asked = former.accounts[name].asked
        self.rows, self.batches = former.rows, former.batches
        self.bad_batches, self.bad_tokens = former.bad_batches, former.bad_tokens
        self._curve, self._stride = (former._curve, former._stride) if same else ([], 1)

    def save(self, path: str | Path) -> None:
        """Write `ledger.json` so that an interruption leaves the old file or the new one."""
        write_atomically(path, json.dumps(self.to_json(), indent=1, ensure_ascii=False) + '\n')

    def table(self, console: 'Console | None' = None) -> None:
        """Print the ledger as a table."""
        from rich.console import Console
        from rich.table import Table

        delivered = self.shares()
        table = Table(title=f'Ledger: {self.tokens:,} tokens in {self.rows:,} rows, padding {self.padding:.2%}')
        table.add_column('source')
        table.add_column('kind')
        for name in (
            'requested',
            'delivered',
            'conversations',
            'tokens',
            'supervised',
            'audio (h)',
            'epochs',
            'skipped',
        ):
            table.add_column(name, justify='right')
        for a in sorted(self.accounts.values(), key=lambda a: (KINDS.index(a.kind), a.name)):
            skipped = ', '.join(f'{count} {reason}' for reason, count in sorted(a.skips.items())) or '0'
            table.add_row(
                a.name,
                a.kind,
                f'{a.asked:.2%}',
                f'{delivered[a.name]:.2%}',
                f'{a.conversations:,}',
                f'{a.tokens:,}',
                f'{a.supervised_tokens:,}',
                f'{a.audio_s / 3600:.2f}',
                f'{a.epochs:.2f}',
                skipped,
            )
        (console or Console()).print(table)

    def plot(self, path: str | Path) -> None:
        """Draw requested against delivered shares, cumulative over the run, as a PNG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4.2), layout='constrained')
        left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
        self._draw_curve(left)
        self._draw_bars(right)
        figure.suptitle(
            f'{self.tokens:,} tokens, padding {self.padding:.2%}, {self.skipped:,} conversations skipped', fontsize=11
        )
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)

    def _draw_curve(self, axes: Any) -> None:
        accounts = list(self.accounts.values())
        batches = [point[0] for point in self._curve]
        for kind, (requested, _) in self.kind_shares().items():
            members = [n for n, a in enumerate(accounts, start=1) if a.kind == kind]
            values = [sum(p[n] for n in members) / max(1, sum(p[1:])) for p in self._curve]
            axes.axhline(requested, color=KIND_COLOURS[kind], linestyle=(0, (4, 3)), linewidth=1, alpha=0.7)
            axes.plot(batches, values, color=KIND_COLOURS[kind], linewidth=1.5, label=kind)
        axes.set_xlabel('global batches')
        axes.set_ylabel(f'share of {self.unit.replace("_", " ")}, cumulative')
        axes.set_title('delivered (line) and requested (dashed)', fontsize=10)
        axes.set_ylim(0, 1.25 * max([requested for requested, _ in self.kind_shares().values()]))
        axes.yaxis.set_major_formatter('{x:.0%}')
        axes.legend(frameon=False, ncols=2, fontsize=9)
        _clean(axes)

    def _draw_bars(self, axes: Any) -> None:
        delivered = self.shares()
        accounts = sorted(self.accounts.values(), key=lambda a: (KINDS.index(a.kind), a.name), reverse=True)
        names = [a.name if len(a.name) <= 24 else f'{a.name[:23]}…' for a in accounts]
        got = [delivered[a.name] for a in accounts]
        axes.barh(names, got, color=[KIND_COLOURS[a.kind] for a in accounts], height=0.6)
        axes.scatter([a.asked for a in accounts], names, marker='|', s=260, color='black', zorder=3)
        for name, value in zip(names, got, strict=True):
            axes.annotate(f'{value:.2%}', (value, name), (6, 0), textcoords='offset points', va='center', fontsize=8)
        axes.set_xlim(0, 1.25 * max([*got, *(a.asked for a in accounts), 1e-9]))
        axes.xaxis.set_major_formatter('{x:.0%}')
        axes.set_title('delivered (bar) and requested (mark)', fontsize=10)
        _clean(axes)

    def _delivered(self, account: SourceAccount) -> int:
        return account.supervised_tokens if self.unit == 'supervised_tokens' else account.tokens


def _normalised(values: Mapping[str, int]) -> dict[str, float]:
    total = sum(values.values())
    return {name: value / total if total else 0.0 for name, value in values.items()}


def _clean(axes: Any) -> None:
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='both', linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)
