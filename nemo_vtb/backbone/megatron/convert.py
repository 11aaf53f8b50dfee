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
"""Weights between Hugging Face's names and Megatron's tensor-parallel shards, a tensor at a time, exact in both
directions.

Padded heads, MLP columns and vocabulary rows are zero and never leave: what is exported is bit-equal to what was read.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nemo_vtb.backbone.megatron.families import Family, Geometry
from nemo_vtb.backbone.megatron.runtime import gather
from nemo_vtb.errors import VtbModelError, first_line


def pad_rows(weight: Tensor, rows: int, padded: int) -> Tensor:
    """Zero rows behind the rows of a weight.

    Args:
        weight: (rows, ...).
        rows: How many it must have.
        padded: How many it has in the end.

    Raises:
        ValueError: It has another number of rows; padding would hide that.
    """
    if weight.shape[0] != rows:
        raise ValueError(f'{rows} rows expected, {tuple(weight.shape)} found')
    if rows == padded:
        return weight
    return torch.cat([weight, weight.new_zeros(padded - rows, *weight.shape[1:])])


def _kv(weight: Tensor, g: Geometry) -> Tensor:
    """Keys or values (kv x D, ...) as megatron's ranks hold them (kv_padded x D, ...)."""
    if g.copies == 1:
        return pad_rows(weight, g.kv * g.head_dim, g.kv_padded * g.head_dim)
    heads = weight.reshape(g.kv, g.head_dim, *weight.shape[1:])
    return heads.repeat_interleave(g.copies, 0).reshape(-1, *weight.shape[1:])


def fuse_qkv(q: Tensor, k: Tensor, v: Tensor, g: Geometry) -> Tensor:
    """Rows of queries, keys and values in megatron's order: for each group its queries, its key, its value."""
    rest = q.shape[1:]
    q = pad_rows(q, g.heads * g.head_dim, g.heads_padded * g.head_dim).reshape(g.kv_padded, g.group, g.head_dim, *rest)
    k, v = (_kv(x, g).reshape(g.kv_padded, 1, g.head_dim, *rest) for x in (k, v))
    return torch.cat([q, k, v], 1).reshape(-1, *rest)


