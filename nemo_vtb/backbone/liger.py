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
"""Liger's Triton kernels in a decoder of transformers: norms, rotary embedding, gated activation, loss.

They are put on the modules of one model: classes and functions of transformers, which other models of the process
share, stay as they are. Each kernel runs for tensors on a GPU alone, so that a model that is moved to a CPU goes on.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from nemo_vtb.backbone.precision import product_dtype

# the norms, by what is added to their weight and where they round
_NORMS = {
    **dict.fromkeys(('Llama', 'Mistral', 'Qwen2', 'Qwen3', 'Phi3', 'Granite'), (0.0, 'llama')),
    **dict.fromkeys(('Gemma', 'Gemma2', 'Gemma3'), (1.0, 'gemma')),
}
_ROPE = 'apply_rotary_pos_emb'
_ROTATED = ('Llama', 'Mistral', 'Qwen2', 'Qwen3', 'Granite', 'Gemma', 'Gemma2', 'Gemma3')


@dataclass(frozen=True, slots=True)
class Kernels:
    """Liger's functions, with the arguments that they have in `liger_kernel.transformers.functional`."""

    rms_norm: Callable[..., Tensor]
    rope: Callable[..., tuple[Tensor, Tensor]]
    swiglu: Callable[[Tensor, Tensor], Tensor]
    geglu: Callable[[Tensor, Tensor], Tensor]
    linear_cross_entropy: Callable[..., Tensor]

    @classmethod
    def installed(cls) -> 'Kernels':
        """Those of the package."""
        from liger_kernel.transformers import functional as liger

        return cls(
            liger.liger_rms_norm,
            liger.liger_rope,
            liger.liger_swiglu,
            liger.liger_geglu,
            liger.liger_fused_linear_cross_entropy,
        )


def has_liger() -> bool:
    """Whether Liger and the compiler of its kernels are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ('liger_kernel', 'triton'))


def runs_on(x: Tensor) -> bool:
    """Whether its kernels run where a tensor is."""
    return x.is_cuda


def fuse_layers(decoder: nn.Module, kernels: Kernels) -> dict[str, int]:
    """Put the kernels on the modules of a decoder; families that are not known keep their own code.

    Args:
        decoder: Of transformers, with or without LoRA on its linears.
        kernels: What runs.

    Returns:
        How many norms, attentions (rotary embedding) and feed-forward parts have them.
    """
    found = {'norms': 0, 'rotary': 0, 'gated': 0}
    for module in decoder.modules():
        name = type(module).__name__
        if (kind := _NORMS.get(name.removesuffix('RMSNorm'))) is not None and name.endswith('RMSNorm'):
            module.forward = partial(_norm, module, module.forward, kernels.rms_norm, *kind)
            found['norms'] += 1
        elif name.endswith('Attention') and name.removesuffix('Attention') in _ROTATED and _rotate(module, kernels):
            found['rotary'] += 1
        elif name.endswith('MLP') and (gate := _gate(module, kernels)) is not None:
            module.forward = partial(_gated, module, module.forward, gate)
            found['gated'] += 1
    return found


def _norm(
    module: Any, plain: Callable[[Tensor], Tensor], kernel: Callable[..., Tensor], offset: float, mode: str, x: Tensor
) -> Tensor:
    # where types differ transformers returns the wider one, the kernel that of x
    if not runs_on(x) or x.dtype != module.weight.dtype:
        return plain(x)
    eps = module.variance_epsilon if hasattr(module, 'variance_epsilon') else module.eps
    # not in place: a gradient that comes in may belong to the residual stream as well
    return kernel(x, module.weight, eps, offset, mode, False)


def _rotate(module: nn.Module, kernels: Kernels) -> bool:
    """Give one attention a `forward` whose code is that of its class, and whose rotary function is the kernel."""
    plain = type(module).forward
    if not isinstance(plain, FunctionType) or _ROPE not in plain.__code__.co_names:
        return False
    names = plain.__globals__ | {_ROPE: partial(_rope, plain.__globals__[_ROPE], kernels.rope)}
    own = FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__, plain.__closure__)
    own.__kwdefaults__ = plain.__kwdefaults__
    module.forward = MethodType(own, module)
    return True


def _rope(
    plain: Callable[..., Any], kernel: Callable[..., Any], q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any
) -> tuple[Tensor, Tensor]:
    return (kernel if runs_on(q) and not args else plain)(q, k, cos, sin, *args)


def _gate(module: Any, kernels: Kernels) -> Callable[[Tensor, Tensor], Tensor] | None:
    if not all(hasattr(module, name) for name in ('gate_proj', 'up_proj', 'down_proj', 'act_fn')):
        return None
    name = type(module.act_fn).__name__
    return {'SiLU': kernels.swiglu, 'SiLUActivation': kernels.swiglu, 'GELUTanh': kernels.geglu}.get(name)


def _gated(
    module: Any, plain: Callable[[Tensor], Tensor], kernel: Callable[[Tensor, Tensor], Tensor], x: Tensor
) -> Any:
    if not runs_on(x):
        return plain(x)
    return module.down_proj(kernel(module.gate_proj(x), module.up_proj(x)))


def fused_nll(head: nn.Linear, hidden: Tensor, targets: Tensor, softcap: float | None, kernels: Kernels) -> Tensor:
    """Head and cross-entropy together: no more than a part of the logits exists at once, in either pass.

    Args:
        head: (V, H), the vocabulary.
        hidden: (n, H).
        targets: (n,) int64.
        softcap: Bound on the logits.
        kernels: What runs.

    Returns:
        (n,) float32.
    """
    dtype = product_dtype(hidden)
    bias = None if head.bias is None else head.bias.to(dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        return kernels.linear_cross_entropy(
            hidden.to(dtype), head.weight.to(dtype), targets, bias=bias, reduction='none', softcap=softcap
        ).float()
