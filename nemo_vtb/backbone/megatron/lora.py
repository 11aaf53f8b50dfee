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
"""LoRA on Megatron's fused and sharded linears, canonical: one pair of factors per Hugging Face projection, as PEFT.

Column-parallel linears (qkv, gate and up): A is whole on each rank, B is cut by rows. Row-parallel ones (o, down): A
is cut by columns, B is whole. What is reduced over the ranks has the width of LoRA's rank, so that whole factors have
whole gradients, except under sequence parallelism, where each rank saw a part of the row: those have
`partial_gradient` set, and the strategy sums them.
"""

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel import mappings
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from nemo_vtb.backbone.base import lora_misfit
from nemo_vtb.backbone.megatron.convert import pad_rows
from nemo_vtb.backbone.megatron.families import Geometry
from nemo_vtb.backbone.megatron.runtime import gather, tp_group
from nemo_vtb.errors import VtbModelError

PROJECTIONS = {
    'q_proj': 'self_attn',
    'k_proj': 'self_attn',
    'v_proj': 'self_attn',
    'o_proj': 'self_attn',
    'gate_proj': 'mlp',
    'up_proj': 'mlp',
    'down_proj': 'mlp',
}
_COLUMN = ('q_proj', 'k_proj', 'v_proj', 'gate_proj', 'up_proj')


class Pair(nn.Module):
    """The two factors of one projection: A (r, inputs), B (outputs, r), in the shapes of this rank."""

    def __init__(self, inputs: int, outputs: int, r: int, like: Tensor) -> None:
        super().__init__()
        self.A = nn.Parameter(like.new_empty(r, inputs))
        self.B = nn.Parameter(like.new_zeros(outputs, r))


class _Lora(nn.Module):
    """A linear with LoRA beside it; `enabled` switches LoRA off for the untouched LLM."""

    def __init__(self, base: nn.Module, outputs: Mapping[str, int], r: int, alpha: float, p: float, sp: bool) -> None:
        super().__init__()
        self.base, self.scale, self.p, self.sequence_parallel, self.enabled = base, alpha / r, p, sp, True
        weight = base.weight
        self.lora = nn.ModuleDict({n: Pair(weight.shape[1], out, r, weight) for n, out in outputs.items()})


