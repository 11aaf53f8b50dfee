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
"""Audio frames into a row of text: expectations written by hand on rows of 5 x 2."""

import pytest
import torch

from nemo_vtb.errors import VtbModelError
from nemo_vtb.model.splice import splice

pytestmark = pytest.mark.unit

TEXT = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0], [5.0, 50.0]])  # (5, 2)
NONE = torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)


def test_frames_replace_what_stands_at_their_positions() -> None:
    frames = torch.tensor([[7.0, 70.0], [8.0, 80.0]])
    out = splice(TEXT, frames, torch.tensor([1, 2]))
    assert out.tolist() == [[1, 10], [7, 70], [8, 80], [4, 40], [5, 50]]


def test_frames_of_two_clips_need_not_be_neighbours() -> None:
    frames = torch.tensor([[7.0, 70.0], [8.0, 80.0], [9.0, 90.0]])
    out = splice(TEXT, frames, torch.tensor([0, 3, 4]))
    assert out.tolist() == [[7, 70], [2, 20], [3, 30], [8, 80], [9, 90]]


def test_a_row_may_be_audio_alone() -> None:
    frames = -TEXT
    assert torch.equal(splice(TEXT, frames, torch.arange(5)), frames)


def test_a_row_may_be_text_alone() -> None:
    assert splice(TEXT, *NONE) is TEXT


def test_the_input_is_left_as_it_was() -> None:
    before = TEXT.clone()
    splice(TEXT, torch.zeros(1, 2), torch.tensor([4]))
    assert torch.equal(TEXT, before)


def test_gradients_go_to_the_frames_and_to_the_text_beside_them() -> None:
    text, frames = TEXT.clone().requires_grad_(), torch.ones(2, 2, requires_grad=True)
    weights = torch.arange(10.0).reshape(5, 2)
    (splice(text, frames, torch.tensor([3, 1])) * weights).sum().backward()
    assert frames.grad is not None and text.grad is not None
    assert frames.grad.tolist() == [[6, 7], [2, 3]]
    assert text.grad.tolist() == [[0, 1], [0, 0], [4, 5], [0, 0], [8, 9]]


def test_the_row_keeps_its_dtype() -> None:
    out = splice(TEXT.bfloat16(), torch.full((1, 2), 0.5), torch.tensor([2]))
    assert out.dtype is torch.bfloat16
    assert out[2].tolist() == [0.5, 0.5]


@pytest.mark.parametrize('frames', [1, 3])
def test_another_number_of_frames_is_refused(frames: int) -> None:
    with pytest.raises(VtbModelError, match=f'{frames} frames for 2 positions'):
        splice(TEXT, torch.zeros(frames, 2), torch.tensor([1, 2]))
