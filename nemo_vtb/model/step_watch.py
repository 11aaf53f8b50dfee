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
"""Whether the gradient of a global batch is finite, and which rows made it so: one answer per step for all ranks.

What the rows leave behind stays on the device and reaches the host together with the number of targets, so that no row
waits for the device.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nemo_vtb.constants import IGNORE_INDEX
from nemo_vtb.data.collate import PackedRow
from nemo_vtb.parallel.dims import ParallelDims
from nemo_vtb.parallel.strategies import running_statistics


@dataclass(frozen=True, slots=True)
class RowEvidence:
    """What one row of this rank contributed.

    Args:
        bad_losses: Numbers of its conversations whose loss is not finite.
        bad_gradient: Whether the gradient of this rank, finite before the row, was not finite behind it. Under DDP the
            last row of a step is reduced by then, so that it may have been another rank's.
    """

    bad_losses: tuple[int, ...]
    bad_gradient: bool


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What one optimizer step came to; all but `rows` is the same on all ranks.

    Args:
        targets: Target tokens of the global batch.
        norm: Norm of its gradient, after the division by `targets` and before clipping.
        is_finite: Whether gradient, losses and running statistics are finite on all ranks.
        bad_losses: Rows of all ranks with a loss that is not finite.
        stop: Whether a rank wants the run to end behind this step.
        rows: The rows of this rank.
    """

    targets: float
    norm: float
    is_finite: bool
    bad_losses: int
    stop: bool
    rows: tuple[RowEvidence, ...]


class StepWatch:
    """Collects what the rows of a global batch leave behind, until `close`."""

    def __init__(self) -> None:
        self.stop = False
        "Set by whoever wants the run to end: told to all ranks with the next step."
        self._reset()

    def _reset(self) -> None:
        self._targets = 0.0
        self._bad: list[tuple[int, ...]] = []
        self._norms: list[Tensor] = []

    def add_row(self, row: PackedRow, nll: Tensor, targets: float, mean: float) -> None:
        """Count a row.

        Args:
            row: The row.
            nll: (N,) losses of its targets.
            targets: Their number.
            mean: Mean loss, already on the host: only where it is not finite are the losses themselves looked at.
        """
        self._targets += targets
        self._bad.append(() if math.isfinite(mean) else _bad_conversations(row, nll.detach()))

    def add_gradient(self, parameters: Iterable[nn.Parameter]) -> None:
        """Note the gradient that this rank has behind a row; nothing is fetched from the device."""
        self._norms.append(_square(parameters))

    def close(
        self,
        dims: ParallelDims,
        parameters: Sequence[nn.Parameter],
        statistics: Sequence[Tensor],
        device: torch.device,
        factor: float,
    ) -> StepOutcome:
        """Put together what all ranks have; one reduction, one transfer. All ranks call it, then begin anew.

        Args:
            dims: Who is who among the ranks.
            parameters: What is about to be updated, its gradients reduced.
            statistics: Running statistics of batch norms that are being trained.
            device: Where they are.
            factor: By what gradients are multiplied before they are divided by the number of targets.
        """
        bad = sum(map(bool, self._bad))
        own = torch.tensor([self._targets, bad, self.stop], device=device, dtype=torch.float64)
        squares = torch.stack([_square(parameters, dims.tensor_size).to(device), _square_of(statistics).to(device)])
        sums = dims.sum(torch.cat([own, squares]))  # (5,)
        behind_rows = [norm.to(device)[None] for norm in self._norms]
        targets, bad_losses, stop, total, moved, *norms = torch.cat([sums, *behind_rows]).tolist()
        scale = factor / max(targets, 1.0)
        norm = math.sqrt(total / dims.data_size) * scale if total >= 0 else math.nan
        behind = [not math.isfinite(n) for n in norms]
        rows = [
            RowEvidence(lost, gradient and not any(behind[:number]))
            for number, (lost, gradient) in enumerate(zip(self._bad, behind, strict=False))
        ]
        finite = math.isfinite(total) and math.isfinite(moved) and not bad_losses
        self._reset()
        return StepOutcome(targets, norm, finite, math.ceil(bad_losses), stop > 0, tuple(rows))


def settle_step(model: Any, optimizer: Optimizer, unit: float, buffers: Mapping[str, Tensor]) -> StepOutcome:
    """Make the summed gradients those of the mean over all target tokens of the global batch, or drop them.

    Where they are not finite, on any rank, they are dropped on all of them: the step counts, but weights, moments and
    running statistics stay as they are (docs/adr/0050-no-step-that-is-not-finite.md). All ranks call it together.

    Args:
        model: The Lightning module, with `perception` and `step_watch`.
        optimizer: Whose parameters they belong to.
        unit: What the losses were divided by.
        buffers: Those of the perception at the beginning of the global batch.
    """
    trainer, dims = model.trainer, ParallelDims.of(model.trainer)
    parameters = [p for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
    # DDP has averaged over ranks and Lightning over accumulated rows; both factors are taken back here
    factor = unit * dims.data_size * trainer.accumulate_grad_batches
    statistics = [b for b in running_statistics(model.perception) if b.is_floating_point()]
    outcome = model.step_watch.close(dims, parameters, statistics, model.device, factor)
    if getattr(trainer.precision_plugin, 'scaler', None) is not None and not outcome.bad_losses:
        outcome = replace(outcome, is_finite=True)  # fp16 overflows by design: its scaler leaves the step out
    if outcome.is_finite:
        for parameter in parameters:
            parameter.grad.mul_(factor / max(outcome.targets, 1.0))
        return outcome
    for parameter in parameters:
        parameter.grad = None  # an optimizer passes over what has no gradient, its decay and its moments, too
    for name, buffer in model.perception.named_buffers(prefix='perception'):
        buffer.copy_(buffers[name])
    return outcome


def _square(parameters: Iterable[nn.Parameter], shards: int = 1) -> Tensor:
    """Squared norm of gradients: () float64; what is one of `shards` parts of a parameter counts as often."""
    whole: list[Tensor] = []
    parts: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is not None:
            (parts if getattr(parameter, 'tensor_model_parallel', False) else whole).append(parameter.grad)
    return _square_of(whole) + shards * _square_of(parts)


def _square_of(tensors: Sequence[Tensor]) -> Tensor:
    """Squared norm of tensors together: () float64, inf where a single one overflows float32 (or its own float64)."""
    if not tensors:
        return torch.zeros((), dtype=torch.float64)
    widest = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    norms = torch._foreach_norm(list(tensors), 2, dtype=widest)
    return torch.stack([norm.double() for norm in norms]).square().sum()


def _bad_conversations(row: PackedRow, nll: Tensor) -> tuple[int, ...]:
    """Numbers of the conversations of a row with a loss that is not finite; all where no single target is to blame."""
    places = (row.labels != IGNORE_INDEX).nonzero().squeeze(-1)[~torch.isfinite(nll)]  # (M,)
    found = torch.bucketize(places.cpu(), row.cu_seqlens[1:].cpu().long(), right=True).unique().tolist()
    return tuple(found) or tuple(range(len(row.ids)))
