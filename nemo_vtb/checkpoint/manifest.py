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
"""What a saved model says about itself: versions, parts, base LLM, and what it was trained and measured on."""

import hashlib
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nemo_vtb.backbone.names import is_base_weight, plain_name
from nemo_vtb.data.datamodule import RowCounter
from nemo_vtb.package_info import __version__

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender

SECTIONS = ('run_config', 'ledger', 'evaluation', 'retention', 'parity')
"""What a run, an evaluation or an export recorded about the model; kept when it is restored and saved again."""

_PACKAGES = ('nemo_toolkit', 'torch', 'transformers', 'peft', 'lightning', 'lhotse', 'safetensors', 'megatron-core')


def part_of(name: str) -> str:
    """The part of the model that a key of the state dict belongs to: llm, encoder, adapter, lora or other."""
    if '.lora_' in name:
        return 'lora'
    if is_base_weight(name):
        return 'llm'
    if name.startswith(('perception.encoder', 'perception.preprocessor.')):
        return 'encoder'
    return 'adapter' if name.startswith('perception.') else 'other'


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names (without PEFT's wrapping), types, shapes and all bytes of the given weights."""
    digest = hashlib.sha256()
    for name in sorted(state, key=plain_name):
        value = state[name].detach().cpu().contiguous()
        if value.is_floating_point():  # an LLM in bfloat16 is the same LLM when it is read in float32
            value = value.float()
        digest.update(f'{plain_name(name)} {value.dtype} {tuple(value.shape)}\n'.encode())
        digest.update(value.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def make_manifest(
    model: 'VoiceTextBlender', state: Mapping[str, Tensor], *, llm_trained: bool, include_llm: bool
) -> dict[str, Any]:
    """Everything but the digests of the members, which the archive adds.

    Args:
        model: What is about to be saved.
        state: Its state dict.
        llm_trained: Whether the LLM was trained itself, and not LoRA on it.
        include_llm: Whether the base LLM is in the file.
    """
    parameters: dict[str, int] = {}
    for name, value in state.items():
        parameters[part_of(name)] = parameters.get(part_of(name), 0) + value.numel()
    return {
        'versions': _versions(),
        'git_revision': _revision(),
        'class': f'{type(model).__module__}.{type(model).__name__}',
        'template_sha256': hashlib.sha256(str(model.tokenizer.tokenizer.chat_template).encode()).hexdigest(),
        'renderer_sha256': model.renderer.fingerprint,
        'template_date': model.renderer.date,
        'base_llm': {
            'name': str(model.cfg.pretrained_llm),
            'weights_sha256': None if llm_trained else model.base_digest(),
            'trained': llm_trained,
            'included': include_llm,
        },
        'parameters': parameters,
        **{section: model.provenance.get(section) for section in SECTIONS},
        'ledger': _ledger(model) or model.provenance.get('ledger'),
    }


def _ledger(model: 'VoiceTextBlender') -> dict[str, Any] | None:
    callbacks = getattr(getattr(model, '_trainer', None), 'callbacks', ())
    ledgers = [c.ledger for c in callbacks if isinstance(c, RowCounter) and c.ledger is not None]
    return ledgers[0].to_json() if ledgers else None


def _versions() -> dict[str, str]:
    found = {'nemo_vtb': __version__, 'python': python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _revision() -> str | None:
    """Revision of the working copy that the package runs from; None where it is installed."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / '.git').exists():
        return None
    command = ['git', '-C', str(folder), 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