class LoraColumn(_Lora):
    """On a column-parallel linear; `g` says how queries, keys and values are interleaved (None: gate and up)."""

    def __init__(
        self, base: nn.Module, outputs: Mapping[str, int], r: int, alpha: float, p: float, sp: bool, g: Geometry | None
    ) -> None:
        super().__init__(base, outputs, r, alpha, p, sp)
        self.g = g
        for name, pair in self.lora.items():
            pair.A.partial_gradient = sp
            # keys and values that several ranks hold: B is whole everywhere, each rank uses its head of it
            pair.B.partial_gradient = bool(g and g.copies > 1 and name in ('k_proj', 'v_proj'))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(T or T/ranks, B, inputs) to (T, B, outputs of this rank)."""
        y, bias = self.base(x)
        if not self.enabled:
            return y, bias
        group, names = tp_group(), list(self.lora)
        if self.p and self.training:
            # the whole row: the mask that all ranks draw alike; a part of it: under sequence parallelism megatron's
            # block draws from the generator of this rank already, and a fork within would begin it anew in each row
            x = dropout(x, self.p, True)
        a = torch.cat([self.lora[name].A for name in names])
        h = linear(x, a.to(x.dtype))  # one product for all parts
        if self.sequence_parallel:
            h = mappings.gather_from_sequence_parallel_region(h, group=group)
        else:
            h = mappings.copy_to_tensor_model_parallel_region(h, group=group)
        parts = dict(zip(names, h.chunk(len(names), -1), strict=True))
        factors = {name: self._own_rows(name, group).to(h.dtype) for name in names}
        if adds_in_place(y, h) and not y._is_view():
            flat = [x for name in names for x in (parts[name].flatten(0, -2), factors[name])]
            return _AddInPlace.apply(y, self.scale, [self._place(name) for name in names], *flat), bias
        deltas = {name: linear(parts[name], factors[name]) for name in names}
        return y + self._laid_out(deltas, y) * self.scale, bias

    def _place(self, name: str) -> Callable[[Tensor], Tensor]:
        """Where the outputs of a projection stand in (T, B, outputs): a view of (T B, blocks, width)."""
        if self.g is None:
            blocks, number, width = 1, int(name == 'up_proj'), self.base.weight.shape[0] // 2
        else:
            blocks, width = self.g.kv_padded // tp_group().size(), self.g.head_dim
            number = {'q_proj': 0, 'k_proj': self.g.group, 'v_proj': self.g.group + 1}[name]
        end = number + (self.g.group if self.g is not None and name == 'q_proj' else 1)
        return lambda y: y.view(y.shape[:-1].numel(), blocks, -1)[..., number * width : end * width]

    def _own_rows(self, name: str, group: dist.ProcessGroup) -> Tensor:
        b = self.lora[name].B
        if self.g is None or self.g.copies == 1 or name == 'q_proj':
            return b
        head = group.rank() // self.g.copies
        return b[head * self.g.head_dim : (head + 1) * self.g.head_dim]

    def _laid_out(self, deltas: Mapping[str, Tensor], y: Tensor) -> Tensor:
        shape = y.shape[:-1]
        if self.g is None:
            halves = [deltas.get(name) for name in ('gate_proj', 'up_proj')]
            return torch.cat([y.new_zeros(*shape, y.shape[-1] // 2) if h is None else h for h in halves], -1)
        kv = self.g.kv_padded // tp_group().size()
        sizes = {'q_proj': self.g.group * self.g.head_dim, 'k_proj': self.g.head_dim, 'v_proj': self.g.head_dim}
        blocks = [
            deltas[name].view(*shape, kv, size) if name in deltas else y.new_zeros(*shape, kv, size)
            for name, size in sizes.items()
        ]
        return torch.cat(blocks, -1).view(*shape, -1)


class LoraRow(_Lora):
    """On a row-parallel linear: A is cut by columns, B is whole."""

    def __init__(self, base: nn.Module, name: str, r: int, alpha: float, p: float, sp: bool) -> None:
        super().__init__(base, {name: base.weight.shape[0]}, r, alpha, p, sp)
        self.name = name
        self.lora[name].A.partial_gradient = False
        self.lora[name].B.partial_gradient = sp

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(T, B, inputs of this rank) to (T or T/ranks, B, H)."""
        y, bias = self.base(x)
        if not self.enabled:
            return y, bias
        if self.p and self.training:
            # the ranks hold different columns; see `LoraColumn` for sequence parallelism
            with nullcontext() if self.sequence_parallel else tensor_parallel.get_cuda_rng_tracker().fork():
                x = dropout(x, self.p, True)
        h = linear(x, self.lora[self.name].A.to(x.dtype))
        if self.sequence_parallel:
            h = mappings.reduce_scatter_to_sequence_parallel_region(h, group=tp_group())
        else:
            h = mappings.reduce_from_tensor_model_parallel_region(h, group=tp_group())
        b = self.lora[self.name].B.to(h.dtype)
        if adds_in_place(y, h):
            # not in place: on one rank megatron's reduction returns its input, which may not be overwritten
            return torch.addmm(y.flatten(0, -2), h.flatten(0, -2), b.t(), alpha=self.scale).view(y.shape), bias
        return y + linear(h, b) * self.scale, bias


def adds_in_place(y: Tensor, h: Tensor) -> bool:
    """Whether LoRA is added by products that write into the output of the frozen linear: on GPUs.

    The plain sum passes over that output, half a gigabyte for gate and up of an 8B LLM, to lay the parts out, to scale
    and to add. On CPUs it stays as it was, bit by bit.
    """
    return y.is_cuda and y.dtype == h.dtype and y.is_contiguous()


