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
"""Liger's kernels on one decoder of transformers: the same results, nothing changed for other models.

Stand-ins in torch have the signatures of Liger's functions. `TRITON_INTERPRET=1 pytest tests/backbone/test_liger.py`
takes the kernels themselves where they are installed.
"""

import copy
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from test_hf import FAMILIES, LENGTHS, backbone_of, folder_of, pack
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu, linear, silu
from transformers.models.llama import modeling_llama

from nemo_vtb.backbone import hf, liger
from nemo_vtb.backbone.hf import HFBackbone
from nemo_vtb.backbone.liger import Kernels, has_liger
from nemo_vtb.backbone.spec import BackboneSpec
from nemo_vtb.errors import VtbConfigError
from nemo_vtb.model.loss import row_nll

pytestmark = pytest.mark.unit
INTERPRETED = has_liger() and os.environ.get('TRITON_INTERPRET') == '1'
# Phi 3 has gate and up in one linear and turns a part of each head: its norms alone
PARTS = {'phi3': {'rms_norm', 'linear_cross_entropy'}}
GATED = {'gemma': 'geglu', 'gemma2': 'geglu', 'gemma3': 'geglu'}


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float, casting_mode: str, in_place: bool) -> Tensor:
    assert casting_mode in ('llama', 'gemma') and not in_place and x.dtype == weight.dtype
    scaled = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    if casting_mode == 'llama':
        return scaled.to(x.dtype) * (offset + weight)
    return (scaled * (offset + weight.float())).to(x.dtype)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)


def loss(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, reduction: str, softcap: float | None
) -> Tensor:
    logits = linear(hidden, weight, bias)
    logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
    return cross_entropy(logits.float(), target, reduction=reduction)


class Scalar(float):
    """Compiled kernels see a scalar argument as a tensor; Triton's interpreter passes the Python number on."""

    def to(self, *args: Any) -> 'Scalar':
        return self


def interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter has no functions of CUDA's device library: those of Triton's language take their place."""
    import triton.language as tl
    from liger_kernel.ops import cross_entropy as loss_kernel
    from liger_kernel.ops import geglu as gate_kernel
    from liger_kernel.ops import rms_norm as norm_kernel

    # looked up when they are called: the interpreter replaces them while a kernel runs
    monkeypatch.setattr(norm_kernel, 'rsqrt', lambda x: tl.math.rsqrt(x))
    for module in (gate_kernel, loss_kernel):
        monkeypatch.setattr(module, 'tanh', lambda x: 1 - 2 / (1 + tl.exp(2 * x)))


@pytest.fixture
def uses() -> Counter[str]:
    return Counter()


@pytest.fixture
def kernels(uses: Counter[str], monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Counted; they run on this CPU."""
    for module in (liger, hf):
        monkeypatch.setattr(module, 'runs_on', lambda x: True)
    stand_ins = Kernels(rms_norm, rope, lambda a, b: silu(a) * b, lambda a, b: gelu(a, approximate='tanh') * b, loss)
    if INTERPRETED:
        interpret(monkeypatch)
    found = Kernels.installed() if INTERPRETED else stand_ins

    def counted(name: str) -> Any:
        def run(*args: Any, **options: Any) -> Any:
            uses[name] += 1
            if INTERPRETED:
                args = tuple(Scalar(value) if type(value) is float else value for value in args)
            return getattr(found, name)(*args, **options)

        return run

    return Kernels(*(counted(name) for name in Kernels.__slots__))


def learn(backbone: HFBackbone, ids: Tensor, positions: Tensor, borders: Tensor) -> list[Tensor]:
    """Losses of all positions and the gradient of the embeddings."""
    embeds = backbone.embed(ids).detach().requires_grad_()
    hidden = backbone.forward(embeds, positions, borders, max(LENGTHS))
    nll = backbone.nll(hidden, ids)
    # another weight for each, as the text anchor has
    (nll * torch.linspace(0, 1, len(ids))).sum().backward()
    return [nll.detach(), embeds.grad]


@pytest.mark.parametrize(('name', 'family', 'extra'), FAMILIES, ids=[f[0] for f in FAMILIES])
def test_a_packed_row_is_that_of_transformers(
    tmp_path: Path, kernels: Kernels, uses: Counter[str], name: str, family: str, extra: dict[str, Any]
) -> None:
    folder = folder_of(tmp_path, name, family, extra)
    fused, plain = backbone_of(folder), backbone_of(folder)
    fused.take(kernels)
    row = pack(LENGTHS)
    expected = learn(plain, *row)
    assert not uses
    found = learn(fused, *row)
    usual = {'rms_norm', 'rope', GATED.get(name, 'swiglu'), 'linear_cross_entropy'}
    if name == 'granite':  # divides its logits
        usual.discard('linear_cross_entropy')
    assert set(uses) == PARTS.get(name, usual)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_classes_and_other_models_stay_as_they_are(tmp_path: Path, kernels: Kernels, uses: Counter[str]) -> None:
    before = {name: dict(vars(cls)) for name, cls in vars(modeling_llama).items() if isinstance(cls, type)}
    rotary = modeling_llama.apply_rotary_pos_emb
    fused, other = (backbone_of(folder_of(tmp_path, 'llama', 'llama', {})) for _ in range(2))
    fused.take(kernels)
    learn(other, *pack(LENGTHS))
    assert not uses and modeling_llama.apply_rotary_pos_emb is rotary
    assert {n: dict(vars(c)) for n, c in vars(modeling_llama).items() if isinstance(c, type)} == before


