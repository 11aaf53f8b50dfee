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
"""What the model does differently when its LLM is split over several ranks (Megatron backbone)."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nemo_vtb.backbone.names import base_weights, frozen_base, lora_like_peft
from nemo_vtb.errors import VtbConfigError
from nemo_vtb.parallel.megatron import require_megatron

if TYPE_CHECKING:
    from nemo.collections.speechlm2.models.salm import SALM as _Salm
else:
    _Salm = object  # a mixin at run time: the class that it is mixed into comes from SALM

_LORA = ('r', 'lora_alpha', 'lora_dropout', 'target_modules', 'task_type', 'peft_type', 'base_model_name_or_path')
_FREEZING = ('freeze_params', 'prevent_freeze_params')


class SplitLLM(_Salm):
    """Mixin of `VoiceTextBlender`: the LLM is read, each rank its part, once the ranks know one another."""

    is_split: bool
    is_sharded: bool
    _built = False

    @property
    def spread_group(self) -> dist.ProcessGroup | None:
        """The ranks that share the clips of a row, None where this rank encodes all of them."""
        if not self.is_split:
            return None
        strategy: Any = self.trainer.strategy
        return strategy.tensor_group if strategy.spread_audio and strategy.tensor_parallel > 1 else None

    def base_weights(self) -> dict[str, Tensor]:
        """The untouched LLM under the names of the state dict; {} if it is trained itself."""
        if self.is_sharded and self._built:
            return base_weights(self._llm_source, self.backbone.lora_state())
        if not self.is_split:
            return frozen_base(self)
        return base_weights(self._llm_source, self._first_lora)

    def configure_model(self) -> None:
        """Read this rank's part of the LLM, or give it up; Lightning calls it when the ranks know one another."""
        if self._built:
            return
        if self.is_sharded:
            self._shard_llm()
        if not self.is_split:
            return
        from nemo_vtb.backbone.megatron.model import build_backbone

        strategy: Any = self.trainer.strategy
        backbone = build_backbone(
            self._llm_source,
            lora_config=self._lora_options,
            sequence_parallel=strategy.sequence_parallel,
            dtype=torch.bfloat16 if 'bf16-true' in str(self.trainer.precision) else torch.float32,
            **strategy.decoder_options,
        )
        if self._first_lora:
            strategy.take_from_first(self._first_lora.values())
            backbone.load_lora(self._first_lora)
        self.llm = backbone
        # not as a second submodule, else each weight would have two names
        object.__setattr__(self, 'backbone', backbone)
        self._built = True

    def _check_shardable(self, source: str, pretrained: bool) -> None:
        """Refuse what ranks with parts of a Hugging Face LLM cannot train.

        Raises:
            VtbConfigError: The LLM has no weights.
        """
        if not pretrained:
            raise _no_weights('trainer.strategy=fully_sharded')
        self._llm_source = source

    def _check_frozen(self) -> None:
        for name, parameter in (*self.llm.named_parameters(), ('embed_tokens.weight', self.embed_tokens.weight)):
            self._require_frozen(name, parameter)

    def _shard_llm(self) -> None:
        from nemo_vtb.backbone.sharded import shard_decoder

        if 'bf16-true' in str(self.trainer.precision):
            self.llm.to(torch.bfloat16)  # before it is cut: Lightning does so with the rest
        strategy: Any = self.trainer.strategy
        shard_decoder(self.backbone.decoder, strategy.device_mesh['data_parallel'])
        self._built = True

    def _plan_llm(self, source: str, pretrained: bool) -> None:
        """Find out what the rest of the model needs to know of the LLM; draw the first LoRA weights.

        Raises:
            VtbConfigError: The LLM is to be trained itself, or has no weights.
        """
        require_megatron()
        if not pretrained:
            raise _no_weights('the Megatron backbone')
        self._llm_source = source
        shape = self._shape_of_llm()
        table = base_weights(source)['embed_tokens.weight']  # (V, H), mapped
        scale = getattr(shape.get_input_embeddings(), 'scalar_embed_scale', 1.0)
        self._llm_scale = (table.shape[1], float(table[:1000].float().std()) * scale)
        self.llm = nn.Module()

    def _shape_of_llm(self) -> Any:
        """The LLM without memory: PEFT itself says where LoRA goes, and in which order."""
        from transformers import AutoConfig, AutoModelForCausalLM

        from nemo_vtb.backbone.hf import check_llm_folder

        check_llm_folder(self._llm_source)
        with torch.device('meta'):
            llm = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(self._llm_source))
            self._lora_options, shapes = None, dict[str, Any]()
            if self.cfg.get('lora'):
                from peft import get_peft_model_state_dict

                llm = self._with_lora(llm)
                shapes = {name: tuple(v.shape) for name, v in get_peft_model_state_dict(llm).items()}
                layers = int(llm.config.get_text_config().num_hidden_layers)
                self._lora_options = self._plain_lora(shapes, layers)
        for name, parameter in llm.named_parameters():
            self._require_frozen(name, parameter)
        self._first_lora = lora_like_peft(shapes)
        return llm

    def _plain_lora(self, names: Iterable[str], num_layers: int) -> dict[str, Any]:
        """The four fields that Megatron's LoRA has; the others must be as PEFT sets them by itself."""
        from peft import LoraConfig

        own, plain = self.lora_config, LoraConfig()
        other = {n: getattr(own, n) for n in vars(plain) if n not in _LORA and getattr(own, n) != getattr(plain, n)}
        if other:
            raise VtbConfigError(
                'The Megatron backbone has plain LoRA.',
                field='model.lora',
                got=other,
                allowed=sorted(_LORA),
                remedy='leave these keys out, or train with another strategy',
            )
        places = {name.split('.lora_')[0].rpartition('.') for name in names}
        layers, targets = {parent.rpartition('.')[0] for parent, _, _ in places}, sorted({p[2] for p in places})
        if len(places) != len(layers) * len(targets) or len(layers) != num_layers:
            raise VtbConfigError(
                'The Megatron backbone has LoRA on the same projections of all layers.',
                field='model.lora.target_modules',
                got=f'{own.target_modules}: {len(places)} places in {len(layers)} of {num_layers} layers',
                allowed=['all-linear', 'q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'],
                remedy='name projections, not single layers, or train with another strategy',
            )
        return {
            'r': own.r,
            'lora_alpha': own.lora_alpha,
            'lora_dropout': own.lora_dropout,
            'target_modules': targets,
        }

    def _require_frozen(self, name: str, parameter: nn.Parameter) -> None:
        if '.lora_' in name:
            return
        own = 'embed_tokens.weight' if name.endswith('embed_tokens.weight') else f'llm.{name}'
        matches = {key: any(re.match(p, own) for p in self.cfg.get(key) or ()) for key in _FREEZING}
        if matches['prevent_freeze_params'] or not matches['freeze_params']:
            raise VtbConfigError(
                'With this strategy LoRA is trained, not the LLM itself.',
                field='model.freeze_params',
                got=f'{own} is to be trained',
                allowed=r"'^llm\\..+$' and '^embed_tokens\\..+$'",
                remedy='freeze the LLM, or train with another strategy',
            )


def _no_weights(who: str) -> VtbConfigError:
    return VtbConfigError(
        f'The weights of the LLM are read from its folder ({who}).',
        field='model.pretrained_weights',
        got=False,
        allowed=True,
        remedy='save random weights with `save_pretrained`, or train with another strategy',
    )
