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
"""Backbone on transformers and PEFT: any decoder LLM that Hugging Face can load, whole on each rank or sharded."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from nemo_vtb.backbone.attention import IMPLEMENTATION, Borders, keep_float32, register
from nemo_vtb.backbone.base import Backbone, lora_misfit
from nemo_vtb.backbone.fused_lora import fuse_lora
from nemo_vtb.backbone.kv_cache import KVCache
from nemo_vtb.backbone.liger import Kernels, fuse_layers, fused_nll, runs_on
from nemo_vtb.backbone.lora_fields import check_fields, check_targets
from nemo_vtb.backbone.names import base_weights, is_base_weight
from nemo_vtb.errors import VtbModelError, first_line
from nemo_vtb.io import read_json_object

if TYPE_CHECKING:
    from nemo_vtb.backbone.spec import BackboneSpec

logger = logging.getLogger(__name__)

# of the largest LLMs: 126 layers, 512 experts
_MOST_LAYERS, _MOST_EXPERTS, _FREE_PARAMETERS = 1024, 4096, 1 << 26


class HFBackbone(Backbone):
    """Runs a `transformers` causal LM, with or without LoRA, on packed rows.

    Args:
        llm: The causal LM, or the PEFT model around it.
        embed_tokens: Its token embedding, which SALM takes out of it.
    """

    def __init__(self, llm: nn.Module, embed_tokens: nn.Module) -> None:
        self._llm, self._embed_tokens = llm, embed_tokens
        self._causal_lm = llm.get_base_model() if hasattr(llm, 'get_base_model') else llm
        config = self._causal_lm.config.get_text_config()
        self.hidden_size: int = config.hidden_size
        self.decoder: nn.Module = self._causal_lm.model
        self._softcap = getattr(config, 'final_logit_softcapping', None)
        self._logit_divisor = getattr(config, 'logits_scaling', None)

    _published: str | None = None
    """Where the weights are read from that are kept in another type; None: those in the model are they."""

    _kernels: Kernels | None = None
    """Liger's, where they are taken."""

    @classmethod
    def build(
        cls,
        spec: 'BackboneSpec',
        *,
        dtype: torch.dtype = torch.float32,
        lora_dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> 'HFBackbone':
        """Load the LLM and put LoRA on it, which starts from what `spec` drew; nothing is drawn here."""
        llm = spec.llm
        if llm is None:
            llm = load_llm(spec.source, pretrained=True, trust_remote_code=spec.trust_remote_code)
            if spec.lora:
                with torch.random.fork_rng():
                    llm = with_lora(llm, spec.lora)
        spec.llm = None
        causal_lm = llm.get_base_model() if hasattr(llm, 'get_base_model') else llm
        embed_tokens = causal_lm.model.embed_tokens
        if dtype != torch.float32:
            _keep_in(llm, dtype, lora_dtype)
        fuse_lora(llm)
        del causal_lm.model.embed_tokens  # as SALM: it stands outside, where the splice can reach it
        backbone = cls(llm, embed_tokens)
        if spec.checkpoints_layers:
            causal_lm.gradient_checkpointing_enable({'use_reentrant': False})
        if spec.takes_liger:
            backbone.take(Kernels.installed())
        if spec.compiles_layers:
            for layer in causal_lm.model.layers:
                layer.compile(dynamic=True)
        if dtype != torch.float32:
            backbone._published = spec.source
        if spec.first_lora:
            backbone.load_lora(spec.first_lora)
        return backbone

    def take(self, kernels: Kernels) -> None:
        """Run decoder and loss by Liger's kernels, wherever the model is on a GPU."""
        found = fuse_layers(self.decoder, kernels)
        logger.info("Liger's kernels: %s, and the loss.", ', '.join(f'{n} {name}' for name, n in found.items()))
        self._kernels = kernels

    @property
    def bounds_logits(self) -> bool:
        """Whether `nll` itself keeps only a part of the logits at once."""
        head = self._causal_lm.lm_head
        return (
            self._kernels is not None and type(head) is nn.Linear and not self._logit_divisor and runs_on(head.weight)
        )

    @property
    def salm_modules(self) -> dict[str, nn.Module]:
        """`llm` and `embed_tokens`."""
        return {'llm': self._llm, 'embed_tokens': self._embed_tokens}

    # ---- packed rows

    def embed(self, ids: Tensor) -> Tensor:
        """(T,) token ids to (T, H)."""
        return self._embed_tokens(ids)

    def forward(self, embeds: Tensor, position_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """(T, H) of a packed row to hidden states (T, H)."""
        return self._decode(embeds, position_ids, Borders.of(cu_seqlens, max_seqlen, embeds.device))

    def extend(self, embeds: Tensor, lengths: Sequence[int], caches: Sequence[KVCache]) -> Tensor:
        """Go on with conversations of which keys and values are kept, all in one packed pass. Without gradients.

        Args:
            embeds: (T, H), what is new in each, one behind the other.
            lengths: How much of it belongs to each; at least 1.
            caches: What came before; the new positions are added.

        Returns:
            Hidden states of the new positions, (T, H).
        """
        spans = [
            torch.arange(c.length, c.length + n, device=embeds.device) for c, n in zip(caches, lengths, strict=True)
        ]
        with torch.no_grad():
            borders = Borders([0, *accumulate(lengths)], max(lengths))
            hidden = self._decode(embeds, torch.cat(spans), borders, caches=caches)
        for cache, count in zip(caches, lengths, strict=True):
            cache.commit(count)
        return hidden

    def _decode(self, embeds: Tensor, position_ids: Tensor, borders: Borders, **options: Any) -> Tensor:
        # a ready-made 4-D mask is passed through untouched, which spares the T x T mask that nobody would read
        no_mask = embeds.new_zeros((1, 1, 1, 1), dtype=torch.bool)
        out = self.decoder(
            inputs_embeds=embeds.unsqueeze(0),  # (1, T, H)
            attention_mask=no_mask,
            position_ids=position_ids.unsqueeze(0),  # (1, T)
            use_cache=False,
            borders=borders,
            **options,
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
        if self._kernels is not None and self.bounds_logits:
            return fused_nll(self._causal_lm.lm_head, hidden, targets, self._softcap, self._kernels)
        return cross_entropy(self.head(hidden).float(), targets, reduction='none')

    @torch.no_grad()
    def score(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As `nll`, and whether the most likely token is the target: (n,) bool. Without gradients."""
        logits = self.head(hidden)  # (n, V)
        return cross_entropy(logits.float(), targets, reduction='none'), logits.argmax(-1) == targets

    # ---- answers

    def generate(self, embeds: Tensor, attention_mask: Tensor, **options: Any) -> Tensor:
        """(B, T, H) prompts, padded on the left, to answers (B, N) int64, by transformers' `generate`."""
        with self.as_transformers() as llm:
            return llm.generate(inputs_embeds=embeds, attention_mask=attention_mask, **options)

    def first_logits(self, embeds: Tensor) -> Tensor:
        """(T, H) of one prompt to the logits of the first token of its answer, by the kernels that answer: (V,)."""
        with self.as_transformers() as llm:
            mask = torch.ones(1, embeds.shape[0], dtype=torch.long, device=embeds.device)
            return llm(inputs_embeds=embeds[None], attention_mask=mask).logits[0, -1].float()

    @contextmanager
    def as_transformers(self) -> Iterator[Any]:
        """The LLM with its embedding inside, which looks up each generated token itself."""
        self.decoder.embed_tokens = self._embed_tokens
        try:
            yield self._llm
        finally:
            del self.decoder.embed_tokens

    # ---- LoRA and frozen weights

    def without_lora(self) -> AbstractContextManager:
        """The untouched base LLM, as long as the context is open."""
        return self._llm.disable_adapter() if hasattr(self._llm, 'disable_adapter') else nullcontext()

    def lora_state(self) -> dict[str, Tensor]:
        """LoRA weights under PEFT's names, {} when there is no LoRA."""
        if not hasattr(self._llm, 'peft_config'):
            return {}
        from peft import get_peft_model_state_dict

        return get_peft_model_state_dict(self._llm)

    def load_lora(self, state: Mapping[str, Tensor]) -> None:
        """Load LoRA weights under PEFT's names.

        Raises:
            VtbCheckpointError: Keys are missing or left over.
        """
        own = self.lora_state()
        missing, surplus = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or surplus:
            raise lora_misfit(f'missing {missing[:3]}, left over {surplus[:3]}', f'{len(own)} keys')
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self._llm, dict(state))

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """What of the LLM is trained, by its key in the state dict."""
        named = [(f'{key}.{n}', p) for key, m in self.salm_modules.items() for n, p in m.named_parameters()]
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def frozen_weights(self) -> dict[str, Tensor]:
        """The untouched LLM by its keys in the state dict; an LLM that is trained itself has none."""
        if self._published is not None:
            return base_weights(self._published, self.lora_state())
        # the parameters themselves, so that tied weights count as trained too
        states = {key: module.state_dict(keep_vars=True) for key, module in self.salm_modules.items()}
        named = {f'{key}.{name}': value for key, state in states.items() for name, value in state.items()}
        return {n: v.detach() for n, v in named.items() if is_base_weight(n) and not v.requires_grad}


class ShardedHFBackbone(HFBackbone):
    """The decoder layers of a frozen LLM spread over the data-parallel ranks; LoRA, embedding and head are whole.

    How often embedding and head run differs from rank to rank, and a rank that gathers alone would wait forever.
    """

    deferred = True

    @classmethod
    def check(cls, spec: 'BackboneSpec') -> None:
        """Refuse an LLM without weights, or one that is trained itself.

        Raises:
            VtbConfigError: It is one of them.
        """
        spec.require_weights('trainer.strategy=fully_sharded')
        spec.require_frozen()

    @classmethod
    def build(
        cls,
        spec: 'BackboneSpec',
        *,
        dtype: torch.dtype = torch.float32,
        lora_dtype: torch.dtype = torch.float32,
        mesh: DeviceMesh | None = None,
        **options: Any,
    ) -> 'ShardedHFBackbone':
        """Load the LLM, freeze it, and spread it over `mesh`, the data-parallel ranks."""
        # in its type before it is cut: Lightning would cast parts
        backbone = super().build(spec, dtype=dtype, lora_dtype=lora_dtype)
        assert isinstance(backbone, ShardedHFBackbone)
        backbone._published = spec.source  # each rank holds a part of it
        for name, parameter in backbone._llm.named_parameters():
            parameter.requires_grad_('.lora_' in name)
        shard_decoder(backbone.decoder, mesh)
        return backbone

    def idle_pass(self, device: torch.device) -> Tensor:
        """Run one token: the others wait for this rank's parts of the layers."""
        one = torch.zeros(1, dtype=torch.int64, device=device)
        borders = torch.tensor([0, 1], dtype=torch.int32, device=device)
        return (self.forward(self.embed(one), one, borders, 1) * 0.0).sum()

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Gather the decoder once, and give it back at the end."""
        parts = [module for module in self.decoder.modules() if isinstance(module, FSDPModule)]

        def keep(whole: bool) -> None:
            # what is made in inference mode could not be trained on afterwards
            with torch.inference_mode(False), torch.no_grad():
                for part in parts:
                    part.set_reshard_after_forward(not whole, recurse=False)
                    part.unshard() if whole else part.reshard()

        keep(True)
        try:
            yield
        finally:
            keep(False)


def _keep_in(llm: nn.Module, dtype: torch.dtype, lora_dtype: torch.dtype) -> None:
    """Cast the frozen weights; and under autocast, which would take it back, PEFT does not cast LoRA's input."""
    for name, parameter in llm.named_parameters():
        parameter.data = parameter.data.to(lora_dtype if '.lora_' in name else dtype)
    for module in llm.modules():
        if (cast := getattr(module, '_cast_input_dtype', None)) is not None:
            module._cast_input_dtype = partial(_unless_autocast, cast)


def _unless_autocast(cast: Callable[..., Any], x: Tensor | None, dtype: torch.dtype) -> Any:
    return x if x is not None and torch.is_autocast_enabled(x.device.type) else cast(x, dtype)


def shard_decoder(decoder: nn.Module, mesh: DeviceMesh | None) -> None:
    """Spread the frozen weights of a decoder over the ranks, layer by layer.

    Args:
        decoder: With `layers`; its trained parameters stay as they are.
        mesh: The data-parallel ranks.
    """
    trained = {parameter for parameter in decoder.parameters() if parameter.requires_grad}
    layers: Any = decoder.layers
    for module in (*layers, decoder):
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=trained)


def with_lora(llm: nn.Module, lora: Mapping[str, Any]) -> Any:
    """Put PEFT's LoRA on a causal LM.

    Args:
        llm: With its embedding inside.
        lora: Fields of `peft.LoraConfig`.

    Raises:
        VtbModelError: There is no such field, it has no effect here, or no layer has a name that it gives.
    """
    from peft import LoraConfig, get_peft_model

    try:
        config = LoraConfig(**lora)
        check_fields(config)
        check_targets(llm, config)
        return get_peft_model(llm, config)
    except VtbModelError:
        raise
    except (TypeError, ValueError) as error:
        raise VtbModelError(
            'LoRA cannot be put on this LLM.',
            field='model.lora',
            got=f'{dict(lora)}: {error}',
            allowed='the fields of peft.LoraConfig; target_modules that occur in the LLM, or all-linear',
        ) from error


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

    llm = _checked(
        source,
        lambda: load_pretrained_hf(source, pretrained_weights=pretrained, trust_remote_code=trust_remote_code),
    )
    if isinstance(rotary := getattr(llm.model, 'rotary_emb', None), nn.Module):
        keep_float32(rotary)
    register()
    llm.set_attn_implementation(IMPLEMENTATION)
    return llm


def shape_of_llm(source: str, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A causal LM without memory, on the meta device.

    Args:
        source: As in `load_llm`.
        trust_remote_code: As in `load_llm`.

    Raises:
        VtbModelError: As `load_llm`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    def make() -> PreTrainedModel:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        with torch.device('meta'):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)

    return _checked(source, make)


def _checked(source: str, make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """What `make` gives, if it is a plain decoder; otherwise an error that says what to do."""
    check_llm_folder(source)
    check_llm_config(read_json_object(Path(source).expanduser() / 'config.json'), source)
    try:
        llm = make()
    except ValueError as error:
        raise VtbModelError(
            'transformers does not know this family of LLM.',
            field='model.pretrained_llm',
            got=f'{source}: {first_line(error)}',
            allowed='decoder LLMs: Llama, SmolLM, Qwen2/3, Gemma 1/2/3 (text), Mistral, Phi, Granite ...',
            remedy='choose a text LLM; vision-language models are not text LLMs',
        ) from error
    except Exception as error:  # sizes that do not fit together fail in as many ways as there are families
        raise unloadable(source, first_line(error)) from error
    decoder = getattr(llm, 'model', None)
    if decoder is None or not hasattr(decoder, 'embed_tokens') or not hasattr(llm, 'lm_head'):
        raise VtbModelError(
            'The LLM is not a plain decoder.',
            field='model.pretrained_llm',
            got=f'{source}: {type(llm).__name__}',
            allowed='a causal LM with .model.embed_tokens and .lm_head',
            remedy='choose a decoder LLM such as Llama, Qwen, Gemma or Mistral',
        )
    return llm


def check_llm_config(config: Mapping[str, Any], source: str) -> None:
    """Refuse an LLM that would be built for ever, or whose configuration has transformers fetch code.

    Args:
        config: Its config.json.
        source: Named in the error.

    Raises:
        VtbModelError: More layers or experts than any LLM has, or attention kernels from a repository.
    """
    for key, value in config.items():
        most = _MOST_LAYERS if 'layer' in key else _MOST_EXPERTS if 'expert' in key else None
        if isinstance(value, Mapping):
            check_llm_config(value, source)
        elif most is not None and isinstance(value, int | float) and value > most:
            raise unloadable(source, f'{key} {value} in config.json; at most {most}')
        elif key.endswith('attn_implementation') and not re.fullmatch(r'\w*', str(value)):
            raise unloadable(source, f'{key} {value} in config.json, which names code to be fetched')


def check_llm_size(source: str, num_bytes: int, shape: PreTrainedModel | None = None) -> None:
    """Refuse an LLM whose configuration describes more parameters than its weights can hold; no memory is taken.

    Args:
        source: Folder with its config.json.
        num_bytes: Of the weights that are there.
        shape: The LLM on the meta device, where it was made already.

    Raises:
        VtbModelError: It does, or it cannot be built.
    """
    shape = shape_of_llm(source) if shape is None else shape
    parameters = sum(p.numel() for p in shape.parameters())
    if parameters > 2 * num_bytes + _FREE_PARAMETERS:  # two to a byte: weights of four bits
        raise unloadable(source, f'config.json describes {parameters:,} parameters, the weights {num_bytes:,} bytes')


def unloadable(source: str, why: str) -> VtbModelError:
    """The error for an LLM whose files are there but cannot be read."""
    return VtbModelError(
        'The LLM cannot be loaded.',
        field='model.pretrained_llm',
        got=f'{source}: {why}',
        allowed='a folder with config.json and *.safetensors',
        remedy='download it again, or name another folder; `vtb assets` lists the embedded ones',
    )


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