class _AddInPlace(torch.autograd.Function):
    """y += scale x h B^T at the places of some projections; autograd's own would copy gradients of the size of y."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, scale: float, places: Sequence[Callable[[Tensor], Tensor]], *factors: Tensor
    ) -> Tensor:
        ctx.mark_dirty(y)
        ctx.scale, ctx.places = scale, places
        ctx.save_for_backward(*factors)
        for place, h, b in zip(places, factors[::2], factors[1::2], strict=True):
            block = place(y)  # (n, blocks, width)
            if block.shape[1] == 1:
                block.squeeze(1).addmm_(h, b.t(), alpha=scale)
            else:
                block.add_((h @ b.t()).view(block.shape), alpha=scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        grad, found = grads[0].contiguous(), list[Tensor]()
        factors = ctx.saved_tensors
        for place, h, b in zip(ctx.places, factors[::2], factors[1::2], strict=True):
            part = place(grad).reshape(len(h), -1)  # (n, outputs)
            found += [part @ b * ctx.scale, part.t() @ h * ctx.scale]
        return (grad, None, None, *found)


def add_lora(
    gpt: nn.Module,
    g: Geometry,
    *,
    r: int,
    alpha: float,
    p: float = 0.0,
    targets: str | Sequence[str],
    seed: int = 42,
    dtype: torch.dtype | None = None,
) -> None:
    """Put LoRA on a decoder, freeze everything else; the first A is the same at any number of ranks, B is zero.

    Args:
        gpt: Megatron's `GPTModel` with its weights.
        g: Its sizes.
        r: Rank.
        alpha: Numerator of the scale alpha / r.
        p: Dropout before A.
        targets: Names out of `PROJECTIONS`, or 'all-linear'.
        seed: Of A.
        dtype: Of both factors; None is that of the weights.

    Raises:
        VtbModelError: A target is none of them.
    """
    wanted = list(PROJECTIONS) if targets == 'all-linear' else [targets] if isinstance(targets, str) else list(targets)
    if unknown := [name for name in wanted if name not in PROJECTIONS]:
        raise VtbModelError(
            'LoRA cannot be put on this part of the LLM.',
            field='model.lora.target_modules',
            got=unknown,
            allowed=[*PROJECTIONS, 'all-linear'],
        )
    gpt.requires_grad_(False)
    ranks, sp = tp_group().size(), gpt.config.sequence_parallel
    rows = {
        'q_proj': g.heads_padded * g.head_dim // ranks,
        'k_proj': (g.kv if g.copies > 1 else g.kv_padded // ranks) * g.head_dim,
        'v_proj': (g.kv if g.copies > 1 else g.kv_padded // ranks) * g.head_dim,
        'gate_proj': g.ffn_padded // ranks,
        'up_proj': g.ffn_padded // ranks,
    }
    for layer in gpt.decoder.layers:
        attention, mlp = layer.self_attention, layer.mlp
        if qkv := {n: rows[n] for n in list(rows)[:3] if n in wanted}:
            attention.linear_qkv = LoraColumn(attention.linear_qkv, qkv, r, alpha, p, sp, g)
        if fc1 := {n: rows[n] for n in list(rows)[3:] if n in wanted}:
            mlp.linear_fc1 = LoraColumn(mlp.linear_fc1, fc1, r, alpha, p, sp, None)
        for parent, attribute, name in ((attention, 'linear_proj', 'o_proj'), (mlp, 'linear_fc2', 'down_proj')):
            if name in wanted:
                _wrap_row(parent, attribute, name, r, alpha, p, sp)
    for module in lora_layers(gpt):
        module.lora.to(dtype)
    for key, own in lora_parameters(gpt).items():
        own.tensor_model_parallel = _is_cut(*place_of(key), g)  # megatron's word for it
    load_lora(gpt, g, _first(gpt, g, r, seed))


def _wrap_row(parent: nn.Module, attribute: str, name: str, r: int, alpha: float, p: float, sp: bool) -> None:
    module = getattr(parent, attribute)
    if hasattr(module, 'row'):  # a norm stands behind it
        module.row = LoraRow(module.row, name, r, alpha, p, sp)
    else:
        setattr(parent, attribute, LoraRow(module, name, r, alpha, p, sp))


def lora_layers(gpt: nn.Module) -> Iterator[_Lora]:
    """All linears with LoRA."""
    return (module for module in gpt.modules() if isinstance(module, _Lora))


def _pairs(gpt: nn.Module) -> Iterator[tuple[str, str, Pair]]:
    """PEFT's key, the name of the projection, its factors."""
    for number, layer in enumerate(gpt.decoder.layers):
        for module in lora_layers(layer):
            for name, pair in module.lora.items():
                yield f'base_model.model.model.layers.{number}.{PROJECTIONS[name]}.{name}', name, pair


def lora_parameters(gpt: nn.Module) -> dict[str, nn.Parameter]:
    """This rank's factors under PEFT's names."""
    return {
        f'{key}.lora_{which}.weight': own
        for key, _, pair in _pairs(gpt)
        for which, own in (('A', pair.A), ('B', pair.B))
    }


