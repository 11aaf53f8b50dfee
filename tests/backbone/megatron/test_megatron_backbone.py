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
"""The Megatron backbone in this process alone: what is refused, the parts of a shard, the mends of megatron-core."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_cases import CASES, tiny_config
from torch import Tensor

from nemo_vtb.backbone.base import Backbone
from nemo_vtb.backbone.megatron import runtime
from nemo_vtb.backbone.megatron.families import FAMILIES, family_of, geometry_of
from nemo_vtb.errors import VtbCheckpointError, VtbConfigError, VtbModelError

pytestmark = pytest.mark.unit


def build(name: str = 'llama', **options: Any) -> Any:
    from nemo_vtb.backbone.megatron import lora
    from nemo_vtb.backbone.megatron.model import MegatronBackbone

    torch.manual_seed(0)
    backbone = MegatronBackbone(tiny_config(name), **options)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.normal_(std=0.1)
    lora.add_lora(backbone.gpt, backbone.geometry, r=4, alpha=8, targets='all-linear')
    return backbone


def run(backbone: Any, embeds: Tensor) -> Tensor:
    count = len(embeds)
    return backbone(embeds, torch.arange(count), torch.tensor([0, count], dtype=torch.int32), count)


def test_it_is_a_backbone(alone: None) -> None:
    assert isinstance(build(), Backbone)


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'model_type': 'gpt_neox'}, 'gpt_neox'),
        ({'hidden_act': 'relu'}, 'relu'),
        ({'mlp_bias': True}, 'mlp_bias'),
        ({'attention_bias': True}, 'attention_bias'),
    ],
)
def test_what_is_not_supported_is_refused_by_name_with_what_is(changes: dict[str, Any], named: str) -> None:
    config = tiny_config('llama')
    for key, value in changes.items():
        # the class itself would refuse another model_type
        object.__setattr__(config, key, value)
    with pytest.raises(VtbModelError, match=named) as caught:
        family_of(config)
    if 'model_type' in changes:
        assert all(name in str(caught.value) for name in FAMILIES)


def test_every_family_has_a_case() -> None:
    assert {family_of(tiny_config(name)).name for name in CASES} == set(FAMILIES)


@pytest.mark.parametrize(
    ('name', 'ranks', 'heads', 'kv', 'copies'),
    [
        ('smollm_uneven', 1, 9, 3, 1),
        ('smollm_uneven', 2, 12, 4, 1),  # a group of zero heads
        ('smollm_uneven', 3, 9, 3, 1),
        ('smollm_uneven', 4, 12, 4, 1),
        ('gemma_mqa', 2, 4, 2, 2),  # two ranks hold the one key-value head
        ('gemma_mqa', 4, 4, 4, 4),
        ('llama', 4, 4, 4, 2),
    ],
)
def test_sizes_that_ranks_can_divide(name: str, ranks: int, heads: int, kv: int, copies: int) -> None:
    g = geometry_of(tiny_config(name), ranks)
    assert (g.heads_padded, g.kv_padded, g.copies) == (heads, kv, copies)
    assert g.vocab_padded % ranks == 0 and g.vocab_padded >= g.vocab == 131


def test_lora_is_off_inside_the_context_only(alone: None) -> None:
    backbone = build()
    backbone.load_lora({k: torch.ones_like(v) * 0.1 for k, v in backbone.lora_state().items()})
    embeds = torch.randn(5, 64)
    with torch.no_grad():
        tuned = run(backbone, embeds)
        with backbone.without_lora():
            base = run(backbone, embeds)
        assert torch.equal(run(backbone, embeds), tuned)
    assert not torch.allclose(tuned, base)
    backbone.load_lora({k: torch.zeros_like(v) for k, v in backbone.lora_state().items()})
    with torch.no_grad():
        torch.testing.assert_close(run(backbone, embeds), base)


def test_only_lora_is_trained_and_starts_as_nothing(alone: None) -> None:
    backbone = build()
    assert all(('.lora.' in name) == p.requires_grad for name, p in backbone.named_parameters())
    assert all(not value.any() for key, value in backbone.lora_state().items() if 'lora_B' in key)
    assert build().lora_state().keys() == backbone.lora_state().keys()
    for key, value in build().lora_state().items():
        assert torch.equal(value, backbone.lora_state()[key]), 'the first factors depend on their names alone'


def test_lora_that_does_not_fit_is_named(alone: None) -> None:
    backbone = build()
    state = backbone.lora_state()
    key = next(iter(state))
    with pytest.raises(VtbCheckpointError, match='do not fit') as caught:
        backbone.load_lora({k: v for k, v in state.items() if k != key})
    assert key in str(caught.value)
    with pytest.raises(VtbCheckpointError, match='left over'):
        backbone.load_lora(state | {'base_model.other': torch.zeros(1)})


def test_a_target_of_another_name_is_refused(alone: None) -> None:
    from nemo_vtb.backbone.megatron import lora

    backbone = build()
    with pytest.raises(VtbModelError, match='target_modules') as caught:
        lora.add_lora(backbone.gpt, backbone.geometry, r=4, alpha=8, targets=['q_proj', 'c_attn'])
    assert "['c_attn']" in str(caught.value)


@pytest.mark.parametrize('recompute', ['full', 'selective'])
def test_activations_made_again_change_nothing(alone: None, recompute: str) -> None:
    options: dict[str, Any] = {'recompute_granularity': recompute}
    if recompute == 'full':
        options |= {'recompute_method': 'uniform', 'recompute_num_layers': 1}
    results = []
    for each in ({}, options):
        backbone = build('qwen3', **each).train()
        backbone.load_lora({k: torch.full_like(v, 0.05) for k, v in backbone.lora_state().items()})
        embeds = torch.linspace(-1, 1, 6 * 64).view(6, 64).requires_grad_(True)
        backbone.head(run(backbone, embeds)).square().mean().backward()
        results.append([embeds.grad, *(p.grad for p in backbone.parameters() if p.grad is not None)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_recompute_trains_lora_where_the_input_has_no_gradient(alone: None) -> None:
    """A row of text on a frozen table: nothing before the first layer has a gradient."""
    options = {'recompute_granularity': 'full', 'recompute_method': 'uniform', 'recompute_num_layers': 1}
    results = []
    for each in ({}, options):
        backbone = build('qwen3', **each).train()
        backbone.load_lora({k: torch.full_like(v, 0.05) for k, v in backbone.lora_state().items()})
        backbone.head(run(backbone, backbone.embed(torch.arange(7)))).square().mean().backward()
        results.append([p.grad for p in backbone.trainable_parameters().values()])
    for one, other in zip(*results, strict=True):
        assert one is not None and torch.equal(one, other)


@pytest.mark.parametrize('name', ['llama', 'gemma3'])
def test_a_cast_leaves_the_rotary_frequencies_alone(alone: None, name: str) -> None:
    backbone = build(name)
    positions = torch.arange(4000, 4100).unsqueeze(1)
    expected = backbone.rotary(positions, torch.float32)
    backbone.to(torch.bfloat16)
    assert backbone.gpt.embedding.word_embeddings.weight.dtype == torch.bfloat16
    assert torch.equal(backbone.rotary(positions, torch.float32), expected)


def test_an_llm_is_found_by_its_name_in_the_hub_cache(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants
    from transformers import AutoModelForCausalLM

    from nemo_vtb.backbone.names import published_weights

    model = tmp_path / 'models--some--llm'
    AutoModelForCausalLM.from_config(tiny_config('llama')).save_pretrained(model / 'snapshots' / 'abc')
    (model / 'refs').mkdir()
    (model / 'refs' / 'main').write_text('abc')
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert 'model.norm.weight' in published_weights('some/llm')


@pytest.mark.parametrize('name', ['llama', 'gemma_mqa'])
def test_the_fused_activation_is_the_same(alone: None, name: str) -> None:
    """Chosen on GPUs; torch compiles it for the CPU, too."""
    from nemo_vtb.backbone.megatron.layers import choose_kernels

    plain = choose_kernels('torch')
    results = []
    for kernels in (plain, replace(plain, fused_activation=True)):
        backbone = build(name, kernels=kernels)
        embeds = torch.linspace(-1, 1, 6 * 64).view(6, 64).requires_grad_(True)
        out = run(backbone, embeds)
        out.square().mean().backward()
        results.append((out.detach(), embeds.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.skipif(torch.cuda.is_available(), reason='is about machines without CUDA')
@pytest.mark.parametrize('wanted', ['te', 'liger', 'apex'])
def test_kernels_that_cannot_run_are_refused(alone: None, wanted: str) -> None:
    with pytest.raises(VtbConfigError, match=wanted) as caught:
        build(kernels=wanted)
    assert "['auto', 'torch']" in str(caught.value)


def test_weights_that_are_missing_or_misshapen_are_named(alone: None) -> None:
    from nemo_vtb.backbone.megatron.convert import load_weights
    from nemo_vtb.backbone.names import published_weights

    backbone = build()
    weights = dict(backbone.base_weights())

    def load(state: dict[str, Tensor]) -> None:
        load_weights(backbone.gpt, state, backbone.family, backbone.geometry, rank=0, ranks=1, tied=False)

    with pytest.raises(VtbModelError, match='model.norm.weight is missing'):
        load({k: v for k, v in weights.items() if k != 'model.norm.weight'})
    with pytest.raises(VtbModelError, match='embed_tokens'):
        load(weights | {'model.embed_tokens.weight': torch.zeros(7, 64)})
    with pytest.raises(VtbModelError, match='no weights that can be read'):
        published_weights(Path(__file__).parent)


def test_ranks_that_cannot_be_dealt_are_refused(alone: None) -> None:
    with pytest.raises(VtbConfigError, match='tensor_parallel'):
        runtime.initialize(2)


def test_only_megatron_sees_another_torch(alone: None) -> None:
    """The view of a CPU as the current device reaches megatron's modules, and nobody else."""
    import megatron.core.tensor_parallel.mappings as mappings

    if torch.cuda.is_available():
        assert mappings.torch is torch
        return
    assert mappings.torch.cuda.current_device() == torch.device('cpu')
    assert mappings.torch.nn is torch.nn
    with pytest.raises((AssertionError, RuntimeError)):
        torch.cuda.current_device()


