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
"""Adding up the rows of a step."""

from dataclasses import replace

import pytest
import torch

from nemo_vtb.data.collate import PackedRow, pack_row
from nemo_vtb.parallel.dims import ParallelDims
from nemo_vtb.training.meter import StepMeter


def row(sums: list[float], counts: list[float], tokens: int, samples: list[int]) -> tuple[dict, PackedRow]:
    outputs = {'loss': torch.tensor(0.0), 'kind_sums': torch.tensor(sums), 'kind_counts': torch.tensor(counts)}
    lens = torch.tensor(samples, dtype=torch.int64)
    return outputs, replace(pack_row([]), num_tokens=tokens, audio_lens=lens)


def test_rows_add_up_and_a_closed_step_begins_anew() -> None:
    meter = StepMeter()
    meter.add(*row([4.0, 0.0, 0.0, 2.0], [2.0, 0.0, 0.0, 1.0], 100, [16000, 8000]))
    meter.add(*row([2.0, 9.0, 0.0, 0.0], [4.0, 3.0, 0.0, 0.0], 50, []))
    totals = meter.close()
    assert totals.losses == pytest.approx({'text': 1.0, 'asr_ast': 3.0, 'mixed_modal': 2.0})
    assert totals.targets == {'text': 6, 'asr_ast': 3, 'mixed_modal': 1}
    assert (totals.tokens, totals.audio_s) == (150, 1.5)
    empty = meter.close(ParallelDims())
    assert empty.losses == {} and empty.tokens == 0


def test_a_row_that_lightning_skipped_counts_its_tokens_alone() -> None:
    meter = StepMeter()
    meter.add(None, row([0] * 4, [0] * 4, 7, [])[1])
    totals = meter.close()
    assert totals.tokens == 7 and totals.targets == {}
