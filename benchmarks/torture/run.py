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
"""The fault matrix, row by row; writes the page of reliability.

python benchmarks/torture/run.py --quick                  # a few trials of each row, about 5 minutes
python benchmarks/torture/run.py                          # all, 1 to 2 hours; goes on where it was ended
python benchmarks/torture/run.py --rows R1,P2 --trials 0.5
python benchmarks/torture/run.py --report                 # the page alone, from the trials that there are

Each trial is a line of runs/torture/results.jsonl, with the commit; those of the same commit are not done again. The
page shows each experiment with the newest commit that it was tried with. The last line is one JSON object.
"""

import argparse
import json
import logging
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ |= {'OMP_NUM_THREADS': '1', 'TOKENIZERS_PARALLELISM': 'false', 'HF_HUB_OFFLINE': '1', 'MPLBACKEND': 'Agg'}
ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT / 'benchmarks')  # `run` is too common a name to be found by

from nemo_vtb.io import read_json_lines
from torture import report
from torture.trials import Experiment, adopt_orphans, end_descendants, in_order, perform, prepare, unmount_below

OUT = ROOT / 'runs' / 'torture'
PAGE = ROOT / 'docs' / 'reliability.md'


def experiments() -> list[Experiment]:
    """All of them; imports what trials need, so that each forks with it."""
    from torture import checkpoints, inputs, numerics, resume, soak, stops

    modules = (resume, inputs, checkpoints, stops, numerics, soak)
    return [experiment for module in modules for experiment in module.EXPERIMENTS]


def warm_up() -> None:
    """Import what a training imports; nothing may start a thread here, since trials are forked."""
    import speechllm_joint_sft  # noqa: F401
    import torch.distributed.checkpoint
    import torch.distributed.fsdp
    import torch.distributed.launcher.api  # noqa: F401

    import nemo_vtb

    for name in nemo_vtb.__all__:
        getattr(nemo_vtb, name)


def chosen(all_: Sequence[Experiment], rows: str | None, share: float) -> list[Experiment]:
    """Those of the rows (`P1`) or keys (`P1/launcher`), with so many times as many trials."""
    wanted = [word.strip() for word in rows.split(',')] if rows else None
    if wanted and (unknown := set(wanted) - {e.key for e in all_} - {e.row for e in all_}):
        raise SystemExit(
            f'--rows: no such row: {", ".join(sorted(unknown))}; there are {", ".join(e.key for e in all_)}'
        )
    found = [e for e in all_ if not wanted or e.key in wanted or e.row in wanted]
    return [replace(e, count=max(1, math.ceil(e.count * share))) for e in found]


def run(found: Sequence[Experiment], args: argparse.Namespace, commit: str) -> None:
    """Do the trials that are missing, and append a line for each."""
    results = OUT / 'results.jsonl'
    done = {
        (r['key'], r['trial']) for r in read_json_lines(results) if r['commit'] == commit and not report.dirty(commit)
    }
    left = [(e, n) for e, n in in_order(found, args.quick) if (e.key, n) not in done]
    print(f'{len(left)} trials, {len(done)} are done; about {sum(e.cost_s for e, _ in left) / 60:.0f} min', flush=True)
    begin, expected = time.monotonic(), 0.0
    all_of_it = sum(e.cost_s for e, _ in left)
    options = {'soak_minutes': args.soak_minutes, 'soak_log': str(OUT / 'soak.log')}
    prepared = set()
    with tempfile.TemporaryDirectory(prefix='vtb-torture-') as work, cleared(Path(work)):
        shared = Path(work) / 'shared'
        shared.mkdir()
        for place, (experiment, number) in enumerate(left, 1):
            if experiment.prepare not in prepared:
                prepare(experiment, shared)
                prepared.add(experiment.prepare)
            folder = Path(work) / f'{experiment.key.replace("/", "-").replace(" ", "_")}-{number}'
            record = perform(experiment, number, args.seed, folder, shared, **options)
            record |= {'key': experiment.key, 'commit': commit, 'seed': args.seed, 'quick': args.quick}
            record['date'] = datetime.now(UTC).isoformat(timespec='seconds')
            with results.open('a', encoding='utf-8') as stream:
                stream.write(json.dumps(record) + '\n')
            keep(folder, record)
            expected += experiment.cost_s
            pace = (time.monotonic() - begin) / expected
            say(place, len(left), record, pace * (all_of_it - expected))


@contextmanager
def cleared(work: Path) -> Iterator[None]:
    """Nothing that was started or mounted stays when this command is ended."""
    try:
        yield
    finally:
        end_descendants()
        unmount_below(work)


def keep(folder: Path, record: dict[str, Any]) -> None:
    """The logs of a trial that failed stay; all else is removed."""
    if record['failures']:
        kept = OUT / 'failed' / folder.name
        shutil.rmtree(kept, ignore_errors=True)
        ignored = shutil.ignore_patterns('*.ckpt*', '*.nemo', '*.wav', '*.png', 'index', 'files', 'filler')
        shutil.copytree(folder, kept, ignore=ignored, symlinks=True, ignore_dangling_symlinks=True)
    shutil.rmtree(folder, ignore_errors=True)


def say(place: int, count: int, record: dict[str, Any], left_s: float) -> None:
    """The line of progress, and what is wrong."""
    what = (
        'not run: ' + record['skipped']
        if 'skipped' in record
        else f'{record["n"]} faults, {record["failures"]} failures'
    )
    print(f'[{place}/{count}] {record["key"]} {record["trial"]}: {what}, {record["seconds"]} s; '
          f'{left_s / 60:.0f} min left', flush=True)  # fmt: skip
    for problem in record['problems'][:3]:
        print('    ' + problem[:600].replace('\n', '\n    '), flush=True)


def main() -> int:
    """Run the matrix; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='a few trials of each row')
    parser.add_argument('--rows', help='rows or single experiments, separated by commas')
    parser.add_argument('--trials', type=float, default=1.0, help='times as many trials (default: 1)')
    parser.add_argument('--seed', type=int, default=0, help='of all that is random (default: 0)')
    parser.add_argument('--soak-minutes', type=float, default=30, help='length of the soak (default: 30)')
    parser.add_argument('--report', action='store_true', help='write the page from the trials that there are')
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    commit = report.commit_of(ROOT)
    begin = time.monotonic()
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit('ended'))  # so that folders are cleared
    found = chosen(experiments(), args.rows, args.trials)
    if not args.report:
        logging.disable(logging.NOTSET)
        warm_up()
        run(found, args, commit)
    records = read_json_lines(OUT / 'results.jsonl')
    committed = [record for record in records if not report.dirty(record['commit'])]
    page = OUT / 'reliability.md' if args.quick or args.rows else PAGE
    shown = committed if page == PAGE else records
    page.write_text(report.page(experiments(), shown, OUT / 'soak.log'), encoding='utf-8')
    figures = report.figures(found, [r for r in records if r['commit'] == commit], quick=args.quick)
    print(json.dumps({'benchmark': 'torture', **figures, 'commit': commit, 'page': str(page.relative_to(ROOT)),
                      'seconds': round(time.monotonic() - begin, 1)}))  # fmt: skip
    return 0 if figures['ok'] else 1


if __name__ == '__main__':
    sys.exit(main())
