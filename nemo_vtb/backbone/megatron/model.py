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
"""The Megatron backbone: the contract of `backbone/base.py` on tensor-parallel ranks.

Letters: T row length, H width, V vocabulary, n positions. All peers of a tensor-parallel group call everything
together, with the same arguments, and get the same results.
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import mappings
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from nemo_vtb.backbone.attention import keep_float32
from nemo_vtb.backbone.base import Backbone
from nemo_vtb.backbone.megatron import convert, lora, runtime
from nemo_vtb.backbone.megatron.families import Family, Geometry, family_of, geometry_of
from nemo_vtb.backbone.megatron.layers import (
    FP8_MULTIPLE,
    Kernels,
    KeyValueCache,
    PackedRow,
    check_fp8,
    choose_kernels,
    layer_spec,
    packed_row,
)
from nemo_vtb.backbone.megatron.runtime import tp_group, tp_rank, tp_size
from nemo_vtb.backbone.names import base_weights, peft_name, published_weights, state_name
from nemo_vtb.backbone.spec import BackboneSpec
from nemo_vtb.errors import VtbConfigError, VtbModelError

logger = logging.getLogger(__name__)


class MegatronBackbone(nn.Module, Backbone):
    """A Hugging Face decoder LLM as this rank's part of a Megatron `GPTModel`.

    Args:
        config: The LLM's Hugging Face configuration.
        sequence_parallel: Norms and residuals hold a part of the row each; for rows of any length.
        dtype: Of the weights.
        kernels: See `choose_kernels`.
        fusions: See `choose_kernels`.
        fp8: Format of FP8 matrix products, 'hybrid' or 'e4m3', with Transformer Engine alone; None for none.
        overrides: Further fields of megatron's `TransformerConfig`, such as `recompute_granularity`.

    Raises:
        VtbModelError: The family is not supported.
        VtbConfigError: The kernels, fusions or FP8 cannot be had here.
    """

    def __init__(
        self,
        config: Any,
        *,
        sequence_parallel: bool = False,
        dtype: torch.dtype = torch.float32,
        kernels: str | Kernels = 'auto',
        fusions: str | Sequence[str] = 'auto',
        fp8: str | None = None,
        **overrides: Any,
    ) -> None:
        super().__init__()
        self._spec: BackboneSpec | None = None
        self.hf_config = config.get_text_config()
        self.family: Family = family_of(config)
        self.geometry: Geometry = geometry_of(config, tp_size())
        self.hidden_size = self.geometry.hidden
        self.tied = bool(self.hf_config.tie_word_embeddings)
        kernels = choose_kernels(kernels, fusions, dtype) if isinstance(kernels, str) else kernels
        if fp8:
            check_fp8(fp8, kernels, self.geometry.widths(tp_size()))
            overrides = {'fp8': fp8} | overrides
        self.kernels = kernels
        made_again = overrides.get('recompute_granularity') or 'nothing'
        logger.info(
            'Megatron decoder (%s), %d tensor-parallel ranks: %s; FP8: %s; recomputed: %s',
            self.family.name, tp_size(), kernels.names, fp8 or 'none', made_again,
        )  # fmt: skip
        if runtime.te_refusal:
            logger.info('Transformer Engine is installed, but not used: %s', runtime.te_refusal)
        overrides = {'sequence_parallel': sequence_parallel and tp_size() > 1} | overrides
        self.gpt = _build_gpt(self.hf_config, self.family, self.geometry, kernels, dtype, overrides)
        self.rotary = _Rotary(self.hf_config, self.family)
        self.sequence_parallel: bool = self.gpt.config.sequence_parallel

    # ---- construction

    deferred = True

    @classmethod
    def check(cls, spec: BackboneSpec) -> None:
        """Refuse an LLM without weights, one that is trained itself, and LoRA that is not plain.

        Raises:
            VtbConfigError: It is one of them.
        """
        spec.require_weights('the Megatron backbone')
        spec.require_plain_lora()
        spec.require_plain_layers()
        spec.require_frozen()

    @classmethod
    def build(
        cls,
        spec: BackboneSpec,
        *,
        dtype: torch.dtype = torch.float32,
        lora_dtype: torch.dtype = torch.float32,
        clip_group: dist.ProcessGroup | None = None,
        **options: Any,
    ) -> 'MegatronBackbone':
        """Read this rank's part of the LLM and of the first LoRA factors, after `runtime.initialize`.

        Args:
            spec: The plan.
            dtype: Of the weights.
            lora_dtype: Of LoRA.
            clip_group: The ranks that share the clips of a row.
            options: See `build_backbone`.
        """
        lora_config = {**spec.lora, 'target_modules': spec.lora_targets} if spec.lora else None
        types = {'dtype': dtype, 'lora_dtype': lora_dtype}
        backbone = build_backbone(spec.source, lora_config=lora_config, **types, **options)
        backbone.clip_group, backbone._spec = clip_group, spec
        if spec.first_lora:
            backbone.load_lora(spec.first_lora)
        return backbone

    @property
    def salm_modules(self) -> dict[str, nn.Module]:
        """The decoder with its embedding, as `llm`."""
        return {'llm': self}

    # ---- packed rows

    def embed(self, ids: Tensor) -> Tensor:
        """(T,) token ids to (T, H), at the scale at which the LLM reads them."""
        embeds = self.gpt.embedding.word_embeddings(ids.unsqueeze(0)).squeeze(0)
        # Hugging Face's Gemma rounds the factor to the type of the weights first
        scale = torch.tensor(self.family.embed_scale, dtype=embeds.dtype, device=embeds.device)
        return embeds if self.family.embed_scale == 1.0 else embeds * scale

    def forward(self, embeds: Tensor, position_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """(T, H) of a packed row to hidden states (T, H); attention is causal and never crosses `cu_seqlens`."""
        length = embeds.shape[0]
        multiple = (tp_size() if self.sequence_parallel else 1) * (FP8_MULTIPLE if self.gpt.config.fp8 else 1)
        missing = -length % multiple
        if missing:  # a conversation of padding, so that the ranks get equal parts, and FP8 its multiple
            embeds, position_ids = pad(embeds, (0, 0, 0, missing)), pad(position_ids, (0, missing))
            cu_seqlens = torch.cat([cu_seqlens, cu_seqlens[-1:] + missing])
        packed = packed_row(cu_seqlens, max(max_seqlen, missing), embeds.device)
        hidden = self._decode(embeds.unsqueeze(1), position_ids.unsqueeze(1), None, packed)  # (T, 1, H)
        return hidden.squeeze(1)[:length]

    def head(self, hidden: Tensor) -> Tensor:
        """(n, H) to logits (n, V), with the LLM's own soft-capping."""
        logits = mappings.gather_from_tensor_model_parallel_region(self._own_logits(hidden), group=tp_group())
        return logits[..., : self.geometry.vocab]  # without the rows that fill up the last rank

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """(n, H) and the tokens (n,) that must follow to their negative log-likelihoods (n,), float32.

        No rank has the logits of another: they exchange three numbers a token.
        """
        return self.kernels.cross_entropy(self._masked(self._own_logits(hidden)), targets).float()

    @torch.no_grad()
    def score(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As `nll`, and whether the most likely token is the target: (n,) bool. Without gradients."""
        logits = self._masked(self._own_logits(hidden))
        right = self._best(logits) == targets  # first, since the loss overwrites the logits
        return self.kernels.cross_entropy(logits, targets).float(), right

    def _own_logits(self, hidden: Tensor) -> Tensor:
        """(n, H) to the logits of this rank's part of the vocabulary: (n, V of this rank)."""
        hidden = mappings.copy_to_tensor_model_parallel_region(hidden, group=tp_group())
        weight = self.gpt.shared_embedding_or_output_weight() if self.tied else self.gpt.output_layer.weight
        logits = linear(hidden, weight)
        if cap := self.family.logit_softcap:
            logits = torch.tanh(logits / cap) * cap
        return logits

    def _masked(self, logits: Tensor) -> Tensor:
        """The rows that fill up the last rank are never likely; finite, since kernels subtract from it."""
        real = self.geometry.vocab - tp_rank() * logits.shape[-1]
        if real >= logits.shape[-1]:
            return logits
        filler = torch.arange(logits.shape[-1], device=logits.device) >= real
        return logits.masked_fill(filler, torch.finfo(logits.dtype).min / 2)

    def _best(self, logits: Tensor) -> Tensor:
        """(n, V of this rank), masked, to the most likely tokens (n,); of equal ones the first, as argmax has it."""
        value, place = logits.max(-1)
        highest = value.clone()
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=tp_group())
        token = place + tp_rank() * logits.shape[-1]
        token = token.where(value == highest, self.geometry.vocab_padded)
        dist.all_reduce(token, op=dist.ReduceOp.MIN, group=tp_group())
        return token

    @contextmanager
    def without_lora(self) -> Iterator[None]:
        """The untouched base LLM, as long as the context is open."""
        layers = list(lora.lora_layers(self.gpt))
        for layer in layers:
            layer.enabled = False
        try:
            yield
        finally:
            for layer in layers:
                layer.enabled = True

    def lora_state(self) -> dict[str, Tensor]:
        """LoRA weights under PEFT's names, whole, on every rank; {} when there is no LoRA."""
        return lora.lora_state(self.gpt, self.geometry)

    def load_lora(self, state: Mapping[str, Tensor]) -> None:
        """Load LoRA weights under PEFT's names.

        Raises:
            VtbCheckpointError: Keys are missing or left over.
        """
        lora.load_lora(self.gpt, self.geometry, state)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """This rank's LoRA factors; those that the ranks share have `tensor_model_parallel` set, and whole ones whose
        gradient is a part have `partial_gradient` set."""
        own = lora.lora_parameters(self.gpt)
        order = own if self._spec is None else self._spec.first_lora
        return {state_name(name): own[name] for name in order}

    def frozen_weights(self) -> dict[str, Tensor]:
        """The untouched LLM as its folder has it: each rank holds a part of it."""
        assert self._spec is not None
        return base_weights(self._spec.source, self._spec.first_lora)

    def gather(self, name: str, part: Tensor) -> Tensor:
        """The whole of a factor, or of an optimizer's moment in its shape; all ranks take part."""
        return lora.whole_of(*lora.place_of(peft_name(name)), part, self.geometry)

    def shard(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part, the inverse of `gather`.

        Raises:
            ValueError: It has another shape than the factor.
        """
        place = lora.place_of(peft_name(name))
        return lora.shard_of(*place, whole, self.geometry, rank=tp_rank(), ranks=tp_size())

    def as_transformers(self) -> AbstractContextManager[Any]:
        """No rank has an LLM of transformers.

        Raises:
            VtbModelError: Always.
        """
        raise VtbModelError(
            'This asks for an LLM that is unsharded.',
            field='model',
            got=type(self).__name__,
            allowed='the Hugging Face backbone',
            remedy='save a .nemo file and evaluate that',
        )

    # ---- beyond the contract

    def base_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The LLM's own weights under Hugging Face's names, one after the other; all ranks take part."""
        return convert.export_weights(self.gpt, self.family, self.geometry, tied=self.tied)

    def generate(self, embeds: Tensor, attention_mask: Tensor, **options: Any) -> Tensor:
        """(B, T, H) prompts to greedy answers (B, N) int64; see `_greedy_options` for what may be asked."""
        config = options.pop('generation_config', None)
        given = config.to_diff_dict() if config is not None else {}
        return self.greedy(embeds, attention_mask, **_greedy_options(given | options))

    @torch.no_grad()
    def first_logits(self, embeds: Tensor) -> Tensor:
        """(T, H) of one prompt to the logits of the first token of its answer: (V,) float32."""
        size = embeds.shape[0]
        places = torch.arange(size, device=embeds.device)
        cu_seqlens = torch.tensor([0, size], dtype=torch.int32, device=embeds.device)
        return self.head(self.forward(embeds, places, cu_seqlens, size)[-1:])[0].float()

    @torch.no_grad()
    def greedy(
        self, embeds: Tensor, attention_mask: Tensor, max_new_tokens: int, eos_ids: Collection[int], pad_id: int
    ) -> Tensor:
        """Greedy answers with a cache of keys and values; what `generate` of transformers returns.

        Args:
            embeds: (B, T, H) prompts, padded on either side.
            attention_mask: (B, T), true or 1 at the prompts.
            max_new_tokens: Longest answer.
            eos_ids: Tokens that end an answer.
            pad_id: Stands behind the end of an answer.

        Returns:
            (B, N) int64, each answer with the token that ended it.
        """
        mask, rows = attention_mask.bool(), torch.arange(len(embeds), device=embeds.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)  # (B, T)
        last = positions.max(1).values  # of each prompt
        at = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)  # where it stands
        places = positions  # of all that was read so far, (B, S)
        stops = torch.tensor(sorted(eos_ids), device=embeds.device)
        step, answers, is_open = embeds, list[Tensor](), torch.ones_like(rows, dtype=torch.bool)
        with self._caching():
            while len(answers) < max_new_tokens and bool(is_open.any()):
                distances = _distances(mask, places, step.shape[1])  # (B, 1, T, S)
                hidden = self._decode(step.transpose(0, 1), positions.t(), distances, None)  # (T, B, H)
                ids = self._best(self._masked(self._own_logits(hidden[at, rows]))).where(is_open, pad_id)  # (B,)
                answers.append(ids)
                is_open = is_open & ~torch.isin(ids, stops)
                last = last + 1
                step, positions, at = self.embed(ids).unsqueeze(1), last.unsqueeze(1), torch.zeros_like(at)
                mask, places = torch.cat([mask, mask.new_ones(len(mask), 1)], 1), torch.cat([places, positions], 1)
        return torch.stack(answers, 1)

    # ---- parts

    def _decode(self, embeds: Tensor, position_ids: Tensor, mask: Tensor | None, packed: PackedRow | None) -> Tensor:
        """(T, B, H) to (T, B, H)."""
        tables = self.rotary(position_ids, embeds.dtype)
        if self.gpt.config.recompute_granularity == 'full' and torch.is_grad_enabled() and not embeds.requires_grad:
            # megatron's recompute gives weights a gradient only where its input has one: typed rows, frozen audio
            embeds = embeds.detach().requires_grad_(True)
        if self.sequence_parallel:
            embeds = mappings.scatter_to_sequence_parallel_region(embeds, group=tp_group())
        # megatron views tensors as it likes
        hidden = self.gpt.decoder(embeds.contiguous(), mask, rotary_pos_emb=tables, packed_seq_params=packed)
        if self.sequence_parallel:
            hidden = mappings.gather_from_sequence_parallel_region(
                hidden, tensor_parallel_output_grad=False, group=tp_group()
            )
        return hidden

    @contextmanager
    def _caching(self) -> Iterator[None]:
        """Keys and values are kept; whole activations on all ranks, since single tokens cannot be cut along the
        row."""
        attentions = [layer.self_attention for layer in self.gpt.decoder.layers]
        parallel = [m for m in self.modules() if getattr(m, 'sequence_parallel', False) is True]
        was_training, fp8 = self.training, self.gpt.config.fp8
        self.eval()
        self.gpt.config.fp8 = None  # single tokens are no matrix that it could multiply
        for attention in attentions:
            attention.cache = KeyValueCache()
        for module in parallel:
            module.sequence_parallel = False
        try:
            yield
        finally:
            for attention in attentions:
                attention.cache = None
            for module in parallel:
                module.sequence_parallel = True
            self.gpt.config.fp8 = fp8
            self.train(was_training)


