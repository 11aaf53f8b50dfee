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
"""The Megatron backbone on one, two and four ranks: every family against Hugging Face and PEFT."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from megatron_cases import CASES

pytestmark = pytest.mark.integration
TOLERANCE = 1e-4
BENCHMARK = Path(__file__).parents[3] / 'benchmarks' / 'megatron_parity.py'
RANKS = [
    pytest.param(1, False, id='tp1'),
    pytest.param(2, False, id='tp2'),
    pytest.param(2, True, id='tp2-sp'),
    pytest.param(4, False, id='tp4', marks=pytest.mark.slow),
    pytest.param(4, True, id='tp4-sp', marks=pytest.mark.slow),
]


@pytest.fixture(scope='module')
def measured(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Any]]:
    """All families on so many ranks, measured once: most of a launch is imports."""

    @cache
    def launch(ranks: int) -> dict[str, Any]:
        out = tmp_path_factory.mktemp('parity') / 'results.json'
        command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={ranks}']
        done = subprocess.run([*command, str(BENCHMARK), '--out', str(out)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(out.read_text(encoding='utf-8'))

    return launch


@pytest.mark.parametrize('family', CASES)
@pytest.mark.parametrize(('ranks', 'sequence_parallel'), RANKS)
def test_a_family_is_that_of_hugging_face(
    measured: Callable[[int], dict[str, Any]], ranks: int, sequence_parallel: bool, family: str
) -> None:
    found = [
        r for r in measured(ranks)['families'] if (r['family'], r['sequence_parallel']) == (family, sequence_parallel)
    ]
    assert len(found) == 1 and found[0]['ranks'] == ranks
    for key in ('logits', 'loss', 'lora_gradients', 'input_gradients'):
        assert found[0][key] <= TOLERANCE, (key, found[0][key])
    assert found[0]['weights_exact'] and found[0]['lora_exact'] and found[0]['answers_equal']
