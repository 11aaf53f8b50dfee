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
"""A real pretrained LLM whose heads two ranks do not divide: SmolLM2-135M, 9 heads and 3 key-value heads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from real_worker import NEW_TOKENS, NUM_PROMPTS, prompts

pytestmark = [pytest.mark.slow, pytest.mark.real_weights]


@pytest.fixture(scope='module')
def smollm2() -> Path:
    from nemo_vtb.assets import ensure

    return ensure('smollm2-135m-instruct')['smollm2-135m-instruct']


@pytest.fixture(scope='module')
def expected(smollm2: Path) -> list[list[int]]:
    """Hugging Face, a prompt at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    answers = []
    for row in prompts(tokenizer):
        ids = model.generate(
            torch.tensor([row]), max_new_tokens=NEW_TOKENS, do_sample=False, temperature=None, top_p=None
        )
        answer = ids[0, len(row) :].tolist()
        end = tokenizer.eos_token_id
        answers.append(answer[: answer.index(end)] if end in answer else answer)
    return answers


@pytest.mark.parametrize('ranks', [1, 2])
def test_greedy_answers_are_those_of_hugging_face(
    smollm2: Path, expected: list[list[int]], tmp_path: Path, ranks: int
) -> None:
    worker, out = Path(__file__).with_name('real_worker.py'), tmp_path / 'answers.json'
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={ranks}']
    done = subprocess.run([*command, str(worker), str(smollm2), str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(expected) == NUM_PROMPTS and any(expected)
    assert json.loads(out.read_text(encoding='utf-8')) == expected
