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
"""Adds up the rows of one optimizer step: losses per kind, tokens, seconds of audio."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from nemo_vtb.constants import KINDS, SAMPLE_RATE
from nemo_vtb.data.collate import PackedRow
from nemo_vtb.parallel.dims import ParallelDims

_NUM_KINDS = len(KINDS)


@dataclass(frozen=True, slots=True)
class StepTotals:
    """What one optimizer step was made of.

    Args:
        sums: Sum of the losses of each kind, in the order of `KINDS`.
        counts: Number of targets of each kind.
        tokens: Positions of all rows.
        audio_s: Seconds of speech heard.
    """

    sums: tuple[float, ...]
    counts: tuple[float, ...]
    tokens: float
    audio_s: float

    @property
    def losses(self) -> dict[str, float]:
        """Mean loss of each kind that occurred."""
        triples = zip(KINDS, self.sums, self.counts, strict=True)
        return {kind: total / count for kind, total, count in triples if count}

    @property
    def targets(self) -> dict[str, int]:
        """Number of targets of each kind that occurred."""
        return {kind: int(count) for kind, count in zip(KINDS, self.counts, strict=True) if count}


class StepMeter:
    """Adds up rows until the step is closed. Sums stay on the device, so that no row waits for the last one."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._parts: list[torch.Tensor] = []
        self._tokens = self._samples = 0.0

    def add(self, outputs: Mapping[str, Any] | None, row: PackedRow) -> None:
        """Count one packed row and what `training_step` returned for it (None where Lightning skipped it)."""
        if outputs is not None and 'kind_sums' in outputs:
            self._parts.append(torch.cat([outputs['kind_sums'].detach().float(), outputs['kind_counts'].float()]))
        self._tokens += float(row.num_tokens)
        self._samples += float(row.audio_lens.sum())

    def close(self, dims: ParallelDims | None = None) -> StepTotals:
        """Return the totals and begin anew.

        Args:
            dims: Add up over all ranks, each of which must then close at the same step; None is this rank alone.
        """
        zero = torch.zeros(2 * _NUM_KINDS)
        losses = torch.stack(self._parts).sum(0) if self._parts else zero  # (8,)
        extra = torch.tensor([self._tokens, self._samples / SAMPLE_RATE], device=losses.device)
        totals = torch.cat([losses, extra]).double()  # (10,)
        values = (totals if dims is None else dims.sum(totals)).tolist()
        self._reset()
        return StepTotals(tuple(values[:_NUM_KINDS]), tuple(values[_NUM_KINDS : 2 * _NUM_KINDS]), *values[-2:])
