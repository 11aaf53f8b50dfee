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
"""Attention by one kernel for a whole row, as on CUDA: the same as a call for each conversation.

There is no such kernel for CPUs. Its stand-in here computes what `varlen_attn` documents, and refuses what it refuses.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_cases import CASES, tiny_config
from test_hf import FAMILIES, LENGTHS, backbone_of, folder_of, pack
from torch import Tensor
from torch._subclasses import FakeTensorMode

from nemo_vtb.backbone import attention
from nemo_vtb.backbone.megatron.model import MegatronBackbone  # imported before anything is replaced
from nemo_vtb.model import whisper

pytestmark = pytest.mark.unit
Kernel = Callable[..., Tensor]


def kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """What the documentation of torch says of `varlen_attn`."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and q.dtype == k.dtype == v.dtype
    assert q.shape[1] == k.shape[1] or (enable_gqa and q.shape[1] % k.shape[1] == 0)
    assert int(cu_seq_q[-1]) == len(q) and max_q == max_k >= int(cu_seq_q.diff().max())
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    parts = []
    for begin, end in zip(cu_seq_q.tolist()[:-1], cu_seq_q.tolist()[1:], strict=True):
        place = torch.arange(end - begin)
        back = place[:, None] - place[None, :]
        left, right = (len(place) if side < 0 else side for side in window_size)
        scores = torch.einsum('qhd,khd->hqk', q[begin:end], k[begin:end]) * (scale or q.shape[-1] ** -0.5)
        weights = scores.masked_fill((back > left) | (-back > right), -torch.inf).softmax(-1)
        parts.append(torch.einsum('hqk,khd->qhd', weights, v[begin:end]))
    return torch.cat(parts)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """From now on rows go to the stand-in, which is exact in float32; the list has the options of each call."""
    found: list[Any] = []

    def counted(*args: Any, **options: Any) -> Tensor:
        found.append(options)
        return kernel(*args, **options)

    monkeypatch.setattr(attention, 'varlen_attn', counted)
    monkeypatch.setattr(attention, '_varlen_options', lambda: frozenset({'window_size', 'enable_gqa'}))
    monkeypatch.setattr(attention, 'computes_in_half', lambda x: True)
    for module in (attention, whisper):
        monkeypatch.setattr(module, 'has_row_kernel', lambda device: True)
    yield found


def both(work: Callable[[], list[Tensor]], monkeypatch: pytest.MonkeyPatch) -> tuple[list[Tensor], list[Tensor]]:
    """By the kernel, then by the loop."""
    by_kernel = work()
    for module in (attention, whisper):
        monkeypatch.setattr(module, 'has_row_kernel', lambda device: False)
    return by_kernel, work()


@pytest.mark.parametrize(('name', 'family', 'extra'), FAMILIES, ids=[f[0] for f in FAMILIES])
def test_a_row_of_hugging_face(
    tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch, name: str, family: str, extra: dict[str, Any]
) -> None:
    backbone = backbone_of(folder_of(tmp_path, name, family, extra))
    ids, positions, borders = pack(LENGTHS)
    embeds = backbone.embed(ids).detach()
    weights = torch.randn(len(ids), backbone.hidden_size)

    def work() -> list[Tensor]:
        leaf = embeds.clone().requires_grad_()
        out = backbone.forward(leaf, positions, borders, max(LENGTHS))
        return [out, torch.autograd.grad((out * weights).sum(), leaf)[0]]

    found, expected = both(work, monkeypatch)
    softcapped = name == 'gemma2'  # the kernel has no cap: the loop stays
    assert len(calls) == (0 if softcapped else 2)
    windows = {options['window_size'] for options in calls}
    if extra and not softcapped:
        assert any(left >= 0 for left, _ in windows)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize('name', ['llama', 'gemma_mqa', 'mistral', 'gemma3', 'gemma2'])
