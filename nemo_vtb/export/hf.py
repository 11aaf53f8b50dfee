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
"""The LLM of a model as a Hugging Face folder that stock transformers reads: LoRA merged into it, or taken off."""

import copy
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_vtb.errors import VtbCheckpointError

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender

_CONFIGS = ('config.json', 'generation_config.json')


def write_llm(model: 'VoiceTextBlender', folder: Path, *, merge: bool = True) -> None:
    """Write config, weights, tokenizer and chat template of the LLM.

    A copy of the LLM is merged, so that the model itself keeps its exact weights: memory for two LLMs is needed.

    Args:
        model: Whose LLM.
        folder: An existing folder.
        merge: Whether LoRA becomes a part of the weights; False writes the LLM as it was before.

    Raises:
        VtbCheckpointError: LoRA cannot be merged into this LLM.
    """
    llm = copy.deepcopy(model.llm)
    if hasattr(llm, 'merge_and_unload'):
        try:
            llm = llm.merge_and_unload(safe_merge=True) if merge else llm.unload()
        except (ValueError, NotImplementedError) as error:
            raise VtbCheckpointError(
                'LoRA cannot be merged into this LLM.',
                field='--to hf-merged',
                got=str(error),
                allowed='finite weights, and a kind of LoRA that PEFT can merge',
                remedy='`vtb export FILE --to peft` keeps the adapter apart',
            ) from error
    llm.model.embed_tokens = copy.deepcopy(model.embed_tokens)
    if llm.config.get_text_config().tie_word_embeddings:
        llm.lm_head.weight = llm.model.embed_tokens.weight
    llm.save_pretrained(folder)
    # the files of the LLM itself over what transformers made of them: nothing in them is rewritten
    for name in _CONFIGS:
        if (source := description(model) / name).is_file():
            shutil.copyfile(source, folder / name)
    write_tokenizer(model, folder)


def description(model: 'VoiceTextBlender') -> Path:
    """The folder with the LLM's config, tokenizer and chat template that the model keeps for itself."""
    return Path(model.tokenizer.tokenizer.name_or_path)


def write_llm_config(model: 'VoiceTextBlender', folder: Path) -> None:
    """Write the LLM's `config.json` alone, with the one architecture that NeMo's vLLM plugin expects."""
    config: dict[str, Any] = json.loads((description(model) / _CONFIGS[0]).read_text(encoding='utf-8'))
    llm = model.llm.get_base_model() if hasattr(model.llm, 'get_base_model') else model.llm
    config['architectures'] = [type(llm).__name__]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CONFIGS[0]).write_text(json.dumps(config, indent=2, sort_keys=True) + '\n', encoding='utf-8')


def write_tokenizer(
    model: 'VoiceTextBlender', folder: Path, *, tag: str | None = None, pad: str | None = None
) -> None:
    """Write the tokenizer with its chat template.

    Args:
        model: Whose tokenizer.
        folder: Where.
        tag: A token to be known as special, added if the vocabulary lacks it.
        pad: Another padding token.
    """
    tokenizer = copy.deepcopy(model.tokenizer.tokenizer)
    if tag is not None:
        tokenizer.add_tokens([tag], special_tokens=True)
    if pad is not None:
        tokenizer.pad_token = pad
    tokenizer.save_pretrained(folder)
