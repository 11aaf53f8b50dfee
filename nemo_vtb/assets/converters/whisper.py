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
"""Whisper: the original .pt, a ggml file or a CTranslate2 file -> a Hugging Face folder in float32.

Every reader gives `WhisperWeights`: sizes and tensors under Hugging Face names, without the prefix `model.`. The
weight files carry no merges, so text can be read with them but not be written; OpenAI's package has them as a tiktoken
file, which becomes the tokenizer of the folder.
"""

import base64
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from nemo_vtb.assets.converters.hf_folder import load_strictly, save_model
from nemo_vtb.errors import VtbAssetError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperTokenizer

_GGML_MAGIC = 0x67676D6C
_GGML_HALF = 1
_CT2_DTYPES = {0: '<f4', 1: '<i1', 2: '<i2', 3: '<i4', 4: '<f2'}
# the vocabularies of the English and of the multilingual models (v1, v2); both end with 1608 special tokens:
# end, start, 99 languages, translate, transcribe, start of lm, start of prev, no speech, no timestamps, 1501 times
_VOCABULARIES = (51864, 51865)
_NUM_SPECIAL = 1608
_NUM_LANGUAGES = 99
_SPACE_TOKEN = 220
_NUM_TIMES = 1501
_TIME_STEP_S = 0.02
# what OpenAI's decoder suppresses, to keep speaker tags and sound descriptions out of a transcript
_SYMBOLS = [*'"#()*+/:;<=>@[\\]^_`{|}~「」『』', '<<', '>>', '<<<', '>>>', '--', '---', '-(', '-[', "('", '("']
_SYMBOLS += ['((', '))', '(((', ')))', '[[', ']]', '{{', '}}', '♪♪', '♪♪♪']
_NOTES = '♩♪♫♬♭♮♯'

# longer patterns first: `cross_attn` holds `attn`, `cross_attn_ln` holds `cross_attn`, `mlp_ln` holds `mlp`
_RENAMES = (
    (r'\bblocks\.', 'layers.'),
    (r'\bcross_attn_ln\.', 'encoder_attn_layer_norm.'),
    (r'\battn_ln\.', 'self_attn_layer_norm.'),
    (r'\bmlp_ln\.', 'final_layer_norm.'),
    (r'\bcross_attn\.', 'encoder_attn.'),
    (r'\battn\.', 'self_attn.'),
    (r'\.query\.', '.q_proj.'),
    (r'\.key\.', '.k_proj.'),
    (r'\.value\.', '.v_proj.'),
    (r'attn\.out\.', 'attn.out_proj.'),
    (r'\bmlp\.0\.', 'fc1.'),
    (r'\bmlp\.2\.', 'fc2.'),
    (r'\bln_post\.', 'layer_norm.'),
    (r'^decoder\.ln\.', 'decoder.layer_norm.'),
    (r'positional_embedding$', 'embed_positions.weight'),
    (r'token_embedding\.', 'embed_tokens.'),
)


@dataclass(frozen=True, slots=True)
class WhisperWeights:
    """Sizes and float tensors of one Whisper model.

    Args:
        sizes: OpenAI's names: n_mels, n_vocab, n_audio_ctx/state/head/layer, n_text_ctx/state/head/layer.
        state: Hugging Face name without `model.` -> tensor.
    """

    sizes: Mapping[str, int]
    state: Mapping[str, 'torch.Tensor']


def hf_name(name: str) -> str:
    """Hugging Face name (without `model.`) of one of OpenAI's tensors.

    >>> hf_name('decoder.blocks.0.cross_attn_ln.weight')
    'decoder.layers.0.encoder_attn_layer_norm.weight'
    """
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def read_pt(path: Path) -> WhisperWeights:
    """Weights of OpenAI's own checkpoint. Raises VtbAssetError if it is none."""
    import torch

    content = torch.load(path, map_location='cpu', weights_only=True)
    if not isinstance(content, dict) or not {'dims', 'model_state_dict'} <= set(content):
        raise VtbAssetError('A file is no Whisper checkpoint.', field=str(path))
    state = {hf_name(name): values.float() for name, values in content['model_state_dict'].items()}
    return WhisperWeights(dict(content['dims']), state)


