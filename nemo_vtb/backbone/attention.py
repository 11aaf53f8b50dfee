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
"""What our attention changes in transformers: packed rows, and rotary frequencies that stay float32.

Causal attention on a packed row is one kernel on CUDA in half precision (torch's `varlen_attn`), elsewhere one call a
conversation; either way no work is spent on padding or across borders.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from nemo_vtb.backbone.kv_cache import KVCache
from nemo_vtb.backbone.precision import computes_in_half, product_dtype

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch 2.9
    varlen_attn = None

IMPLEMENTATION = 'nemo_vtb_packed'
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True, slots=True)
class Borders:
    """Where the conversations of a packed row begin and end.

    Args:
        edges: First 0, last T, on the host, where loops read them.
        longest: Length of the longest conversation.
        on_device: `edges` as (N+1,) int32 beside the row, for kernels that take it whole; None: the loop runs.
    """

    edges: list[int]
    longest: int
    on_device: Tensor | None = None

    @classmethod
    def of(cls, cu_seqlens: Tensor, longest: int, device: torch.device) -> 'Borders':
        """The borders of a row.

        Args:
            cu_seqlens: (N+1,) int32, best on the host: a tensor on a device must be waited for.
            longest: Length of the longest conversation.
            device: Of the row.
        """
        on_device = cu_seqlens.to(device, non_blocking=True) if has_row_kernel(device) else None
        return cls(cu_seqlens.tolist(), longest, on_device)


def register() -> None:
    """Make `IMPLEMENTATION` known to transformers, with SDPA's masks for the unpacked calls of `generate`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(IMPLEMENTATION, attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    borders: Borders | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    caches: Sequence[KVCache] | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention function for transformers' `AttentionInterface`.

    Args:
        module: The attention layer; its number says where `caches` keep its keys and values.
        query: (B, heads, T, D); key and value: (B, KV heads, S, D).
        attention_mask: Boolean (B, 1, T, S) for unpacked calls; ignored when `borders` is given.
        scaling: Factor on the scores; None is 1/sqrt(D).
        dropout: Probability of dropping an attention weight.
        borders: Of the conversations in a packed row (B = 1); None for unpacked calls.
        sliding_window: How far back a token sees; None is to the beginning of its conversation.
        softcap: Gemma 2's bound on the scores.
        caches: For each conversation of the row what came before it, to which its keys and values are added.

    Returns:
        (B, T, heads, D) and None, as transformers wants it.
    """
    if borders is None:
        causal = attention_mask is None and query.shape[2] > 1
        out = attend(query, key, value, attention_mask, causal, scaling, dropout, softcap)
        return out.transpose(1, 2).contiguous(), None
    if caches is None and borders.on_device is not None and takes_whole_rows(query, dropout, softcap):
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, heads, D)
        out = attend_row(q, k, v, borders.on_device, borders.longest, scale=scaling, window=sliding_window)
        return out.unsqueeze(0), None
    dtype, slow = product_dtype(query), softcap is None and is_slow_in_half(query)
    if slow:
        query, key, value = (x.float() for x in (query, key, value))
    parts = []
    for number, (begin, end) in enumerate(zip(borders.edges[:-1], borders.edges[1:], strict=True)):
        mask = None
        q, k, v = (x[:, :, begin:end] for x in (query, key, value))
        if caches is not None:
            k, v = caches[number].append(int(module.layer_idx), k, v)
        length, total = end - begin, k.shape[2]
        is_windowed = sliding_window is not None and total > sliding_window
        if is_windowed or total > length > 1:
            window = sliding_window if is_windowed and sliding_window is not None else total
            mask = window_mask(length, window, query.device, past=total - length)
        with torch.autocast('cpu', enabled=False) if slow else nullcontext():
            parts.append(attend(q, k, v, mask, mask is None and total == length, scaling, dropout, softcap))
    out = torch.cat(parts, dim=2).transpose(1, 2)  # (1, T, heads, D)
    return (out.to(dtype) if slow else out).contiguous(), None


def is_slow_in_half(query: Tensor) -> bool:
    """Whether attention is trained faster in float32 than in half precision: on CPUs.

    The backward pass of torch's kernel takes three times as long in bfloat16 for conversations of a hundred tokens.

    Args:
        query: With a gradient, or this is no training.
    """
    return query.device.type == 'cpu' and query.requires_grad and computes_in_half(query)


def has_row_kernel(device: torch.device) -> bool:
    """Whether torch's variable-length kernel runs on a device: CUDA, of Ampere's generation or newer."""
    if device.type != 'cuda' or varlen_attn is None or 'window_size' not in _varlen_options():
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def takes_whole_rows(query: Tensor, dropout: float = 0.0, softcap: float | None = None) -> bool:
    """Whether that kernel can attend here: in half precision, to plain scores.

    Args:
        query: (..., D).
        dropout: Of attention weights.
        softcap: Bound on the scores.
    """
    plain = not dropout and softcap is None and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256
    return plain and has_row_kernel(query.device) and computes_in_half(query)


def attend_row(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    borders: Tensor,
    longest: int,
    *,
    scale: float | None = None,
    window: int | None = None,
    causal: bool = True,
) -> Tensor:
    """Attention within the parts of a row, all in one kernel: (T, heads, D) on (T, KV heads, D) to (T, heads, D).

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        borders: (N+1,) int32 on the device, first 0, last T.
        longest: Length of the longest part, or more.
        scale: Factor on the scores; None is 1/sqrt(D).
        window: How many positions a token sees, itself included; None: all.
        causal: Whether position t sees positions up to t alone.
    """
    q, k, v = (x.to(product_dtype(x)) for x in (q, k, v))  # the kernel is none of those that autocast knows
    # torch 2.11 has no word for shared heads: its kernel takes them
    options = {'enable_gqa': True} if q.shape[1] != k.shape[1] and 'enable_gqa' in _varlen_options() else {}
    span = (-1 if window is None else window - 1, 0 if causal else -1)
    return varlen_attn(q, k, v, borders, borders, longest, longest, scale=scale, window_size=span, **options)


@cache
def _varlen_options() -> frozenset[str]:
    return frozenset(inspect.signature(varlen_attn).parameters)


def kernels_for_any_length(query: Tensor) -> AbstractContextManager[None]:
    """Leave out cuDNN, which torch prefers on Hopper: it builds a plan for each length that it has not seen.

    Args:
        query: Says where attention runs.
    """
    return sdpa_kernel(_KERNELS) if query.is_cuda else nullcontext()


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
) -> Tensor:
    """Attention of one block: (B, heads, T, D) on (B, KV heads, S, D) to (B, heads, T, D).

    Args:
        q: Queries.
        k: Keys.
        v: Values; like the keys, repeated where several heads share them.
        mask: Boolean, true where attended, broadcast to (B, heads, T, S); None for none.
        causal: Whether position t sees positions up to t alone; T = S then.
        scaling: Factor on the scores; None is 1/sqrt(D).
        dropout: Probability of dropping an attention weight.
        softcap: Gemma 2's bound on the scores.
    """
    if (groups := q.shape[1] // k.shape[1]) > 1:
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    if softcap is None:
        with kernels_for_any_length(q):
            return scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=scaling)
    if causal:
        mask = window_mask(q.shape[2], q.shape[2], q.device)
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask[..., : k.shape[2]], torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype)
    return torch.nn.functional.dropout(weights, dropout) @ v


def window_mask(length: int, window: int, device: torch.device, past: int = 0) -> Tensor:
    """(length, past + length) boolean: causal behind `past` positions, no further back than `window` positions."""
    position = torch.arange(past + length, device=device)
    distance = position[past:, None] - position[None, :]
    return (distance >= 0) & (distance < window)  # (L, past + L)


def keep_float32(module: nn.Module) -> nn.Module:
    """Keep the buffers of a module as they are when it is cast with the rest of a model.

    In bfloat16 a frequency is off by up to 0.4 %, which turns the queries and keys of a long row by whole radians.

    Args:
        module: Rotary embedding of transformers.

    Returns:
        The same module.
    """
    module.__class__ = _exact(type(module))  # type: ignore[arg-type]
    return module


@cache
def _exact(cls: type[nn.Module]) -> type[nn.Module]:
    class Exact(cls):
        def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
            kept = dict(self._buffers)
            super()._apply(fn, recurse)
            for name, value in kept.items():
                if value is not None and not value.is_meta:
                    self._buffers[name] = value.to(self._buffers[name].device)
            return self

    Exact.__name__ = Exact.__qualname__ = cls.__name__
    return Exact
