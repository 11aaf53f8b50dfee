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
"""How fast and how small the token-budget plan is on ten million conversations.

python benchmarks/sampler_scale.py --quick     # 10 million entries, 1 million conversations planned
python benchmarks/sampler_scale.py --full      # 10 million entries, 10 million conversations planned

Resident memory counts the pages of the mapped columns that were touched (8 bytes for each entry), which the kernel may
take back at any time.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from nemo_vtb.data.index import SourceIndex
from nemo_vtb.data.index_build import COLUMNS
from nemo_vtb.data.sampler import TokenBudgetPlan
from nemo_vtb.data.sources import SourceSpec

GOALS = {'conversations_per_s': 20_000, 'rss_growth_mb': 300.0, 'state_bytes': 100_000, 'resume_s': 1.0}
BUDGET = {'text': 0.15, 'asr_ast': 0.6, 'speech_qa': 0.1, 'mixed_modal': 0.15}
# mean tokens and spread of a conversation, and share of all conversations
KINDS = {
    'text': (280, 0.7, 0.2),
    'asr_ast': (90, 0.5, 0.5),
    'speech_qa': (180, 0.5, 0.2),
    'mixed_modal': (450, 0.5, 0.1),
}


def main() -> int:
    """Build synthetic indexes, plan, save, resume, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--quick', action='store_true', help='10 million entries (default)')
    size.add_argument('--full', action='store_true', help='ten times the conversations planned')
    args = parser.parse_args()
    entries, planned = (10_000_000, 10_000_000) if args.full else (10_000_000, 1_000_000)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), entries, planned)
    ok = all(figures[n] >= g if n == 'conversations_per_s' else figures[n] <= g for n, g in GOALS.items())
    show(figures)
    print(json.dumps({'benchmark': 'sampler_scale', 'ok': ok and figures['resume_exact'], **figures}))
    return 0 if ok else 1


def measure(folder: Path, entries: int, planned: int) -> dict:
    """All figures of one run; memory is measured on one plan, resumes on others."""
    sources = [make_index(folder, kind, round(entries * share)) for kind, (_, _, share) in KINDS.items()]
    options = {'max_tokens': 4096, 'pool': 512, 'seed': 1}
    before = rss_mb()
    wall = time.perf_counter()
    plan = TokenBudgetPlan(sources, BUDGET, **options)
    start_s = time.perf_counter() - wall
    count, tokens, rows, states = 0, 0, 0, []
    cpu = time.process_time()
    random_rows = random.Random(0)
    while count < planned:
        if random_rows.random() < 0.0005:
            states.append(json.dumps(plan.state_dict()))
        row = plan.next_row()
        count, tokens, rows = count + len(row.items), tokens + row.num_tokens, rows + 1
    cpu = time.process_time() - cpu
    growth = rss_mb() - before
    resume_s, exact = 0.0, True
    far = json.loads(states[-1])
    for name in far['sources']:  # as late in a run as can be: a hundred epochs on
        moved = 100 * round(entries * KINDS[name][2])
        far['sources'][name]['draws'] += moved
        far['sources'][name]['pool'] = [draw + moved for draw in far['sources'][name]['pool']]
    for state in [*states[:3], json.dumps(far)]:
        wall = time.perf_counter()
        again = TokenBudgetPlan(sources, BUDGET, **options)
        again.load_state_dict(json.loads(state))
        first = again.next_row()
        resume_s = max(resume_s, time.perf_counter() - wall)
        exact &= first.index == json.loads(state)['row']
    final = json.dumps(plan.state_dict())
    again.load_state_dict(json.loads(final))
    exact &= [plan.next_row() for _ in range(200)] == [again.next_row() for _ in range(200)]
    return {
        'entries': entries,
        'conversations': count,
        'conversations_per_s': round(count / cpu),
        'tokens_per_s': round(tokens / cpu),
        'padding_share': round(1 - tokens / (rows * options['max_tokens']), 5),
        'rss_growth_mb': round(growth, 1),
        'state_bytes': max(len(state) for state in [*states, final]),
        'start_s': round(start_s, 3),
        'resume_s': round(resume_s, 3),
        'resume_exact': exact,
    }


def make_index(folder: Path, kind: str, size: int) -> SourceIndex:
    """An index as `open_index` leaves it, with synthetic lengths."""
    mean, spread, _ = KINDS[kind]
    rng = np.random.default_rng(len(kind))
    target = folder / kind
    target.mkdir()
    lengths = np.clip(rng.lognormal(np.log(mean), spread, size), 8, 4096).astype(np.int32)
    np.save(target / 'length.npy', lengths)
    np.save(target / 'supervised.npy', (lengths // 3 + 1).astype(np.int32))
    np.save(target / 'seconds.npy', (lengths * 0.05).astype(np.float32))
    for name, (_, dtype) in COLUMNS.items():
        if not (path := target / f'{name}.npy').exists():  # mapped with the others, and never read
            np.lib.format.open_memmap(path, mode='w+', dtype=dtype, shape=(size,))
    meta = {'entries': size, 'digest': kind, 'lines': size, 'quarantined': {}}
    (target / 'meta.json').write_text(json.dumps(meta))
    return SourceIndex(SourceSpec(kind, 'multimodal_conversation', kind, ()), target)


def rss_mb() -> float:
    """Resident memory of this process, mapped files included."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith('VmRSS:'):
            return int(line.split()[1]) / 1024
    return float('nan')


def show(figures: dict) -> None:
    """A table for people."""
    table = Table(title='token-budget plan')
    table.add_column('figure')
    table.add_column('measured', justify='right')
    table.add_column('goal', justify='right')
    for name, value in figures.items():
        goal = GOALS.get(name)
        sign = '' if goal is None else ('>= ' if name == 'conversations_per_s' else '<= ')
        table.add_row(name, f'{value:,}', sign + (f'{goal:,}' if goal is not None else ''))
    Console().print(table)


if __name__ == '__main__':
    sys.exit(main())