class _Rotary(nn.Module):
    """Cosines and sines for any positions, from the rotary module of the Hugging Face model itself."""

    def __init__(self, config: Any, family: Family) -> None:
        super().__init__()
        from transformers import AutoModelForCausalLM

        with torch.device('meta'):
            module = AutoModelForCausalLM.from_config(config).model.rotary_emb
        self.module = keep_float32(type(module)(config))  # again, with values
        self.kinds = list(dict.fromkeys(family.rope_kinds))

    @torch.no_grad()
    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """(T, B) positions to (2 x kinds, T, B, D)."""
        like = torch.empty(0, dtype=dtype, device=position_ids.device)
        tables = []
        for kind in self.kinds:
            extra = () if kind == 'default' else (kind,)
            tables += [table.transpose(0, 1) for table in self.module(like, position_ids.t(), *extra)]  # (T, B, D)
        return torch.stack(tables)


def build_backbone(
    source: str | Path,
    *,
    lora_config: Mapping[str, Any] | None = None,
    lora_dtype: torch.dtype | None = None,
    **options: Any,
) -> MegatronBackbone:
    """Build this rank's part of an LLM, after `runtime.initialize`.

    Args:
        source: Hugging Face folder.
        lora_config: Fields of PEFT's `LoraConfig`: r, lora_alpha, lora_dropout, target_modules; None for no LoRA.
        lora_dtype: Of LoRA; None is that of the weights.
        options: See `MegatronBackbone`.

    Raises:
        VtbModelError: The family is not supported, or weights are missing or do not fit.
    """
    from transformers import AutoConfig

    backbone = MegatronBackbone(AutoConfig.from_pretrained(str(source)), **options)
    convert.load_weights(
        backbone.gpt, published_weights(source), backbone.family, backbone.geometry,
        rank=tp_rank(), ranks=tp_size(), tied=backbone.tied,
    )  # fmt: skip
    backbone.requires_grad_(False)
    if lora_config:
        lora.add_lora(
            backbone.gpt, backbone.geometry, r=int(lora_config['r']), alpha=float(lora_config['lora_alpha']),
            p=float(lora_config.get('lora_dropout') or 0.0), targets=lora_config['target_modules'], dtype=lora_dtype,
        )  # fmt: skip
    return backbone


