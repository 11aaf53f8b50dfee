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
"""`VoiceTextBlender.generate` and `answer` with the LLM on Megatron: the same answers to text and speech."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from nemo_vtb.errors import VtbConfigError
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.testing import AUDIO_TAG, tiny_corpus, tiny_model_cfg

pytestmark = pytest.mark.integration


@pytest.fixture(scope='module')
def pair(alone: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model, and its backbone on Megatron with the same weights and LoRA."""
    from nemo_vtb.backbone.megatron import convert, lora
    from nemo_vtb.backbone.megatron.model import MegatronBackbone

    torch.manual_seed(0)
    model = VoiceTextBlender(tiny_model_cfg(tmp_path_factory.mktemp('model'))).eval()
    hf = model.llm.get_base_model()
    backbone = MegatronBackbone(hf.config)
    weights = {name.replace('.base_layer', ''): value for name, value in hf.state_dict().items()}
    weights['model.embed_tokens.weight'] = model.embed_tokens.weight
    convert.load_weights(
        backbone.gpt, weights, backbone.family, backbone.geometry, rank=0, ranks=1, tied=backbone.tied
    )
    lora.add_lora(backbone.gpt, backbone.geometry, r=4, alpha=4, targets='all-linear')
    state = {k: torch.randn_like(v) * 0.1 for k, v in model.backbone.lora_state().items()}
    model.backbone.load_lora(state)
    backbone.load_lora(state)
    return model, backbone


def both(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[Any]:
    model, backbone = pair
    found = [model.generate(**options)]
    with monkeypatch.context() as patch:
        patch.setitem(model.__dict__, 'backbone', backbone)  # not as a submodule
        found.append(model.generate(**options))
    return found


def test_text_and_speech_are_answered_alike(
    pair: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tiny_corpus(tmp_path, 2)
    clip = str(next((corpus.folder / 'wav').iterdir()))
    prompts = [
        [{'role': 'user', 'content': 'turn on the lamp'}],
        [{'role': 'user', 'content': f'Which word is said first? {AUDIO_TAG}', 'audio': [clip]}],
    ]
    one, other = both(pair, monkeypatch, prompts=prompts, max_new_tokens=6, do_sample=False)
    assert torch.equal(one, other) and one.shape[0] == 2
    config = GenerationConfig(max_new_tokens=4, eos_token_id=int(one[0, 1]), pad_token_id=0)
    one, other = both(pair, monkeypatch, prompts=prompts, generation_config=config)
    assert torch.equal(one, other) and (one[0, 2:] == 0).all()


def test_more_than_greedy_is_refused(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, backbone = pair
    monkeypatch.setitem(model.__dict__, 'backbone', backbone)  # not as a submodule
    with pytest.raises(VtbConfigError, match='temperature'):
        model.generate(prompts=[[{'role': 'user', 'content': 'go'}]], do_sample=True, temperature=0.7)
