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
"""Shapes of well-known LLMs and speech encoders, so that a training can be forecast without their files."""

from typing import Any


def _fastconformer(layers: int) -> dict[str, Any]:
    return {
        '_target_': 'nemo.collections.asr.modules.ConformerEncoder',
        'feat_in': 128,
        'feat_out': -1,
        'n_layers': layers,
        'd_model': 1024,
        'subsampling': 'dw_striding',
        'subsampling_factor': 8,
        'subsampling_conv_channels': 256,
        'causal_downsampling': False,
        'ff_expansion_factor': 4,
        'self_attention_model': 'rel_pos',
        'n_heads': 8,
        'att_context_size': [-1, -1],
        'xscaling': False,
        'conv_kernel_size': 9,
        'conv_norm_type': 'batch_norm',
        'sync_max_audio_length': False,
    }


ENCODERS: dict[str, dict[str, Any]] = {
    'nvidia/canary-1b': _fastconformer(24),
    'nvidia/canary-1b-flash': _fastconformer(32),
}
"""NeMo ASR model -> configuration of its encoder. Source: their model cards; the first has the paper's 609 M."""

_GEMMA_2B = {
    'model_type': 'gemma',
    'vocab_size': 256000,
    'hidden_size': 2048,
    'intermediate_size': 16384,
    'num_hidden_layers': 18,
    'num_attention_heads': 8,
    'num_key_value_heads': 1,
    'head_dim': 256,
    'tie_word_embeddings': True,
}
_LLAMA_8B = {
    'model_type': 'llama',
    'vocab_size': 128256,
    'hidden_size': 4096,
    'intermediate_size': 14336,
    'num_hidden_layers': 32,
    'num_attention_heads': 32,
    'num_key_value_heads': 8,
    'tie_word_embeddings': False,
}

LLMS: dict[str, dict[str, Any]] = {
    'google/gemma-2b': _GEMMA_2B,
    'google/gemma-2b-it': _GEMMA_2B,
    'meta-llama/Llama-3.1-8B': _LLAMA_8B,
    'meta-llama/Llama-3.1-8B-Instruct': _LLAMA_8B,
    'Qwen/Qwen3-8B': {
        'model_type': 'qwen3',
        'vocab_size': 151936,
        'hidden_size': 4096,
        'intermediate_size': 12288,
        'num_hidden_layers': 36,
        'num_attention_heads': 32,
        'num_key_value_heads': 8,
        'head_dim': 128,
        'tie_word_embeddings': False,
    },
}
"""Name on the hub -> its configuration. Source: the published `config.json`."""
