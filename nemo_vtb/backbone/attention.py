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

Causal attention on a packed row is one call a conversation, so that no work is spent on padding or across borders.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from nemo_vtb.backbone.kv_cache import KVCache

IMPLEMENTATION = 'nemo_vtb_packed'


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
    cu_seqlens: list[int] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    caches: Sequence[KVCache] | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention function for transformers' `AttentionInterface`.

    Args:
        module: The attention layer; its number says where `caches` keep its keys and values.
        query: (B, heads, T, D); key and value: (B, KV heads, S, D).
        attention_mask: Boolean (B, 1, T, S) for unpacked calls; ignored when `cu_seqlens` is given.
        scaling: Factor on the scores; None is 1/sqrt(D).
        dropout: Probability of dropping an attention weight.
        cu_seqlens: Borders of the conversations in a packed row (B = 1), first 0, last T; None for unpacked calls.
        sliding_window: How far back a token sees; None is to the beginning of its conversation.
        softcap: Gemma 2's bound on the scores.
        caches: For each conversation of the row what came before it, to which its keys and values are added.

    Returns:
        (B, T, heads, D) and None, as transformers wants it.
    """
    if cu_seqlens is None:
        causal = attention_mask is None and query.shape[2] > 1
        out = attend(query, key, value, attention_mask, causal, scaling, dropout, softcap)
        return out.transpose(1, 2).contiguous(), None
    parts = []
    for number, (begin, end) in enumerate(zip(cu_seqlens[:-1], cu_seqlens[1:], strict=True)):
        mask = None
        q, k, v = (x[:, :, begin:end] for x in (query, key, value))
        if caches is not None:
            k, v = caches[number].append(int(module.layer_idx), k, v)
        length, total = end - begin, k.shape[2]
        is_windowed = sliding_window is not None and total > sliding_window
        if is_windowed or total > length > 1:
            window = sliding_window if is_windowed and sliding_window is not None else total
            mask = window_mask(length, window, query.device, past=total - length)
        parts.append(attend(q, k, v, mask, mask is None and total == length, scaling, dropout, softcap))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None  # (1, T, heads, D)


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
