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
"""An evaluation that is killed goes on as if it had not been, and several ranks find what one finds."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from nemo_vtb.evaluation.answers import AnswerCache
from nemo_vtb.evaluation.result import Evaluation
from nemo_vtb.evaluation.runner import Plan, run_suites
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.parallel.dims import ParallelDims
from nemo_vtb.testing import TinyCorpus

pytestmark = pytest.mark.forks


def forked(run: Callable[..., None], *args: object) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context('fork').Process(target=run, args=args)
    process.start()
    return process


def records(result: Evaluation) -> tuple:
    return result.metrics, result.samples, result.scores


def test_two_kills_change_nothing(tiny_model: VoiceTextBlender, corpus: TinyCorpus, tmp_path: Path) -> None:
    paths = {kind: Path(path) for kind, path in corpus.paths('test').items()}
    plan = Plan(('speech',), paths, limit=3, batch_size=2, max_new_tokens=6)
    whole = run_suites(tiny_model, plan)
    path = tmp_path / 'answers.jsonl'
    for lines in (4, 12):
        process = forked(lambda: run_suites(tiny_model, plan, cache=AnswerCache(path)))
        while process.is_alive() and not (path.exists() and path.read_bytes().count(b'\n') > lines):
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    # what a kill wrote of a line
    with path.open('a') as file:
        file.write('{"key": "x", "val')
    cache = AnswerCache(path)
    assert cache.resumed >= 12
    assert records(run_suites(tiny_model, plan, cache=cache)) == records(whole)


def test_two_ranks_find_what_one_finds(tiny_model: VoiceTextBlender, corpus: TinyCorpus, tmp_path: Path) -> None:
    paths = {kind: Path(path) for kind, path in corpus.paths('test').items()}
    plan = Plan(('speech',), paths, limit=3, batch_size=2, max_new_tokens=6)
    whole = run_suites(tiny_model, plan)

    def run(rank: int) -> None:
        dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=rank, world_size=2)
        cache = AnswerCache(tmp_path / f'{rank}.jsonl')
        run_suites(tiny_model, plan, cache=cache, dims=ParallelDims(rank, 2)).write(tmp_path / f'{rank}.eval.jsonl')
        dist.destroy_process_group()

    ranks = [forked(run, rank) for rank in range(2)]
    for process in ranks:
        process.join(120)
        process.kill()  # one that waits for a rank that is gone
        process.join()
        assert process.exitcode == 0
    asked = []
    for rank in range(2):
        assert Evaluation.read(tmp_path / f'{rank}.eval.jsonl').metrics == whole.metrics
        lines = (tmp_path / f'{rank}.jsonl').read_text().splitlines()[1:]
        asked.append({json.loads(line)['key'] for line in lines})
    # each answered a part, and nothing was asked twice
    assert asked[0] and asked[1] and not asked[0] & asked[1]
