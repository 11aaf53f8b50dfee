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
"""SmolLM2: one GGUF file (llama architecture, Q4_1/Q8_0) -> a Hugging Face folder.

The file is read with the `gguf` package alone. transformers' own GGUF loader takes ten times as long, returns a
model that refuses `save_pretrained`, and drops the splitting of digits from the tokenizer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_vtb.assets.converters.hf_folder import load_module, load_strictly, save_model
from nemo_vtb.errors import VtbAssetError

if TYPE_CHECKING:
    import numpy as np

_LAYER_NAMES = {
    'attn_norm': 'input_layernorm',
    'attn_q': 'self_attn.q_proj',
    'attn_k': 'self_attn.k_proj',
    'attn_v': 'self_attn.v_proj',
    'attn_output': 'self_attn.o_proj',
    'ffn_norm': 'post_attention_layernorm',
    'ffn_gate': 'mlp.gate_proj',
    'ffn_up': 'mlp.up_proj',
    'ffn_down': 'mlp.down_proj',
}
_TOP_NAMES = {'token_embd': 'model.embed_tokens', 'output_norm': 'model.norm', 'output': 'lm_head'}
_CONTROL_TOKEN = 3


def convert(gguf_file: Path, into: Path) -> None:
    """Write config, bfloat16 weights, tokenizer and chat template of a GGUF Llama into a folder.

    Args:
        gguf_file: The GGUF file.
        into: An existing folder.

    Raises:
        VtbAssetError: The architecture or tokenizer is another one, or a tensor is missing.
    """
    gguf = load_module('gguf')
    reader = gguf.GGUFReader(gguf_file)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    if facts.get('general.architecture') != 'llama' or facts.get('tokenizer.ggml.model') != 'gpt2':
        raise VtbAssetError(
            'A GGUF file holds a model of another family.',
            field=str(gguf_file),
            got=f'{facts.get("general.architecture")}, tokenizer {facts.get("tokenizer.ggml.model")}',
            allowed='llama, tokenizer gpt2',
        )
    _save_tokenizer(facts, into)
    tensors = {}
    for tensor in reader.tensors:
        name = hf_name(tensor.name)
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if name.endswith(('q_proj.weight', 'k_proj.weight')):
            heads = facts['llama.attention.head_count' + ('_kv' if 'k_proj' in name else '')]
            values = unpermute(values, heads)
        tensors[name] = values
    _save_model(facts, tensors, into)


def hf_name(name: str) -> str:
    """Hugging Face name of a GGUF Llama tensor. Raises VtbAssetError for an unknown one."""
    stem, _, suffix = name.rpartition('.')
    if stem in _TOP_NAMES:
        return f'{_TOP_NAMES[stem]}.{suffix}'
    parts = stem.split('.')
    if len(parts) == 3 and parts[0] == 'blk' and parts[2] in _LAYER_NAMES:
        return f'model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.{suffix}'
    raise VtbAssetError('A GGUF tensor has a name that is not known.', field=name)


def unpermute(weights: 'np.ndarray', num_heads: int) -> 'np.ndarray':
    """Undo llama.cpp's reordering of rotary pairs: rows (heads, half, 2) -> (heads, 2, half).

    Args:
        weights: (H_out, H_in) query or key projection.
        num_heads: Number of heads of that projection.
    """
    half = weights.shape[0] // num_heads // 2
    return weights.reshape(num_heads, half, 2, -1).swapaxes(1, 2).reshape(weights.shape)


def _save_model(facts: Mapping, tensors: Mapping[str, 'np.ndarray'], into: Path) -> None:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    special = {
        'bos_token_id': facts['tokenizer.ggml.bos_token_id'],
        'eos_token_id': facts['tokenizer.ggml.eos_token_id'],
        'pad_token_id': facts['tokenizer.ggml.padding_token_id'],
    }
    config = LlamaConfig(
        vocab_size=len(facts['tokenizer.ggml.tokens']),
        hidden_size=facts['llama.embedding_length'],
        intermediate_size=facts['llama.feed_forward_length'],
        num_hidden_layers=facts['llama.block_count'],
        num_attention_heads=facts['llama.attention.head_count'],
        num_key_value_heads=facts['llama.attention.head_count_kv'],
        max_position_embeddings=facts['llama.context_length'],
        # stored as float32 (9.9999997e-06); 7 digits give back what was meant
        rms_norm_eps=float(f'{facts["llama.attention.layer_norm_rms_epsilon"]:.6g}'),
        rope_parameters={'rope_type': 'default', 'rope_theta': facts['llama.rope.freq_base']},
        tie_word_embeddings='lm_head.weight' not in tensors,
        **special,
    )
    model = LlamaForCausalLM(config)
    load_strictly(model, {name: torch.from_numpy(values.copy()) for name, values in tensors.items()})
    model.generation_config = GenerationConfig(**special)
    save_model(model.to(torch.bfloat16), into)


def _save_tokenizer(facts: Mapping, into: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = facts['tokenizer.ggml.tokens']
    merges = [tuple(merge.split(' ')) for merge in facts['tokenizer.ggml.merges']]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    splitters: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if facts['tokenizer.ggml.pre'] == 'smollm':
        # each digit stands alone, as the model was trained
        splitters.insert(0, pre_tokenizers.Digits(individual_digits=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(splitters)
    backend.decoder = decoders.ByteLevel()
    kinds = facts['tokenizer.ggml.token_type']
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[facts['tokenizer.ggml.bos_token_id']],
        eos_token=tokens[facts['tokenizer.ggml.eos_token_id']],
        pad_token=tokens[facts['tokenizer.ggml.padding_token_id']],
        unk_token=tokens[facts['tokenizer.ggml.unknown_token_id']],
        model_max_length=facts['llama.context_length'],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = facts['tokenizer.chat_template']
    tokenizer.save_pretrained(into)
