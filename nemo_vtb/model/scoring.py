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
"""Losses of packed rows without gradients: per kind, per conversation, per validation set.

Letters: T row length, H width, N targets of a row, C conversations of a row.
"""

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nemo_vtb.backbone.base import Backbone
from nemo_vtb.config.schema import ModelConfig
from nemo_vtb.constants import IGNORE_INDEX, KINDS
from nemo_vtb.data.collate import PackedRow
from nemo_vtb.model.loss import kind_sums, row_nll
from nemo_vtb.parallel.dims import ParallelDims

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender


@torch.no_grad()
def kind_nll(model: 'VoiceTextBlender', row: PackedRow, *, use_lora: bool = True) -> tuple[Tensor, Tensor]:
    """Sum of the losses and number of targets of one packed row, per kind: two float32 tensors of (4,)."""
    return kind_sums(_target_nll(model, row, use_lora), row.labels, row.label_kinds, len(KINDS))


@torch.no_grad()
def conversation_nll(model: 'VoiceTextBlender', row: PackedRow, *, use_lora: bool = True) -> tuple[Tensor, Tensor]:
    """Sum of the losses and number of targets of each conversation of a packed row: two float32 tensors of (C,)."""
    nll = _target_nll(model, row, use_lora)  # (N,)
    places = (row.labels != IGNORE_INDEX).nonzero().flatten()
    ends = row.cu_seqlens[1:].to(places)
    owners = torch.bucketize(places, ends, right=True)
    zeros = torch.zeros(len(ends), dtype=torch.float32, device=nll.device)
    return zeros.index_add(0, owners, nll.float()), zeros.index_add(0, owners, torch.ones_like(nll.float()))


def _target_nll(model: 'VoiceTextBlender', row: PackedRow, use_lora: bool) -> Tensor:
    if use_lora:
        hidden = model.hidden_states(row)
    else:
        with model.backbone.without_lora():
            hidden = model.hidden_states(row)
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
