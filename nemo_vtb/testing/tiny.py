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
"""Tiny models and data for tests, made on the spot: nothing is downloaded, everything is built by the real classes."""

import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_vtb.constants import KINDS
from nemo_vtb.errors import VtbConfigError

AUDIO_TAG = '<|audioplaceholder|>'
SPLITS = ('train', 'validation', 'test')

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Template of SmolLM2 and Qwen: system turns allowed, a newline behind the end of a turn."""

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
"""Template of Gemma: begins with a BOS, refuses system turns, trims contents."""

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
"""Template of Llama 3: headers, an end-of-turn token that is not the end of text."""


@dataclass(frozen=True, slots=True)
class _Template:
    text: str
    tokens: tuple[str, ...]
    end_of_turn: str


_TEMPLATES = {
    'chatml': _Template(CHATML, ('<|im_start|>', '<|im_end|>'), '<|im_end|>'),
    'gemma': _Template(GEMMA, ('<start_of_turn>', '<end_of_turn>'), '<end_of_turn>'),
    'llama3': _Template(LLAMA3, ('<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'), '<|eot_id|>'),
}

# what a family needs beyond the sizes that all of them call alike
_FAMILY_EXTRAS: dict[str, dict[str, Any]] = {
    'gemma': {'hidden_activation': 'gelu_pytorch_tanh'},
    'gemma2': {'hidden_activation': 'gelu_pytorch_tanh', 'query_pre_attn_scalar': 16, 'sliding_window': 32},
    'gemma3_text': {'hidden_activation': 'gelu_pytorch_tanh', 'query_pre_attn_scalar': 16, 'sliding_window': 32},
    'granite': {'embedding_multiplier': 12.0, 'logits_scaling': 8.0, 'residual_multiplier': 0.22},
    'llama': {},
    'mistral': {'sliding_window': None},
    'phi3': {},
    'qwen2': {},
    'qwen3': {},
}
TINY_FAMILIES = tuple(_FAMILY_EXTRAS)
"""Families (`model_type` of transformers) that `tiny_llm` builds."""

_TIED = ('gemma', 'gemma2', 'gemma3_text', 'granite')
_WORDS = (
    'turn on off open close the lamp heater fan window door in kitchen bedroom office garage at noon midnight seven '
    'tonight now please could you what did speaker say which room is it about transcribe recording translate into '
    'Spanish who asked how many words yes no first second tell me a story of sea and mountain rain green blue old'
).split()


def tiny_llm(
    folder: str | Path,
    family: str = 'llama',
    *,
    hidden: int = 64,
    layers: int = 2,
    vocab: int = 512,
    template: str | None = None,
    pad_is_end_of_turn: bool = False,
    seed: int = 0,
) -> Path:
    """Build a Hugging Face folder: config, random weights, trained byte-level BPE tokenizer with a chat template.

    Args:
        folder: Where the files go; a folder that is already an LLM is returned as it is.
        family: One of `TINY_FAMILIES`.
        hidden: Width H; a multiple of 16.
        layers: Decoder layers.
        vocab: Rows of the embedding; the tokenizer fills at most so many.
        template: 'chatml', 'gemma' or 'llama3'; None takes the one that the family is known for.
        pad_is_end_of_turn: Whether the padding token is also the end-of-turn token, as in many real tokenizers.
        seed: Seed of the weights.

    Returns:
        The folder.

    Raises:
        VtbConfigError: The family or the template is unknown.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    _check('family', family, TINY_FAMILIES)
    template = template or ('gemma' if family.startswith('gemma') else 'chatml')
    _check('template', template, tuple(_TEMPLATES))
    folder = Path(folder)
    if (folder / 'model.safetensors').is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(_TEMPLATES[template], vocab, pad_is_end_of_turn)
    tokenizer.save_pretrained(folder)
    config = AutoConfig.for_model(
        family,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        max_position_embeddings=4096,
        tie_word_embeddings=family in _TIED,
        # far from zero, so that even random weights answer differently to different prompts
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **_FAMILY_EXTRAS[family],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def tiny_whisper(folder: str | Path, *, width: int = 32, layers: int = 2, mels: int = 80, seed: int = 0) -> Path:
    """Build a Hugging Face WhisperModel folder with random weights, encoder and decoder, and return it."""
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    folder = Path(folder)
    if (folder / 'model.safetensors').is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {'encoder_layers': layers, 'encoder_attention_heads': 2, 'encoder_ffn_dim': 2 * width}
    sizes |= {'decoder_layers': 1, 'decoder_attention_heads': 2, 'decoder_ffn_dim': 2 * width}
    config = WhisperConfig(
        vocab_size=64, d_model=width, num_mel_bins=mels, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None, **sizes,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=mels).save_pretrained(folder)
    return folder


def tiny_perception_cfg(width: int = 64, *, d_model: int = 48, layers: int = 2) -> dict[str, Any]:
    """Config of NeMo's perception: a FastConformer (80 mel bins, one frame per 80 ms) and one Conformer layer.

    Args:
        width: Width H of the LLM.
        d_model: Width of encoder and adapter; a multiple of 4.
        layers: Layers of the encoder.
    """
    return {
        'target': 'nemo.collections.speechlm2.modules.perception.AudioPerceptionModule',
        'output_dim': width,
        'preprocessor': {
            '_target_': 'nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor',
            'sample_rate': 16000,
            'normalize': 'per_feature',
            'window': 'hann',
            'window_size': 0.025,
            'window_stride': 0.01,
            'features': 80,
            'n_fft': 512,
            'log': True,
            'frame_splicing': 1,
            'dither': 0.0,
            'pad_to': 0,
            'pad_value': 0.0,
        },
        'encoder': _conformer(80, d_model, layers, subsampling_factor=8),
        'modality_adapter': _conformer(d_model, d_model, 1, subsampling_factor=1),
    }


def tiny_model_cfg(
    folder: str | Path,
    lora: bool = True,
    *,
    family: str = 'llama',
    encoder: str = 'fastconformer',
    hidden: int = 64,
) -> dict[str, Any]:
    """Config of a tiny `VoiceTextBlender`; its LLM (and Whisper) are built below `folder`.

    Args:
        folder: Where the models go.
        lora: Whether the LLM gets LoRA on all linear layers; the LLM itself is frozen either way.
        family: Family of the LLM, one of `TINY_FAMILIES`.
        encoder: 'fastconformer' (random, from the config) or 'whisper' (weights of a tiny folder, stacking adapter).
        hidden: Width H of the LLM.

    Raises:
        VtbConfigError: Unknown family or encoder.
    """
    _check('encoder', encoder, ('fastconformer', 'whisper'))
    folder = Path(folder)
    cfg: dict[str, Any] = {
        'pretrained_llm': str(tiny_llm(folder / f'llm-{family}-{hidden}', family, hidden=hidden)),
        'pretrained_asr': None,
        'pretrained_weights': encoder == 'whisper',
        'audio_locator_tag': AUDIO_TAG,
        'freeze_params': [r'^llm\..+$', r'^embed_tokens\..+$'],
        'prevent_freeze_params': [],
        'optimizer': {'_target_': 'torch.optim.AdamW', 'lr': 1e-3, 'betas': [0.9, 0.98], 'weight_decay': 0.0},
        'lr_scheduler': {
            '_target_': 'nemo.core.optim.lr_scheduler.CosineAnnealing',
            'warmup_steps': 0,
            'min_lr': 1e-6,
            'max_steps': 1000,
        },
    }
    if encoder == 'whisper':
        adapter = {'_target_': 'nemo_vtb.model.perception.StackedMLPAdapter', 'd_model': 48, 'subsampling_factor': 4}
        cfg['pretrained_asr'] = str(tiny_whisper(folder / 'whisper'))
        cfg['perception'] = {
            'target': 'nemo.collections.speechlm2.modules.perception.AudioPerceptionModule',
            'modality_adapter': adapter,
        }
    else:
        cfg['perception'] = tiny_perception_cfg(hidden)
    if lora:
        cfg['lora'] = {
            'task_type': 'CAUSAL_LM',
            'r': 4,
            'lora_alpha': 4,
            'lora_dropout': 0.0,
            'target_modules': 'all-linear',
        }
    return cfg


@dataclass(frozen=True, slots=True)
class TinyCorpus:
    """The four kinds in three splits, in NeMo's `multimodal_conversation` format.

    Args:
        folder: Holds `<kind>.<split>.jsonl` and `wav/`.
    """

    folder: Path

    def path(self, kind: str, split: str = 'train') -> Path:
        """The manifest of one kind and split."""
        return self.folder / f'{kind}.{split}.jsonl'

    def paths(self, split: str = 'train') -> dict[str, str]:
        """All four manifests of a split by kind."""
        return {kind: str(self.path(kind, split)) for kind in KINDS}

    def input_cfg(self, split: str = 'train') -> list[dict[str, Any]]:
        """The split as entries of a NeMo `input_cfg`."""
        return [
            {'type': 'multimodal_conversation', 'kind': kind, 'manifest_filepath': path, 'weight': 1.0}
            for kind, path in self.paths(split).items()
        ]


def tiny_corpus(folder: str | Path, n: int = 8, *, seed: int = 0) -> TinyCorpus:
    """Write `n` conversations of each kind and split, with WAV files of 0.5 to 2 s at 16 kHz.

    Each word has a pitch of its own, so that a recording says what its transcript says and a tiny model can learn it.

    Args:
        folder: Where `<kind>.<split>.jsonl` and `wav/` go.
        n: Conversations per kind and split.
        seed: Seed of everything.
    """
    folder = Path(folder)
    (folder / 'wav').mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        for kind in KINDS:
            rng = random.Random(f'{seed}:{split}:{kind}')
            writer = _Writer(folder, f'{split}-{kind}', rng)
            with (folder / f'{kind}.{split}.jsonl').open('w', encoding='utf-8') as stream:
                for number in range(n):
                    stream.write(json.dumps(_MAKERS[kind](writer, number)) + '\n')
    return TinyCorpus(folder)


class _Writer:
    """Makes entries of a conversation and the recordings that they name."""

    def __init__(self, folder: Path, prefix: str, rng: random.Random) -> None:
        self.folder, self.prefix, self.rng, self.count = folder, prefix, rng, 0

    def words(self, low: int, high: int) -> str:
        return ' '.join(self.rng.choices(_WORDS, k=self.rng.randint(low, high)))

    def typed(self, role: str, value: str) -> dict[str, Any]:
        return {'type': 'text', 'from': role, 'value': value}

    def spoken(self, text: str) -> dict[str, Any]:
        import soundfile

        samples = _speech(text, self.rng.randrange(2**31))
        name = f'wav/{self.prefix}-{self.count}.wav'
        self.count += 1
        soundfile.write(self.folder / name, samples, 16000)
        return {'type': 'audio', 'from': 'User', 'value': name, 'duration': len(samples) / 16000, 'text': text}

    def line(self, number: int, entries: list[dict[str, Any]], **custom: str) -> dict[str, Any]:
        return {'id': f'{self.prefix}-{number}', 'conversations': entries, 'custom': custom}


def _text(w: _Writer, number: int) -> dict[str, Any]:
    entries = [w.typed('User', w.words(3, 8)), w.typed('Assistant', w.words(6, 16))]
    if number % 3 == 2:
        entries = [w.typed('System', 'Answer in short sentences.'), *entries]
        entries += [w.typed('User', w.words(2, 5)), w.typed('Assistant', w.words(3, 9))]
    return w.line(number, entries, kind='text', task='chat', source='tiny-chats', lang='en')


def _asr_ast(w: _Writer, number: int) -> dict[str, Any]:
    said = w.words(2, 5)
    if number % 3 == 2:
        entries = [w.spoken(said), w.typed('User', 'Say this in Spanish:'), w.typed('Assistant', f'es {said}')]
        return w.line(number, entries, kind='asr_ast', task='ast', source='tiny-ast', lang='en', target_lang='es')
    source = 'tiny-real' if number % 3 == 1 else 'tiny-commands'
    entries = [w.typed('User', 'Transcribe the speech.'), w.spoken(said), w.typed('Assistant', said)]
    return w.line(number, entries, kind='asr_ast', task='asr', source=source, lang='en')


def _speech_qa(w: _Writer, number: int) -> dict[str, Any]:
    said = w.words(2, 5)
    question = w.typed('User', 'Which word is said first?')
    entries = [w.spoken(said), question, w.typed('Assistant', f'The {said.split()[0]}.')]
    return w.line(number, entries, kind='speech_qa', task='first', source='tiny-qa', lang='en')


def _mixed_modal(w: _Writer, number: int) -> dict[str, Any]:
    first, second = w.words(2, 4), w.words(2, 4)
    entries = [
        w.typed('User', 'Listen to'), w.spoken(first), w.typed('User', 'and say its last word.'),
        w.typed('Assistant', first.split()[-1]),
        w.typed('User', 'And the first word of this?'), w.spoken(second),
        w.typed('Assistant', second.split()[0]),
    ]  # fmt: skip
    if number % 2:
        entries += [w.typed('User', 'Thank you.'), w.typed('Assistant', 'You are welcome.')]
    return w.line(number, entries, kind='mixed_modal', task='dialogue', source='tiny-mixed', lang='en')


_MAKERS = {'text': _text, 'asr_ast': _asr_ast, 'speech_qa': _speech_qa, 'mixed_modal': _mixed_modal}


def _speech(text: str, seed: int) -> Any:
    """One tone per word with a soft start and end, over faint noise: (S,) float32 at 16 kHz."""
    import numpy as np

    rng = np.random.default_rng(seed)
    length = 4000  # a quarter of a second for each word
    envelope = np.hanning(length)
    pieces = [rng.standard_normal(1600) * 0.0]
    for word in text.split():
        pitch = 150.0 * math.pow(2.0, _WORDS.index(word) / 24 if word in _WORDS else 0.5)
        time = np.arange(length) / 16000
        pieces.append(0.3 * envelope * (np.sin(2 * np.pi * pitch * time) + 0.3 * np.sin(4 * np.pi * pitch * time)))
    signal = np.concatenate([*pieces, np.zeros(1600 + int(rng.integers(0, 800)))])
    return (signal + 0.003 * rng.standard_normal(len(signal))).astype(np.float32)


def _tokenizer(template: _Template, vocab: int, pad_is_end_of_turn: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ['<pad>', '<s>', '</s>', *template.tokens, AUDIO_TAG]
    rng = random.Random(0)
    lines = [' '.join(rng.choices(_WORDS, k=12)) + '.' for _ in range(400)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator(lines, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token='<s>',
        eos_token=template.end_of_turn,
        pad_token=template.end_of_turn if pad_is_end_of_turn else '<pad>',
        extra_special_tokens=[AUDIO_TAG],
    )
    tokenizer.chat_template = template.text
    return tokenizer


def _conformer(feat_in: int, d_model: int, layers: int, subsampling_factor: int) -> dict[str, Any]:
    return {
        '_target_': 'nemo.collections.asr.modules.ConformerEncoder',
        'feat_in': feat_in,
        'feat_out': -1,
        'n_layers': layers,
        'd_model': d_model,
        'subsampling': 'dw_striding',
        'subsampling_factor': subsampling_factor,
        'subsampling_conv_channels': 16,
        'causal_downsampling': False,
        'ff_expansion_factor': 2,
        'self_attention_model': 'rel_pos',
        'n_heads': 4,
        'att_context_size': [-1, -1],
        'xscaling': False,
        'conv_kernel_size': 5,
        'conv_norm_type': 'batch_norm',
        'dropout': 0.0,
        'dropout_pre_encoder': 0.0,
        'dropout_emb': 0.0,
        'dropout_att': 0.0,
        'pos_emb_max_len': 5000,
    }


def _check(field: str, got: str, allowed: tuple[str, ...] | Mapping[str, Any]) -> None:
    if got not in allowed:
        raise VtbConfigError('There is no such test double.', field=field, got=got, allowed=', '.join(allowed))
