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
"""What each family of LLM asks of a Megatron decoder, read from its Hugging Face configuration.

Letters: H attention heads, K key-value heads, D width of a head, V vocabulary, F width of the MLP.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from nemo_vtb.errors import VtbModelError

FAMILIES = {
    'llama': 'Llama 2, Llama 3, SmolLM, SmolLM2, TinyLlama',
    'mistral': 'Mistral 7B',
    'qwen2': 'Qwen2, Qwen2.5',
    'qwen3': 'Qwen3 (dense)',
    'gemma': 'Gemma',
    'gemma2': 'Gemma 2',
    'gemma3_text': 'Gemma 3 (text)',
}
"""`model_type` of the configuration -> the LLMs that have it."""

_MULTIMODAL = {'gemma3': 'gemma3_text'}


def _gelu_tanh(x: Tensor) -> Tensor:
    # said in full, since megatron's unfused F.gelu would be the erf form
    return gelu(x, approximate='tanh')


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    'silu': silu,
    'gelu_pytorch_tanh': _gelu_tanh,
    'gelu_fast': _gelu_tanh,
}


@dataclass(frozen=True, slots=True)
class Family:
    """One LLM as its decoder must be built.

    Args:
        name: Key of `FAMILIES`.
        activation: Of the gated MLP.
        zero_centred: Norm weights are deviations from one (Gemma).
        embed_scale: Factor on token embeddings.
        qk_norm: Queries and keys are normalised per head.
        qkv_bias: Queries, keys and values have a bias.
        post_norms: The outputs of attention and MLP are normalised, too (Gemma 2 and 3).
        softmax_scale: Factor on attention scores; None is 1/sqrt(D).
        attention_softcap: Bound on attention scores.
        logit_softcap: Bound on logits.
        windows: How far back each layer sees; None is to the beginning.
        rope_kinds: Number of the rotary table of each layer.
    """

    name: str
    activation: Callable[[Tensor], Tensor]
    zero_centred: bool
    embed_scale: float
    qk_norm: bool
    qkv_bias: bool
    post_norms: bool
    softmax_scale: float | None
    attention_softcap: float | None
    logit_softcap: float | None
    windows: tuple[int | None, ...]
    rope_kinds: tuple[str, ...]

    @property
    def fused_activation(self) -> Callable[[Tensor], Tensor]:
        """By which megatron knows its fused kernel; that of `F.gelu` is the tanh form."""
        return gelu if self.activation is _gelu_tanh else self.activation


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of the LLM, and those that tensor parallelism can divide.

    Where ranks do not divide the key-value heads, whole groups of zero heads are added, which changes nothing; where
    there are fewer key-value heads than ranks, each is held by several (`copies`).
    """

    hidden: int
    heads: int
    kv: int
    head_dim: int
    ffn: int
    vocab: int
    heads_padded: int
    kv_padded: int
    ffn_padded: int
    vocab_padded: int
    copies: int

    @property
    def group(self) -> int:
        """Query heads that share a key-value head, as laid out for megatron."""
        return self.heads_padded // self.kv_padded

    def widths(self, tensor_parallel: int) -> list[int]:
        """Inputs and outputs of the linears of one rank."""
        qkv = (self.heads_padded + 2 * self.kv_padded) * self.head_dim
        shards = (qkv, self.heads_padded * self.head_dim, self.ffn_padded)
        return [self.hidden, *(width // tensor_parallel for width in shards)]


def family_of(config: Any) -> Family:
    """Read the family from a Hugging Face configuration (of a text LLM, or with one inside).

    Raises:
        VtbModelError: The family, its activation, its biases or its rotary embedding are not supported; it names
        which.
    """
    text = config.get_text_config()
    name = _MULTIMODAL.get(text.model_type, text.model_type)
    if name not in FAMILIES:
        raise _unsupported('model_type', text.model_type, ', '.join(f'{k} ({v})' for k, v in FAMILIES.items()))
    act = getattr(text, 'hidden_activation', None) or getattr(text, 'hidden_act', None)
    if act not in _ACTIVATIONS:
        raise _unsupported('hidden_act', act, ', '.join(_ACTIVATIONS))
    for key in ('mlp_bias', 'attention_bias'):
        if getattr(text, key, False):
            raise _unsupported(key, True, 'false')
    gemma = name.startswith('gemma')
    types = list(getattr(text, 'layer_types', None) or ())
    window = getattr(text, 'sliding_window', None)
    if not types:
        types = ['sliding_attention' if name == 'mistral' and window else 'full_attention'] * text.num_hidden_layers
    scalar = getattr(text, 'query_pre_attn_scalar', None)
    return Family(
        name=name,
        activation=_ACTIVATIONS[act],
        zero_centred=gemma,
        embed_scale=float(torch.tensor(text.hidden_size**0.5)) if gemma else 1.0,
        qk_norm=name in ('qwen3', 'gemma3_text'),
        qkv_bias=name == 'qwen2',
        post_norms=name in ('gemma2', 'gemma3_text'),
        softmax_scale=scalar**-0.5 if scalar else None,
        attention_softcap=getattr(text, 'attn_logit_softcapping', None),
        logit_softcap=getattr(text, 'final_logit_softcapping', None),
        windows=tuple(window if kind == 'sliding_attention' else None for kind in types),
        rope_kinds=tuple(types) if name == 'gemma3_text' else ('default',) * len(types),
    )


def geometry_of(config: Any, tensor_parallel: int) -> Geometry:
    """Sizes for a number of tensor-parallel ranks."""
    text, tp = config.get_text_config(), tensor_parallel
    heads, kv = text.num_attention_heads, text.num_key_value_heads or text.num_attention_heads
    copies, kv_padded = 1, -(-kv // tp) * tp
    heads_padded = heads // kv * kv_padded
    if kv < tp and tp % kv == 0 and heads % tp == 0:
        copies, kv_padded, heads_padded = tp // kv, tp, heads
    return Geometry(
        hidden=text.hidden_size,
        heads=heads,
        kv=kv,
        head_dim=getattr(text, 'head_dim', None) or text.hidden_size // heads,
        ffn=text.intermediate_size,
        vocab=text.vocab_size,
        heads_padded=heads_padded,
        kv_padded=kv_padded,
        ffn_padded=-(-text.intermediate_size // tp) * tp,
        vocab_padded=-(-text.vocab_size // tp) * tp,
        copies=copies,
    )


def _unsupported(key: str, got: object, allowed: str) -> VtbModelError:
    return VtbModelError(
        'The Megatron backbone does not support this LLM.',
        field=f'model.pretrained_llm, {key}',
        got=got,
        allowed=allowed,
        remedy='choose one of these, or train on the Hugging Face backbone (leave trainer.strategy=megatron out)',
    )
