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
"""LoRA as a PEFT adapter folder for the untouched LLM (text use)."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_vtb.backbone.names import state_name
from nemo_vtb.errors import VtbCheckpointError
from nemo_vtb.export.hf import write_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from nemo_vtb.model.blender import VoiceTextBlender

_CONFIG, _WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'


def is_peft_folder(path: str | Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (Path(path) / _CONFIG).is_file()


def write_peft(model: 'VoiceTextBlender', folder: Path) -> None:
    """Write `adapter_model.safetensors`, `adapter_config.json` and the tokenizer.

    Raises:
        VtbCheckpointError: The model has no LoRA.
    """
    if not hasattr(model.llm, 'peft_config'):
        raise VtbCheckpointError(
            'The model has no LoRA, so there is no adapter to export.',
            field='model.lora',
            got=None,
            allowed='a model that was trained with LoRA',
            remedy='`vtb export FILE --to hf-merged` writes the LLM itself',
        )
    # the embedding stands outside of the LLM, and is never trained by LoRA
    model.llm.save_pretrained(folder, save_embedding_layers=False)
    config = json.loads((folder / _CONFIG).read_text(encoding='utf-8'))
    config['base_model_name_or_path'] = str(model.cfg.pretrained_llm)
    (folder / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + '\n', encoding='utf-8')
    write_tokenizer(model, folder)


def load_peft(model: 'VoiceTextBlender', folder: str | Path) -> list[str]:
    """Load a PEFT adapter into the LoRA of a model; every key must find its place.

    Returns:
        The names loaded.

    Raises:
        VtbCheckpointError: The folder has no safetensors, or rank, scale or layers differ from the model's.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    if not (folder / _WEIGHTS).is_file():
        raise VtbCheckpointError(
            'The PEFT folder has no weights that can be read safely.',
            field='init_from_nemo',
            got=str(folder),
            allowed=f'a folder with {_CONFIG} and {_WEIGHTS}',
            remedy='save the adapter again with `save_pretrained`; pickled adapter_model.bin is not read',
        )
    config = json.loads((folder / _CONFIG).read_text(encoding='utf-8'))
    own = model.cfg.get('lora') or {}
    differs = {
        key: (config.get(key), own.get(key)) for key in ('r', 'lora_alpha') if own and config.get(key) != own.get(key)
    }
    if not own or differs:
        raise VtbCheckpointError(
            'The adapter does not fit the LoRA of the model.',
            field='model.lora',
            got=f'(adapter, model): {differs}' if own else 'no LoRA in the model',
            allowed={key: config.get(key) for key in ('r', 'lora_alpha', 'target_modules')},
            remedy='give model.lora these values',
        )
    state: dict[str, Tensor] = load_file(folder / _WEIGHTS)
    if not model.is_built:  # its LLM is not there yet: LoRA travels as in a checkpoint
        rest = {name: value for name, value in model.state_dict().items() if not name.startswith('llm.')}
        model.load_trained_state({**{state_name(name): value for name, value in state.items()}, **rest})
    else:
        model.backbone.load_lora(state)
    return sorted(state)
