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
"""`vtb eval --suite paper` as a user runs it: killed twice, and on two ranks, it finds what one run finds."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import benchmark_folders as made
import pytest
from benchmark_folders import Clip
from test_text_data import snapshot

from nemo_vtb.evaluation.result import Evaluation

pytestmark = pytest.mark.slow
SUITES = ('librispeech', 'mls', 'covost2', 'spoken_squad', 'librisqa')


@pytest.fixture(scope='module')
def arguments(tiny_model: Any, clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A model, five benchmarks of speech and two of text."""
    folder = tmp_path_factory.mktemp('paper')
    tiny_model.save_to(str(folder / 'tiny.nemo'))
    for name in SUITES:
        getattr(made, name)(folder / 'data', clips)
    for name in ('arc', 'hellaswag'):
        snapshot(folder / 'data', name)
    more = ['--limit', '2', '--batch-size', '1', '--max-new-tokens', '8', '--device', 'cpu', '--no-examples']
    return ['eval', str(folder / 'tiny.nemo'), '--suite', 'paper', '--data-root', str(folder / 'data'), *more]


def started(arguments: list[str], output: Path, *launcher: str) -> subprocess.Popen:
    command = [sys.executable, *launcher, '-m', 'nemo_vtb.cli', *arguments, '--output', str(output)]
    log = output.with_suffix('.log').open('ab')
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b'\n') if path.exists() else 0


@pytest.fixture(scope='module')
def whole(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    path = tmp_path_factory.mktemp('whole') / 'e.eval.jsonl'
    assert started(arguments, path).wait(300) == 0, path.with_suffix('.log').read_text()[-2000:]
    return Evaluation.read(path)


def same(found: Evaluation, whole: Evaluation) -> bool:
    told = ('suites', 'left_out', 'skipped', 'conversations')
    records = (found.metrics, found.scores) == (whole.metrics, whole.scores)
    # recordings of parquet files lie beside each result
    texts = [(s.suite, s.task, s.id, s.hypothesis, s.base) for s in found.samples] == [
        (s.suite, s.task, s.id, s.hypothesis, s.base) for s in whole.samples
    ]
    return records and texts and all(found.info[key] == whole.info[key] for key in told)


def test_two_kills_change_nothing(arguments: list[str], whole: Evaluation, tmp_path: Path) -> None:
    assert {m.suite for m in whole.metrics} - {'symptoms'} == {*SUITES, 'arc', 'hellaswag'}
    path = tmp_path / 'e.eval.jsonl'
    answers, seen = path.with_suffix('.answers.jsonl'), 0
    for more in (3, 5):
        process = started(arguments, path)
        while process.poll() is None and lines_of(answers) <= seen + more:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and not path.exists()
        assert lines_of(answers) > seen + more
        seen = lines_of(answers)
    assert started(arguments, path).wait(300) == 0
    assert 'cached answers' in path.with_suffix('.log').read_text()
    assert same(Evaluation.read(path), whole) and not answers.exists()


def test_two_ranks_find_what_one_finds(arguments: list[str], whole: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / 'e.eval.jsonl'
    process = started(arguments, path, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2')
    shares: dict[str, int] = {}
    while process.poll() is None:
        for rank in ('answers', 'answers.1'):
            shares[rank] = max(shares.get(rank, 0), lines_of(path.with_suffix(f'.{rank}.jsonl')))
        time.sleep(0.01)
    log = path.with_suffix('.log').read_text()
    assert process.returncode == 0, log[-2000:]
    assert same(Evaluation.read(path), whole)
    assert min(shares.values()) > 1 + 3  # each answered a part
    assert log.count('All ') == 1  # one rank speaks
    assert not list(tmp_path.glob('*.answers*'))