def _build_gpt(
    config: Any, family: Family, g: Geometry, kernels: Kernels, dtype: torch.dtype, overrides: Mapping[str, Any]
) -> GPTModel:
    fields: dict[str, Any] = {
        'num_layers': config.num_hidden_layers,
        'hidden_size': g.hidden,
        'ffn_hidden_size': g.ffn_padded,
        'num_attention_heads': g.heads_padded,
        'num_query_groups': g.kv_padded,
        'kv_channels': g.head_dim,
        'normalization': 'RMSNorm',
        'layernorm_epsilon': config.rms_norm_eps,
        'layernorm_zero_centered_gamma': family.zero_centred,
        'gated_linear_unit': True,
        'activation_func': family.fused_activation if kernels.fused_activation else family.activation,
        'add_bias_linear': False,
        'add_qkv_bias': family.qkv_bias,
        'hidden_dropout': 0.0,
        'attention_dropout': 0.0,
        'softmax_scale': family.softmax_scale,
        'tensor_model_parallel_size': tp_size(),
        'use_cpu_initialization': not runtime.on_gpu(),
        'perform_initialization': False,
        'params_dtype': dtype,
        'pipeline_dtype': dtype,
        'bf16': dtype == torch.bfloat16,
        # other fusions of megatron's own need apex; those of Transformer Engine come with its modules
        'bias_activation_fusion': kernels.fused_activation,
        'bias_dropout_fusion': False,
        'masked_softmax_fusion': False,
        'persist_layer_norm': False,
        'apply_rope_fusion': False,
        'gradient_accumulation_fusion': False,
    }
    megatron = TransformerConfig(**fields | dict(overrides))
    megatron.vtb_family, megatron.vtb_fused_rope = family, kernels.fused_rope
    block = TransformerBlockSubmodules(
        layer_specs=[layer_spec(family, kernels)] * config.num_hidden_layers, layer_norm=kernels.norm
    )
    return GPTModel(
        megatron,
        block,
        vocab_size=g.vocab_padded,
        max_sequence_length=config.max_position_embeddings,
        share_embeddings_and_output_weights=bool(config.tie_word_embeddings),
        position_embedding_type='none',  # the tables come from outside, for any positions
        parallel_output=True,
        scatter_embedding_sequence_parallel=False,  # speech is put in at full length, then the row is cut
    )


