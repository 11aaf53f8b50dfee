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
"""Warm start: the weights of something trained before, taken into a model that is about to be trained.

Every weight that is there is either taken or listed; the LLM is the one that the configuration names, and where the
source has one too it must be the same.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_vtb.checkpoint.archive import CONFIG, open_plain, read_members
from nemo_vtb.errors import VtbCheckpointError
from nemo_vtb.export.asr import load_encoder
from nemo_vtb.export.peft import is_peft_folder, load_peft
from nemo_vtb.export.salm import is_salm_folder, read_salm

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender

_ALLOWED = 'a .nemo of this toolkit, a SALM folder, a PEFT adapter folder, or the .nemo of an ASR model'


def warm_start(model: 'VoiceTextBlender', source: str | Path) -> list[str]:
    """Take the weights of a source into a model.

    Args:
        model: The model of the new run.
        source: A `.nemo` of ours or a SALM folder (encoder, adapter, LoRA), a PEFT folder (LoRA), or an ASR `.nemo`
            (encoder).

    Returns:
        Names in the source that have no place in the model, e.g. the decoder of an ASR model.

    Raises:
        VtbCheckpointError: It is none of these, or a weight is missing, left over or of another shape.
    """
    from nemo.utils import logging

    path = Path(source).expanduser()
    left: list[str] = []
    if is_peft_folder(path):
        load_peft(model, path)
        what = 'LoRA of a PEFT adapter'
    elif is_salm_folder(path):
        _take(model, read_salm(path, base_llm=_llm_of(model))[0])
        what = 'encoder, adapter and LoRA of a SALM folder'
    elif path.is_file() and _target(path).startswith('nemo.collections.asr.'):
        left = load_encoder(model, path)
        what = 'encoder of an ASR model'
    elif path.is_file():
        from nemo_vtb.model.pretrained import load

        _take(model, load(path, 'cpu'))
        what = 'encoder, adapter and LoRA of a .nemo file'
    else:
        raise VtbCheckpointError(
            'There is nothing to start from at this path.',
            field='init_from_nemo',
            got=str(source),
            allowed=_ALLOWED,
            remedy='correct the path, or leave the key out',
        )
    parts = ', '.join(sorted({name.split('.')[0] for name in left}))
    logging.info(f'warm start from {path}: {what}' + (f'; not taken: {len(left)} weights of {parts}' if left else ''))
    return left


def _llm_of(model: 'VoiceTextBlender') -> str | None:
    source = Path(str(model.cfg.pretrained_llm)).expanduser()
    return str(source) if source.is_dir() else None


def _target(path: Path) -> str:
    import yaml

    with open_plain(path) as plain:
        members = read_members(plain)
        if CONFIG not in members:
            return ''
        try:
            config = yaml.safe_load(members[CONFIG].text())
        except yaml.YAMLError:
            return ''
    return str(config.get('target', '')) if isinstance(config, dict) else ''


def _take(model: 'VoiceTextBlender', warm: 'VoiceTextBlender') -> None:
    # as a checkpoint travels: without the LLM, whose fingerprint must be that of the new run
    state: dict[str, Any] = {'state_dict': warm.state_dict()}
    warm.on_save_checkpoint(state)
    model.on_load_checkpoint(state)
    if not model.is_built:  # its LLM is not there yet
        model.load_trained_state(state['state_dict'])
        return
    try:
        model.load_state_dict(state['state_dict'], strict=True)
    except RuntimeError as error:
        raise VtbCheckpointError(
            'The weights to start from do not fit the model of this run.',
            field='init_from_nemo',
            got=str(error),
            allowed='the same encoder, adapter and LoRA as under `model`',
            remedy='`vtb info FILE --config` shows what the file was trained with',
        ) from error
