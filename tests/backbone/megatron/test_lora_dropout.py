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
"""Dropout of LoRA on two ranks: new masks for each row, the same again where activations are made again."""

import tempfile
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

pytest.importorskip('megatron.core')
pytestmark = pytest.mark.integration
FULL = {'recompute_granularity': 'full', 'recompute_method': 'uniform', 'recompute_num_layers': 1}


def build(sequence_parallel: bool, **options: Any) -> Any:
    from megatron_cases import tiny_config

    from nemo_vtb.backbone.megatron import lora, runtime
    from nemo_vtb.backbone.megatron.model import MegatronBackbone

    runtime.seed_everything(3)
    backbone = MegatronBackbone(tiny_config('llama'), sequence_parallel=sequence_parallel, **options)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.fill_(0.05)
        backbone.gpt.embedding.word_embeddings.weight.normal_()
    lora.add_lora(backbone.gpt, backbone.geometry, r=4, alpha=8, p=0.5, targets='all-linear')
    backbone.load_lora({k: torch.full_like(v, 0.1) for k, v in backbone.lora_state().items()})
    return backbone.train()


def run(backbone: Any) -> torch.Tensor:
    embeds = torch.linspace(-1, 1, 8 * 64).sin().view(8, 64).requires_grad_(True)
    return backbone(embeds, torch.arange(8), torch.tensor([0, 8], dtype=torch.int32), 8)


def ranked(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', rank=rank, world_size=2, init_method=f'file://{folder}/meet')
    from nemo_vtb.backbone.megatron import runtime

    runtime.initialize(2)
    for sequence_parallel in (False, True):
        plain = build(sequence_parallel)
        first, second = run(plain), run(plain)
        assert not torch.allclose(first, second, atol=1e-4), 'two rows with the same masks'
        one = first.detach().clone()
        dist.broadcast(one, 0)
        torch.testing.assert_close(one, first.detach())
        again = build(sequence_parallel, **FULL)
        assert torch.equal(run(again), first)
        other = run(again)
        assert torch.equal(other, second)
        for out in (second, other):
            out.square().sum().backward()
        for name, parameter in plain.trainable_parameters().items():
            assert torch.equal(parameter.grad, again.trainable_parameters()[name].grad), name


def test_masks_are_new_for_each_row_and_the_same_when_made_again() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(ranked, (folder,), nprocs=2, start_method='spawn')
