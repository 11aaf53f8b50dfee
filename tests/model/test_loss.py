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
"""The loss on supervised positions: the plain one, in whatever chunks, and defined where nothing is supervised."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nemo_vtb.constants import IGNORE_INDEX
from nemo_vtb.model.loss import kind_sums, row_nll

pytestmark = pytest.mark.unit
T, H, V = 23, 8, 11


def nll_of(hidden: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], chunk: int = 1024) -> Tensor:
    """`row_nll` by a head that gives whole logits, as that of the Hugging Face backbone does."""
    return row_nll(hidden, labels, lambda h, y: cross_entropy(head(h).float(), y, reduction='none'), chunk=chunk)


def row() -> tuple[Tensor, Tensor, nn.Linear]:
    hidden, head = torch.randn(T, H, requires_grad=True), nn.Linear(H, V)
    labels = torch.randint(0, V, (T,))
    labels[torch.rand(T) < 0.4] = IGNORE_INDEX
    return hidden, labels, head


def test_equals_plain_cross_entropy_over_the_whole_row() -> None:
    hidden, labels, head = row()
    plain = cross_entropy(head(hidden), labels, reduction='none', ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(nll_of(hidden, labels, head), plain[labels != IGNORE_INDEX])


def test_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [2.0, 0.0]])  # the head is the identity
    nll = nll_of(logits, torch.tensor([1, IGNORE_INDEX, 0]), nn.Identity())
    torch.testing.assert_close(nll, torch.tensor([0.693147, 0.126928]))


@pytest.mark.parametrize('chunk', [1, 3, 5, T])
def test_chunks_change_neither_loss_nor_gradients(chunk: int) -> None:
    hidden, labels, head = row()
    results = []
    for size in (10_000, chunk):
        nll = nll_of(hidden, labels, head, chunk=size)
        grads = torch.autograd.grad((nll * torch.arange(1, len(nll) + 1)).sum(), [hidden, *head.parameters()])
        results.append((nll.detach(), *grads))
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-6)


def test_only_supervised_positions_reach_the_vocabulary_and_in_chunks() -> None:
    hidden, labels, head = row()
    seen: list[int] = []

    def counting(h: Tensor) -> Tensor:
        seen.append(h.shape[0])
        return head(h)

    with torch.no_grad():
        nll_of(hidden, labels, counting, chunk=4)
    assert sum(seen) == int((labels != IGNORE_INDEX).sum())
    assert max(seen) <= 4


def test_half_precision_is_summed_in_float32() -> None:
    hidden, labels, head = row()
    nll = nll_of(hidden.bfloat16(), labels, head.bfloat16())
    assert nll.dtype is torch.float32


def test_without_targets_gradients_are_zero_not_undefined() -> None:
    hidden, _, head = row()
    nll = nll_of(hidden, torch.full((T,), IGNORE_INDEX), head)
    assert nll.shape == (0,)
    assert nll.dtype is torch.float32
    (gradient,) = torch.autograd.grad(nll.sum(), [hidden])
    assert torch.equal(gradient, torch.zeros_like(hidden))


def test_kind_sums_by_hand() -> None:
    labels = torch.tensor([IGNORE_INDEX, 4, 4, IGNORE_INDEX, 4, 4])
    kinds = torch.tensor([-1, 0, 2, -1, 2, 2])
    sums, counts = kind_sums(torch.tensor([1.0, 2.0, 4.0, 8.0]), labels, kinds, 4)
    assert sums.tolist() == [1, 0, 14, 0]
    assert counts.tolist() == [1, 0, 3, 0]


def test_kind_sums_carry_no_gradient_and_stand_an_empty_row() -> None:
    hidden, labels, head = row()
    sums, _ = kind_sums(nll_of(hidden, labels, head), labels, torch.zeros(T, dtype=torch.long), 4)
    assert not sums.requires_grad
    empty = torch.full((T,), IGNORE_INDEX)
    sums, counts = kind_sums(nll_of(hidden, empty, head), empty, torch.full((T,), -1), 4)
    assert sums.tolist() == counts.tolist() == [0, 0, 0, 0]
