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
"""The layers of a Megatron decoder: megatron's own parallel linears, our attention and norm, chosen kernels.

Letters: T row length, B batch (1 for packed rows), D width of a head, H hidden width. Megatron's order is (T, B, H).
"""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt.gpt_layer_specs import HAVE_TE
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn

from nemo_vtb.backbone.attention import Borders, attend, attend_row, takes_whole_rows, window_mask
from nemo_vtb.backbone.megatron import runtime
from nemo_vtb.backbone.megatron.families import Family
from nemo_vtb.backbone.precision import computes_in_half
from nemo_vtb.errors import VtbConfigError

logger = logging.getLogger(__name__)

FP8_MULTIPLE = 16
"""FP8 matrix products want sides of a multiple of this."""


class RMSNorm(nn.Module):
    """Root-mean-square norm in megatron's manner, with the order of operations that the Hugging Face model has.

    Args:
        config: Of the decoder; `layernorm_zero_centered_gamma` is Gemma's.
        hidden_size: Width that is normalised.
        eps: Added to the mean square.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.eps, self.zero_centred = eps, config.layernorm_zero_centered_gamma
        fill = torch.zeros if self.zero_centred else torch.ones
        self.weight = nn.Parameter(fill(hidden_size, dtype=config.params_dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden_size) to the same."""
        h = x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.zero_centred:
            return (h * (1.0 + self.weight.float())).type_as(x)
        return self.weight * h.type_as(x)


class PostNormLinear(nn.Module):
    """A row-parallel linear whose output is normalised (Gemma 2 and 3)."""

    def __init__(self, *args: Any, row: type, norm: type, config: TransformerConfig, **options: Any) -> None:
        super().__init__()
        self.row = row(*args, config=config, **options)
        self.norm = norm(config, args[1], config.layernorm_epsilon)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(T, B, shard) to (T, B, H), and no bias."""
        y, bias = self.row(x)
        return self.norm(y), bias


@dataclass
class PackedRow(PackedSeqParams):
    """Borders of the conversations in a row, as megatron names them, for Transformer Engine, and as ours."""

    borders: Borders = Borders([0], 0)


def packed_row(cu_seqlens: Tensor, max_seqlen: int, device: torch.device) -> PackedRow:
    """Describe a row to the layers.

    Args:
        cu_seqlens: (N+1,) int32, first 0, last T; best on the host, see `Borders.of`.
        max_seqlen: Length of the longest conversation.
        device: Of the row.
    """
    borders = Borders.of(cu_seqlens, max_seqlen, device)
    on_device = cu_seqlens if borders.on_device is None else borders.on_device
    return PackedRow(
        qkv_format='thd', cu_seqlens_q=on_device, cu_seqlens_kv=on_device,
        max_seqlen_q=max_seqlen, max_seqlen_kv=max_seqlen, borders=borders,
    )  # fmt: skip


class KeyValueCache:
    """Keys and values of what was read so far, for one layer: (T, B, KV heads, D) each."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append, and return all."""
        if self.keys is not None and self.values is not None:
            key, value = torch.cat([self.keys, key]), torch.cat([self.values, value])
        self.keys, self.values = key, value
        return key, value