def read_ggml(path: Path) -> WhisperWeights:
    """Weights of a whisper.cpp file (fp16 or fp32). Raises VtbAssetError if it is broken or quantised."""
    keys = 'n_vocab n_audio_ctx n_audio_state n_audio_head n_audio_layer'.split()
    keys += 'n_text_ctx n_text_state n_text_head n_text_layer n_mels file_type'.split()
    with path.open('rb') as stream:
        magic, *numbers = _unpack(stream, '<12i')
        if magic != _GGML_MAGIC:
            raise VtbAssetError('A file is no ggml file.', field=str(path), got=hex(magic), allowed=hex(_GGML_MAGIC))
        num_mels, num_bins = _unpack(stream, '<2i')
        stream.seek(4 * num_mels * num_bins, 1)
        for _ in range(_unpack(stream, '<i')[0]):
            stream.seek(_unpack(stream, '<i')[0], 1)
        state = {hf_name(name): _to_tensor(values) for name, values in _ggml_tensors(stream, path)}
    return WhisperWeights(dict(zip(keys, numbers, strict=True)), state)


def read_ct2(path: Path) -> WhisperWeights:
    """Weights of a CTranslate2 file (float).

    Raises:
        VtbAssetError: The file is broken, quantised, or has a key bias (Whisper has none).
    """
    stored = dict(_ct2_variables(path))
    state = {}
    for name, values in stored.items():
        for target, part in _ct2_parts(name, values):
            state[target] = _to_tensor(part)
    vocabulary, width = state['decoder.embed_tokens.weight'].shape
    layers = {side: 1 + max(_layer_numbers(state, side)) for side in ('encoder', 'decoder')}
    sizes = {
        'n_mels': state['encoder.conv1.weight'].shape[1],
        'n_vocab': vocabulary,
        'n_audio_ctx': state['encoder.embed_positions.weight'].shape[0],
        'n_audio_state': width,
        'n_audio_head': int(stored['encoder/num_heads']),
        'n_audio_layer': layers['encoder'],
        'n_text_ctx': state['decoder.embed_positions.weight'].shape[0],
        'n_text_state': width,
        'n_text_head': int(stored['decoder/num_heads']),
        'n_text_layer': layers['decoder'],
    }
    return WhisperWeights(sizes, state)


def save(weights: WhisperWeights, into: Path, suppressed: Sequence[int] | None = None) -> None:
    """Write config, float32 weights, generation config and feature extractor settings into a folder.

    Args:
        weights: What a reader gave.
        into: An existing folder.
        suppressed: Token ids that decoding never samples.

    Raises:
        VtbAssetError: Tensors are missing or do not fit.
    """
    import torch
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    config = _config(weights.sizes)
    model = WhisperForConditionalGeneration(config)
    state = {f'model.{name}': values for name, values in weights.state.items()}
    for name in ('model.encoder.conv1.bias', 'model.encoder.conv2.bias'):
        # ggml keeps a trailing axis of one
        state[name] = state[name].flatten()
    load_strictly(model, state)
    model.generation_config = _generation_config(config, suppressed)
    save_model(model.to(torch.float32), into)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(into)


def _config(sizes: Mapping[str, int]) -> 'WhisperConfig':
    from transformers import WhisperConfig

    if sizes['n_vocab'] not in _VOCABULARIES:
        raise VtbAssetError(
            'This Whisper vocabulary is not known.', field='n_vocab', got=sizes['n_vocab'], allowed=_VOCABULARIES
        )
    end = sizes['n_vocab'] - _NUM_SPECIAL
    return WhisperConfig(
        vocab_size=sizes['n_vocab'],
        num_mel_bins=sizes['n_mels'],
        d_model=sizes['n_audio_state'],
        encoder_layers=sizes['n_audio_layer'],
        encoder_attention_heads=sizes['n_audio_head'],
        encoder_ffn_dim=4 * sizes['n_audio_state'],
        decoder_layers=sizes['n_text_layer'],
        decoder_attention_heads=sizes['n_text_head'],
        decoder_ffn_dim=4 * sizes['n_text_state'],
        max_source_positions=sizes['n_audio_ctx'],
        max_target_positions=sizes['n_text_ctx'],
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=end + 1,
        begin_suppress_tokens=None,
    )


