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
"""Two ranks whose rows one process plans ahead train as two that plan for themselves, also from a checkpoint on."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import train_worker

pytestmark = [pytest.mark.slow, pytest.mark.integration]

DDP = {
    'trainer.strategy': 'ddp', 'trainer.devices': 2, 'trainer.accumulate_grad_batches': 2, 'data.num_workers': 1,
    'data.rows_per_batch': 4,
}  # fmt: skip
JOBS: dict[str, dict[str, Any]] = {
    'here': {'set': DDP | {'data.plan_ahead': 0}},
    'ahead': {'set': DDP | {'data.plan_ahead': 3}},
    'half': {'set': DDP | {'data.plan_ahead': 3, 'trainer.max_steps': 3}},
    'rest': {'set': DDP | {'data.plan_ahead': 3}, 'resume': 'half'},
    'rest_here': {'set': DDP | {'data.plan_ahead': 0}, 'resume': 'half'},
}


def test_losses_weights_and_states_are_equal_to_the_bit(tmp_path: Path) -> None:
    train_worker.write_config(tmp_path)
    (tmp_path / 'jobs.json').write_text(json.dumps(JOBS))
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    done = subprocess.run([*launch, train_worker.__file__, str(tmp_path), *JOBS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    expected, losses = end_of(tmp_path / 'here'), steps_of(tmp_path / 'here')
    assert len(losses) == 6
    assert steps_of(tmp_path / 'ahead') == losses
    for name in ('ahead', 'rest', 'rest_here'):
        found = end_of(tmp_path / name)
        assert found[:2] == expected[:2], name
        assert all(torch.equal(found[2][key], value) for key, value in expected[2].items()), name
    for name in ('rest', 'rest_here'):
        assert steps_of(tmp_path / 'half') | steps_of(tmp_path / name) == losses


def steps_of(run: Path) -> dict[int, str]:
    """Step -> losses, as they were written."""
    lines = map(json.loads, (run / 'history.jsonl').read_text().splitlines())
    return {line['step']: json.dumps(line['losses']) for line in lines if 'losses' in line}


def end_of(run: Path) -> tuple[str, str, dict[str, torch.Tensor]]:
    """The state of the plan, the ledger, and the weights."""
    checkpoint = torch.load(run / 'end.ckpt', map_location='cpu', weights_only=True)
    (state,) = (value for value in checkpoint.values() if isinstance(value, dict) and 'plan' in value)
    return json.dumps(state['plan']), json.dumps(state['ledger']), checkpoint['state_dict']
