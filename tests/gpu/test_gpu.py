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
"""What only a GPU can show: every kernel that is there against Hugging Face, and training steps of the whole product.

`pytest -m gpu`; the cases are those of the suite in `benchmarks/gpu`. The first half needs neither NeMo nor lhotse.
`REHEARSE=1 pytest -m gpu tests/gpu` runs on a CPU what runs there, which proves the tests.
"""

import importlib.util
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

GPU, REHEARSE = torch.cuda.is_available(), os.environ.get('REHEARSE') == '1'
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPU and not REHEARSE, reason='needs a CUDA device')]
KERNELS = ('te', 'liger', 'torch')
needs_nemo = pytest.mark.skipif(importlib.util.find_spec('nemo') is None, reason='needs NeMo')
FULL = {'recompute_granularity': 'full', 'recompute_method': 'uniform', 'recompute_num_layers': 1}


def parity(family: str, dtype: torch.dtype, kernels: str, **options: Any) -> dict[str, Any]:
    from gpu.parity import parity_case

    from nemo_vtb.backbone.megatron import runtime

    runtime.initialize(1, device=torch.device('cuda' if GPU else 'cpu'))
    from nemo_vtb.backbone.megatron.layers import usable_kernels

    if kernels not in usable_kernels():
        pytest.skip(f'{kernels} is not installed')
    return parity_case(family, dtype, kernels, **options)


@pytest.mark.parametrize('kernels', KERNELS)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
@pytest.mark.parametrize('family', ['llama', 'gemma_mqa', 'qwen3', 'gemma2', 'mistral'])
def test_a_packed_row_is_that_of_hugging_face(family: str, dtype: torch.dtype, kernels: str) -> None:
    found = parity(family, dtype, kernels, answers=dtype == torch.float32)
    assert found['ok'], found


@pytest.mark.parametrize('kernels', KERNELS)
@pytest.mark.parametrize('options', [FULL, {'recompute_granularity': 'selective'}, {'autocast': True}], ids=str)
def test_activations_made_again_and_autocast(options: dict[str, Any], kernels: str) -> None:
    found = parity('llama', torch.bfloat16, kernels, **options)
    assert found['ok'], found


@pytest.mark.parametrize(('family', 'fp8'), [('llama', 'hybrid'), ('gemma_mqa', 'e4m3')])
def test_fp8_trains(family: str, fp8: str) -> None:
    found = parity(family, torch.bfloat16, 'te', fp8=fp8)
    assert found['worst'] < 1, found


def test_auto_takes_no_tf32_for_float32() -> None:
    from nemo_vtb.backbone.megatron import runtime

    runtime.initialize(1, device=torch.device('cuda' if GPU else 'cpu'))
    from nemo_vtb.backbone.megatron.layers import choose_kernels

    assert choose_kernels('auto', dtype=torch.float32).name != 'te'


@pytest.mark.parametrize('sizes', [(8, 1, 256), (32, 8, 128), (9, 3, 64)])
@pytest.mark.parametrize('window', [None, 16])
def test_the_kernel_of_a_row_is_the_loop(sizes: tuple[int, int, int], window: int | None) -> None:
    from gpu.results import DEVICE, error_of
    from gpu.ways import by_loop

    from nemo_vtb.backbone.attention import Borders, attention

    heads, kv, dim = sizes
    borders = Borders.of(torch.tensor([0, 7, 8, 200], dtype=torch.int32), 192, DEVICE)
    four = [torch.randn(1, n, 200, dim, device=DEVICE, dtype=torch.bfloat16) for n in (heads, kv, kv)]
    results = []
    for by in (False, True):
        q, k, v = (x.clone().requires_grad_() for x in four)
        with by_loop() if by else nullcontext():
            out = attention(torch.nn.Module(), q, k, v, None, borders=borders, sliding_window=window)[0]
        out.sum().backward()
        results.append([out, q.grad, k.grad, v.grad])
    for one, other in zip(*results, strict=True):
        assert error_of(one, other) < 0.02


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
@pytest.mark.parametrize('family', ['llama', 'gemma_mqa', 'qwen3', 'gemma2', 'gemma3', 'mistral', 'qwen2'])
def test_ligers_kernels_are_transformers(family: str, dtype: torch.dtype) -> None:
    """The Hugging Face backbone with LoRA, with Liger's kernels and LoRA as one operation, and without them."""
    import megatron_cases
    from gpu.results import DEVICE, error_of

    from nemo_vtb.backbone.attention import IMPLEMENTATION, register
    from nemo_vtb.backbone.fused_lora import fuse_lora
    from nemo_vtb.backbone.hf import HFBackbone
    from nemo_vtb.backbone.liger import Kernels, has_liger
    from nemo_vtb.model.loss import row_nll

    if not has_liger():
        pytest.skip('liger is not installed')
    register()
    row = megatron_cases._row(*(getattr(megatron_cases.tiny_config(family), n) for n in ('hidden_size', 'vocab_size')))

    def learn(kind: torch.dtype, fused: bool) -> tuple[torch.Tensor, torch.Tensor]:
        tuned, _ = megatron_cases._peft(megatron_cases._tiny_model(family))
        llm = tuned.get_base_model()
        llm.set_attn_implementation(IMPLEMENTATION)
        backbone = HFBackbone(tuned.to(DEVICE, kind), llm.model.embed_tokens)
        if fused:
            fuse_lora(tuned)
            backbone.take(Kernels.installed())
            assert backbone.bounds_logits == GPU
        embeds = row['embeds'].to(DEVICE, kind).clone().requires_grad_()
        hidden = backbone.forward(embeds, row['position_ids'].to(DEVICE), row['cu_seqlens'], row['max_seqlen'])
        row_nll(hidden, row['labels'].to(DEVICE), backbone.nll).mean().backward()
        lora = [p.grad.flatten().float() for p in tuned.parameters() if p.grad is not None]
        assert embeds.grad is not None
        return torch.cat(lora), embeds.grad.float()

    exact, found = learn(torch.float32, False), learn(dtype, True)
    for one, other in zip(found, exact, strict=True):
        assert error_of(one, other) < (0.08 if dtype == torch.bfloat16 else 1e-3)


@needs_nemo
@pytest.mark.parametrize(
    'case',
    [
        'tiny-hf-32', 'tiny-hf-mixed', 'tiny-hf-bf16', 'tiny-megatron-32', 'tiny-megatron-bf16', 'tiny-megatron-mixed',
        'tiny-conformer-bf16', 'tiny-conformer-mixed', 'tiny-conformer-megatron', 'tiny-megatron-recompute',
    ],
)  # fmt: skip
def test_training_steps_and_an_answer(case: str) -> None:
    from gpu.joint import joint_case

    found = joint_case(case)
    assert found['device'].startswith('cuda' if GPU else 'cpu')
    assert all(0 < loss < 20 for loss in found['loss'])
    assert found.get('answers') == 2, found


@needs_nemo
@pytest.mark.parametrize('case', ['tiny-hf-mixed', 'tiny-megatron-bf16'])
def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path, case: str) -> None:
    from gpu.joint import resume_case

    found = resume_case(case, tmp_path)
    assert len(found['resumed']) == 2 and found['ok'], found