def _generation_config(config: 'WhisperConfig', suppressed: Sequence[int] | None) -> 'GenerationConfig':
    """What `generate` of transformers needs to choose language and task; the files do not carry it."""
    from transformers import GenerationConfig
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    end = config.eos_token_id
    settings = {
        'max_length': config.max_target_positions,
        'pad_token_id': end,
        'bos_token_id': end,
        'eos_token_id': end,
        'decoder_start_token_id': end + 1,
        'prev_sot_token_id': end + 5 + _NUM_LANGUAGES,
        'no_timestamps_token_id': end + 7 + _NUM_LANGUAGES,
        'begin_suppress_tokens': [_SPACE_TOKEN, end],
        'suppress_tokens': suppressed,
        'is_multilingual': config.vocab_size == _VOCABULARIES[1],
        'return_timestamps': False,
    }
    if settings['is_multilingual']:
        codes = list(LANGUAGES)[:_NUM_LANGUAGES]
        settings['lang_to_id'] = {f'<|{code}|>': end + 2 + index for index, code in enumerate(codes)}
        settings['task'] = 'transcribe'
        settings['task_to_id'] = {'translate': end + 2 + _NUM_LANGUAGES, 'transcribe': end + 3 + _NUM_LANGUAGES}
    return GenerationConfig(**settings)


def _to_tensor(values: 'np.ndarray') -> 'torch.Tensor':
    import torch

    return torch.from_numpy(values.astype('float32'))


def _unpack(stream: BinaryIO, layout: str) -> tuple:
    data = stream.read(struct.calcsize(layout))
    if len(data) != struct.calcsize(layout):
        raise VtbAssetError('A weight file ends too early.', field=str(getattr(stream, 'name', '')))
    return struct.unpack(layout, data)


def _read_array(stream: BinaryIO, dtype: str, shape: tuple[int, ...]) -> 'np.ndarray':
    import numpy as np

    size = np.dtype(dtype).itemsize * int(np.prod(shape, dtype='int64'))
    data = stream.read(size)
    if len(data) != size:
        raise VtbAssetError('A weight file ends too early.', field=str(getattr(stream, 'name', '')))
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _ggml_tensors(stream: BinaryIO, path: Path) -> Iterator[tuple[str, 'np.ndarray']]:
    while head := stream.read(12):
        rank, name_length, kind = struct.unpack('<3i', head)
        if kind not in (0, _GGML_HALF):
            raise VtbAssetError('A ggml file is quantised.', field=str(path), got=f'type {kind}', allowed='fp32, fp16')
        shape = _unpack(stream, f'<{rank}i')[::-1]
        name = stream.read(name_length).decode()
        yield name, _read_array(stream, '<f2' if kind == _GGML_HALF else '<f4', shape)


def _ct2_variables(path: Path) -> Iterator[tuple[str, 'np.ndarray']]:
    """Name and values of each variable; the aliases that follow them are not needed."""
    with path.open('rb') as stream:
        _unpack(stream, '<I')
        spec = _ct2_string(stream)
        if 'Whisper' not in spec:
            raise VtbAssetError(
                'A CTranslate2 file holds another model.', field=str(path), got=spec, allowed='Whisper'
            )
        _revision, count = _unpack(stream, '<2I')
        for _ in range(count):
            name = _ct2_string(stream)
            (rank,) = _unpack(stream, '<B')
            shape = _unpack(stream, f'<{rank}I')
            (dtype,) = _unpack(stream, '<B')
            _unpack(stream, '<I')
            if dtype not in _CT2_DTYPES:
                raise VtbAssetError('A CTranslate2 file has an unknown dtype.', field=name, got=dtype)
            yield name, _read_array(stream, _CT2_DTYPES[dtype], shape)


def _ct2_string(stream: BinaryIO) -> str:
    (length,) = _unpack(stream, '<H')
    return stream.read(length).rstrip(b'\0').decode()


def _ct2_parts(name: str, values: 'np.ndarray') -> Iterator[tuple[str, 'np.ndarray']]:
    """Hugging Face names and values of one CTranslate2 variable: fused projections are split, settings skipped."""
    if values.ndim == 0 or name.endswith('_scale'):
        return
    if values.dtype.kind != 'f':
        raise VtbAssetError('A CTranslate2 file is quantised.', field=name, got=values.dtype, allowed='fp32, fp16')
    stem, _, leaf = name.rpartition('/')
    leaf = {'gamma': 'weight', 'beta': 'bias', 'encodings': 'weight'}.get(leaf, leaf)
    target = _ct2_stem(stem)
    fused = re.search(r'(self_attention|attention)/linear_([012])$', stem)
    if not fused:
        yield f'{target}.{leaf}', values
        return
    attention, position = fused.groups()
    projections = {
        ('self_attention', '0'): 'qkv',
        ('attention', '0'): 'q',
        ('attention', '1'): 'kv',
    }.get((attention, position))
    if projections is None:
        yield f'{target}.out_proj.{leaf}', values
        return
    for letter, part in zip(projections, values.reshape(len(projections), -1, *values.shape[1:]), strict=True):
        if letter == 'k' and leaf == 'bias':
            if part.any():
                raise VtbAssetError('A Whisper file has a key bias.', field=name, allowed='zero')
            continue
        yield f'{target}.{letter}_proj.{leaf}', part


