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
"""What a run did, in one table at its end: shares, losses, time, memory, the next command."""

import json
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_vtb.constants import KINDS
from nemo_vtb.data.ledger import Ledger
from nemo_vtb.training.history import read_history

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_EDGE_SHARE = 0.05


def print_summary(
    run_dir: str | Path,
    *,
    made: Mapping[str, str | Path] | None = None,
    next_commands: Sequence[str] = (),
    console: 'Console | None' = None,
) -> None:
    """Print the closing table of a run.

    Args:
        run_dir: Folder with `history.jsonl` and `ledger.json`, without which some columns stay empty.
        made: What it is -> its path; paths that do not exist are skipped. None takes the usual files of `run_dir`.
        next_commands: Commands to type next.
        console: Where to print; None for standard output.
    """
    from rich.console import Console

    console = console or Console()
    records = read_history(Path(run_dir) / 'history.jsonl')
    train = [r for r in records if r['type'] == 'train']
    book = Path(run_dir) / 'ledger.json'
    ledger = Ledger.from_json(json.loads(book.read_text(encoding='utf-8'))) if book.is_file() else None
    if not train:
        console.print('No optimizer step was made.', style='yellow')
    else:
        console.print(_kinds_table(train, ledger))
        console.print(_totals(records, train, ledger), highlight=False)
    paths = {name: Path(path) for name, path in (made if made is not None else _usual_files(Path(run_dir))).items()}
    for name, path in paths.items():
        if path.exists():
            console.print(f'  {name:<16} {path}', highlight=False, soft_wrap=True, markup=False)
    if next_commands:
        console.print('Next:', style='bold')
    for command in next_commands:
        console.print(f'  {command}', style='cyan', highlight=False, soft_wrap=True, markup=False)


def peak_memory() -> dict[str, float]:
    """Highest memory use so far in GB: `CPU` of this process, and `GPU` where there is one."""
    unit = 1e9 if sys.platform == 'darwin' else 1e6  # bytes there, kilobytes on Linux
    peaks = {'CPU': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    torch = sys.modules.get('torch')
    if torch is not None and torch.cuda.is_available():
        peaks['GPU'] = torch.cuda.max_memory_allocated() / 1e9
    return peaks


def _kinds_table(train: Sequence[dict[str, Any]], ledger: 'Ledger | None') -> 'Table':
    from rich.table import Table

    table = Table(title='What was learned', title_justify='left', header_style='bold')
    table.add_column('Kind of data')
    for name in ('requested', 'delivered', 'target tokens', 'first loss', 'last loss', 'change'):
        table.add_column(name, justify='right')
    shares = ledger.kind_shares() if ledger is not None else {}
    for kind in KINDS:
        steps = [r for r in train if kind in r['losses']]
        if not steps and kind not in shares:
            continue
        requested, delivered = shares.get(kind, (None, None))
        first, last = _edges(steps, kind)
        change = None if first is None or last is None or not first else 100 * (last - first) / first
        table.add_row(
            kind,
            '-' if requested is None else f'{requested:.1%}',
            '-' if delivered is None else f'{delivered:.1%}',
            f'{sum(r["targets"].get(kind, 0) for r in steps):,}',
            '-' if first is None else f'{first:.3f}',
            '-' if last is None else f'[bold]{last:.3f}[/bold]',
            '-' if change is None else f'[{"green" if change < 0 else "red"}]{change:+.0f} %[/]',
        )
    return table


def _edges(steps: Sequence[dict[str, Any]], kind: str) -> tuple[float | None, float | None]:
    """Mean loss over the first and the last twentieth of the steps: single steps jump too much to be compared."""
    if not steps:
        return None, None
    count = max(1, round(_EDGE_SHARE * len(steps)))
    means = []
    for part in (steps[:count], steps[-count:]):
        targets = [r['targets'][kind] for r in part]
        losses = [r['losses'][kind] for r in part]
        means.append(sum(n * v for n, v in zip(targets, losses, strict=True)) / max(1, sum(targets)))
    return means[0], means[1]


def _totals(records: Sequence[dict[str, Any]], train: Sequence[dict[str, Any]], ledger: 'Ledger | None') -> str:
    seconds = train[-1]['time_s']
    tokens, audio_s = sum(r['tokens'] for r in train), sum(r['audio_s'] for r in train)
    each_s = max(seconds, 1e-9)
    lines = [
        f'{train[-1]["step"]:,} steps in {seconds / 60:.1f} min: {tokens:,} tokens ({tokens / each_s:,.0f}/s), '
        f'{audio_s / 3600:.2f} h of speech ({audio_s / each_s:.1f} s per second)',
        'peak memory: ' + ', '.join(f'{where} {gb:.2f} GB' for where, gb in peak_memory().items()),
    ]
    if ledger is not None:
        lines[1] += f'; padding {ledger.padding:.2%}; conversations skipped: {ledger.skipped:,}'
        lines[1] += f'; steps left out: {ledger.bad_batches:,}' if ledger.bad_batches else ''
    values = [r['metrics']['val_loss'] for r in records if r['type'] == 'validation' and 'val_loss' in r['metrics']]
    if values:
        lines.append(f'validation loss: first {values[0]:.3f}, best {min(values):.3f}, last {values[-1]:.3f}')
    return '\n'.join(lines)


def _usual_files(run_dir: Path) -> dict[str, Path]:
    models = sorted((run_dir / 'checkpoints').glob('*.nemo'))
    return {
        **{f'model{"" if len(models) == 1 else f" {n}"}': path for n, path in enumerate(models, start=1)},
        'curves': run_dir / 'curves.png',
        'losses': run_dir / 'history.jsonl',
        'ledger': run_dir / 'ledger.json',
        'ledger plot': run_dir / 'ledger.png',
        'skipped': run_dir / 'quarantine.jsonl',
    }
