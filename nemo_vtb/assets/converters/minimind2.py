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
"""MiniMind2: an 8-bit ONNX graph of a Llama -> a Hugging Face folder in float32.

The quantised MatMul weights are anonymous; their names come from the nodes that use them.
"""

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_vtb.assets.converters.hf_folder import edit_json, load_module, load_strictly, save_model
from nemo_vtb.errors import VtbAssetError

if TYPE_CHECKING:
    import numpy as np
    import onnx

_EMBEDDING = 'model.embed_tokens.weight'
_MATMUL = re.compile(r'/model/(layers\.\d+)/(self_attn|mlp)/([a-z]+_proj)/MatMul')
_TOKENIZER_FILES = ('tokenizer.json', 'tokenizer_config.json')
_DROPPED = ('architectures', 'transformers_version', 'dtype', 'torch_dtype', 'rope_scaling')


def convert(source: Path, into: Path) -> None:
    """Write config, float32 weights, tokenizer and chat template into a folder.

    Args:
        source: Folder with model_quantized.onnx, config.json, tokenizer.json and tokenizer_config.json.
        into: An existing folder.

    Raises:
        VtbAssetError: The graph does not hold the weights that the config asks for.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

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
    model = LlamaForCausalLM(config)
    load_strictly(model, {name: torch.from_numpy(values) for name, values in weights.items()})
    special = {'bos_token_id': config.bos_token_id, 'eos_token_id': config.eos_token_id, 'pad_token_id': pad_token_id}
    model.generation_config = GenerationConfig(**special)
    save_model(model, into)
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
