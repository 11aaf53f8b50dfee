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
"""Dropout of LoRA on two ranks: new masks for each row, the same again where activations are made again."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_megatron_backbone import build, run

from nemo_vtb.errors import VtbConfigError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize('name', ['llama', 'gemma3'])
def test_the_fused_rotation_is_the_same(alone: None, name: str) -> None:
    """Compiled on GPUs, and wherever it is asked for."""
    results = []
    for fusions in ('auto', ['rope']):
        backbone = build(name, kernels='torch', fusions=fusions)
        assert backbone.kernels.fused_rope == (fusions == ['rope'])
        found = []
        for length in (6, 9):  # rows differ in length
            embeds = torch.linspace(-1, 1, length * 64).view(length, 64).requires_grad_(True)
            out = run(backbone, embeds)
            out.square().mean().backward()
            found += [out.detach(), embeds.grad]
        results.append(found)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_fusions_are_named_in_the_log(alone: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level('INFO', logger='nemo_vtb'):
        build(kernels='torch', fusions=['activation', 'rope'], recompute_granularity='selective')
        build(kernels='torch')
    first, second = (record.getMessage() for record in caplog.records if 'Megatron decoder' in record.getMessage())
    assert 'fused: activation, rope; FP8: none; recomputed: selective' in first
    assert 'fused: nothing' in second


@pytest.mark.parametrize('fusions', [['rope', 'softmax'], 'bias'])
def test_unknown_fusions_are_refused(alone: None, fusions: Any) -> None:
    with pytest.raises(VtbConfigError, match='fusions') as caught:
        build(fusions=fusions)
    assert 'softmax' in str(caught.value) or 'bias' in str(caught.value)
    assert 'activation, rope' in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason='is about machines without CUDA')
@pytest.mark.parametrize(
    ('options', 'field', 'named'),
    [
        ({'fp8': 'hybrid'}, 'trainer.strategy.fp8', 'Transformer Engine'),
        ({'fp8': 'int8'}, 'trainer.strategy.fp8', "['hybrid', 'e4m3']"),
        ({'fusions': ['cross_entropy']}, 'trainer.strategy.fusions', 'fusions=auto'),
        ({'kernels': 'te'}, 'trainer.strategy.kernels', "['auto', 'torch']"),
    ],
)
def test_what_needs_a_gpu_is_refused_without_one(alone: None, options: dict[str, Any], field: str, named: str) -> None:
    with pytest.raises(VtbConfigError) as caught:
        build(**options)
    message = str(caught.value)
    assert field in message and named in message
    value = next(iter(options.values()))
    assert (value if isinstance(value, str) else value[0]) in message


def test_fp8_reaches_megatron_where_there_are_kernels_for_it(alone: None) -> None:
    """Modules of the CPU under the name of Transformer Engine: the configuration, and rows that FP8 can multiply."""
    from nemo_vtb.backbone.megatron.layers import FP8_MULTIPLE, check_fp8, choose_kernels

    kernels = replace(choose_kernels('torch'), name='te')
    backbone = build(kernels=kernels, fp8='hybrid')
    assert backbone.gpt.config.fp8 == 'hybrid'
    lengths = []
    backbone.gpt.decoder.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[0]))
    embeds = torch.linspace(-1, 1, 21 * 64).view(21, 64)
    with torch.no_grad():
        torch.testing.assert_close(run(backbone, embeds), run(build(), embeds))
        mask = torch.ones(1, 21)
        assert torch.equal(
            backbone.greedy(embeds[None], mask, 3, {2}, 0), build().greedy(embeds[None], mask, 3, {2}, 0)
        )
    assert lengths[0] == 2 * FP8_MULTIPLE and backbone.gpt.config.fp8 == 'hybrid'
    with pytest.raises(VtbConfigError, match='tensor-parallel ranks') as caught:
        check_fp8('hybrid', kernels, [64, 90])
    assert 'fp8' in str(caught.value) and '[90]' in str(caught.value)


def test_the_likelihood_of_targets_and_the_most_likely_tokens(alone: None) -> None:
    backbone = build('gemma2')
    hidden, targets = torch.randn(9, 64, requires_grad=True), torch.arange(9)
    logits = backbone.head(hidden)
    targets[3] = logits[3].argmax()
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction='none')
    (gradient,) = torch.autograd.grad(expected.sum(), [hidden])
    nll = backbone.nll(hidden, targets)
    torch.testing.assert_close(nll, expected)
    torch.testing.assert_close(torch.autograd.grad(nll.sum(), [hidden])[0], gradient)
    scored, right = backbone.score(hidden, targets)
    torch.testing.assert_close(scored, expected.detach())
    assert torch.equal(right, logits.argmax(-1) == targets) and right[3]


@pytest.mark.parametrize(
    ('options', 'fields'),
    [
        ({}, {'recompute_granularity': None, 'fp8': None, 'bias_activation_fusion': False}),
        ({'recompute': 'selective'}, {'recompute_granularity': 'selective', 'recompute_modules': ['core_attn']}),
        (
            {'recompute': 'full', 'fusions': ['activation']},
            {'recompute_granularity': 'full', 'recompute_method': 'uniform', 'recompute_num_layers': 1,
             'bias_activation_fusion': True},
        ),
    ],
)  # fmt: skip
def test_the_strategy_reaches_the_configuration_of_megatron(
    alone: None, options: dict[str, Any], fields: dict[str, Any]
) -> None:
    from nemo_vtb.parallel.strategies import MegatronStrategy

    config = build(**MegatronStrategy(**options).decoder_options).gpt.config
    assert {name: getattr(config, name) for name in fields} == fields


def test_an_unknown_recompute_is_refused() -> None:
    from nemo_vtb.parallel.strategies import MegatronStrategy

    with pytest.raises(VtbConfigError, match=r'trainer\.strategy\.recompute') as caught:
        MegatronStrategy(recompute='layers')  # type: ignore[arg-type]
    assert 'layers' in str(caught.value) and "'selective' or 'full'" in str(caught.value)


@pytest.mark.parametrize(('dtype', 'expected'), [(torch.float32, 'liger'), (torch.bfloat16, 'te')])
def test_auto_leaves_out_what_multiplies_float32_as_tf32(
    alone: None, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, expected: str
) -> None:
    from nemo_vtb.backbone.megatron import layers

    plain = layers.choose_kernels('torch')
    monkeypatch.setattr(layers, 'usable_kernels', lambda: ['te', 'liger', 'torch'])
    monkeypatch.setattr(layers, '_modules_of', lambda name: replace(plain, name=name))
    assert layers.choose_kernels('auto', [], dtype).name == expected
    assert layers.choose_kernels('te', [], dtype).name == 'te'  # who asks for it gets it


def test_a_norm_of_others_gets_the_type_of_the_weights(alone: None) -> None:
    from nemo_vtb.backbone.megatron.layers import _typed

    class Norm(torch.nn.Module):
        """As Liger's: float32, and marked for sequence parallelism."""

        def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(hidden_size))
            self.weight.sequence_parallel = True

    config = build(dtype=torch.bfloat16).gpt.config
    norm = _typed(Norm)(config, 8, eps=1e-6)
    assert norm.weight.dtype == torch.bfloat16 and norm.weight.sequence_parallel and type(norm).__name__ == 'Norm'


