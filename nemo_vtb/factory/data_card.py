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
"""The data card: yield, reasons of rejected items, distributions; `card.json`, `card.md`, `card.png`."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_vtb.factory.stage import KEPT, Outcome
from nemo_vtb.io import write_atomically

_BINS = 20
_COUNTED = ('lang', 'target_lang', 'task', 'voice', 'question_type', 'form', 'position', 'policy', 'source', 'format')
_SUMMED = ('requests', 'retries', 'invalid', 'prompt_tokens', 'completion_tokens', 'cost')


class DataCard:
    """Counts outcomes one by one.

    Args:
        kind: Kind of data.
        made_by: Settings and inputs.
    """

    def __init__(self, kind: str, made_by: Mapping[str, Any]) -> None:
        self.kind, self.made_by = kind, made_by
        self.reasons: Counter[str] = Counter()
        self.splits: dict[str, Counter[str]] = defaultdict(Counter)
        self.values: dict[str, Counter[str]] = defaultdict(Counter)
        self.sums: Counter[str] = Counter()
        self.durations: list[float] = []
        self.wers: dict[str, list[float]] = defaultdict(list)

    def add(self, outcome: Outcome, split: str) -> None:
        """Count one outcome."""
        self.reasons[outcome.reason] += 1
        facts = outcome.facts
        self.sums.update({name: facts[name] for name in _SUMMED if name in facts})
        for span in facts.get('spans', ()):
            if span.get('wer') is not None:
                self.wers[span.get('voice', '')].append(span['wer'])
        if outcome.reason != KEPT or outcome.line is None:
            return
        for name in _COUNTED:
            if facts.get(name) is not None:
                self.values[name][str(facts[name])] += 1
        seconds = [entry['duration'] for entry in outcome.line['conversations'] if entry['type'] == 'audio']
        self.durations += seconds
        count = self.splits[split]
        count['conversations'] += 1
        count['recordings'] += len(seconds)
        count['seconds'] += sum(seconds)
        count['turns'] += sum(entry['from'] == 'Assistant' for entry in outcome.line['conversations'])

    def to_json(self) -> dict[str, Any]:
        """All numbers as plain values."""
        all_wers = [wer for wers in self.wers.values() for wer in wers]
        return {
            'kind': self.kind,
            'outcomes': sum(self.reasons.values()),
            'kept': self.reasons[KEPT],
            'reasons': dict(self.reasons.most_common()),
            'splits': {split: _rounded(count) for split, count in sorted(self.splits.items())},
            'seconds': _quantiles(self.durations),
            'wer': _quantiles(all_wers),
            'wer_by_voice': {voice: _quantiles(wers) for voice, wers in sorted(self.wers.items())},
            **{name: dict(counts.most_common()) for name, counts in sorted(self.values.items())},
            **({'language_model': _rounded(self.sums)} if self.sums else {}),
            'made_by': self.made_by,
        }

    def write(self, out: Path) -> None:
        """Write the card's three files."""
        facts = self.to_json()
        write_atomically(out / 'card.json', json.dumps(facts, indent=2, ensure_ascii=False) + '\n')
        self._draw(out / 'card.png')
        write_atomically(out / 'card.md', self._markdown(facts))

    def _markdown(self, facts: Mapping[str, Any]) -> str:
        lines = [f'# {self.kind}: {facts["kept"]:,} conversations of {facts["outcomes"]:,} made', '']
        lines += _table(('split', 'conversations', 'answers', 'recordings', 'hours'), [
            (split, f'{c["conversations"]:,}', f'{c["turns"]:,}', f'{c["recordings"]:,}', f'{c["seconds"] / 3600:.3f}')
            for split, c in facts['splits'].items()
        ])  # fmt: skip
        lines += ['', '## Yield', '']
        total = max(facts['outcomes'], 1)
        lines += _table(
            ('outcome', 'count', 'share'),
            [(reason, f'{count:,}', f'{count / total:.1%}') for reason, count in facts['reasons'].items()],
        )
        if self.wers:
            rows = [('all', facts['wer']), *facts['wer_by_voice'].items()]
            lines += ['', '## Word error rate of synthesised spans, transcribed back', '']
            lines += _table(
                ('voice', 'spans', 'mean', 'median', '95 %'),
                [(v, f'{q["n"]:,}', f'{q["mean"]:.3f}', f'{q["p50"]:.3f}', f'{q["p95"]:.3f}') for v, q in rows],
            )
        for name in sorted(self.values):
            lines += ['', f'## {name.replace("_", " ").capitalize()}', '']
            lines += _table((name, 'conversations'), [(v, f'{n:,}') for v, n in self.values[name].most_common(30)])
        if self.sums:
            lines += ['', '## Language model', '']
            lines += _table(('what', 'sum'), [(name, f'{value:,}') for name, value in facts['language_model'].items()])
        lines += ['', '## Distributions', '', '![distributions](card.png)', '', '## Made by', '', '```json']
        lines += [json.dumps(facts['made_by'], indent=1, ensure_ascii=False), '```', '']
        return '\n'.join(lines)

    def _draw(self, path: Path) -> None:
        from matplotlib.figure import Figure

        charts: list[tuple[str, Any]] = [('yield', self.reasons)]
        charts += [('seconds of a recording', self.durations)] if self.durations else []
        charts += [('word error rate of spans', [w for wers in self.wers.values() for w in wers])] if self.wers else []
        charts += [(name.replace('_', ' '), self.values[name]) for name in sorted(self.values)]
        columns = 3
        rows = -(-len(charts) // columns)
        figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout='constrained')
        for number, (title, values) in enumerate(charts):
            axes = figure.add_subplot(rows, columns, number + 1)
            axes.set_title(title, fontsize=10)
            if isinstance(values, Counter):
                top = values.most_common(10)[::-1]
                axes.barh([name[:28] for name, _ in top], [count for _, count in top], color='#4477aa')
            else:
                axes.hist(values, bins=_BINS, color='#4477aa')
            axes.tick_params(labelsize=8)
        # no date inside, so that equal runs have equal files
        figure.savefig(path, dpi=110, metadata={'Software': None})


def _quantiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {'n': 0}
    ordered = sorted(values)
    pick = {name: ordered[min(int(share * len(ordered)), len(ordered) - 1)] for name, share in _SHARES.items()}
    mean = sum(ordered) / len(ordered)
    return {'n': len(ordered), 'mean': round(mean, 4), **{name: round(value, 4) for name, value in pick.items()}}


_SHARES = {'p50': 0.5, 'p95': 0.95, 'max': 1.0}


def _rounded(counts: Mapping[str, float]) -> dict[str, float]:
    return {name: value if isinstance(value, int) else round(value, 4) for name, value in counts.items()}


def _table(headings: tuple[str, ...], rows: list[tuple]) -> list[str]:
    lines = [f'| {" | ".join(headings)} |', f'|{" --- |" * len(headings)}']
    return lines + [f'| {" | ".join(str(cell).replace("|", "/") for cell in row)} |' for row in rows]
