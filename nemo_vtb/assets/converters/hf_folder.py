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
"""What all conversions to a Hugging Face folder share: strict loading, edits of JSON files, checks of the result."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from nemo_vtb.errors import VtbAssetError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_CHAT_PROBE = [
    {'role': 'system', 'content': 'Be brief.'},
    {'role': 'user', 'content': 'Hello 2 you.'},
    {'role': 'assistant', 'content': 'Hi.'},
]


def check_chat_folder(folder: Path) -> None:
    """Load the tokenizer of an LLM folder and render a chat with it.

    Raises:
        VtbAssetError: The template does not render, or special tokens are not single ids.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(_CHAT_PROBE, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)['input_ids']
    if tokenizer.decode(ids) != text or ids.count(tokenizer.eos_token_id) != len(_CHAT_PROBE):
        raise VtbAssetError(
            'The tokenizer of a converted model does not give back its own chat text.',
            field=str(folder),
            got=tokenizer.decode(ids),
            allowed=text,
            remedy='use the versions of transformers and tokenizers of the constraints file',
        )


def load_strictly(model: 'PreTrainedModel', state: Mapping[str, 'torch.Tensor']) -> None:
    """Load weights; only the LM head may be missing, when it is tied to the embedding.

    Raises:
        VtbAssetError: Names or shapes do not fit.
    """
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise VtbAssetError('Converted weights do not fit the model.', got=str(error)) from error
    tied = {'lm_head.weight', 'proj_out.weight'} if model.config.tie_word_embeddings else set()
    if unexpected or set(missing) - tied:
        raise VtbAssetError(
            'Converted weights do not fit the model.',
            got=f'missing {sorted(set(missing) - tied)}, unexpected {sorted(unexpected)}',
        )
    model.tie_weights()


def save_model(model: 'PreTrainedModel', into: Path) -> None:
    """`save_pretrained` without its progress bar, which would tear our own lines apart."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(into)
    finally:
        if was_on:
            logging.enable_progress_bar()


def load_module(name: str) -> ModuleType:
    """Import a module that only a conversion needs. Raises VtbAssetError, with the remedy, if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise VtbAssetError(
            f'The Python module {name} is needed to convert this asset.',
            field=name,
            got=str(error),
            remedy=f'pip install {name}',
        ) from error


def edit_json(path: Path, **changes: object) -> None:
    """Set keys of a JSON file; a value of None removes the key."""
    content = {**json.loads(path.read_text(encoding='utf-8')), **changes}
    content = {key: value for key, value in content.items() if key not in changes or value is not None}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