@torch.no_grad()
def lora_state(gpt: nn.Module, g: Geometry, *, gradients: bool = False) -> dict[str, Tensor]:
    """Whole factors (or their gradients) under PEFT's names, on all ranks; all ranks must take part."""
    state = {}
    for key, own in lora_parameters(gpt).items():
        value = own.grad if gradients else own.detach()
        if value is not None:
            state[key] = whole_of(*place_of(key), value, g)
    return state


def place_of(key: str) -> tuple[str, str]:
    """Projection and factor ('A' or 'B') of one of PEFT's names."""
    *_, name, factor, _ = key.split('.')
    return name, factor[-1]


def whole_of(name: str, which: str, value: Tensor, g: Geometry) -> Tensor:
    """The inverse of `shard_of`: a whole factor, or a moment in its shape, from the parts of all ranks together."""
    cut = _is_cut(name, which, g)
    if which == 'B':
        return (gather(value, 0) if cut else value)[: _outputs(name, g)].clone()
    return (gather(value, 1) if cut else value)[:, : _inputs(name, g)].clone()


def _is_cut(name: str, which: str, g: Geometry) -> bool:
    """Whether the ranks hold parts of a factor, not copies of it."""
    if g.copies > 1 and name in ('k_proj', 'v_proj'):
        return False
    return which == ('B' if name in _COLUMN else 'A')


def shard_of(name: str, which: str, whole: Tensor, g: Geometry, *, rank: int, ranks: int) -> Tensor:
    """This rank's part of a whole factor, or of an optimizer moment in its shape.

    Args:
        name: Key of `PROJECTIONS`.
        which: 'A' or 'B'.
        whole: In PEFT's shape.
        g: Sizes of the LLM.
        rank: In the tensor-parallel group.
        ranks: Size of the group.

    Raises:
        ValueError: It has another shape.
    """
    if not _is_cut(name, which, g):
        return whole
    heads = (g.heads * g.head_dim, g.heads_padded * g.head_dim)
    kv = (g.kv * g.head_dim, g.kv_padded * g.head_dim)
    sizes = {'q_proj': heads, 'o_proj': heads, 'k_proj': kv, 'v_proj': kv}.get(name, (g.ffn, g.ffn_padded))
    if which == 'B':
        return pad_rows(whole, *sizes).chunk(ranks, 0)[rank]
    return pad_rows(whole.t(), *sizes).t().chunk(ranks, 1)[rank]


@torch.no_grad()
def load_lora(gpt: nn.Module, g: Geometry, state: Mapping[str, Tensor]) -> None:
    """Fill this rank's factors from whole ones under PEFT's names.

    Raises:
        VtbCheckpointError: Keys are missing or left over, or a shape differs.
    """
    left, group = dict(state), tp_group()
    wrong: list[str] = []
    for key, name, pair in _pairs(gpt):
        for which, own in (('A', pair.A), ('B', pair.B)):
            whole = left.pop(full := f'{key}.lora_{which}.weight', None)
            try:
                assert whole is not None
                own.copy_(shard_of(name, which, whole, g, rank=group.rank(), ranks=group.size()))
            except (AssertionError, RuntimeError, ValueError):
                wrong.append(full)
    if wrong or left:
        raise lora_misfit(
            f'missing or of another shape {wrong[:3]}, left over {sorted(left)[:3]}',
            'one pair of factors for each target module of each layer',
        )


def _outputs(name: str, g: Geometry) -> int:
    if name in ('k_proj', 'v_proj'):
        return g.kv * g.head_dim
    return {'q_proj': g.heads * g.head_dim, 'gate_proj': g.ffn, 'up_proj': g.ffn}.get(name, g.hidden)


def _inputs(name: str, g: Geometry) -> int:
    return {'o_proj': g.heads * g.head_dim, 'down_proj': g.ffn}.get(name, g.hidden)


def _first(gpt: nn.Module, g: Geometry, r: int, seed: int) -> dict[str, Tensor]:
    """PEFT's first factors: A uniform as by Kaiming, B zero; drawn whole, by name, so that ranks do not matter."""
    state = {}
    for key, name, pair in _pairs(gpt):
        generator = torch.Generator().manual_seed(zlib.crc32(f'{seed}:{key}'.encode()))
        inputs = _inputs(name, g)
        a = (torch.rand(r, inputs, generator=generator) * 2 - 1) / math.sqrt(inputs)
        state[f'{key}.lora_A.weight'] = a.to(pair.A)
        state[f'{key}.lora_B.weight'] = pair.B.new_zeros(_outputs(name, g), r)
    return state
