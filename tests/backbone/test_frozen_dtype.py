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
"""A frozen LLM in bfloat16 beside float32 LoRA, adapter and encoder: what is kept, trained, saved and restored."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_vtb.backbone.spec import BackboneSpec
from nemo_vtb.data.collate import Collator
from nemo_vtb.errors import VtbConfigError
from nemo_vtb.evaluation.tasks.held_out import load_conversations
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.model.loss import row_nll
from nemo_vtb.testing import TinyCorpus, tiny_model_cfg

pytestmark = pytest.mark.integration


def make(folder: Path, **keys: Any) -> VoiceTextBlender:
    torch.manual_seed(0)
    return VoiceTextBlender(tiny_model_cfg(folder, encoder='whisper') | keys)


@pytest.fixture(scope='module')
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[VoiceTextBlender, VoiceTextBlender]:
    """The LLM in float32 and in bfloat16."""
    folder = tmp_path_factory.mktemp('models')
    return make(folder), make(folder, frozen_dtype='bfloat16')


def learn(model: VoiceTextBlender, corpus: TinyCorpus) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    kinds = ('speech_qa', 'text')
    conversations = [c for kind in kinds for c in load_conversations(corpus.path(kind), kind)][:4]
    row = Collator(model.renderer, model.frames)(conversations)
    row, hidden = model.hidden_states(row)
    loss = row_nll(hidden, row.labels, model.backbone.nll).mean()
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_only_what_is_frozen_in_the_llm_changes_its_type(models: tuple[VoiceTextBlender, VoiceTextBlender]) -> None:
    exact, half = models
    for name, parameter in half.named_parameters():
        base = name.startswith(('llm.', 'embed_tokens.')) and '.lora_' not in name
        assert parameter.dtype == (torch.bfloat16 if base else torch.float32), name
        assert parameter.requires_grad == dict(exact.named_parameters())[name].requires_grad
    rotary = half.backbone.decoder.rotary_emb.inv_freq
    assert rotary.dtype == torch.float32 and torch.equal(rotary, exact.backbone.decoder.rotary_emb.inv_freq)


def test_it_learns_the_same_within_the_rounding(
    models: tuple[VoiceTextBlender, VoiceTextBlender], corpus: TinyCorpus
) -> None:
    (loss, expected), (close, found) = (learn(model, corpus) for model in models)
    assert close == pytest.approx(loss, rel=1e-2) and close != loss
    assert found.keys() == expected.keys() and any(name.startswith('perception.') for name in found)
    for part in ('lora_B', 'perception.'):
        ours, theirs = (
            torch.cat([g.flatten() for n, g in sorted(each.items()) if part in n]) for each in (found, expected)
        )
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.1 * theirs.norm(), part


def test_no_activation_is_cast_for_lora_under_autocast(
    models: tuple[VoiceTextBlender, VoiceTextBlender], corpus: TinyCorpus
) -> None:
    """PEFT would make the input of each linear float32, and autocast bfloat16 again."""
    seen: list[torch.dtype] = []
    half = models[1]
    hooks = [
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
        for name, module in half.llm.named_modules()
        if name.endswith('lora_A.default')
    ]
    try:
        learn(half, corpus)
        assert hooks and set(seen) == {torch.float32}
        seen.clear()
        with torch.autocast('cpu', torch.bfloat16):
            loss, gradients = learn(half, corpus)
        assert set(seen) == {torch.bfloat16}
    finally:
        for hook in hooks:
            hook.remove()
    assert loss == pytest.approx(learn(half, corpus)[0], rel=1e-2)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_what_is_saved_is_the_llm_as_it_was_published(
    models: tuple[VoiceTextBlender, VoiceTextBlender], tmp_path: Path
) -> None:
    exact, half = models
    theirs, ours = exact.base_weights(), half.base_weights()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(value, ours[name].float()) for name, value in theirs.items())
    half.save_to(tmp_path / 'half.nemo')
    again = VoiceTextBlender.restore_from(str(tmp_path / 'half.nemo'), map_location='cpu')
    state = exact.state_dict()
    lora_and_speech = half.trained_state()
    for name, value in again.state_dict().items():
        assert value.dtype == state[name].dtype
        assert torch.equal(value, lora_and_speech.get(name, state[name])), name


def test_a_checkpoint_of_one_is_taken_by_the_other(models: tuple[VoiceTextBlender, VoiceTextBlender]) -> None:
    exact, half = models
    checkpoint: dict[str, Any] = {'state_dict': dict(half.state_dict())}
    half.on_save_checkpoint(checkpoint)
    assert not [name for name in checkpoint['state_dict'] if name.startswith('embed_tokens.')]
    exact.on_load_checkpoint(checkpoint)  # the same LLM, by its fingerprint
    exact.load_state_dict(checkpoint['state_dict'])


def test_answers_need_no_autocast(models: tuple[VoiceTextBlender, VoiceTextBlender], corpus: TinyCorpus) -> None:
    from dataclasses import replace

    conversation = next(iter(load_conversations(corpus.path('speech_qa'), 'speech_qa')))
    question = replace(conversation, turns=conversation.turns[:-1])
    exact, half = (model.next_token_logits(question) for model in models)
    assert (half - exact).norm() < 0.05 * exact.norm()
    assert len(models[1].answer([question], max_new_tokens=3)) == 1


@pytest.mark.parametrize(
    ('wanted', 'precision', 'in_half', 'expected'),
    [
        ('auto', 'bf16-mixed', True, torch.bfloat16),
        ('auto', 'bf16-mixed', False, torch.float32),
        ('auto', '32-true', True, torch.float32),
        ('auto', '16-mixed', True, torch.float32),
        ('auto', 'bf16-true', False, torch.bfloat16),
        ('float32', 'bf16-mixed', True, torch.float32),
        ('bfloat16', '32-true', False, torch.bfloat16),
    ],
)
def test_auto_is_by_device_and_precision(wanted: str, precision: str, in_half: bool, expected: torch.dtype) -> None:
    spec = BackboneSpec('llm', 64, 1.0, 2, frozen_dtype=wanted)
    assert spec.weight_dtype(precision=precision, in_half=in_half) == expected


def test_weights_that_are_trained_are_not_kept_in_bfloat16(tmp_path: Path) -> None:
    """A bfloat16 weight has 8 bits: an update of a thousandth of it is rounded away."""
    with pytest.raises(VtbConfigError) as caught:
        make(tmp_path, frozen_dtype='bfloat16', freeze_params=[])
    assert caught.value.field == 'model.frozen_dtype'
    trained = BackboneSpec('llm', 64, 1.0, 2, trained=('llm.model.norm.weight',))
    assert trained.weight_dtype(precision='bf16-mixed', in_half=True) == torch.float32


def test_megatron_keeps_lora_in_float32(alone: None, tmp_path: Path) -> None:
    from megatron_cases import tiny_config
    from transformers import AutoModelForCausalLM

    from nemo_vtb.backbone.megatron.model import build_backbone

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny_config('llama')).save_pretrained(tmp_path)
    lora = {'r': 4, 'lora_alpha': 8, 'target_modules': 'all-linear'}
    found = []
    for types in ({}, {'dtype': torch.bfloat16, 'lora_dtype': torch.float32}):
        backbone = build_backbone(tmp_path, lora_config=lora, **types)
        state = {name: torch.full_like(value, 0.02) for name, value in backbone.lora_state().items()}
        backbone.load_lora(state)
        assert {value.dtype for value in state.values()} == {torch.float32}
        embeds = backbone.embed(torch.arange(3, 12)).detach().requires_grad_()
        borders = torch.tensor([0, 4, 9], dtype=torch.int32)
        positions = torch.cat([torch.arange(4), torch.arange(5)])
        backbone.nll(backbone(embeds, positions, borders, 5), torch.arange(20, 29)).mean().backward()
        gradients = [p.grad for p in backbone.trainable_parameters().values()]
        assert {g.dtype for g in gradients} == {torch.float32}
        found.append(torch.cat([g.flatten() for g in gradients]))
    assert (found[1] - found[0]).norm() < 0.1 * found[0].norm()