def test_a_row_of_megatron(alone: None, calls: list[Any], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    backbone = MegatronBackbone(tiny_config(name))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.normal_(std=0.1)
    _, positions, borders = pack(LENGTHS)
    embeds = torch.randn(sum(LENGTHS), 64)

    def work() -> list[Tensor]:
        leaf = embeds.clone().requires_grad_()
        out = backbone(leaf, positions, borders, max(LENGTHS))
        return [out, torch.autograd.grad(out.square().sum(), leaf)[0]]

    found, expected = both(work, monkeypatch)
    assert name in CASES and bool(calls) == (name != 'gemma2')
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_clips_of_whisper(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of clips is one row, the padding of each a part of its own; an empty clip is nothing but padding."""
    encoder = whisper.WhisperEncoder(feat_in=80, d_model=64, n_layers=2, n_heads=4, ff=96).eval()
    mel, length = torch.randn(4, 80, 48), torch.tensor([48, 16, 0, 31])

    def work() -> list[Tensor]:
        leaf = mel.clone().requires_grad_()
        out, frames = encoder(audio_signal=leaf, length=length)
        return [out, frames, torch.autograd.grad(out.square().sum(), leaf)[0]]

    found, expected = both(work, monkeypatch)
    assert [options['window_size'] for options in calls] == [(-1, -1)] * 2
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_torch_2_11_has_no_word_for_shared_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(attention, 'varlen_attn', lambda *args, **options: given.append(options))
    borders = torch.tensor([0, 5], dtype=torch.int32)
    q, k = torch.randn(5, 4, 8), torch.randn(5, 2, 8)
    for known in ({'window_size', 'enable_gqa'}, {'window_size'}):
        monkeypatch.setattr(attention, '_varlen_options', lambda known=known: frozenset(known))
        attention.attend_row(q, k, k, borders, 5)
    assert [options.get('enable_gqa') for options in given] == [True, None]


def test_autocast_decides_the_type_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotated queries are float32 under autocast, values are not."""
    seen: list[Any] = []
    monkeypatch.setattr(attention, '_varlen_options', lambda: frozenset({'window_size'}))
    monkeypatch.setattr(attention, 'varlen_attn', lambda q, k, v, *args, **options: seen.extend([q, k, v]))
    borders = torch.tensor([0, 5], dtype=torch.int32)
    q, v = torch.randn(5, 2, 8), torch.randn(5, 2, 8, dtype=torch.bfloat16)
    with torch.autocast('cpu', torch.bfloat16):
        attention.attend_row(q, q, v, borders, 5)
        assert attention.computes_in_half(q)
    assert {x.dtype for x in seen} == {torch.bfloat16}
    assert not attention.computes_in_half(q) and attention.computes_in_half(v)


@pytest.mark.parametrize(
    ('shape', 'dtype', 'options', 'expected'),
    [
        ((2, 64), torch.bfloat16, {}, True),
        ((2, 256), torch.float16, {}, True),
        ((2, 64), torch.float32, {}, False),
        ((2, 12), torch.bfloat16, {}, False),
        ((2, 288), torch.bfloat16, {}, False),
        ((2, 64), torch.bfloat16, {'dropout': 0.1}, False),
        ((2, 64), torch.bfloat16, {'softcap': 5.0}, False),
    ],
)
def test_what_the_kernel_takes(
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, int],
    dtype: torch.dtype,
    options: dict[str, float],
    expected: bool,
) -> None:
    """Fake tensors: there need be no GPU."""
    for generation, answer in (((9, 0), expected), ((7, 5), False)):
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device, g=generation: g)
        with FakeTensorMode():
            query = torch.empty(9, *shape, dtype=dtype, device='cuda')
            assert attention.takes_whole_rows(query, **options) is answer
    assert not attention.takes_whole_rows(torch.empty(9, *shape, dtype=dtype), **options)


def test_the_borders_of_a_row_are_copied_only_where_a_kernel_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (9, 0))
    borders = torch.tensor([0, 3, 9], dtype=torch.int32)
    here = attention.Borders.of(borders, 6, torch.device('cpu'))
    assert (here.edges, here.longest, here.on_device) == ([0, 3, 9], 6, None)
    with FakeTensorMode(allow_non_fake_inputs=True):
        monkeypatch.setattr(Tensor, 'tolist', lambda self: [0, 3, 9])  # a fake tensor has no values
        there = attention.Borders.of(borders, 6, torch.device('cuda', 0))
    assert there.on_device is not None and there.on_device.is_cuda


@pytest.mark.parametrize('mixed', [True, False])
def test_training_in_half_precision_on_a_cpu_attends_in_float32(mixed: bool) -> None:
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, heads, 40, 16).bfloat16().requires_grad_() for heads in (4, 2, 2))
    borders = attention.Borders([0, 9, 40], 31)
    with torch.autocast('cpu', torch.bfloat16, enabled=mixed):
        out, _ = attention.attention(torch.nn.Identity(), q, k, v, None, borders=borders)
        asked, _ = attention.attention(torch.nn.Identity(), *(x.detach() for x in (q, k, v)), None, borders=borders)
    exact, _ = attention.attention(torch.nn.Identity(), *(x.float() for x in (q, k, v)), None, borders=borders)
    assert out.dtype == asked.dtype == torch.bfloat16
    assert torch.equal(out, exact.bfloat16()) and not torch.equal(asked, out)
    out.sum().backward()
    assert q.grad is not None and q.grad.dtype == torch.bfloat16
