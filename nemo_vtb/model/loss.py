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
"""Next-token cross-entropy on supervised positions only (letters: T row length, N targets, H width, V vocabulary)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from torch.utils.checkpoint import checkpoint

from nemo_vtb.backbone.base import Backbone
from nemo_vtb.constants import IGNORE_INDEX, KINDS
from nemo_vtb.data.collate import PackedRow

TEXT = KINDS.index('text')


def target_nll(hidden: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], *, chunk: int = 1024) -> Tensor:
    """`row_nll` by a head that gives whole logits.

    Args:
        hidden: (T, H) output of the LLM.
        labels: (T,) int64, the token that each position must predict, `IGNORE_INDEX` elsewhere.
        head: Maps (n, H) to logits (n, V).
        chunk: How many positions reach the vocabulary at once.
    """

    def nll(h: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(head(h).float(), y, reduction='none')  # (n,)

    return row_nll(hidden, labels, nll, chunk=chunk)


def row_nll(hidden: Tensor, labels: Tensor, nll: Callable[[Tensor, Tensor], Tensor], *, chunk: int = 1024) -> Tensor:
    """Negative log-likelihood of each target token.

    Only supervised positions reach the vocabulary, `chunk` at a time; while training, the logits of a chunk are made
    again in the backward pass, so that at most chunk x V of them exist at once.

    Args:
        hidden: (T, H) output of the LLM.
        labels: (T,) int64, the token that each position must predict, `IGNORE_INDEX` elsewhere.
        nll: Maps (n, H) and targets (n,) to (n,), as `Backbone.nll` does wherever the vocabulary is.
        chunk: How many positions reach the vocabulary at once.

    Returns:
        (N,) float32 in the order of the row; (0,) and differentiable when nothing is supervised.
    """
    index = (labels != IGNORE_INDEX).nonzero().squeeze(-1)  # (N,)
    if index.numel() == 0:
        return hidden.sum(-1)[:0].float()  # keeps the graph: a row without targets has zero, not undefined, gradients
    picked, targets = hidden.index_select(0, index), labels.index_select(0, index)  # (N, H), (N,)
    if index.numel() <= chunk:
        return nll(picked, targets)
    keep = hidden.requires_grad and torch.is_grad_enabled()
    parts = zip(picked.split(chunk), targets.split(chunk), strict=True)
    return torch.cat([checkpoint(nll, h, y, use_reentrant=False) if keep else nll(h, y) for h, y in parts])


def kind_sums(nll: Tensor, labels: Tensor, label_kinds: Tensor, num_kinds: int) -> tuple[Tensor, Tensor]:
    """Sum the loss per kind of data.

    Args:
        nll: (N,) from `row_nll`.
        labels: (T,) as given to it.
        label_kinds: (T,) int64, number of the kind where `labels` is a target.
        num_kinds: How many kinds there are.

    Returns:
        (num_kinds,) float32 sums of `nll` and (num_kinds,) float32 counts of targets, both without gradients.
    """
    kinds = label_kinds[labels != IGNORE_INDEX]  # (N,)
    # named, since Lightning makes bfloat16 the default while it runs a step in bf16-true
    sums = torch.zeros(num_kinds, dtype=torch.float32, device=nll.device).index_add(0, kinds, nll.detach().float())
    return sums, torch.bincount(kinds, minlength=num_kinds).to(sums)


# ---- the text anchor


@torch.no_grad()
def base_hidden(backbone: Backbone, batch: PackedRow) -> Tensor:
    """What the untouched LLM makes of the typed chats of a packed row.

    Args:
        backbone: The LLM.
        batch: A packed row, see `PackedRow`.

    Returns:
        (M, H) hidden states of all positions of the typed chats in the order of the row; (0, H) where there is none.
    """
    borders = batch.cu_seqlens.tolist()
    spans = [(b, e) for b, e, kind in zip(borders, borders[1:], batch.kinds, strict=False) if kind == 'text']
    ids = batch.input_ids
    if not spans:
        return torch.zeros(0, backbone.hidden_size, device=ids.device)
    index = torch.cat([torch.arange(b, e, device=ids.device) for b, e in spans])  # (M,)
    lengths = torch.tensor([0, *(e - b for b, e in spans)], device=ids.device)
    cu_seqlens = lengths.cumsum(0).to(batch.cu_seqlens.dtype)
    with backbone.without_lora():
        return backbone.forward(
            backbone.embed(ids[index]), batch.position_ids[index], cu_seqlens, int(lengths.max())
        )  # (M, H)


def text_divergence(
    base: Tensor, hidden: Tensor, batch: PackedRow, backbone: Backbone, *, chunk: int = 1024
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
    is_text = torch.tensor([kind == 'text' for kind in batch.kinds], device=hidden.device, dtype=torch.bool)
    student = hidden[is_text.repeat_interleave(batch.cu_seqlens.diff().long())]  # (M, H)

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
