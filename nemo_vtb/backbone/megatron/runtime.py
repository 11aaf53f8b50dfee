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
"""Megatron-core on GPUs and on CPUs: process groups, random generators, and what 0.16.1 needs to run without CUDA.

Import this module before anything of `megatron`. Nothing global of torch is changed: only megatron's own modules see
a view of torch whose current CUDA device is that of `initialize`, the CPU where a run is to stay there.
"""

import contextlib
import importlib
import importlib.util
import os
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from nemo_vtb.errors import VtbConfigError, first_line

# modules of 0.16.1 whose `torch.cuda.current_device()` a dense decoder reaches (found by running it)
_VIEWED = (
    'megatron.core.tensor_parallel.mappings',
    'megatron.core.tensor_parallel.layers',
    'megatron.core.tensor_parallel.utils',
    'megatron.core.utils',
)
_RNG = 'model-parallel-rng'
_state: dict[str, Any] = {}
te_refusal: str | None = None
"""Why an installed Transformer Engine is not used; None where it is used or not installed."""


def hide_unusable_te() -> bool:
    """Hide a Transformer Engine that is installed but cannot run: importing it would end megatron's own import.

    Returns:
        Whether Transformer Engine can be used.
    """
    global te_refusal
    name = 'transformer_engine'
    if sys.modules.get(name, name) is None:
        return False  # hidden before
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        return False
    try:  # also where it is in `sys.modules`: a failed import of another package may have left it there, half made
        if not torch.cuda.is_available():
            raise RuntimeError('there is no CUDA device')
        importlib.import_module(f'{name}.pytorch')
    except (ImportError, OSError, RuntimeError) as error:  # a missing library is any of the three
        te_refusal = f'{type(error).__name__}: {first_line(error)}'
        for loaded in [key for key in sys.modules if key.split('.')[0] == name]:
            del sys.modules[loaded]
        sys.modules[name] = None  # type: ignore[assignment]  # later imports raise ImportError, which megatron expects
        return False
    return True


def initialize(tensor_parallel: int = 1, *, seed: int = 42, device: torch.device | None = None) -> None:
    """Make the process groups; without a launcher, a group of this process alone. Safe to call again.

    Args:
        tensor_parallel: Ranks that share one LLM; the world is a multiple of it, the rest is data-parallel.
        seed: See `seed_everything`.
        device: Of the weights; None: the GPU of this rank, or the CPU where there is no CUDA.

    Raises:
        VtbConfigError: The ranks cannot be dealt, or the groups exist with another size.
    """
    local = int(os.environ.get('LOCAL_RANK', 0))
    _state['device'] = device or torch.device(*(('cuda', local) if torch.cuda.is_available() else ('cpu',)))
    if on_gpu():  # before NCCL, which would put all ranks of a node on the first GPU
        torch.cuda.set_device(_state['device'])
    if not dist.is_initialized():
        backend = 'nccl' if on_gpu() else 'gloo'
        if dist.is_torchelastic_launched():
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Transformer Engine and Apex are not installed')
        from megatron.core import parallel_state
    world = dist.get_world_size()
    if world % tensor_parallel:
        raise VtbConfigError(
            'The processes cannot be dealt to tensor-parallel groups.',
            field='trainer.strategy.tensor_parallel',
            got=f'{tensor_parallel} of {world} processes',
            allowed=[n for n in (1, 2, 4, 8) if world % n == 0],
        )
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=tensor_parallel)
    elif parallel_state.get_tensor_model_parallel_world_size() != tensor_parallel:
        raise VtbConfigError(
            'The tensor-parallel groups exist already, with another size.',
            field='trainer.strategy.tensor_parallel',
            got=tensor_parallel,
            allowed=parallel_state.get_tensor_model_parallel_world_size(),
        )
    _mend_megatron()
    seed_everything(seed)


def device() -> torch.device:
    """Where megatron makes its weights."""
    found: torch.device = _state.get('device') or torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    return found


def on_gpu() -> bool:
    """Whether that is a CUDA device."""
    return device().type == 'cuda'


def tp_group() -> dist.ProcessGroup:
    """The ranks that share this rank's LLM."""
    from megatron.core import parallel_state

    return parallel_state.get_tensor_model_parallel_group()


def tp_rank() -> int:
    """Place of this rank in its tensor-parallel group."""
    return tp_group().rank()


def tp_size() -> int:
    """Ranks in the tensor-parallel group."""
    return tp_group().size()


def gather(shard: torch.Tensor, dim: int) -> torch.Tensor:
    """All shards of the tensor-parallel group, joined along `dim`; without gradients."""
    group = tp_group()
    if group.size() == 1:
        return shard
    parts = [torch.empty_like(shard, memory_format=torch.contiguous_format) for _ in range(group.size())]
    dist.all_gather(parts, shard.contiguous(), group=group)
    return torch.cat(parts, dim)


