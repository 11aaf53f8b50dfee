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
"""Backbone on transformers and PEFT: any decoder LLM that Hugging Face can load, on packed rows."""

import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from nemo_vtb.backbone.packed_attention import IMPLEMENTATION, register
from nemo_vtb.backbone.rotary import keep_float32
from nemo_vtb.errors import VtbCheckpointError, VtbModelError, first_line


class HFBackbone:
    """Runs a `transformers` causal LM, with or without LoRA, on packed rows.

    Holds no parameters of its own: `llm` and `embed_tokens` stay where SALM keeps them, so that state dicts are alike.

    Args:
        llm: The causal LM, or the PEFT model around it.
        embed_tokens: Its token embedding, which SALM takes out of it.
    """

    def __init__(self, llm: nn.Module, embed_tokens: nn.Module) -> None:
        self._llm, self._embed_tokens = llm, embed_tokens
        self._causal_lm = llm.get_base_model() if hasattr(llm, 'get_base_model') else llm
        self.hidden_size: int = self._causal_lm.config.get_text_config().hidden_size
        config = self._causal_lm.config.get_text_config()
        self.decoder: nn.Module = self._causal_lm.model
        self._softcap = getattr(config, 'final_logit_softcapping', None)
        self._logit_divisor = getattr(config, 'logits_scaling', None)

    def embed(self, ids: Tensor) -> Tensor:
        """(T,) token ids to (T, H)."""
        return self._embed_tokens(ids)

    def forward(self, embeds: Tensor, position_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """(T, H) of a packed row to hidden states (T, H)."""
        # a ready-made 4-D mask is passed through untouched, which spares the T x T mask that nobody would read
        no_mask = embeds.new_zeros((1, 1, 1, 1), dtype=torch.bool)
        out = self.decoder(
            inputs_embeds=embeds.unsqueeze(0),  # (1, T, H)
            attention_mask=no_mask,
            position_ids=position_ids.unsqueeze(0),  # (1, T)
            use_cache=False,
            cu_seqlens=cu_seqlens.tolist(),
        )
        return out.last_hidden_state.squeeze(0)  # (T, H)

    def head(self, hidden: Tensor) -> Tensor:
        """(n, H) to logits (n, V)."""
        logits = self._causal_lm.lm_head(hidden)
        if self._logit_divisor:
            logits = logits / self._logit_divisor
        if self._softcap:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """(n, H) and the tokens (n,) that must follow to their negative log-likelihoods (n,), float32."""
        return cross_entropy(self.head(hidden).float(), targets, reduction='none')

    @torch.no_grad()
    def score(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As `nll`, and whether the most likely token is the target: (n,) bool. Without gradients."""
        logits = self.head(hidden)  # (n, V)
        return cross_entropy(logits.float(), targets, reduction='none'), logits.argmax(-1) == targets

    def without_lora(self) -> AbstractContextManager:
        """The untouched base LLM, as long as the context is open."""
        return self._llm.disable_adapter() if hasattr(self._llm, 'disable_adapter') else nullcontext()

    def lora_state(self) -> dict[str, Tensor]:
        """LoRA weights under PEFT's names, {} when there is no LoRA."""
        if not hasattr(self._llm, 'peft_config'):
            return {}
        from peft import get_peft_model_state_dict

        return get_peft_model_state_dict(self._llm)

    def load_lora(self, state: dict[str, Tensor]) -> None:
        """Load LoRA weights under PEFT's names.

        Raises:
            VtbCheckpointError: Keys are missing or left over.
        """
        own = self.lora_state()
        missing, surplus = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or surplus:
            raise VtbCheckpointError(
                'The LoRA weights do not fit this model.',
                field='lora',
                got=f'missing {missing[:3]}, left over {surplus[:3]}',
                allowed=f'{len(own)} keys',
                remedy='use the rank and the target modules that the weights were trained with',
            )
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self._llm, state)


def load_llm(source: str, *, pretrained: bool, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load a causal LM in float32 with packed attention switched on.

    Args:
        source: Folder with a Hugging Face model, or the name of one in the local hub cache.
        pretrained: Whether to load its weights, or only its shape.
        trust_remote_code: Passed on to transformers; off by default, since it runs a stranger's code.

    Raises:
        VtbModelError: The folder is missing or corrupt, or the family is unknown or not a plain decoder.
    """
    from nemo.collections.speechlm2.parts.pretrained import load_pretrained_hf
    from safetensors import SafetensorError

    check_llm_folder(source)
    try:
        llm = load_pretrained_hf(source, pretrained_weights=pretrained, trust_remote_code=trust_remote_code)
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise VtbModelError(
            'The LLM cannot be loaded.',
            field='model.pretrained_llm',
            got=f'{source}: {first_line(error)}',
            allowed='a folder with config.json and *.safetensors',
            remedy='download it again, or name another folder; `vtb assets` lists the embedded ones',
        ) from error
    except ValueError as error:
        raise VtbModelError(
            'transformers does not know this family of LLM.',
            field='model.pretrained_llm',
            got=f'{source}: {first_line(error)}',
            allowed='decoder LLMs: Llama, SmolLM, Qwen2/3, Gemma 1/2/3 (text), Mistral, Phi, Granite ...',
            remedy='choose a text LLM; vision-language models are not text LLMs',
        ) from error
    decoder = getattr(llm, 'model', None)
    if decoder is None or not hasattr(decoder, 'embed_tokens') or not hasattr(llm, 'lm_head'):
        raise VtbModelError(
            'The LLM is not a plain decoder.',
            field='model.pretrained_llm',
            got=f'{source}: {type(llm).__name__}',
            allowed='a causal LM with .model.embed_tokens and .lm_head',
            remedy='choose a decoder LLM such as Llama, Qwen, Gemma or Mistral',
        )
    if isinstance(rotary := getattr(decoder, 'rotary_emb', None), nn.Module):
        keep_float32(rotary)
    register()
    llm.set_attn_implementation(IMPLEMENTATION)
    return llm


def check_llm_folder(source: str) -> None:
    """Refuse a path that is no model folder, before transformers takes it for the name of a hub repository.

    Raises:
        VtbModelError: The folder or its config.json is missing.
    """
    looks_like_path = source.startswith(('/', './', '../', '~')) or not re.fullmatch(r'[\w.-]+(/[\w.-]+)?', source)
    folder = Path(source).expanduser()
    if (looks_like_path and not folder.is_dir()) or (folder.is_dir() and not (folder / 'config.json').is_file()):
        raise VtbModelError(
            'There is no LLM in this folder.',
            field='model.pretrained_llm',
            got=source,
            allowed='a folder with config.json, tokenizer files and *.safetensors',
            remedy='correct the path, or use an embedded LLM: `vtb assets` lists them',
        )
