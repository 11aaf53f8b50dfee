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
"""What is known of the LLM before any rank reads its weights: its width, where LoRA goes, what LoRA starts from."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nemo_vtb.backbone.hf import check_llm_size, load_llm, shape_of_llm, unloadable, with_lora
from nemo_vtb.backbone.liger import has_liger
from nemo_vtb.backbone.names import base_weights, has_safetensors, lora_like_peft, weight_bytes
from nemo_vtb.errors import VtbConfigError, VtbModelError, first_line

_EMBEDDING_ROWS = 1000
"""Rows of the token embedding from which its standard deviation is taken."""

# fields of peft.LoraConfig that every backbone has; the others must be as PEFT sets them by itself
PLAIN_LORA = (
    'r', 'lora_alpha', 'lora_dropout', 'target_modules', 'task_type', 'peft_type', 'base_model_name_or_path',
)  # fmt: skip


@dataclass(slots=True)
class BackboneSpec:
    """The LLM of a configuration; `plan` makes it, `Backbone.build` reads the weights.

    Args:
        source: Folder of the LLM, or its name in the local hub cache.
        hidden_size: H.
        embedding_std: Standard deviation of the embedding, to which the adapter's output is matched.
        num_layers: Decoder layers.
        embedding_scale: What the embedding itself multiplies its rows by.
        lora: Fields of PEFT's `LoraConfig`; None for no LoRA.
        first_lora: What LoRA starts from, whole, under PEFT's names and in PEFT's order.
        trained: Names (as in the state dict) of LLM weights that the configuration trains; none with LoRA alone.
        other_lora: Fields of `lora` that plain LoRA does not have.
        trust_remote_code: Passed on to transformers.
        frozen_dtype: `model.frozen_dtype`.
        checkpoints_layers: `model.activation_checkpointing`.
        compiles_layers: `model.compile_layers`.
        kernels: `model.kernels`.
        takes_liger: What that came to, see `choose_kernels`.
        vocab_size: Rows of the token embedding; 0 where nobody counted them.
        llm: The LLM itself where a plan cannot replace it: random weights, no safetensors, LoRA that is not plain.
    """

    source: str
    hidden_size: int
    embedding_std: float
    num_layers: int
    embedding_scale: float = 1.0
    lora: Mapping[str, Any] | None = None
    first_lora: dict[str, Tensor] = field(default_factory=dict)
    trained: tuple[str, ...] = ()
    other_lora: Mapping[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False
    frozen_dtype: str = 'auto'
    checkpoints_layers: bool = False
    compiles_layers: bool = False
    kernels: str = 'auto'
    takes_liger: bool = False
    vocab_size: int = 0
    llm: Any = None

    @classmethod
    def plan(
        cls,
        source: str,
        *,
        lora: Mapping[str, Any] | None = None,
        freeze: Iterable[str] = (),
        keep: Iterable[str] = (),
        pretrained: bool = True,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> 'BackboneSpec':
        """Look at an LLM on the meta device; draws the first LoRA factors as PEFT would draw them now.

        Args:
            source: Folder of the LLM, or its name in the local hub cache.
            lora: Fields of PEFT's `LoraConfig`; None for no LoRA.
            freeze: NeMo's `freeze_params`: patterns of state-dict names.
            keep: NeMo's `prevent_freeze_params`.
            pretrained: Whether there are weights to read, or random ones are drawn.
            trust_remote_code: Whether transformers may run code that came with the LLM.
            options: Further fields: how the weights are kept, and the layers run.

        Raises:
            VtbModelError: The folder is missing or corrupt, the family is unknown, or LoRA does not fit.
        """
        other = _other_lora(lora)
        if not pretrained or other or not has_safetensors(source):
            llm = load_llm(source, pretrained=pretrained, trust_remote_code=trust_remote_code)
            table, first = llm.model.embed_tokens.weight.detach(), dict[str, Tensor]()
            shape = llm = with_lora(llm, lora) if lora else llm
        else:
            llm, shape = None, shape_of_llm(source, trust_remote_code=trust_remote_code)
            check_llm_size(source, weight_bytes(source), shape)
            table = _embedding(source)
            with torch.device('meta'):
                shape = with_lora(shape, lora) if lora else shape
            first = lora_like_peft(_lora_shapes(shape))
        # Gemma 3 has the scale in its embedding
        scale = float(getattr(shape.get_input_embeddings(), 'scalar_embed_scale', 1.0))
        rows = table[:_EMBEDDING_ROWS].float()
        freeze, keep = list(freeze), list(keep)
        names = (_state_name(name) for name, _ in shape.named_parameters() if '.lora_' not in name)
        config = shape.config.get_text_config()
        return cls(
            source,
            config.hidden_size,
            float((rows * scale if scale != 1.0 else rows).std()),
            config.num_hidden_layers,
            embedding_scale=scale,
            lora=lora,
            first_lora=first,
            trained=tuple(n for n in names if _matches(keep, n) or not _matches(freeze, n)),
            other_lora=other,
            trust_remote_code=trust_remote_code,
            vocab_size=table.shape[0],
            **options,
            llm=llm,
        )

    def embeddings(self, ids: Tensor) -> Tensor:
        """Embeddings of tokens as the LLM's first layer gets them.

        Args:
            ids: (n,) int64.

        Returns:
            (n, H) float32.

        Raises:
            IndexError: The LLM has no such token.
        """
        table = _embedding(self.source) if self.llm is None else self.llm.get_input_embeddings().weight.detach()
        return table[ids].float() * self.embedding_scale

    def require_ids(self, tokenizer: Any) -> 'BackboneSpec':
        """This plan; raises VtbModelError if the tokenizer makes ids for which the embedding has no row.

        Special tokens that a text-only LLM never sees may lie beyond it (Gemma 3); words may not.
        """
        words = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
        highest = max([*words.values(), tokenizer.eos_token_id or 0])
        if self.vocab_size and highest >= self.vocab_size:
            raise VtbModelError(
                'The tokenizer and the LLM do not belong together.',
                field='model.tokenizer_path',
                got=f'ids up to {highest}',
                allowed=f'ids below {self.vocab_size}, the rows of the token embedding',
                remedy="use the LLM's own tokenizer, or resize its embedding first",
            )
        return self

    def require_weights(self, who: str) -> None:
        """Raise VtbConfigError unless the weights of the LLM can be read from its folder; `who` needs them."""
        if self.llm is not None and not self.other_lora:
            raise VtbConfigError(
                f'The weights of the LLM are read from its folder ({who}).',
                field='model.pretrained_weights',
                got=False,
                allowed=True,
                remedy='save random weights with `save_pretrained`, or train with another strategy',
            )

    def require_frozen(self) -> None:
        """Raise VtbConfigError if the configuration trains weights of the LLM itself."""
        if self.trained:
            raise VtbConfigError(
                'With this strategy LoRA is trained, not the LLM itself.',
                field='model.freeze_params',
                got=f'{self.trained[0]} is to be trained',
                allowed=r"'^llm\\..+$' and '^embed_tokens\\..+$'",
                remedy='freeze the LLM, or train with another strategy',
            )

    def require_plain_lora(self) -> None:
        """Raise VtbConfigError unless LoRA is PEFT's plain one, on the same projections of all layers."""
        if self.other_lora:
            raise VtbConfigError(
                'The Megatron backbone has plain LoRA.',
                field='model.lora',
                got=dict(self.other_lora),
                allowed=sorted(PLAIN_LORA),
                remedy='leave these keys out, or train with another strategy',
            )
        places = self._lora_places()
        layers = {parent.rpartition('.')[0] for parent, _ in places}
        if places and (len(places) != len(layers) * len(self.lora_targets) or len(layers) != self.num_layers):
            assert self.lora is not None
            raise VtbConfigError(
                'The Megatron backbone has LoRA on the same projections of all layers.',
                field='model.lora.target_modules',
                got=f'{self.lora.get("target_modules")}: {len(places)} places in {len(layers)} of {self.num_layers} '
                'layers',
                allowed=['all-linear', 'q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'],
                remedy='name projections, not single layers, or train with another strategy',
            )

    def require_plain_layers(self) -> None:
        """Raise VtbConfigError if the layers are to run as those of the Hugging Face backbone alone can."""
        for name, wanted, remedy in (
            ('activation_checkpointing', self.checkpoints_layers, 'trainer.strategy.recompute=full'),
            ('compile_layers', self.compiles_layers, "trainer.strategy.fusions='auto', which compiles parts of them"),
            ('kernels', self.kernels != 'auto' and self.kernels, 'trainer.strategy.kernels, which has more of them'),
        ):
            if wanted:
                raise VtbConfigError(
                    'This is for the Hugging Face backbone.',
                    field=f'model.{name}',
                    got=wanted,
                    allowed=False if wanted is True else 'auto',
                    remedy=remedy,
                )

    def choose_kernels(self, *, on_gpu: bool) -> None:
        """Decide whether the Hugging Face backbone takes Liger's kernels: `auto` does on a GPU that has them.

        Args:
            on_gpu: Whether the run is on one.

        Raises:
            VtbConfigError: They are asked for, but not installed, or the layers are compiled as well.
        """
        compiled, there = self.compiles_layers, has_liger()
        if self.kernels == 'liger' and (compiled or not there):
            raise VtbConfigError(
                "torch's compiler makes kernels of its own." if compiled else "Liger's kernels are not installed.",
                field='model.kernels',
                got='liger' + (' with model.compile_layers=true' if compiled else ''),
                allowed='auto or torch',
                remedy='choose one of both' if compiled else "pip install 'nemo_vtb[megatron]', or model.kernels=auto",
            )
        self.takes_liger = self.kernels == 'liger' or (self.kernels == 'auto' and on_gpu and there and not compiled)

    def weight_dtype(self, *, precision: str, in_half: bool) -> torch.dtype:
        """Type of the frozen weights; LoRA, adapter and encoder keep that of the precision.

        Args:
            precision: `trainer.precision`.
            in_half: Whether the run is on a device that multiplies bfloat16.

        Raises:
            VtbConfigError: bfloat16 is asked for, but the LLM itself is trained, or its weights are in no folder.
        """
        if 'bf16-true' in precision:
            return torch.bfloat16
        in_folder = self.llm is None and not self.trained
        if self.frozen_dtype == 'bfloat16' and not in_folder:
            raise VtbConfigError(
                'Weights that are trained, or drawn and never saved, cannot be kept in bfloat16 alone.',
                field='model.frozen_dtype',
                got='bfloat16',
                allowed='auto or float32: small updates of a bfloat16 weight are rounded away',
                remedy='freeze the LLM and read it from a folder, or model.frozen_dtype=auto',
            )
        auto = self.frozen_dtype == 'auto' and in_half and precision == 'bf16-mixed' and in_folder
        return torch.bfloat16 if auto or self.frozen_dtype == 'bfloat16' else torch.float32

    @property
    def lora_targets(self) -> list[str]:
        """Names of the projections that have LoRA, sorted."""
        return sorted({name for _, name in self._lora_places()})

    def _lora_places(self) -> set[tuple[str, str]]:
        """(parent module, projection) of each linear with LoRA."""
        places = {name.split('.lora_')[0] for name in self.first_lora}
        return {(parent, name) for parent, _, name in (place.rpartition('.') for place in places)}