def _distances(mask: Tensor, places: Tensor, queries: int) -> Tensor:
    """How far back each key lies for the last positions, in tokens of its own prompt; -1 where it is not seen.

    Args:
        mask: (B, S), true at what is no padding.
        places: (B, S), position of each key in its prompt.
        queries: Number of the last positions that ask.

    Returns:
        (B, 1, queries, S) int64; padding sees itself, so that its attention is defined.
    """
    distance = places[:, -queries:, None] - places[:, None, :]  # (B, queries, S)
    seen = mask[:, None, :] & mask[:, -queries:, None] & (distance >= 0)
    itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)[-queries:]
    return torch.where(seen, distance, torch.where(itself, 0, -1)).unsqueeze(1)


def _greedy_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a backbone that decodes by itself needs of the options of transformers' `generate`.

    Raises:
        VtbConfigError: They ask for more than greedy answers.
    """
    plain = {'do_sample': False, 'num_beams': 1, 'use_cache': True, 'repetition_penalty': 1.0}
    read = ('max_new_tokens', 'eos_token_id', 'pad_token_id')
    silent = ('bos_token_id', 'transformers_version', '_from_model_config', *read)
    if beyond := {k: v for k, v in options.items() if k not in silent and v is not None and v != plain.get(k)}:
        raise VtbConfigError(
            'The Megatron backbone answers greedily.',
            field='generation',
            got=beyond,
            allowed=[*read, *(f'{key}={value}' for key, value in plain.items())],
            remedy='leave it out, or generate with the Hugging Face backbone, which loads the same checkpoint',
        )
    eos, pad = options.get('eos_token_id'), options.get('pad_token_id')
    stops: Collection[int] = list(eos) if isinstance(eos, list | tuple) else [] if eos is None else [eos]
    return {
        'max_new_tokens': options.get('max_new_tokens') or 20,  # the default of transformers
        'eos_ids': stops,
        'pad_id': pad if pad is not None else [*stops, 0][0],
    }