@pytest.mark.skipif(torch.cuda.is_available(), reason='is about machines without CUDA')
def test_an_unusable_transformer_engine_is_hidden(tmp_path: Path) -> None:
    """A real package whose import fails as the real one does without CUDA: with an error that is no ImportError."""
    package = tmp_path / 'transformer_engine'
    (package / 'pytorch').mkdir(parents=True)
    (package / '__init__.py').write_text('raise OSError("libcudart.so.13: cannot open shared object file")\n')
    (package / 'pytorch' / '__init__.py').write_text('')
    code = (
        f'import sys; sys.path.insert(0, {str(tmp_path)!r})\n'
        'import nemo_vtb.backbone.megatron.model\n'  # megatron before anything else
        'from nemo_vtb.backbone.megatron import runtime\n'
        'print(runtime.te_refusal)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'no CUDA device' in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason='is about machines without CUDA')
def test_a_transformer_engine_that_a_failed_import_left_behind_is_hidden() -> None:
    """As where another package imported it, and its library could not be loaded."""
    code = (
        'import sys, types; sys.modules["transformer_engine"] = types.ModuleType("transformer_engine")\n'
        'import nemo_vtb.backbone.megatron.model\n'
        'from nemo_vtb.backbone.megatron import runtime\n'
        'print(runtime.te_refusal, sys.modules["transformer_engine"])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'no CUDA device' in done.stdout and done.stdout.strip().endswith('None')