def test_a_copy_runs_on_its_own_weights(tmp_path: Path, kernels: Kernels, uses: Counter[str]) -> None:
    fused = backbone_of(folder_of(tmp_path, 'llama', 'llama', {}))
    fused.take(kernels)
    row = pack(LENGTHS)
    expected = learn(fused, *row)[0]
    other = copy.deepcopy(fused)
    with torch.no_grad():
        for parameter in fused.decoder.parameters():
            parameter.zero_()
    count = uses['rope']
    assert torch.equal(learn(other, *row)[0], expected) and uses['rope'] == 2 * count


def test_on_a_cpu_it_is_transformers_own_code(tmp_path: Path, uses: Counter[str]) -> None:
    folder = folder_of(tmp_path, 'llama', 'llama', {})
    fused, plain = backbone_of(folder), backbone_of(folder)
    fused.take(Kernels(*(lambda *args, name=name, **options: uses.update([name]) for name in Kernels.__slots__)))
    row = pack(LENGTHS)
    for ours, theirs in zip(learn(fused, *row), learn(plain, *row), strict=True):
        assert torch.equal(ours, theirs)
    assert not uses and not fused.bounds_logits


def test_mixed_types_are_left_to_transformers(tmp_path: Path, kernels: Kernels, uses: Counter[str]) -> None:
    fused = backbone_of(folder_of(tmp_path, 'llama', 'llama', {}))
    fused.take(kernels)
    norm = fused.decoder.norm
    assert norm(torch.randn(1, 3, 64).bfloat16()).dtype == torch.float32 and not uses


@pytest.mark.parametrize('frozen', [torch.float32, torch.bfloat16])
def test_under_autocast_the_loss_is_of_half_precision(
    tmp_path: Path, kernels: Kernels, uses: Counter[str], frozen: torch.dtype
) -> None:
    folder = folder_of(tmp_path, 'llama', 'llama', {})
    fused, plain = backbone_of(folder), backbone_of(folder)
    fused.take(kernels)
    fused._causal_lm.to(frozen)
    ids, positions, borders = pack(LENGTHS)
    exact = learn(plain, ids, positions, borders)[0]
    with torch.autocast('cpu', torch.bfloat16):
        hidden = fused.forward(fused.embed(ids), positions, borders, max(LENGTHS))
        nll = row_nll(hidden, ids, fused.nll, chunk=len(ids) if fused.bounds_logits else 4)
    assert nll.dtype == torch.float32 and uses['linear_cross_entropy'] == 1
    torch.testing.assert_close(nll.detach(), exact, atol=0.3, rtol=0.05)


@pytest.mark.parametrize(
    ('wanted', 'on_gpu', 'there', 'compiled', 'expected'),
    [
        ('auto', True, True, False, True),
        ('auto', False, True, False, False),
        ('auto', True, False, False, False),
        ('auto', True, True, True, False),
        ('liger', False, True, False, True),
        ('torch', True, True, False, False),
    ],
)
def test_auto_is_by_device_and_packages(
    monkeypatch: pytest.MonkeyPatch, wanted: str, on_gpu: bool, there: bool, compiled: bool, expected: bool
) -> None:
    monkeypatch.setattr('nemo_vtb.backbone.spec.has_liger', lambda: there)
    spec = BackboneSpec('llm', 64, 1.0, 2, kernels=wanted, compiles_layers=compiled)
    spec.choose_kernels(on_gpu=on_gpu)
    assert spec.takes_liger == expected


@pytest.mark.parametrize(('there', 'compiled'), [(False, False), (True, True)])
def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, there: bool, compiled: bool) -> None:
    monkeypatch.setattr('nemo_vtb.backbone.spec.has_liger', lambda: there)
    spec = BackboneSpec('llm', 64, 1.0, 2, kernels='liger', compiles_layers=compiled)
    with pytest.raises(VtbConfigError) as caught:
        spec.choose_kernels(on_gpu=True)
    assert caught.value.field == 'model.kernels'
    with pytest.raises(VtbConfigError) as caught:
        BackboneSpec('llm', 64, 1.0, 2, kernels='liger').require_plain_layers()
    assert caught.value.field == 'model.kernels'