def _ct2_stem(stem: str) -> str:
    """'decoder/layer_0/attention/linear_1' -> 'decoder.layers.0.encoder_attn' (projection names come later)."""
    for pattern, replacement in (
        (r'layer_(\d+)', r'layers/\1'),
        (r'self_attention/layer_norm$', 'self_attn_layer_norm'),
        (r'/attention/layer_norm$', '/encoder_attn_layer_norm'),
        (r'self_attention/linear_\d$', 'self_attn'),
        (r'/attention/linear_\d$', '/encoder_attn'),
        (r'ffn/layer_norm$', 'final_layer_norm'),
        (r'ffn/linear_0$', 'fc1'),
        (r'ffn/linear_1$', 'fc2'),
        (r'position_encodings$', 'embed_positions'),
        (r'embeddings$', 'embed_tokens'),
    ):
        stem = re.sub(pattern, replacement, stem)
    return stem.replace('/', '.')


def _layer_numbers(state: Mapping[str, object], side: str) -> set[int]:
    pattern = re.compile(rf'{side}\.layers\.(\d+)\.')
    return {int(match.group(1)) for match in map(pattern.match, state) if match}


# ---- the tokenizer


def save_tokenizer(tiktoken_file: Path, into: Path) -> 'WhisperTokenizer':
    """Write tokenizer.json and tokenizer_config.json into a folder.

    Args:
        tiktoken_file: gpt2.tiktoken (English models) or multilingual.tiktoken.
        into: An existing folder.

    Returns:
        The tokenizer.
    """
    from tokenizers import AddedToken
    from transformers import WhisperTokenizer
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    ranks = read_tiktoken(tiktoken_file)
    letters = byte_letters()
    vocabulary = {_spell(token, letters): rank for token, rank in ranks.items()}
    languages = [f'<|{code}|>' for code in list(LANGUAGES)[:_NUM_LANGUAGES]]
    special = ['<|endoftext|>', '<|startoftranscript|>', *languages, '<|translate|>', '<|transcribe|>']
    special += ['<|startoflm|>', '<|startofprev|>', '<|nospeech|>', '<|notimestamps|>']
    # all special ids stand in the model's vocabulary already, else their order would be left to chance
    vocabulary.update({token: len(ranks) + index for index, token in enumerate(special)})
    times = [f'<|{index * _TIME_STEP_S:.2f}|>' for index in range(_NUM_TIMES)]
    vocabulary.update({token: len(ranks) + len(special) + index for index, token in enumerate(times)})
    tokenizer = WhisperTokenizer(
        vocab=vocabulary,
        merges=[(_spell(left, letters), _spell(right, letters)) for left, right in _merges(ranks)],
        additional_special_tokens=special[1:],
        pad_token='<|endoftext|>',
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in times])
    tokenizer.save_pretrained(into)
    return tokenizer


def read_tiktoken(path: Path) -> dict[bytes, int]:
    """Bytes of each token -> rank, which is its id."""
    lines = path.read_text(encoding='ascii').splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}


def byte_letters() -> dict[int, str]:
    """GPT-2's letter for each of the 256 bytes: printable ones stand for themselves."""
    printable = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + i) for i, byte in enumerate(others)}}


def non_speech_ids(tokenizer: 'WhisperTokenizer') -> list[int]:
    """Ids that OpenAI's decoder never samples: symbols that are no speech, and tokens that only steer the decoder."""

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    found = {encode(' -')[0], encode(" '")[0]}
    for symbol in [*_SYMBOLS, *_NOTES]:
        for ids in (encode(symbol), encode(f' {symbol}')):
            if len(ids) == 1 or symbol in _NOTES:
                found.add(ids[0])
    steering = ['startoftranscript', 'translate', 'transcribe', 'startoflm', 'startofprev', 'nospeech']
    found.update(tokenizer.convert_tokens_to_ids([f'<|{name}|>' for name in steering]))
    return sorted(found)


def _spell(token: bytes, letters: dict[int, str]) -> str:
    return ''.join(letters[byte] for byte in token)


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every split of a token into two others, in the order of the token's rank, as tiktoken merges."""
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        splits = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [
            (ranks[left], ranks[right], left, right) for left, right in splits if left in ranks and right in ranks
        ]
        merges += [(left, right) for _, _, left, right in sorted(known)]
    return merges
