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
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

__all__ = ['IGNORE', 'kind_sums', 'row_nll', 'target_nll']

IGNORE = -100


def target_nll(hidden: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], *, chunk: int = 1024) -> Tensor:
    """`row_nll` by a head that gives whole logits.

    Args:
        hidden: (T, H) output of the LLM.
        labels: (T,) int64, the token that each position must predict, `IGNORE` elsewhere.
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
        labels: (T,) int64, the token that each position must predict, `IGNORE` elsewhere.
        nll: Maps (n, H) and targets (n,) to (n,), as `Backbone.nll` does wherever the vocabulary is.
        chunk: How many positions reach the vocabulary at once.

    Returns:
        (N,) float32 in the order of the row; (0,) and differentiable when nothing is supervised.
    """
    index = (labels != IGNORE).nonzero().squeeze(-1)  # (N,)
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
    kinds = label_kinds[labels != IGNORE]  # (N,)
    # named, since Lightning makes bfloat16 the default while it runs a step in bf16-true
    sums = torch.zeros(num_kinds, dtype=torch.float32, device=nll.device).index_add(0, kinds, nll.detach().float())
    return sums, torch.bincount(kinds, minlength=num_kinds).to(sums)
