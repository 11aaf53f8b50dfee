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
"""GGUF -> Hugging Face: a tiny file written here comes back exactly; the real model answers in English."""

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from nemo_vtb.assets.converters.hf_folder import check_chat_folder
from nemo_vtb.assets.converters.smollm2 import convert, hf_name, unpermute
from nemo_vtb.errors import VtbAssetError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GGUF_NAMES = {
    'input_layernorm': 'attn_norm',
    'self_attn.q_proj': 'attn_q',
    'self_attn.k_proj': 'attn_k',
    'self_attn.v_proj': 'attn_v',
    'self_attn.o_proj': 'attn_output',
    'post_attention_layernorm': 'ffn_norm',
    'mlp.gate_proj': 'ffn_gate',
    'mlp.up_proj': 'ffn_up',
    'mlp.down_proj': 'ffn_down',
}


def tiny_tokens():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return ['<|endoftext|>', '<|im_start|>', '<|im_end|>', *letters, '12', 'he', 'Ġhe']


def tiny_llama():
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tiny_tokens()),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={'rope_type': 'default', 'rope_theta': 1e5},
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    for values in model.parameters():
        # bfloat16 values survive the converter's bfloat16 file unchanged
        values.data = values.data.bfloat16().float()
    return model


def permute(weights, heads):
    """llama.cpp's reordering of rotary pairs, as its converter writes it."""
    shape = weights.shape
    return weights.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def gguf_name(name):
    name = name.removeprefix('model.').removesuffix('.weight')
    if name in ('embed_tokens', 'norm'):
        return {'embed_tokens': 'token_embd', 'norm': 'output_norm'}[name] + '.weight'
    _, layer, rest = name.split('.', 2)
    return f'blk.{layer}.{GGUF_NAMES[rest]}.weight'


def write_gguf(path, model, architecture='llama', quantise_embedding=False):
    writer = gguf.GGUFWriter(path, architecture)
    config = model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(1e5)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre('smollm')
    tokens = tiny_tokens()
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(['1 2', 'h e', 'Ġ he'])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHATML)
    for name, values in model.state_dict().items():
        if name == 'lm_head.weight':
            continue
        values = values.numpy()
        if 'q_proj' in name:
            values = permute(values, config.num_attention_heads)
        if 'k_proj' in name:
            values = permute(values, config.num_key_value_heads)
        if quantise_embedding and 'embed_tokens' in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_tiny_model_comes_back_exactly(tmp_path):
    model = tiny_llama()
    folder = tmp_path / 'out'
    folder.mkdir()
    convert(write_gguf(tmp_path / 'tiny.gguf', model), folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for name, values in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], values), name
    ids = torch.tensor([[1, 5, 9, 30, 2]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.config.rms_norm_eps == 1e-5
    assert loaded.config.rope_parameters['rope_theta'] == 1e5
    assert (loaded.config.pad_token_id, loaded.config.eos_token_id, loaded.config.bos_token_id) == (2, 2, 1)
    assert loaded.config.tie_word_embeddings


def test_the_tokenizer_splits_digits_and_keeps_control_tokens(tmp_path):
    folder = tmp_path / 'out'
    folder.mkdir()
    convert(write_gguf(tmp_path / 'tiny.gguf', tiny_llama()), folder)
    check_chat_folder(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer('he 12 he').tokens() == ['he', 'Ġ', '1', '2', 'Ġhe']
    assert tokenizer('<|im_end|>')['input_ids'] == [2]
    assert tokenizer.decode(tokenizer('Éa\n12')['input_ids']) == 'Éa\n12'
    text = tokenizer.apply_chat_template([{'role': 'user', 'content': 'he'}], tokenize=False)
    assert text == '<|im_start|>user\nhe<|im_end|>\n'


def test_quantised_tensors_are_close(tmp_path):
    model = tiny_llama()
    folder = tmp_path / 'out'
    folder.mkdir()
    convert(write_gguf(tmp_path / 'tiny.gguf', model, quantise_embedding=True), folder)
    got = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).get_input_embeddings().weight
    wanted = model.get_input_embeddings().weight
    assert (got - wanted).abs().max() < wanted.abs().max() / 100


def test_another_architecture_is_refused(tmp_path):
    path = write_gguf(tmp_path / 'tiny.gguf', tiny_llama(), architecture='falcon')
    with pytest.raises(VtbAssetError, match='another family'):
        convert(path, tmp_path)


def test_unpermute_by_hand():
    # one head of width 4: llama.cpp stores rows 0, 2, 1, 3
    assert unpermute(np.array([[0], [2], [1], [3]]), 1).ravel().tolist() == [0, 1, 2, 3]


def test_unknown_names_are_refused():
    assert hf_name('blk.7.ffn_up.weight') == 'model.layers.7.mlp.up_proj.weight'
    with pytest.raises(VtbAssetError, match='name that is not known'):
        hf_name('blk.7.attn_rope.weight')


@pytest.mark.real_weights
def test_the_real_model_knows_paris(assets):
    folder = assets('smollm2-135m-instruct')['smollm2-135m-instruct']
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert model.dtype == torch.float32
    assert sum(values.numel() for values in model.parameters()) == 134_515_008
    ids = tokenizer('The capital of France is', return_tensors='pt')['input_ids']
    assert ids.tolist() == [[504, 3575, 282, 4649, 314]]
    answer = model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(answer).startswith(' Paris.')
    chat = [{'role': 'user', 'content': 'What is 2 + 3?'}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors='pt', return_dict=True)
    reply = model.generate(**asked, max_new_tokens=12, do_sample=False)[0, asked['input_ids'].shape[1] :]
    assert tokenizer.decode(reply) == '2 + 3 = 5<|im_end|>'
