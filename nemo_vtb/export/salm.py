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
"""The whole model as a folder that NeMo's SALM and its vLLM plugin read.

NeMo's own `save_pretrained` leaves tokenizer and LLM configuration out; here the folder is self-contained.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn
from nemo_vtb.data.template import AUDIO_SLOT, ChatRenderer
from nemo_vtb.errors import VtbCheckpointError, VtbTemplateError
from nemo_vtb.export.hf import write_llm_config, write_tokenizer
from nemo_vtb.model.pretrained import SALM_CONFIG, SALM_LLM

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender

VLLM_TAG = '<|audio|>'
"""The only placeholder that NeMo's vLLM plugin knows."""

NO_FORMAT = 'chat_template_of_the_tokenizer'
"""The `prompt_format` where none of NeMo's equals the LLM's template: NeMo refuses messages then, and takes ids."""

_LEFT_OUT = ('llm_files', 'target', 'nemo_version', 'optimizer', 'lr_scheduler', 'lr_factors', 'text_anchor')
_FORMATS = ('qwen', 'qwen3', 'llama3', 'gemma', 'mistral', 'llama2', 'phi2_chat', 'nemotron-h', 'nemotron-nano-v3')


def needs_plugin(model: 'VoiceTextBlender') -> bool:
    """Whether NeMo needs `import nemo_vtb` to build encoder or adapter."""
    sections = (model.cfg.perception.get(part) or {} for part in ('preprocessor', 'encoder', 'modality_adapter'))
    return any(str(section.get('_target_')).startswith('nemo_vtb.') for section in sections)


def write_salm(model: 'VoiceTextBlender', folder: Path, *, vllm_home: Path | None = None) -> None:
    """Write `config.json`, `model.safetensors`, the tokenizer and `llm_backbone/config.json`.

    Args:
        model: What to write; LoRA stays apart from the weights of the LLM, as SALM keeps it.
        folder: An existing folder.
        vllm_home: Where the folder will finally lie: NeMo's vLLM plugin wants `<|audio|>` as placeholder and the path
            of the LLM's configuration in full. None for SALM alone, whose folder can be moved.
    """
    from omegaconf import OmegaConf
    from safetensors.torch import save_model

    tag = VLLM_TAG if vllm_home else model.audio_locator_tag or VLLM_TAG
    cfg: Any = OmegaConf.to_container(model.cfg, resolve=True)
    config = {key: value for key, value in cfg.items() if key not in _LEFT_OUT}
    config |= {
        'model_type': 'nemo_speechlm',
        'architectures': ['NeMoSpeechLMForConditionalGeneration'],
        'audio_locator_tag': tag,
        'prompt_format': found.name if (found := prompt_format(model, tag)) else NO_FORMAT,
        'pretrained_weights': False,
        'pretrained_llm': str(vllm_home / SALM_LLM) if vllm_home else str(cfg['pretrained_llm']),
        # the plugin wants a value; the encoder's weights and its configuration are in this folder
        'pretrained_asr': str(cfg.get('pretrained_asr') or 'none: see perception'),
    }
    config.pop('tokenizer_path', None)
    text = json.dumps(config, indent=2, sort_keys=True, default=str)
    (folder / SALM_CONFIG).write_text(text + '\n', encoding='utf-8')
    write_llm_config(model, folder / SALM_LLM)
    write_tokenizer(model, folder, tag=tag, pad=_quiet_pad(model))
    save_model(model, str(folder / 'model.safetensors'), metadata={'format': 'pt'})


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """One of NeMo's prompt formats that gives the very tokens of the LLM's chat template.

    Args:
        name: For `PromptFormatter.resolve`.
        system: The system turn to put in front of a conversation without one: the template adds it by itself, NeMo's
            format does not. None where there is nothing to add.
    """

    name: str
    system: str | None


