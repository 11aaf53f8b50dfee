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
"""Next-token cross-entropy on supervised positions only: of training, of the text anchor, of validation.

Letters: T row length, N targets of a row, C conversations of a row, H width, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax
from torch.utils.checkpoint import checkpoint

from nemo_vtb.backbone.base import Backbone
from nemo_vtb.config.schema import ModelConfig
from nemo_vtb.constants import IGNORE_INDEX, KINDS
from nemo_vtb.data.collate import PackedRow
from nemo_vtb.parallel.dims import ParallelDims

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender

TEXT = KINDS.index('text')


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
    """What the untouched LLM makes of the text-only conversations of a packed row.

    Args:
        backbone: The LLM.
        batch: A packed row, see `PackedRow`.

    Returns:
        (M, H) hidden states of all positions of these conversations in the order of the row; (0, H) without any.
    """
    borders = batch.cu_seqlens.tolist()
    spans = [(b, e) for b, e, kind in zip(borders, borders[1:], batch.kinds, strict=False) if kind == 'text']
    ids = batch.input_ids
    if not spans:
        return torch.zeros(0, backbone.hidden_size, device=ids.device)
    index = torch.cat([torch.arange(b, e, device=ids.device) for b, e in spans])  # (M,)
    lengths = torch.tensor([0, *(e - b for b, e in spans)])
    cu_seqlens = lengths.cumsum(0).to(batch.cu_seqlens.dtype)
    with backbone.without_lora():
        return backbone.forward(
            backbone.embed(ids[index]), batch.position_ids[index], cu_seqlens, int(lengths.max())
        )  # (M, H)


def text_divergence(
    base: Tensor, hidden: Tensor, batch: PackedRow, backbone: Backbone, *, chunk: int = 1024
) -> Tensor:
    """KL(base || model) over the vocabulary at each position of text-only conversations, the user's turns included.

    Args:
        base: (M, H) of `base_hidden`.
        hidden: (T, H) of the model, for the whole row.
        batch: The packed row.
        backbone: The LLM, for its head.
        chunk: Positions that reach the vocabulary at once; their logits are made again in the backward pass.

    Returns:
        (M,) float32 in nats, in the order of the row; (0,) where there is none.
    """
    is_text = torch.tensor([kind == 'text' for kind in batch.kinds], dtype=torch.bool)
    places = is_text.repeat_interleave(batch.cu_seqlens.diff().long()).nonzero().squeeze(-1)  # (M,)
    student = hidden[places.to(hidden.device)]  # (M, H)

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
    """Sum over the targets of a row; those of text-only conversations count max(0, 1 - weight) nll + weight KL.

    KL is the mean over all positions of these conversations, so that the weight means the same whatever the share
    of them that is supervised.

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


# ---- without gradients


@torch.no_grad()
def kind_nll(model: 'VoiceTextBlender', row: PackedRow, *, use_lora: bool = True) -> tuple[Tensor, Tensor]:
    """Sum of the losses and number of targets of one packed row, per kind: two float32 tensors of (4,)."""
    return kind_sums(_nll_of(model, row, use_lora), row.labels, row.label_kinds, len(KINDS))


@torch.no_grad()
def conversation_nll(model: 'VoiceTextBlender', row: PackedRow, *, use_lora: bool = True) -> tuple[Tensor, Tensor]:
    """Sum of the losses and number of targets of each conversation of a packed row: two float32 tensors of (C,)."""
    nll = _nll_of(model, row, use_lora)  # (N,)
    places = (row.labels != IGNORE_INDEX).nonzero().flatten()
    ends = row.cu_seqlens[1:].to(places)
    owners = torch.bucketize(places, ends, right=True)
    zeros = torch.zeros(len(ends), dtype=torch.float32, device=nll.device)
    return zeros.index_add(0, owners, nll.float()), zeros.index_add(0, owners, torch.ones_like(nll.float()))


def _nll_of(model: 'VoiceTextBlender', row: PackedRow, use_lora: bool) -> Tensor:
    with nullcontext() if use_lora else model.backbone.without_lora():
        row, hidden = model.hidden_states(row)
    return row_nll(hidden, row.labels, model.backbone.nll, chunk=model.cfg.get('loss_chunk', ModelConfig.loss_chunk))


class ValidationSums:
    """Adds up losses and hits of each validation set.

    Args:
        device: Where the sums are kept, so that no row waits for the last one.
    """

    def __init__(self, device: torch.device) -> None:
        # float64: a set may have more tokens than a smaller type can count
        self._sums: dict[str, Tensor] = defaultdict(partial(torch.zeros, 3, dtype=torch.float64, device=device))

    def add(self, backbone: Backbone, hidden: Tensor, row: PackedRow) -> Tensor:
        """Count a row.

        Args:
            backbone: Scores.
            hidden: (T, H) of the row.
            row: With the name of its set.

        Returns:
            (N,) losses of its targets.
        """
        hits: list[Tensor] = []

        def score(states: Tensor, targets: Tensor) -> Tensor:
            nll, right = backbone.score(states, targets)
            hits.append(right)
            return nll

        targets = row.labels[row.labels != IGNORE_INDEX]  # (N,)
        nll = row_nll(hidden, row.labels, score)
        right = torch.cat(hits).sum() if hits else targets.sum() * 0
        counts = torch.full_like(right, targets.numel())
        self._sums[row.dataset or 'validation'] += torch.stack([nll.double().sum(), right.double(), counts.double()])
        return nll

    def means(self, dims: ParallelDims) -> dict[str, Tensor]:
        """`val_loss_<set>` and `val_acc_<set>` over all ranks, and the means over the sets; all ranks call it."""
        # a rank may have had no row of a set, but must take part in its reduction
        names = sorted({name for some in dims.gather_objects(list(self._sums)) for name in some})
        found: dict[str, list[Tensor]] = {'val_loss': [], 'val_acc': []}
        metrics: dict[str, Tensor] = {}
        for name in names:
            loss, right, count = dims.sum(self._sums[name])
            for key, total in (('val_loss', loss), ('val_acc', right)):
                found[key].append(total / count.clamp(min=1))
                metrics[f'{key}_{name}'] = found[key][-1].float()
        return metrics | {key: torch.stack(values).mean().float() for key, values in found.items() if values}
