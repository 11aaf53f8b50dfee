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
"""Fields of LoRA act or are refused by name; each target is a layer of the LLM."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from nemo_vtb.backbone.hf import with_lora
from nemo_vtb.errors import VtbModelError

PLAIN = {'r': 2, 'lora_alpha': 4, 'task_type': 'CAUSAL_LM', 'target_modules': ['q_proj', 'v_proj']}


def llm(*, tied: bool = False) -> nn.Module:
    sizes = {'hidden_size': 16, 'intermediate_size': 32, 'num_attention_heads': 2, 'num_key_value_heads': 2}
    with torch.device('meta'):
        return LlamaForCausalLM(LlamaConfig(vocab_size=40, num_hidden_layers=2, tie_word_embeddings=tied, **sizes))


@pytest.mark.parametrize(('lora', 'field'), [
    ({'target_modules': ['q_proj', 'v_porj']}, 'target_modules'),
    ({'target_modules': r'.*\.v_porj'}, 'target_modules'),
    ({'target_modules': ['q_proj', 'embed_tokens']}, 'target_modules'),
    ({'target_modules': r'model\.embed_tokens'}, 'target_modules'),
    ({'exclude_modules': ['k_porj']}, 'exclude_modules'),
    ({'rank_pattern': {'q_porj': 4}}, 'rank_pattern'),
    ({'alpha_pattern': {'q_porj': 4}}, 'alpha_pattern'),
    ({'layers_to_transform': [0, 7]}, 'layers_to_transform'),
    ({'modules_to_save': ['lm_head']}, 'modules_to_save'),
    ({'bias': 'lora_only'}, 'bias'),
    ({'trainable_token_indices': [1, 2]}, 'trainable_token_indices'),
    ({'layer_replication': [[0, 2], [1, 2]]}, 'layer_replication'),
    ({'inference_mode': True}, 'inference_mode'),
    ({'init_lora_weights': 'pissa'}, 'init_lora_weights'),
    ({'init_lora_weights': 'olora'}, 'init_lora_weights'),
])  # fmt: skip
def test_a_field_that_cannot_act_is_refused(lora: dict[str, Any], field: str) -> None:
    with pytest.raises(VtbModelError) as caught:
        with_lora(llm(), PLAIN | lora)
    assert caught.value.field == f'model.lora.{field}'


def test_a_misspelt_target_names_the_nearest_layer() -> None:
    with pytest.raises(VtbModelError, match="Did you mean 'v_proj'"):
        with_lora(llm(), PLAIN | {'target_modules': ['q_proj', 'v_porj']})


def test_lora_on_a_tied_head_is_refused_and_on_a_head_of_its_own_acts() -> None:
    lora = PLAIN | {'target_modules': ['q_proj', 'lm_head']}
    with pytest.raises(VtbModelError, match='tied'):
        with_lora(llm(tied=True), lora)
    assert any('lm_head.lora_A' in name for name, _ in with_lora(llm(), lora).named_parameters())


@pytest.mark.parametrize('lora', [
    {}, {'target_modules': 'all-linear'}, {'target_modules': r'.*\.layers\.1\..*proj'}, {'use_rslora': True},
    {'use_dora': True}, {'rank_pattern': {'q_proj': 4}}, {'layers_to_transform': [1]}, {'target_modules': None},
    {'exclude_modules': ['k_proj'], 'target_modules': 'all-linear'}, {'init_lora_weights': 'gaussian'},
])  # fmt: skip
def test_fields_that_act_pass(lora: dict[str, Any]) -> None:
    assert LoraConfig(**PLAIN).task_type == TaskType.CAUSAL_LM
    assert [name for name, _ in with_lora(llm(), PLAIN | lora).named_parameters() if '.lora_' in name]
