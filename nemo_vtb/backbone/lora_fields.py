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
"""Fields of PEFT's LoraConfig that can act on an LLM as it is trained here; all others are refused by name.

PEFT takes a misspelt target beside a right one, and modules that stand outside of the LLM here, without a word.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from nemo_vtb.errors import VtbModelError

# what plain LoRA has, what PEFT writes by itself, and what acts on linear layers alone
_ACTING = frozenset({
    'alpha_pattern', 'auto_mapping', 'base_model_name_or_path', 'exclude_modules', 'fan_in_fan_out', 'inference_mode',
    'init_lora_weights', 'layers_pattern', 'layers_to_transform', 'lora_alpha', 'lora_bias', 'lora_dropout',
    'peft_type', 'peft_version', 'r', 'rank_pattern', 'revision', 'target_modules', 'task_type', 'use_dora',
    'use_rslora',
})  # fmt: skip
_REMEDIES = {
    'bias': 'train biases by model.prevent_freeze_params',
    'modules_to_save': 'train modules of the LLM by model.prevent_freeze_params',
    'trainable_token_indices': 'train the embedding by model.prevent_freeze_params',
}
_STARTS = (True, False, 'gaussian', 'orthogonal')
_OUTSIDE = ('embed_tokens',)


def check_fields(config: Any) -> None:
    """Refuse fields of a `LoraConfig` that would be accepted and do nothing, or change the base LLM.

    Raises:
        VtbModelError: Names the field.
    """
    plain = type(config)()
    for name in vars(plain):
        value = getattr(config, name)
        if name not in _ACTING and value != getattr(plain, name):
            raise VtbModelError(
                'This field of LoRA has no effect here.', field=f'model.lora.{name}', got=value,
                allowed=sorted(_ACTING), remedy=_REMEDIES.get(name, 'leave it out'),
            )  # fmt: skip
    if config.init_lora_weights not in _STARTS:
        raise VtbModelError(
            'This start of LoRA changes the weights of the base LLM, or needs data: its files could not be restored.',
            field='model.lora.init_lora_weights', got=config.init_lora_weights, allowed=list(_STARTS),
        )  # fmt: skip
    if config.inference_mode:
        raise VtbModelError('LoRA would not be trained.', field='model.lora.inference_mode', got=True, allowed=False)


def check_targets(llm: nn.Module, config: Any) -> None:
    """Refuse names of layers in a `LoraConfig` that match nothing in an LLM, or a layer that LoRA cannot adapt here.

    Raises:
        VtbModelError: Names the field and the nearest layer.
    """
    names = [name for name, _ in llm.named_modules() if name]
    targets = config.target_modules
    for field, patterns in (('target_modules', targets), ('exclude_modules', config.exclude_modules)):
        for pattern in patterns if isinstance(patterns, list | set | tuple) else ():
            _require(field, pattern, any(name == pattern or name.endswith(f'.{pattern}') for name in names), names)
        if isinstance(patterns, str) and patterns != 'all-linear':
            _require(field, patterns, any(_full(patterns, name) for name in names), names)
    for field in ('rank_pattern', 'alpha_pattern'):
        for pattern in getattr(config, field) or {}:
            _require(field, pattern, any(_full(rf'(.*\.)?({pattern})', name) for name in names), names)
    chosen = set(_chosen(targets, names))
    if outside := sorted(name for name in chosen if name.rpartition('.')[2] in _OUTSIDE):
        raise VtbModelError(
            'The token embedding stands outside of the LLM, where LoRA does not reach it.',
            field='model.lora.target_modules', got=outside, allowed=_linear(llm),
            remedy='leave it out, or train the embedding by model.prevent_freeze_params',
        )  # fmt: skip
    if _is_tied(llm) and any(name.rpartition('.')[2] == 'lm_head' for name in chosen):
        raise VtbModelError(
            'The head of this LLM is its embedding (tied weights): LoRA on it could not be exported.',
            field='model.lora.target_modules', got='lm_head', allowed=_linear(llm),
            remedy='leave lm_head out, or use an LLM with tie_word_embeddings: false',
        )  # fmt: skip
    _check_layers(llm, config)


def _check_layers(llm: nn.Module, config: Any) -> None:
    count = getattr(getattr(llm, 'config', None), 'num_hidden_layers', None)
    wanted = config.layers_to_transform
    for layer in [wanted] if isinstance(wanted, int) else wanted or ():
        if count is not None and not 0 <= layer < count:
            raise VtbModelError(
                'The LLM has no such layer.', field='model.lora.layers_to_transform', got=layer,
                allowed=f'0 to {count - 1}',
            )  # fmt: skip


def _require(field: str, pattern: str, matches: bool, names: Iterable[str]) -> None:
    if matches:
        return
    leaves = sorted({name.rpartition('.')[2] for name in names if not name.rpartition('.')[2].isdigit()})
    near = difflib.get_close_matches(pattern.rpartition('.')[2], leaves, 1, 0.5)
    raise VtbModelError(
        'LoRA cannot be put on this LLM: no layer has this name.' + (f' Did you mean {near[0]!r}?' if near else ''),
        field=f'model.lora.{field}', got=pattern, allowed=leaves,
    )  # fmt: skip


def _full(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error:
        return False


def _chosen(targets: Any, names: Iterable[str]) -> Iterable[str]:
    if targets is None or targets == 'all-linear':
        return []
    if isinstance(targets, str):
        return [name for name in names if _full(targets, name)]
    return [name for name in names if any(name == t or name.endswith(f'.{t}') for t in targets)]


def _linear(llm: nn.Module) -> list[str]:
    found = {name.rpartition('.')[2] for name, module in llm.named_modules() if isinstance(module, nn.Linear)}
    return sorted(found - {'lm_head'})


def _is_tied(llm: nn.Module) -> bool:
    config: Any = getattr(llm, 'config', None)
    text: Mapping[str, Any] | Any = config.get_text_config() if hasattr(config, 'get_text_config') else config
    return bool(getattr(text, 'tie_word_embeddings', False))