class PackedSelfAttention(SelfAttention):
    """Megatron's projections around attention on packed rows, with rotary tables for any positions.

    `rotary_pos_emb` is (2 x kinds of tables, T, B, D): cosines and sines of each kind in turn.
    """

    def __init__(self, config: TransformerConfig, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        family: Family = config.vtb_family
        kinds = list(dict.fromkeys(family.rope_kinds))
        self.table = kinds.index(family.rope_kinds[self.layer_number - 1])
        self.cache: KeyValueCache | None = None
        self.rotate = _fused_rotate if config.vtb_fused_rope else _rotate

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_pos_emb: Tensor | None = None,
        packed_seq_params: PackedRow | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(T or T/ranks, B, H) to the same; `attention_mask` (B, 1, T, S): how far back a key lies, -1 where
        unseen."""
        query, key, value = self.get_query_key_value_tensors(hidden_states, None)  # (T, B, heads, D)
        assert rotary_pos_emb is not None
        cos, sin = (rotary_pos_emb[2 * self.table + n].unsqueeze(2).to(query.dtype) for n in (0, 1))  # (T, B, 1, D)
        query, key = self.rotate(query, key, cos, sin)
        if self.cache is not None:
            key, value = self.cache.extend(key, value)
        if self.checkpoint_core_attention and self.training:
            out = tensor_parallel.checkpoint(
                partial(self.core_attention, packed_seq_params=packed_seq_params),
                False, query, key, value, attention_mask,
            )  # fmt: skip
        else:
            out = self.core_attention(query, key, value, attention_mask, packed_seq_params=packed_seq_params)
        return self.linear_proj(out)


def _rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    return turned(query), turned(key)


# compiled when first called; rows differ in length
_fused_rotate = torch.compile(_rotate, dynamic=True)


class SDPACore(nn.Module):
    """Attention by torch: its variable-length kernel on whole rows, else scaled_dot_product_attention for each part.

    Args:
        config: Of the decoder, with `vtb_family`.
        layer_number: From 1; decides the window.
        softmax_scale: Factor on the scores.
    """

    def __init__(
        self, config: TransformerConfig, layer_number: int, softmax_scale: float | None = None, **_: Any
    ) -> None:
        super().__init__()
        family: Family = config.vtb_family
        self.window, self.softcap = family.windows[layer_number - 1], family.attention_softcap
        self.scale, self.dropout = softmax_scale, config.attention_dropout
        self.forked = config.sequence_parallel  # megatron's block draws from this rank's generator already

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        packed_seq_params: PackedRow | None = None,
    ) -> Tensor:
        """(T, B, heads, D) on (S, B, KV heads, D) to (T, B, heads x D); the mask is that of `PackedSelfAttention`."""
        if packed_seq_params is not None:
            return self._packed(query, key, value, packed_seq_params)
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # (B, heads, T, D)
        return self._block(q, k, v, attention_mask).permute(2, 0, 1, 3).flatten(2)

    def _packed(self, query: Tensor, key: Tensor, value: Tensor, row: PackedRow) -> Tensor:
        borders, dropout = row.borders, self.dropout if self.training else 0.0
        if borders.on_device is not None and takes_whole_rows(query, dropout, self.softcap):
            q, k, v = (x.squeeze(1) for x in (query, key, value))  # (T, heads, D)
            out = attend_row(q, k, v, borders.on_device, borders.longest, scale=self.scale, window=self.window)
            return out.reshape(query.shape[0], 1, -1)
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # (1, heads, T, D)
        spans = pairwise(borders.edges)
        out = torch.cat([self._block(q[:, :, b:e], k[:, :, b:e], v[:, :, b:e], None) for b, e in spans], dim=2)
        return out.permute(2, 0, 1, 3).flatten(2)

    def _block(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        length, seen = q.shape[2], k.shape[2]
        dropout = self.dropout if self.training else 0.0
        if mask is not None:
            mask = (mask >= 0) if self.window is None else (mask >= 0) & (mask < self.window)
        elif self.window is not None and length == seen > self.window:
            mask = window_mask(length, self.window, q.device)
        causal = mask is None and length > 1
        with tensor_parallel.get_cuda_rng_tracker().fork() if dropout and not self.forked else nullcontext():
            return attend(q, k, v, mask, causal, self.scale, dropout, self.softcap)


class TECore(SDPACore):
    """Attention by Transformer Engine's variable-length kernels; packed rows alone, everything else as `SDPACore`."""

    def __init__(self, config: TransformerConfig, layer_number: int, **options: Any) -> None:
        super().__init__(config, layer_number, **options)
        from megatron.core.extensions.transformer_engine import TEDotProductAttention

        self.te = TEDotProductAttention(
            config=config, layer_number=layer_number, attn_mask_type=AttnMaskType.padding_causal,
            attention_type='self', softmax_scale=options.get('softmax_scale'),
        )  # fmt: skip

    def _packed(self, query: Tensor, key: Tensor, value: Tensor, row: PackedRow) -> Tensor:
        # in float32 it has no fused kernel: it would pad the row to (N, T, T)
        if self.window is not None or self.softcap is not None or not computes_in_half(query):
            return super()._packed(query, key, value, row)
        q, k, v = (x.squeeze(1) for x in (query, key, value))  # (T, heads, D)
        out = self.te(q, k, v, None, attn_mask_type=AttnMaskType.padding_causal, packed_seq_params=row)
        return out.reshape(query.shape[0], 1, -1)


CrossEntropy = Callable[[Tensor, Tensor], Tensor]
"""(n, V of this rank) logits and (n,) targets to (n,); the ranks sum over the vocabulary among themselves."""

FUSIONS = ('activation', 'rope', 'cross_entropy')
"""What can be one kernel instead of several; see `choose_kernels`."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The modules that a decoder is built of, and their names for the log."""

    name: str
    """'te', 'liger' or 'torch'."""
    column: type
    row: type
    norm: type
    core: type
    parts: str
    """Where they come from, for the log."""
    cross_entropy: CrossEntropy = tensor_parallel.vocab_parallel_cross_entropy
    fused_activation: bool = False
    """Gate, activation and product in one kernel, compiled by torch."""
    fused_rope: bool = False
    """Queries and keys rotated in one kernel, compiled by torch."""

    @property
    def names(self) -> str:
        """For the log."""
        fused = {
            'activation': self.fused_activation,
            'rope': self.fused_rope,
            'cross_entropy': self.cross_entropy is not tensor_parallel.vocab_parallel_cross_entropy,
        }
        return f'{self.parts}; fused: {", ".join(name for name, on in fused.items() if on) or "nothing"}'


def usable_kernels() -> list[str]:
    """Names for `choose_kernels` of what can run on the device of `runtime.initialize`, the fastest first."""
    if not runtime.on_gpu():
        return ['torch']
    liger = importlib.util.find_spec('liger_kernel') is not None
    return [*(['te'] if HAVE_TE else []), *(['liger'] if liger else []), 'torch']


def choose_kernels(
    wanted: str = 'auto', fusions: str | Sequence[str] = 'auto', dtype: torch.dtype = torch.bfloat16
) -> Kernels:
    """Take the fastest modules that are there: Transformer Engine, Liger's Triton kernels, or torch's own.

    Args:
        wanted: 'auto', or one of 'te', 'liger' and 'torch' to compare them.
        fusions: 'auto' is all of `FUSIONS` on GPUs, unless `wanted` is 'torch', the plain reference; or a list.
        dtype: Of the weights. 'auto' leaves Transformer Engine out for float32, which it multiplies as TF32.

    Raises:
        VtbConfigError: What is wanted is unknown or cannot run here.
    """
    there, gpu = usable_kernels(), runtime.on_gpu()
    if wanted not in ('auto', *there):
        raise VtbConfigError(
            'These kernels cannot be used here.',
            field='trainer.strategy.kernels',
            got=wanted,
            allowed=['auto', *there],
            remedy=runtime.te_refusal if wanted == 'te' else None,
        )
    # on a CPU the compiler costs more than it saves
    auto = FUSIONS if gpu and wanted != 'torch' else ()
    # that of megatron rounds gradients to bfloat16, whatever the device
    can = FUSIONS if gpu else FUSIONS[:2]
    fused = auto if fusions == 'auto' else (fusions,) if isinstance(fusions, str) else tuple(fusions)
    if unknown := sorted(set(fused) - set(can)):
        raise VtbConfigError(
            'These fusions cannot be used here.',
            field='trainer.strategy.fusions',
            got=unknown,
            allowed=f"'auto', or a list of {', '.join(can)}",
            remedy='trainer.strategy.fusions=auto takes what the device has',
        )
    fastest = next(name for name in there if name != 'te' or dtype != torch.float32)
    chosen = _modules_of(fastest if wanted == 'auto' else wanted)
    cross_entropy = _fused_cross_entropy(chosen.name) if 'cross_entropy' in fused else chosen.cross_entropy
    return replace(
        chosen, fused_activation='activation' in fused, fused_rope='rope' in fused, cross_entropy=cross_entropy
    )


def _modules_of(chosen: str) -> Kernels:
    if chosen == 'te':
        from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TENorm, TERowParallelLinear

        parts = 'Transformer Engine: linears, norm, variable-length attention'
        return Kernels(chosen, TEColumnParallelLinear, TERowParallelLinear, TENorm, TECore, parts)
    if chosen == 'liger':
        from liger_kernel.megatron import LigerMegatronRMSNorm

        parts = "Liger: norm; megatron-core's linears; torch's attention"
        return Kernels(chosen, ColumnParallelLinear, RowParallelLinear, _typed(LigerMegatronRMSNorm), SDPACore, parts)
    parts = "megatron-core's linears; torch's attention; our norm"
    return Kernels(chosen, ColumnParallelLinear, RowParallelLinear, RMSNorm, SDPACore, parts)


def _typed(norm: type[nn.Module]) -> type[nn.Module]:
    """A norm whose weight is in the type of the others: Liger's own is float32 whatever the configuration says."""

    class Typed(norm):
        def __init__(self, config: TransformerConfig, *args: Any, **options: Any) -> None:
            super().__init__(config, *args, **options)
            self.to(config.params_dtype)

    Typed.__name__ = Typed.__qualname__ = norm.__name__
    return Typed


def _fused_cross_entropy(chosen: str) -> CrossEntropy:
    """One kernel over this rank's part of the vocabulary; for GPUs."""
    from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy as of_megatron

    def fused(logits: Tensor, targets: Tensor) -> Tensor:
        group = runtime.tp_group()
        if chosen == 'te':
            from megatron.core.extensions.transformer_engine import te_parallel_cross_entropy

            return te_parallel_cross_entropy(logits.unsqueeze(1), targets.unsqueeze(1), group).squeeze(1)
        if chosen == 'liger' and group.size() == 1:  # its kernel knows nothing of other ranks
            from liger_kernel.megatron import LigerMegatronCrossEntropy

            return LigerMegatronCrossEntropy()(logits.unsqueeze(1), targets.unsqueeze(1), group).squeeze(1)
        if logits.dtype == torch.float32:  # megatron's has gradients in bfloat16
            return tensor_parallel.vocab_parallel_cross_entropy(logits, targets)
        return of_megatron(logits, targets, group)

    return fused


def check_fp8(fp8: str, kernels: Kernels, widths: Sequence[int]) -> None:
    """Refuse FP8 matrix products where they cannot run.

    Args:
        fp8: 'hybrid' or 'e4m3'.
        kernels: Of the decoder.
        widths: Inputs and outputs of its linears on this rank.

    Raises:
        VtbConfigError: Another format, no Transformer Engine, a GPU without FP8, or widths that it cannot multiply.
    """
    can: object = ['hybrid', 'e4m3']
    remedy: str | None = 'hybrid is the usual one: e4m3 forward, e5m2 for gradients'
    if fp8 in ('hybrid', 'e4m3'):
        can = 'null'
        if kernels.name != 'te':
            remedy = f'FP8 needs Transformer Engine ({runtime.te_refusal or "not there, or other kernels chosen"})'
        elif runtime.on_gpu() and torch.cuda.get_device_capability() < (8, 9):
            remedy = 'FP8 needs a GPU of the generation of L40 or H100'
        elif odd := sorted({width for width in widths if width % FP8_MULTIPLE}):
            remedy = f'a rank has widths {odd} that {FP8_MULTIPLE} does not divide: fewer tensor-parallel ranks'
        else:
            return
    raise VtbConfigError('FP8 cannot be used here.', field='trainer.strategy.fp8', got=fp8, allowed=can, remedy=remedy)


def layer_spec(family: Family, kernels: Kernels) -> ModuleSpec:
    """Megatron's description of one decoder layer."""

    def row() -> Any:
        if not family.post_norms:
            return kernels.row
        return ModuleSpec(module=PostNormLinear, params={'row': kernels.row, 'norm': kernels.norm})

    head_norm = kernels.norm if family.qk_norm else IdentityOp
    attention = SelfAttentionSubmodules(
        linear_qkv=kernels.column,
        core_attention=kernels.core,
        linear_proj=row(),
        q_layernorm=head_norm,
        k_layernorm=head_norm,
    )
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=kernels.norm,
            self_attention=ModuleSpec(
                module=PackedSelfAttention, params={'attn_mask_type': AttnMaskType.causal}, submodules=attention
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=kernels.norm,
            mlp=ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=kernels.column, linear_fc2=row())),
            mlp_bda=get_bias_dropout_add,
        ),
    )
