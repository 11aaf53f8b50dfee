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
"""LoRA on a linear as one operation: what PEFT computes, within the rounding, and in float32 bit by bit."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from nemo_vtb.backbone import fused_lora
from nemo_vtb.backbone.fused_lora import fuse_lora

pytestmark = pytest.mark.unit


class Net(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(48, 96, bias=bias), nn.Linear(96, 48, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


def make(*, bias: bool = False, dropout: float = 0.0) -> Any:
    torch.manual_seed(3)
    net = get_peft_model(Net(bias), LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=['up', 'down']))
    for name, parameter in net.named_parameters():
        if '.lora_' in name:
            nn.init.normal_(parameter, std=0.2)
        else:
            parameter.data = parameter.data.bfloat16().float()  # as of a published LLM
    return net


def pair(**options: Any) -> tuple[Any, Any]:
    plain = make(**options)
    fused = copy.deepcopy(plain)
    fuse_lora(fused)
    return plain, fused


def learn(net: Any, x: Tensor, dtype: torch.dtype | None = torch.bfloat16) -> tuple[Tensor, dict[str, Tensor]]:
    net.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast('cpu', dtype, enabled=dtype is not None):
        out = net(x)
    (out.float() ** 2).sum().backward()
    found = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    return out.detach(), {name: grad.clone() for name, grad in found.items() if grad is not None} | {'x': x.grad}


@pytest.fixture
def uses(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The output of each fused linear."""
    seen: list[Tensor] = []
    apply = fused_lora._LoraLinear.apply
    monkeypatch.setattr(fused_lora._LoraLinear, 'apply', lambda *args: seen.append(out := apply(*args)) or out)
    return seen


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('frozen', [torch.float32, torch.bfloat16])
def test_it_is_peft_within_the_rounding(bias: bool, frozen: torch.dtype, uses: list[Tensor]) -> None:
    plain, fused = pair(bias=bias)
    for parameter in fused.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(frozen)
    x = torch.randn(2, 7, 48)
    exact, expected = learn(plain, x, None)
    rounded, _ = learn(plain, x)
    assert not uses
    out, found = learn(fused, x)
    assert len(uses) == 2 and out.dtype == torch.bfloat16 and out.shape == exact.shape
    # no further from the exact result than PEFT in the same type, but for luck
    assert (out.float() - exact).norm() < 1.2 * (rounded.float() - exact).norm()
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32, name
        assert (gradient - expected[name]).norm() < 0.03 * expected[name].norm(), name


def test_weights_in_bfloat16_without_autocast(uses: list[Tensor]) -> None:
    plain, fused = (net.bfloat16() for net in pair())
    x = torch.randn(5, 48).bfloat16()
    out, found = learn(fused, x, None)
    expected, gradients = learn(plain, x, None)
    assert len(uses) == 2 and {g.dtype for g in found.values()} == {torch.bfloat16}
    torch.testing.assert_close(out, expected, rtol=0.05, atol=0.05)
    for name, gradient in found.items():
        assert (gradient - gradients[name]).norm() < 0.05 * gradients[name].norm(), name


def test_float32_is_pefts_own_code(uses: list[Tensor]) -> None:
    plain, fused = pair()
    x = torch.randn(5, 48)
    (out, found), (expected, gradients) = learn(fused, x, None), learn(plain, x, None)
    assert not uses and torch.equal(out, expected)
    assert all(torch.equal(found[name], gradients[name]) for name in gradients)


def test_the_untouched_llm_has_no_lora(uses: list[Tensor]) -> None:
    _, fused = pair()
    x = torch.randn(5, 48)
    with torch.autocast('cpu', torch.bfloat16), fused.disable_adapter():
        base = fused(x)
        expected = torch.nn.functional.linear(x, fused.base_model.model.up.base_layer.weight)
        expected = torch.nn.functional.linear(torch.tanh(expected), fused.base_model.model.down.base_layer.weight)
    assert not uses and torch.equal(base, expected)


def test_dropout_and_listeners_have_pefts_own_code(uses: list[Tensor]) -> None:
    _, dropping = pair(dropout=0.5)
    x = torch.randn(5, 48)
    learn(dropping.train(), x)
    assert not uses
    learn(dropping.eval(), x)
    assert len(uses) == 2
    uses.clear()
    seen: list[torch.Size] = []
    hook = dropping.base_model.model.up.lora_A.default.register_forward_hook(
        lambda _, args, out: seen.append(out.shape)
    )
    learn(dropping, x)
    assert seen == [(5, 4)] and len(uses) == 1
    hook.remove()


def test_a_copy_has_its_own_weights(uses: list[Tensor]) -> None:
    _, fused = pair()
    x = torch.randn(5, 48)
    before, _ = learn(fused, x)
    other = copy.deepcopy(fused)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    assert torch.equal(learn(other, x)[0], before) and not torch.equal(learn(fused, x)[0], before)