def prompt_format(model: 'VoiceTextBlender', tag: str) -> PromptFormat | None:
    """The prompt format of NeMo that renders as the LLM's chat template does; None if none does."""
    from nemo.collections.common.tokenizers import AutoTokenizer

    tokenizer = AutoTokenizer(model.tokenizer.tokenizer.name_or_path, use_fast=True)
    tokenizer.add_special_tokens({'additional_special_tokens': [tag]})
    text = (Turn('user', (Text('Which room is it about?'),)),)
    audio = (Turn('user', (Text('Listen to'), Audio('a.wav'))),)
    several = (*text, Turn('assistant', (Text('The kitchen.'),)), Turn('user', (Text('And when?'),)))
    systems = [None, default_system(model.renderer)]
    for system in dict.fromkeys(systems):
        for name in _FORMATS:
            if all(
                _renders_alike(model.renderer, tokenizer, tag, name, turns, system) for turns in (text, audio, several)
            ):
                return PromptFormat(name, system)
    return None


def default_system(renderer: ChatRenderer) -> str | None:
    """What the chat template puts in front of a conversation without a system turn, as far as it is a system turn."""
    user = Turn('user', (Text('q'),))
    try:
        given = renderer.render_prompt(Conversation('', (Turn('system', (Text('(here)'),)), user))).text
    except VtbTemplateError:
        return None
    without = renderer.render_prompt(Conversation('', (user,))).text
    before, mark, after = given.partition('(here)')
    inside = without.startswith(before) and without.endswith(after) and len(without) >= len(before) + len(after)
    return without[len(before) : len(without) - len(after)] if mark and inside else None


def _renders_alike(
    renderer: ChatRenderer, tokenizer: Any, tag: str, name: str, turns: Sequence[Turn], system: str | None
) -> bool:
    from nemo.collections.common.prompts import PromptFormatter

    slot = tokenizer.token_to_id(tag)
    messages = messages_of(Conversation('', tuple(turns)), tag, system)
    slots = [{'role': m['role'], 'slots': {'message': m['content']}} for m in messages]
    try:
        ids = PromptFormatter.resolve(name)(tokenizer).encode_dialog(slots)['input_ids'].tolist()
    except Exception:  # noqa: BLE001  each formatter has assumptions of its own about roles and vocabulary
        return False
    return [AUDIO_SLOT if i == slot else i for i in ids] == renderer.render_prompt(Conversation('', tuple(turns))).ids


def messages_of(conversation: Conversation, tag: str, system: str | None = None) -> list[dict[str, str]]:
    """A conversation as messages of NeMo's `generate`, the placeholder where a recording stands."""
    said = [
        {'role': t.role, 'content': ' '.join(p.text if isinstance(p, Text) else tag for p in t.parts)}
        for t in conversation.turns
    ]
    return said if system is None or said[0]['role'] == 'system' else [{'role': 'system', 'content': system}, *said]


def _quiet_pad(model: 'VoiceTextBlender') -> str | None:
    """A padding token that no prompt contains: SALM masks each padding id in a prompt, also the ends of its turns."""
    tokenizer = model.tokenizer.tokenizer
    turns = (Turn('user', (Text('a'),)), Turn('assistant', (Text('b'),)), Turn('user', (Text('c'),)))
    used = set(model.renderer.render_prompt(Conversation('', turns)).ids) | set(model.renderer.end_of_turn_ids)
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in used:
        return None
    rows = model.embed_tokens.num_embeddings
    avoid = used | {tokenizer.eos_token_id}
    free = [t for i, t in sorted(tokenizer.added_tokens_decoder.items()) if t.special and i < rows and i not in avoid]
    if not free:
        raise VtbCheckpointError(
            'Each special token of the vocabulary occurs in prompts, so SALM would hide parts of them.',
            field='--to salm',
            got=tokenizer.pad_token,
            allowed='a vocabulary with a special token that its chat template does not use',
            remedy='`vtb export FILE --to nemo`, which has no such limit',
        )
    return free[0].content