def split_qkv(fused: Tensor, g: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of `fuse_qkv`, without what was padded or copied."""
    rest = fused.shape[1:]
    blocks = fused.reshape(g.kv_padded, g.group + 2, g.head_dim, *rest)
    q = blocks[:, : g.group].reshape(-1, *rest)[: g.heads * g.head_dim]
    k, v = (blocks[:, g.group + n][:: g.copies].reshape(-1, *rest)[: g.kv * g.head_dim] for n in (0, 1))
    return q, k, v


@dataclass(frozen=True, slots=True)
class _Entry:
    """One parameter of megatron: the tensors it is made of, how a rank's part is cut, and how the whole is undone."""

    name: str
    sources: tuple[str, ...]
    shard: Callable[..., Tensor]  # (sources ..., rank, ranks)
    whole: Callable[[Tensor], tuple[Tensor, ...]]  # this rank's part -> sources, gathering over the ranks


def _same(name: str, source: str) -> _Entry:
    return _Entry(name, (source,), lambda w, rank, ranks: w, lambda part: (part,))


def _vocabulary(name: str, source: str, g: Geometry) -> _Entry:
    return _Entry(
        name,
        (source,),
        lambda w, rank, ranks: pad_rows(w, g.vocab, g.vocab_padded).chunk(ranks, 0)[rank],
        lambda part: (gather(part, 0)[: g.vocab],),
    )


def _qkv(name: str, sources: tuple[str, ...], g: Geometry) -> _Entry:
    return _Entry(
        name,
        sources,
        lambda q, k, v, rank, ranks: fuse_qkv(q, k, v, g).chunk(ranks, 0)[rank],
        lambda part: split_qkv(gather(part, 0), g),
    )


def _row_parallel(name: str, source: str, columns: int, padded: int) -> _Entry:
    return _Entry(
        name,
        (source,),
        lambda w, rank, ranks: pad_rows(w.t(), columns, padded).t().chunk(ranks, 1)[rank],
        lambda part: (gather(part, 1)[:, :columns],),
    )


def _gate_up(name: str, sources: tuple[str, ...], g: Geometry) -> _Entry:
    def shard(gate: Tensor, up: Tensor, rank: int, ranks: int) -> Tensor:
        return torch.cat([pad_rows(w, g.ffn, g.ffn_padded).chunk(ranks, 0)[rank] for w in (gate, up)])

    def whole(part: Tensor) -> tuple[Tensor, ...]:
        return tuple(gather(half, 0)[: g.ffn] for half in part.chunk(2, 0))

    return _Entry(name, sources, shard, whole)


def _layer(number: int, family: Family, g: Geometry) -> Iterator[_Entry]:
    ours, theirs = f'decoder.layers.{number}.', f'model.layers.{number}.'
    attention, mlp = f'{theirs}self_attn.', f'{theirs}mlp.'
    proj = 'row.' if family.post_norms else ''
    yield _same(f'{ours}input_layernorm.weight', f'{theirs}input_layernorm.weight')
    before_mlp = 'pre_feedforward_layernorm' if family.post_norms else 'post_attention_layernorm'
    yield _same(f'{ours}pre_mlp_layernorm.weight', f'{theirs}{before_mlp}.weight')
    if family.post_norms:
        yield _same(f'{ours}self_attention.linear_proj.norm.weight', f'{theirs}post_attention_layernorm.weight')
        yield _same(f'{ours}mlp.linear_fc2.norm.weight', f'{theirs}post_feedforward_layernorm.weight')
    if family.qk_norm:
        yield _same(f'{ours}self_attention.q_layernorm.weight', f'{attention}q_norm.weight')
        yield _same(f'{ours}self_attention.k_layernorm.weight', f'{attention}k_norm.weight')
    for part in ('weight', 'bias') if family.qkv_bias else ('weight',):
        sources = tuple(f'{attention}{name}_proj.{part}' for name in 'qkv')
        yield _qkv(f'{ours}self_attention.linear_qkv.{part}', sources, g)
    heads, padded = g.heads * g.head_dim, g.heads_padded * g.head_dim
    yield _row_parallel(f'{ours}self_attention.linear_proj.{proj}weight', f'{attention}o_proj.weight', heads, padded)
    yield _gate_up(f'{ours}mlp.linear_fc1.weight', (f'{mlp}gate_proj.weight', f'{mlp}up_proj.weight'), g)
    yield _row_parallel(f'{ours}mlp.linear_fc2.{proj}weight', f'{mlp}down_proj.weight', g.ffn, g.ffn_padded)


def _entries(num_layers: int, family: Family, g: Geometry, *, tied: bool) -> Iterator[_Entry]:
    yield _vocabulary('embedding.word_embeddings.weight', 'model.embed_tokens.weight', g)
    if not tied:
        yield _vocabulary('output_layer.weight', 'lm_head.weight', g)
    yield _same('decoder.final_layernorm.weight', 'model.norm.weight')
    for number in range(num_layers):
        yield from _layer(number, family, g)


def _parameters(gpt: nn.Module) -> dict[str, Tensor]:
    # LoRA stands around a linear, which moves its name but not its place
    named = ((name.replace('.base.', '.'), value) for name, value in gpt.named_parameters())
    return {name: value for name, value in named if '.lora.' not in name}


@torch.no_grad()
def load_weights(
    gpt: nn.Module, weights: Mapping[str, Tensor], family: Family, g: Geometry, *, rank: int, ranks: int, tied: bool
) -> None:
    """Fill this rank's part of a decoder; holds one whole tensor at a time.

    Args:
        gpt: Megatron's `GPTModel`, with or without LoRA.
        weights: Hugging Face's tensors.
        family: Of the LLM.
        g: Its sizes.
        rank: Of this process in the tensor-parallel group.
        ranks: Size of that group.
        tied: Whether the output head is the embedding.

    Raises:
        VtbModelError: A tensor is missing or has another shape, or a parameter would stay unfilled.
    """
    left = _parameters(gpt)
    for entry in _entries(gpt.config.num_layers, family, g, tied=tied):
        missing = [name for name in entry.sources if name not in weights]
        if missing:
            raise _misfit(f'{missing[0]} is missing')
        target = left.pop(entry.name)
        try:
            target.copy_(entry.shard(*(weights[name] for name in entry.sources), rank, ranks))
        except (RuntimeError, ValueError) as error:
            raise _misfit(f'{", ".join(entry.sources)}: {first_line(error)}') from error
    if left:
        raise _misfit(f'nothing for {sorted(left)[:3]}')


@torch.no_grad()
def export_weights(gpt: nn.Module, family: Family, g: Geometry, *, tied: bool) -> Iterator[tuple[str, Tensor]]:
    """Hugging Face's names and whole tensors, one after the other, on every rank of the group; all ranks must take
    part."""
    own = _parameters(gpt)
    for entry in _entries(gpt.config.num_layers, family, g, tied=tied):
        yield from zip(entry.sources, entry.whole(own[entry.name]), strict=True)


def _misfit(what: str) -> VtbModelError:
    return VtbModelError(
        'The weights of the LLM do not fit its configuration.',
        field='model.pretrained_llm',
        got=what,
        allowed='the tensors that transformers writes for this family',
        remedy='download the folder again',
    )
