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
"""What a training checkpoint holds of a model: all that is trained, under canonical names, without the frozen LLM."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from nemo_vtb.backbone.base import lora_misfit
from nemo_vtb.backbone.names import base_fingerprint, base_weights, is_llm_weight, peft_name, state_name
from nemo_vtb.errors import VtbCheckpointError, VtbNumericsError

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender


def frozen_llm(model: 'VoiceTextBlender') -> dict[str, Tensor]:
    """The untouched LLM by its keys in the state dict; {} if it is trained itself."""
    if model.is_built:
        return model.backbone.frozen_weights()
    return base_weights(model.spec.source, model.spec.first_lora)


def canonical_state(model: 'VoiceTextBlender') -> dict[str, Tensor]:
    """The whole state dict as the Hugging Face backbone has it; the ranks that hold one LLM call it together."""
    base = frozen_llm(model)
    # the LLM as it was published, also where the model keeps it in another type
    return {**base, **trained_state(model)} if model.backbone.deferred else {**model.state_dict(), **base}


def trained_state(model: 'VoiceTextBlender') -> dict[str, Tensor]:
    """State dict without the LLM, LoRA whole. The ranks that hold one LLM call it together."""
    lora = model.backbone.lora_state()
    order = [peft_name(n) for n in model.backbone.trainable_parameters() if '.lora_' in n] if lora else []
    named = {state_name(name): lora[name] for name in order}
    return {**named, **{name: value for name, value in model.state_dict().items() if not is_llm_weight(name)}}


def fill_frozen_llm(model: 'VoiceTextBlender', state: dict[str, Tensor], prefix: str, *others: Any) -> None:
    """Before a state dict is loaded: what checkpoints leave out, the untouched LLM, is that of the model itself.

    A state dict that has any of the LLM's weights stays as it is: it should have all of them.
    """
    if model.is_built and not model.backbone.deferred:
        base = {prefix + name: value for name, value in frozen_llm(model).items()}
        if not base.keys() & state.keys():
            state.update(base)


def load_trained_state(model: 'VoiceTextBlender', state: Mapping[str, Tensor]) -> None:
    """Take what `trained_state` gave, on any backbone and number of ranks, also before the backbone is built.

    Raises:
        VtbCheckpointError: Keys are missing or left over.
    """
    lora = {peft_name(n): v for n, v in state.items() if n.startswith('llm.')}
    if model.is_built:
        model.backbone.load_lora(lora)
    else:  # ranks cut out their parts later
        _check_shapes(model.spec.first_lora, lora)
        model.spec.first_lora = {name: lora[name].detach().clone() for name in model.spec.first_lora}
    own = {name for name in model.state_dict() if not is_llm_weight(name)}
    rest = {name: value for name, value in state.items() if not is_llm_weight(name)}
    missing, surplus = sorted(own - rest.keys()), sorted(rest.keys() - own)
    if missing or surplus:
        raise VtbCheckpointError(
            'The checkpoint does not fit this model.',
            field='checkpoint',
            got=f'missing {missing[:3]}, left over {surplus[:3]}',
            allowed=f'{len(own)} keys besides LoRA',
            remedy='use the encoder and the adapter that it was trained with',
        )
    model.load_state_dict(rest, strict=False)


def _check_shapes(own: Mapping[str, Tensor], lora: Mapping[str, Tensor]) -> None:
    here, there = ({f'{name} {tuple(v.shape)}' for name, v in each.items()} for each in (own, lora))
    if here != there:
        raise lora_misfit(sorted(there - here)[:3], sorted(here - there)[:3])


def drop_frozen_llm(model: 'VoiceTextBlender', checkpoint: dict[str, Any], buffers: Mapping[str, Tensor]) -> None:
    """Leave the untouched LLM out of a Lightning checkpoint, and note which one it was.

    Args:
        model: The model.
        checkpoint: What Lightning is about to save; changed in place.
        buffers: Values of running statistics that replace those in the state dict.
    """
    state = checkpoint['state_dict']
    state.update({name: value for name, value in buffers.items() if name in state})
    # plain values, so that the file can be read without running code that is in it
    checkpoint.pop(model.CHECKPOINT_HYPER_PARAMS_TYPE, None)
    if isinstance(stored := checkpoint.get(model.CHECKPOINT_HYPER_PARAMS_KEY), DictConfig):
        checkpoint[model.CHECKPOINT_HYPER_PARAMS_KEY] = OmegaConf.to_container(stored, resolve=True)
    base = frozen_llm(model)
    checkpoint['base_fingerprint'] = base_fingerprint(base)
    checkpoint['template_fingerprint'] = model.renderer.fingerprint
    for name in base:
        state.pop(name, None)
    check_finite(model, state)


def check_finite(model: 'VoiceTextBlender', state: Mapping[str, Tensor]) -> None:
    """Refuse to save a model that is of no use any more.

    Args:
        model: The model; its buffers other than running statistics may hold what they like, a mask of -inf for one.
        state: What is about to be saved, without the untouched LLM.

    Raises:
        VtbNumericsError: Weights or running statistics are NaN or infinite.
    """
    moving = ('.running_mean', '.running_var')
    fixed = {name for name, _ in model.named_buffers() if not name.endswith(moving)}
    values = {
        name: v.detach() for name, v in state.items() if v.is_floating_point() and v.numel() and name not in fixed
    }
    greatest = torch.stack([norm.float().cpu() for norm in torch._foreach_norm(list(values.values()), math.inf)])
    if bad := [name for name, fine in zip(values, greatest.isfinite().tolist(), strict=True) if not fine]:
        raise VtbNumericsError(
            'The model is not finite and is not saved; what was saved before is untouched.',
            field='state_dict',
            got=f'{len(bad)} of {len(values)} tensors, first {bad[0]}',
            allowed='finite weights and running statistics',
            remedy='resume from the last checkpoint with a lower model.optimizer.lr',
        )


def add_frozen_llm(model: 'VoiceTextBlender', checkpoint: dict[str, Any]) -> None:
    """Put the LLM's own weights back into a checkpoint that is about to be loaded, where the backbone needs them.

    Raises:
        VtbCheckpointError: The checkpoint belongs to another LLM or to another chat template.
    """
    base = frozen_llm(model)
    for key, what, now in (
        ('base_fingerprint', 'LLM', base_fingerprint(base)),
        ('template_fingerprint', 'tokenizer or chat template', model.renderer.fingerprint),
    ):
        if checkpoint.get(key, now) != now:
            raise VtbCheckpointError(
                f'The checkpoint was trained on another {what}.',
                field='model.pretrained_llm',
                got=model.cfg.pretrained_llm,
                allowed=f'the {what} with fingerprint {checkpoint[key][:12]}; this one has {now[:12]}',
                remedy='name the LLM of that run, or start in another folder (exp_manager.explicit_log_dir=...)',
            )
    if not model.is_built or model.backbone.deferred:
        return  # has read it already, each rank its part
    for name, value in base.items():
        checkpoint['state_dict'].setdefault(name, value)