def _matches(patterns: Iterable[str], name: str) -> bool:
    return any(re.match(pattern, name) for pattern in patterns)


def _state_name(name: str) -> str:
    """Key in the state dict of a parameter of the LLM: NeMo's SALM has the embedding outside."""
    return 'embed_tokens.weight' if name.endswith('embed_tokens.weight') else f'llm.{name}'


def _other_lora(lora: Mapping[str, Any] | None) -> dict[str, Any]:
    if not lora:
        return {}
    from peft import LoraConfig

    try:
        own, plain = LoraConfig(**lora), LoraConfig()
    except (TypeError, ValueError):
        return {}  # `with_lora` says what is wrong with it
    return {n: getattr(own, n) for n in vars(plain) if n not in PLAIN_LORA and getattr(own, n) != getattr(plain, n)}


def _lora_shapes(llm: Any) -> dict[str, tuple[int, ...]]:
    if not hasattr(llm, 'peft_config'):
        return {}
    from peft import get_peft_model_state_dict

    return {name: tuple(value.shape) for name, value in get_peft_model_state_dict(llm).items()}


def _embedding(source: str) -> Tensor:
    """The token embedding (V, H), mapped from its file."""
    try:
        return base_weights(source)['embed_tokens.weight']
    except VtbModelError:
        raise
    except Exception as error:  # a header that lies fails in many ways
        raise unloadable(source, f'{type(error).__name__}: {first_line(error)}') from error
