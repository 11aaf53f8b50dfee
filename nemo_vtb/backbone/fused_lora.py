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
"""PEFT's LoRA on a linear as one operation in half precision: W x + s B A x without a pass to scale or to add.

PEFT makes B A x as wide as the output, scales it and adds it: three passes over it, and as many in the backward pass.
Here both products write into the output of the frozen linear. In float32 PEFT's own code runs, bit by bit.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nemo_vtb.backbone.precision import computes_in_half, product_dtype


def fuse_lora(llm: nn.Module) -> None:
    """Let each linear with LoRA of a model run as one operation where it may; nothing of its class changes.

    Args:
        llm: PEFT's model; one without LoRA stays as it is.
    """
    from peft.tuners.lora import Linear

    for module in llm.modules():
        if type(module) is Linear and type(module.base_layer) is nn.Linear:
            # an attribute of the instance goes before the method of its class
            module.forward = partial(_forward, module, module.forward)


def _forward(module: Any, plain: Callable[..., Tensor], x: Tensor, *args: Any, **options: Any) -> Tensor:
    """(..., inputs) to (..., outputs)."""
    if torch.compiler.is_compiling() or args or options or not computes_in_half(x) or not _is_plain(module):
        return plain(x, *args, **options)
    name, base = module.active_adapters[0], module.base_layer
    dtype = product_dtype(x)
    weights = (base.weight, base.bias, module.lora_A[name].weight, module.lora_B[name].weight)
    out = _LoraLinear.apply(
        x.to(dtype).flatten(0, -2), *(None if w is None else w.to(dtype) for w in weights), module.scaling[name]
    )
    return out.view(*x.shape[:-1], -1)


def _is_plain(module: Any) -> bool:
    """Whether one LoRA without dropout is on, and nobody listens to the parts that would not be called."""
    if module.disable_adapters or module.merged or len(module.active_adapters) != 1:
        return False
    name = module.active_adapters[0]
    if name not in module.lora_A or name in module.lora_variant or module.lora_bias.get(name):
        return False
    drop = module.lora_dropout[name]
    parts = (module.base_layer, module.lora_A[name], module.lora_B[name], drop)
    if any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in parts):
        return False
    return isinstance(drop, nn.Identity) or not drop.training


class _LoraLinear(torch.autograd.Function):
    """x (n, inputs), weight (outputs, inputs), bias, A (r, inputs), B (outputs, r) of one type to (n, outputs)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        h = x @ a.t()  # (n, r)
        y = nn.functional.linear(x, weight, bias)
        y.addmm_(h, b.t(), alpha=scale)
        ctx.save_for_backward(x, weight, a, b, h)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, h = ctx.saved_tensors
        grad, scale, wanted = grads[0], ctx.scale, ctx.needs_input_grad
        inner = (grad @ b).mul_(scale)  # (n, r)
        to_x = to_weight = to_bias = None
        if wanted[0]:
            to_x = (grad @ weight).addmm_(inner, a)
        if wanted[1]:
            to_weight = grad.t() @ x
        if wanted[2]:
            to_bias = grad.sum(0)
        to_a = inner.t() @ x if wanted[3] else None
        to_b = (grad.t() @ h).mul_(scale) if wanted[4] else None
        return to_x, to_weight, to_bias, to_a, to_b, None