def seed_everything(seed: int) -> None:
    """One seed for all peers of a tensor-parallel group; for sharded activations a generator per rank."""
    from megatron.core.tensor_parallel import random as megatron_random

    torch.manual_seed(seed)
    if on_gpu():
        megatron_random.model_parallel_cuda_manual_seed(seed)
        return
    tracker = megatron_random.get_cuda_rng_tracker()
    tracker.reset()
    tracker.add(_RNG, seed + 2718 + tp_rank())


def generator_states() -> dict[str, torch.Tensor]:
    """States of the generators that each rank of the tensor-parallel group has for itself, by name."""
    from megatron.core.tensor_parallel import random as megatron_random

    return dict(megatron_random.get_cuda_rng_tracker().get_states())


def set_generator_states(states: dict[str, torch.Tensor]) -> None:
    """Put back what `generator_states` gave."""
    from megatron.core.tensor_parallel import random as megatron_random

    megatron_random.get_cuda_rng_tracker().set_states(states)


class CpuRngTracker:
    """Stands in for megatron's tracker of CUDA generators: named states of the CPU generator, which can be saved."""

    def __init__(self) -> None:
        self.states_: dict[str, torch.Tensor] = {}

    def is_initialized(self) -> bool:
        """Whether any state was added."""
        return bool(self.states_)

    def reset(self) -> None:
        """Forget all states."""
        self.states_ = {}

    def get_states(self) -> dict[str, torch.Tensor]:
        """A copy of all states."""
        return {name: state.clone() for name, state in self.states_.items()}

    def set_states(self, states: dict[str, torch.Tensor]) -> None:
        """Put states back."""
        self.states_ = {name: state.clone() for name, state in states.items()}

    def add(self, name: str, seed: int) -> None:
        """A new state."""
        self.states_[name] = torch.Generator().manual_seed(seed).get_state()

    @contextlib.contextmanager
    def fork(self, name: str = _RNG) -> Iterator[None]:
        """Draw from the named state inside the block."""
        if name not in self.states_:
            yield
            return
        kept = torch.get_rng_state()
        torch.set_rng_state(self.states_[name])
        try:
            yield
        finally:
            self.states_[name] = torch.get_rng_state()
            torch.set_rng_state(kept)


class _CudaView:
    """torch.cuda, whose current device is that of the run, also where that is the CPU."""

    def current_device(self) -> Any:
        return torch.cuda.current_device() if on_gpu() else torch.device('cpu')

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)


class _TorchView(types.ModuleType):
    """torch, with `_CudaView` as its cuda."""

    def __init__(self) -> None:
        super().__init__('torch')
        self.__dict__['cuda'] = _CudaView()

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _frozen_backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    # megatron's asks for the autocast of CUDA alone, and has two types to multiply under that of the CPU; two also
    # where frozen weights are kept in bfloat16 beside float32 gradients
    (weight,) = ctx.saved_tensors
    grad_input = grad_output.matmul(weight.to(grad_output.dtype))
    if ctx.allreduce_dgrad:
        dist.all_reduce(grad_input, group=ctx.tp_group)
    return grad_input, None, None, None, None


def _mend_megatron() -> None:
    from megatron.core.tensor_parallel import mappings
    from megatron.core.tensor_parallel import random as megatron_random

    _take_generators(megatron_random)
    if _state.get('mended'):
        return
    _state['mended'] = True

    def reduce(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        # 0.16.1 drops the reduced copy where its input is not contiguous, and goes on with the partial sum
        if group.size() == 1:
            return tensor
        tensor = tensor.contiguous()
        dist.all_reduce(tensor, group=group)
        return tensor

    mappings._reduce = reduce
    view = _TorchView()
    for name in _VIEWED:
        importlib.import_module(name).torch = view  # type: ignore[attr-defined]
    importlib.import_module(_VIEWED[1]).LinearWithFrozenWeight.backward = staticmethod(_frozen_backward)


def _take_generators(megatron_random: Any) -> None:
    """Megatron's generators of CUDA, or those of the CPU, whichever the run is on."""
    kept = _state.setdefault('cuda', (megatron_random._get_cuda_rng_state, megatron_random._set_cuda_rng_state))
    tracker = megatron_random._CUDA_RNG_STATE_TRACKER
    if on_gpu():
        megatron_random._get_cuda_rng_state, megatron_random._set_cuda_rng_state = kept
        if isinstance(tracker, CpuRngTracker):
            megatron_random._CUDA_RNG_STATE_TRACKER = None
            megatron_random._CUDA_RNG_STATE_TRACKER_INITIALIZED = False
    elif not isinstance(tracker, CpuRngTracker):
        megatron_random._CUDA_RNG_STATE_TRACKER = CpuRngTracker()
        megatron_random._CUDA_RNG_STATE_TRACKER_INITIALIZED = True
        # asked by activation recompute, which restores the CPU generator by itself
        megatron_random._get_cuda_rng_state = lambda *_, **__: torch.empty(0, dtype=torch.uint8)
        megatron_random._set_cuda_rng_state = lambda *_, **__: None
