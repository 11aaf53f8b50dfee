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

from nemo_vtb.errors import VtbCheckpointError
from nemo_vtb.export.hf import write_tokenizer
from nemo_vtb.model.pretrained import PEFT_CONFIG

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender


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
    config = json.loads((folder / PEFT_CONFIG).read_text(encoding='utf-8'))
    config['base_model_name_or_path'] = str(model.cfg.pretrained_llm)
    (folder / PEFT_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + '\n', encoding='utf-8')
    write_tokenizer(model, folder)
