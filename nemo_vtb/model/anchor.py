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
"""The text anchor: on typed chats, the LLM with LoRA is held to what the LLM without LoRA would say.

The loss of typed chats is then KL(base || model) over the whole vocabulary, instead of, or beside, the negative
log-likelihood of the one answer that a chat happens to have. The teacher costs no memory: it is the same LLM with LoRA
switched off.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax
from torch.utils.checkpoint import checkpoint

from nemo_vtb.backbone.base import Backbone
from nemo_vtb.data.conversation import KINDS

__all__ = ['TEXT', 'anchored_loss', 'base_hidden', 'text_divergence']

TEXT = KINDS.index('text')


@torch.no_grad()
def base_hidden(backbone: Backbone, batch: dict[str, Any]) -> Tensor:
    """What the untouched LLM makes of the typed chats of a packed row.

    Args:
        backbone: The LLM.
        batch: A packed row, see `nemo_vtb.data.collate.pack_row`.

    Returns:
        (M, H) hidden states of all positions of the typed chats in the order of the row; (0, H) where there is none.
    """
    borders = batch['cu_seqlens'].tolist()
    spans = [(b, e) for b, e, kind in zip(borders, borders[1:], batch['kinds'], strict=False) if kind == 'text']
    ids = batch['input_ids']
    if not spans:
        return torch.zeros(0, backbone.hidden_size, device=ids.device)
    index = torch.cat([torch.arange(b, e, device=ids.device) for b, e in spans])  # (M,)
    lengths = torch.tensor([0, *(e - b for b, e in spans)], device=ids.device)
    cu_seqlens = lengths.cumsum(0).to(batch['cu_seqlens'].dtype)
    with backbone.without_lora():
        return backbone.forward(
            backbone.embed(ids[index]), batch['position_ids'][index], cu_seqlens, int(lengths.max())
        )  # (M, H)


def text_divergence(
    base: Tensor, hidden: Tensor, batch: dict[str, Any], backbone: Backbone, *, chunk: int = 1024
) -> Tensor:
    """KL(base || model) over the vocabulary at each position of the typed chats, what the user typed included.

    Args:
        base: (M, H) of `base_hidden`.
        hidden: (T, H) of the model, for the whole row.
        batch: The packed row.
        backbone: The LLM, for its head.
        chunk: Positions that reach the vocabulary at once; their logits are made again in the backward pass.

    Returns:
        (M,) float32 in nats, in the order of the row; (0,) where there is no typed chat.
    """
    is_text = torch.tensor([kind == 'text' for kind in batch['kinds']], device=hidden.device, dtype=torch.bool)
    student = hidden[is_text.repeat_interleave(batch['cu_seqlens'].diff().long())]  # (M, H)

    def divergence(h: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            target = log_softmax(backbone.head(t).float(), -1)  # (m, V)
        return kl_div(log_softmax(backbone.head(h).float(), -1), target, reduction='none', log_target=True).sum(-1)

    if student.shape[0] == 0:
        return student.sum(-1).float()
    keep = hidden.requires_grad and torch.is_grad_enabled()
    parts = zip(student.split(chunk), base.split(chunk), strict=True)
    return torch.cat(
        [checkpoint(divergence, h, t, use_reentrant=False) if keep else divergence(h, t) for h, t in parts]
    )


def anchored_loss(nll: Tensor, divergence: Tensor, target_kinds: Tensor, weight: float) -> Tensor:
    """Sum over the targets of a row; each target of a typed chat counts max(0, 1 - weight) nll + weight KL.

    KL is the mean over all positions of the typed chats, so that the weight means the same whatever the share of them
    that is supervised.

    Args:
        nll: (N,) of all targets of the row.
        divergence: (M,) of `text_divergence`.
        target_kinds: (N,) number of the kind of each target.
        weight: 0 is the likelihood alone, 1 the divergence alone, more is the divergence alone, as many times.
    """
    is_text = target_kinds == TEXT
    loss = nll[~is_text].sum() + max(0.0, 1 - weight) * nll[is_text].sum()
    if divergence.numel():
        loss = loss + weight * is_text.sum() * divergence.mean()
    return loss
