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
"""Names, order and first weights without the Hugging Face model are those of the Hugging Face model."""

import os
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from nemo_vtb.backbone.names import base_fingerprint, base_weights, lora_like_peft, peft_name, state_name
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.testing import tiny_model_cfg


@pytest.mark.parametrize('family', ['llama', 'gemma', 'qwen3'])
@pytest.mark.parametrize('lora', [True, False])
def test_base_weights_are_those_of_the_state_dict(tmp_path: Path, family: str, lora: bool) -> None:
    cfg = tiny_model_cfg(tmp_path, lora=lora, family=family, encoder='whisper')
    model = VoiceTextBlender(cfg)
    before = len(os.listdir('/proc/self/fd'))
    own = base_weights(cfg['pretrained_llm'], model.backbone.lora_state())
    assert len(os.listdir('/proc/self/fd')) == before  # an LLM may have more tensors than a process descriptors
    theirs = model.backbone.frozen_weights()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    assert base_fingerprint(own) == base_fingerprint(theirs)
    # each has memory of its own: `torch.save` writes whole storages
    assert all(v.untyped_storage().nbytes() == v.numel() * v.element_size() for v in own.values())


@pytest.mark.parametrize('family', ['llama', 'gemma', 'qwen3'])
def test_lora_begins_as_with_peft(tmp_path: Path, family: str) -> None:
    from nemo_vtb.backbone.hf import load_llm, with_lora

    cfg = tiny_model_cfg(tmp_path, family=family, encoder='whisper')
    llm = load_llm(cfg['pretrained_llm'], pretrained=True)
    model = VoiceTextBlender(cfg)
    torch.manual_seed(3)
    peft = with_lora(llm, OmegaConf.to_container(OmegaConf.create(cfg['lora'])))
    after_peft = torch.rand(())
    theirs = {n: p.detach() for n, p in peft.named_parameters() if '.lora_' in n}
    torch.manual_seed(3)
    own = lora_like_peft({name: tuple(v.shape) for name, v in model.backbone.lora_state().items()})
    assert torch.equal(torch.rand(()), after_peft)  # what is drawn next is the same too
    assert [state_name(name) for name in own] == [f'llm.{name}' for name in theirs]
    assert all(torch.equal(a, b) for a, b in zip(own.values(), theirs.values(), strict=True))
    # the order of the optimizer's state
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained[: len(own)] == [state_name(name) for name in own]
    assert [peft_name(state_name(name)) for name in own] == list(own)


def test_trained_state_goes_back_and_forth(tmp_path: Path) -> None:
    cfg = tiny_model_cfg(tmp_path, encoder='whisper')
    one, two = VoiceTextBlender(cfg), VoiceTextBlender(OmegaConf.create(cfg))
    state = {name: torch.randn_like(v) for name, v in one.trained_state().items() if v.is_floating_point()}
    two.load_trained_state({**one.trained_state(), **state})
    for name, value in two.trained_state().items():
        assert torch.equal(value, state.get(name, value)), name
    assert two.trained_state().keys() == set(two.state_dict()) - set(two.backbone.frozen_weights())
