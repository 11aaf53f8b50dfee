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
"""The page of reliability names every row of the matrix, and tests that exist."""

import ast
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torture import report
from torture.matrix import GROUPS, ROWS
from torture.trials import Experiment, in_order

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'reliability.md'
MATRIX = {f'{letter}{number}' for letter, count in {'R': 14, 'C': 8, 'P': 6, 'N': 3, 'S': 10}.items()
          for number in range(1, count + 1)} | {'D', 'soak'}  # fmt: skip
EXPERIMENTS = ('resume', 'inputs', 'checkpoints', 'stops', 'numerics', 'soak')


@cache
def functions_of(file: str) -> dict[str, bool]:
    """Name of each test of a file -> whether `make test` leaves it out."""
    tree = ast.parse((ROOT / file).read_text(encoding='utf-8'))
    marks = [ast.unparse(n.value) for n in tree.body if isinstance(n, ast.Assign) and 'pytestmark' in ast.unparse(n)]
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith('test_'):
            # a single case may be slow; then the others are in make test
            own = [text for each in node.decorator_list if 'parametrize' not in (text := ast.unparse(each))]
            found[node.name] = 'mark.slow' in ' '.join([*marks, *own])
    return found


@cache
def experiment_keys() -> set[str]:
    """Keys of the experiments, read from the files: importing them loads all of NeMo."""
    texts = [(ROOT / 'benchmarks' / 'torture' / f'{name}.py').read_text(encoding='utf-8') for name in EXPERIMENTS]
    return set(re.findall(r"Experiment\(\s*'([^']+)'", ' '.join(texts)))


def test_every_row_of_the_matrix_is_there_once() -> None:
    ids = [row.id for row in ROWS]
    assert len(ids) == len(set(ids)) and set(ids) >= MATRIX
    assert {id_.rstrip('0123456789') for id_ in ids} == set(GROUPS)


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row.id)
def test_each_row_is_proved_or_says_why_not(row: object) -> None:
    own = {key for key in experiment_keys() if key.partition('/')[0] == row.id}
    assert row.tests or own or row.open
    for test in row.tests:
        file, _, name = test.partition('::')
        assert functions_of(file).get(name) is False, f'{test} is not in make test'


def test_each_experiment_belongs_to_a_row() -> None:
    assert len(experiment_keys()) > 30
    assert {key.partition('/')[0] for key in experiment_keys()} <= {row.id for row in ROWS}


def test_the_page_has_every_row_and_every_test() -> None:
    text = PAGE.read_text(encoding='utf-8')
    for row in ROWS:
        assert f'| **{row.id}** | {row.fault} |' in text, f'{row.id}: write the page anew, by make torture'
        assert all(f'`{test}`' in text for test in row.tests), row.id


# ---- trials, in a process of their own: behind each, all that is below the process is ended

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
from torture.trials import Experiment, Skipped, adopt_orphans, descendants, perform

def good(trial):
    trial.n, trial.figures = 2, {'drawn': trial.rng.random()}

def bad(trial):
    trial.n = 2
    trial.check(True, 'never')
    for number in range(3):
        trial.check(False, f'wrong {number}')

def raises(trial):
    raise ValueError('no')

def killed(trial):
    os.kill(os.getpid(), signal.SIGKILL)

def hangs(trial):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            time.sleep(60)
        time.sleep(60)
    time.sleep(60)

def cannot(trial):
    raise Skipped('no such disk')

adopt_orphans()
folder = Path(sys.argv[1])
for run in (good, good, bad, raises, killed, hangs, cannot):
    experiment = Experiment('R1', 'x', 1, 1, run, 1.0, limit_s=0.5 if run is hangs else 50.0)
    print(json.dumps(perform(experiment, 0, 7, folder / 'trial', folder)))
print(json.dumps(list(descendants(os.getpid()))))
"""


def test_a_trial_has_one_outcome_and_leaves_no_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=120,
        env=os.environ | {'PYTHONPATH': str(ROOT / 'benchmarks')},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    good, again, bad, raises, killed, hangs, cannot, left = map(json.loads, done.stdout.splitlines())
    assert (good['n'], good['failures']) == (2, 0) and good['figures'] == again['figures']
    assert (bad['n'], bad['failures'], len(bad['problems'])) == (2, 2, 3)
    assert raises['failures'] == 1 and 'ValueError: no' in raises['problems'][0]
    assert killed['failures'] == 1 and 'ended by itself: -9' in killed['problems'][0]
    assert hangs['failures'] == 1 and hangs['problems'][0].startswith('hang')
    assert cannot['skipped'] == 'no such disk' and not cannot['failures']
    assert left == []


def experiment(key: str, count: int) -> Experiment:
    return Experiment(key, f'what {key} does', count, 1, lambda trial: None, 1.0)


def record(key: str, trial: int, n: int = 1, failures: int = 0, **more: Any) -> dict[str, Any]:
    base = {'problems': ['x'] * failures, 'figures': {}, 'date': '2026-01-02T03:04:05', 'commit': 'abc'}
    return {'key': key, 'trial': trial, 'n': n, 'failures': failures, **base, **more}


def test_all_experiments_advance_together() -> None:
    order = in_order([experiment('R1', 6), experiment('C1', 2), experiment('R14', 0)], quick=False)
    assert [(e.key, n) for e, n in order] == [
        ('R1', 0), ('R1', 1), ('C1', 0), ('R1', 2), ('R1', 3), ('R1', 4), ('C1', 1), ('R1', 5),
    ]  # fmt: skip


def test_ok_wants_every_trial_and_no_failure() -> None:
    found = [experiment('R1', 2), experiment('C1', 1)]
    records = [record('R1', 0, n=4), record('R1', 1, failures=1), record('C1', 0, n=0, skipped='no mount')]
    figures = report.figures(found, records, quick=False)
    assert not figures['ok'] and figures['failed'] == {'R1': 1} and figures['not_run'] == ['C1']
    assert report.figures(found, [*records, record('R1', 1)], quick=False)['ok'], 'the newest line of a trial counts'
    assert report.figures(found, records[:1], quick=False)['missing'] == {'R1': 1, 'C1': 1}


def test_the_page_says_what_was_done_and_what_was_not(tmp_path: Path) -> None:
    found = [experiment('R1', 2), experiment('C1', 1), experiment('C2', 1), experiment('P3', 1)]
    records = [record('R1', 0, n=60), record('R1', 1, n=40), record('C1', 0, n=4, failures=1)]
    records += [record('C2', 0, n=0, skipped='no mount')]
    text = report.page(found, records, tmp_path / 'no.log')
    assert '| | what R1 does | 100 | 0 | 3.0% | 2026-01-02, abc | `make torture` R1 |' in text
    assert '| 4 | 1 | 25% failed |' in text and 'open: no mount' in text
    assert '| what P3 does | | | | | open: not yet run |' in text
    newer = [record('R1', 0, n=5, commit='def')]
    assert '| | what R1 does | 5 | 0 | 60% | 2026-01-02, def | `make torture` R1, 1 of 2 trials |' in report.page(
        found, [*records, *newer], tmp_path / 'no.log'
    )
