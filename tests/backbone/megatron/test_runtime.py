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
"""Which device a rank takes: its own GPU before NCCL, and the CPU where the trainer says so, also beside a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from nemo_vtb.backbone.megatron import runtime

pytestmark = pytest.mark.unit


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A machine on which torch says that there is CUDA; what is asked of it is written down."""
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'set_device', asked.append)
    monkeypatch.setattr(runtime, '_state', dict(runtime._state))
    yield asked


class _Enough(Exception):
    pass


@pytest.mark.parametrize(('rank', 'given'), [('0', None), ('3', None), ('3', torch.device('cuda', 1))])
def test_a_rank_takes_its_gpu_before_nccl(
    with_cuda: list[Any], monkeypatch: pytest.MonkeyPatch, rank: str, given: torch.device | None
) -> None:
    """NCCL takes the current device: without this, that would be the first GPU on all ranks."""

    def group(backend: str, **options: Any) -> None:
        with_cuda.append(backend)
        raise _Enough

    monkeypatch.setenv('LOCAL_RANK', rank)
    monkeypatch.setattr(dist, 'is_initialized', lambda: False)
    monkeypatch.setattr(dist, 'init_process_group', group)
    with pytest.raises(_Enough):
        runtime.initialize(1, device=given)
    assert with_cuda == [given or torch.device('cuda', int(rank)), 'nccl']


def test_a_run_on_the_cpu_stays_there_beside_a_gpu(with_cuda: list[Any]) -> None:
    """`trainer.accelerator=cpu`: anything that went to CUDA would raise here, where there is none."""
    from megatron_cases import tiny_config

    from nemo_vtb.backbone.megatron.layers import usable_kernels
    from nemo_vtb.backbone.megatron.model import MegatronBackbone

    runtime.initialize(1, device=torch.device('cpu'))
    try:
        assert dist.get_backend() == 'gloo' and usable_kernels() == ['torch'] and with_cuda == []
        assert runtime.generator_states().keys() == {'model-parallel-rng'}
        options = {'recompute_granularity': 'full', 'recompute_method': 'uniform', 'recompute_num_layers': 1}
        backbone = MegatronBackbone(tiny_config('llama'), **options).train()
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.normal_(std=0.1)
        assert {p.device.type for p in backbone.parameters()} == {'cpu'}
        embeds = torch.randn(5, 64, requires_grad=True)
        borders = torch.tensor([0, 2, 5], dtype=torch.int32)
        backbone(embeds, torch.tensor([0, 1, 0, 1, 2]), borders, 3).sum().backward()
        assert embeds.grad is not None and embeds.grad.isfinite().all()
    finally:
        from megatron.core import parallel_state

        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def test_generators_are_those_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on the CPU leaves nothing behind for one on the GPU."""

    class Random:
        """megatron's module of generators."""

        _CUDA_RNG_STATE_TRACKER: Any = None
        _CUDA_RNG_STATE_TRACKER_INITIALIZED = False
        _get_cuda_rng_state = 'get'
        _set_cuda_rng_state = 'set'

    state: dict[str, Any] = {'device': torch.device('cpu')}
    monkeypatch.setattr(runtime, '_state', state)
    runtime._take_generators(Random)
    assert isinstance(Random._CUDA_RNG_STATE_TRACKER, runtime.CpuRngTracker) and callable(Random._get_cuda_rng_state)
    mine = Random._CUDA_RNG_STATE_TRACKER
    runtime._take_generators(Random)
    assert Random._CUDA_RNG_STATE_TRACKER is mine  # a second call keeps the states
    state['device'] = torch.device('cuda', 0)
    runtime._take_generators(Random)
    assert Random._CUDA_RNG_STATE_TRACKER is None and not Random._CUDA_RNG_STATE_TRACKER_INITIALIZED
    assert (Random._get_cuda_rng_state, Random._set_cuda_rng_state) == ('get', 'set')
