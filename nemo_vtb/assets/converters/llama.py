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
"""LLMs of the Llama family: an 8-bit ONNX graph (MiniMind2) or a GGUF file (SmolLM2) -> a Hugging Face folder.

The quantised MatMul weights of the graph are anonymous; their names come from the nodes that use them. The GGUF file
is read with the `gguf` package alone: transformers' own loader takes ten times as long, returns a model that refuses
`save_pretrained`, and drops the splitting of digits from the tokenizer.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_vtb.assets.converters.hf_folder import edit_json, load_module, load_strictly, save_model
from nemo_vtb.errors import VtbAssetError

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from transformers import LlamaConfig

_EMBEDDING = 'model.embed_tokens.weight'
_MATMUL = re.compile(r'/model/(layers\.\d+)/(self_attn|mlp)/([a-z]+_proj)/MatMul')
_TOKENIZER_FILES = ('tokenizer.json', 'tokenizer_config.json')
_DROPPED = ('architectures', 'transformers_version', 'dtype', 'torch_dtype', 'rope_scaling')
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


def convert_onnx(source: Path, into: Path) -> None:
    """Write config, float32 weights, tokenizer and chat template of an 8-bit ONNX graph into a folder.

    Args:
        source: Folder with model_quantized.onnx, config.json, tokenizer.json and tokenizer_config.json.
        into: An existing folder.

    Raises:
        VtbAssetError: The graph does not hold the weights that the config asks for.
    """
    from transformers import LlamaConfig

    onnx = load_module('onnx')
    weights = dequantised_weights(onnx.load(source / 'model_quantized.onnx'))
    facts = json.loads((source / 'config.json').read_text(encoding='utf-8'))
    pad_token_id = _pad_token_id(source)
    kept = {key: value for key, value in facts.items() if key not in (*_DROPPED, 'rope_theta')}
    config = LlamaConfig(
        **kept,
        rope_parameters={'rope_type': 'default', 'rope_theta': facts['rope_theta']},
        pad_token_id=pad_token_id,
    )
    _save_llama(config, weights, 'float32', into)
    for name in _TOKENIZER_FILES:
        shutil.copyfile(source / name, into / name)
    # keys of old slow tokenizers; current transformers warns about them or takes them for settings
    edit_json(into / 'tokenizer_config.json', legacy=None, sp_model_kwargs=None, additional_special_tokens=None)


def dequantised_weights(graph_model: 'onnx.ModelProto') -> dict[str, 'np.ndarray']:
    """Weights of the graph by Hugging Face name, float32; the separate LM head is left to the tied embedding.

    A MatMul weight is stored (H_in, H_out) and comes back as (H_out, H_in).

    Raises:
        VtbAssetError: No quantised embedding is there.
    """
    from onnx import numpy_helper

    graph = graph_model.graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {}
    for name, values in stored.items():
        if name.endswith('norm.weight'):
            weights[name] = values.astype('float32')
        elif name == f'{_EMBEDDING}_quantized':
            weights[_EMBEDDING] = _dequantise(stored, _EMBEDDING)
    for node in graph.node:
        match = _MATMUL.match(node.name)
        if match and node.op_type == 'MatMulInteger':
            stem = node.input[1].removesuffix('_quantized')
            name = 'model.' + '.'.join(match.groups()) + '.weight'
            weights[name] = _dequantise(stored, stem).T.copy()
    if _EMBEDDING not in weights:
        raise VtbAssetError('An ONNX graph holds no quantised embedding.', field=_EMBEDDING, got=sorted(stored)[:8])
    return weights


def _dequantise(stored: dict[str, 'np.ndarray'], stem: str) -> 'np.ndarray':
    """(quantised - zero point) * scale, in float32: the embedding is uint8 and would wrap around."""
    values = stored[f'{stem}_quantized'].astype('float32')
    zero_point = stored[f'{stem}_zero_point'].astype('float32')
    return (values - zero_point) * stored[f'{stem}_scale'].astype('float32')


def _pad_token_id(source: Path) -> int:
    """Id of the pad token; the model's config leaves it null."""
    settings = json.loads((source / 'tokenizer_config.json').read_text(encoding='utf-8'))
    for index, token in settings['added_tokens_decoder'].items():
        if token['content'] == settings['pad_token']:
            return int(index)
    raise VtbAssetError('A tokenizer names a pad token that it does not have.', field='pad_token')


def convert_gguf(gguf_file: Path, into: Path) -> None:
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
    from transformers import LlamaConfig

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
        bos_token_id=facts['tokenizer.ggml.bos_token_id'],
        eos_token_id=facts['tokenizer.ggml.eos_token_id'],
        pad_token_id=facts['tokenizer.ggml.padding_token_id'],
    )
    _save_llama(config, tensors, 'bfloat16', into)


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


def _save_llama(config: 'LlamaConfig', weights: Mapping[str, 'np.ndarray'], dtype: str, into: Path) -> None:
    """Write a model with these float32 weights, stored in `dtype`, and the special tokens of its configuration."""
    import torch
    from transformers import GenerationConfig, LlamaForCausalLM

    model = LlamaForCausalLM(config)
    load_strictly(model, {name: torch.from_numpy(values.copy()) for name, values in weights.items()})
    special = {name: getattr(config, name) for name in ('bos_token_id', 'eos_token_id', 'pad_token_id')}
    model.generation_config = GenerationConfig(**special)
    save_model(model.to(getattr(torch, dtype)), into)