def test_transformer_engine_attends_in_half_precision_alone(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 its attention would be unfused and padded to (N, T, T)."""
    from nemo_vtb.backbone.megatron import layers

    core = layers.SDPACore(build().gpt.config, 1)
    core.__class__ = layers.TECore
    core.te = lambda q, *args, **options: q  # type: ignore[assignment]
    row = layers.packed_row(torch.tensor([0, 4, 6], dtype=torch.int32), 4, torch.device('cpu'))
    q, k = torch.randn(6, 1, 4, 16), torch.randn(6, 1, 2, 16)
    expected = layers.SDPACore._packed(core, q, k, k, row)
    assert torch.equal(core._packed(q, k, k, row), expected)
    half = q.bfloat16()
    assert torch.equal(core._packed(half, k.bfloat16(), k.bfloat16(), row), half.reshape(6, 1, -1))


@pytest.mark.parametrize('name', ['llama', 'gemma_mqa', 'gemma2'])
@pytest.mark.parametrize('targets', ['all-linear', ['up_proj', 'k_proj', 'down_proj']], ids=['all', 'some'])
def test_lora_added_in_place_is_the_sum(
    alone: None, monkeypatch: pytest.MonkeyPatch, name: str, targets: str | list[str]
) -> None:
    """On GPUs; here by the same products, whose order of roundings is another."""
    from megatron_cases import tiny_config

    from nemo_vtb.backbone.megatron import lora
    from nemo_vtb.backbone.megatron.model import MegatronBackbone

    torch.manual_seed(0)
    backbone = MegatronBackbone(tiny_config(name)).train()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.normal_(std=0.1)
    lora.add_lora(backbone.gpt, backbone.geometry, r=4, alpha=8, targets=targets)
    backbone.load_lora({key: torch.randn_like(value) * 0.1 for key, value in backbone.lora_state().items()})
    embeds, results = torch.randn(6, 64), []
    for in_place in (False, True):
        monkeypatch.setattr(lora, 'adds_in_place', lambda y, h, answer=in_place: answer)
        leaf = embeds.clone().requires_grad_()
        backbone.zero_grad()
        out = run(backbone, leaf)
        out.square().sum().backward()
        results.append([out, leaf.grad, *(p.grad for p in backbone.trainable_parameters().values())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)
