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
"""Models and weights trained before: a `.nemo` or a SALM folder as a model, and weights taken into another model.

Every weight that is there is either taken or listed. Writers of these forms are in `nemo_vtb.export`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from nemo.utils import logging
from safetensors import SafetensorError
from safetensors.torch import load_file

from nemo_vtb.backbone.hf import check_llm_size
from nemo_vtb.backbone.names import state_name
from nemo_vtb.checkpoint.archive import read_info
from nemo_vtb.checkpoint.checkpoint_io import AtomicCheckpointIO
from nemo_vtb.checkpoint.foreign_config import check_model, opening
from nemo_vtb.checkpoint.nemo_file import refuse_remote_code
from nemo_vtb.errors import VtbCheckpointError, VtbModelError
from nemo_vtb.io import read_json_object
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.model.perception import restore_asr

SALM_CONFIG, SALM_LLM = 'config.json', 'llm_backbone'
"""Of a SALM folder: the configuration of the model, and the folder with that of its LLM."""

PEFT_CONFIG, _PEFT_WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'

_LOADS = ('pretrained_perception_from_s2s', 'pretrained_s2s_model', 'init_from_checkpoint')
"""With these NeMo's SALM loads other files when it is made; the folder holds all weights itself."""

ASR_PARTS = ('encoder', 'preprocessor')
"""What an ASR model and a perception module have in common."""


# ---- whole models


def restore(
    path: str | Path,
    device: str = 'auto',
    *,
    trust_remote_code: bool = False,
    base_llm: str | Path | None = None,
) -> VoiceTextBlender:
    """Restore a model, in evaluation mode.

    Args:
        path: A `.nemo` file, the folder of a finished run (its `.nemo` is taken), or a SALM folder.
        device: 'auto' (CUDA where there is one), or what torch accepts.
        trust_remote_code: Run code that came with the LLM, if the file asks for it.
        base_llm: Folder of the base LLM, for a file without it.

    Raises:
        VtbModelError: There is no such file, or it is not a `.nemo` of ours.
        VtbCheckpointError: The file is cut off, changed or hostile, or belongs to another LLM.
    """
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    path = Path(path)
    if is_salm_folder(path):
        return read_salm(path, base_llm=base_llm)[0].to(device).eval()
    path = _nemo_of_run(path)
    if not path.is_file():
        near = sorted(str(p) for p in Path('runs').glob('*/checkpoints/*.nemo'))[:5]
        raise VtbModelError(
            'There is no model at this path.',
            field='model',
            got=str(path),
            allowed=near or 'a .nemo file, the folder of a run, or a SALM folder',
            remedy='train one with `vtb train`, or correct the path',
        )
    with opening(path):
        model = VoiceTextBlender.restore_from(
            str(path), map_location=torch.device(device), trust_remote_code=trust_remote_code, base_llm=base_llm
        )
    return model.to(device).eval()


def _nemo_of_run(path: Path) -> Path:
    """The `.nemo` of a run's folder: the one with its name, or the only one; any other path comes back as it is."""
    found = sorted((path / 'checkpoints').glob('*.nemo')) if path.is_dir() else []
    if not found:
        return path
    named = [file for file in found if file.stem == path.resolve().name]
    if len(named or found) > 1:
        raise VtbModelError(
            'The run has several models.', field='model', got=str(path), allowed=[str(file) for file in found],
            remedy='name one of the files',
        )  # fmt: skip
    return (named or found)[0]


def read_checkpoint(path: str | Path, *, base_llm: str | Path | None = None) -> VoiceTextBlender:
    """The model of a checkpoint of a run (`.ckpt`, also one with EMA weights, one file or shards), ready to be saved.

    Args:
        path: The checkpoint.
        base_llm: Folder of the LLM, where it is no longer where the run had it.

    Raises:
        VtbCheckpointError: It is damaged, is none of this toolkit, or belongs to another LLM.
    """
    checkpoint = AtomicCheckpointIO().load_checkpoint(path)
    stored = checkpoint.get('hyper_parameters') or {}
    cfg = dict(stored.get('cfg') or stored)
    if 'pretrained_llm' not in cfg:
        raise VtbCheckpointError(
            'The checkpoint does not say which model it belongs to.',
            field='checkpoint',
            got=f'{path}: {sorted(cfg)[:5]}',
            allowed='a checkpoint of a run of this toolkit',
            remedy='name the .ckpt below checkpoints/ of a run',
        )
    if base_llm is not None:
        cfg['pretrained_llm'] = str(base_llm)
    model = VoiceTextBlender(cfg)
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint['state_dict'])
    return model.eval()


def is_salm_folder(path: str | Path) -> bool:
    """Whether a folder holds a SALM: a `config.json` with a perception, as `save_pretrained` of NeMo writes it."""
    return {'perception', 'pretrained_llm'} <= read_json_object(Path(path) / SALM_CONFIG).keys()


def read_salm(folder: str | Path, *, base_llm: str | Path | None = None) -> tuple[VoiceTextBlender, list[str]]:
    """A SALM folder (of NeMo, of Canary-Qwen, or ours) as a model of this toolkit.

    Args:
        folder: With `config.json` and safetensors.
        base_llm: Folder with config and tokenizer of the LLM, where the SALM folder holds neither (Canary-Qwen).

    Returns:
        The model in evaluation mode, and what was completed: names of tied weights that the file leaves out.

    Raises:
        VtbCheckpointError: A weight is missing, left over or of another shape; or the folder asks to run code.
        VtbModelError: The LLM's configuration or tokenizer is not found, or the folder cannot be read.
    """
    folder = Path(folder)
    with opening(folder, 'SALM folder'):
        return _read_salm(folder, base_llm)


def _read_salm(folder: Path, base_llm: str | Path | None) -> tuple[VoiceTextBlender, list[str]]:
    odd = [path for path in folder.rglob('*') if not path.is_file() and not path.is_dir()]
    if odd:  # opening a pipe would wait for ever
        raise _does_not_fit(folder, f'{odd[0].name} is no plain file')
    config = json.loads((folder / SALM_CONFIG).read_text(encoding='utf-8'))
    llm = Path(base_llm) if base_llm else folder / SALM_LLM
    if base_llm is None and not (llm / SALM_CONFIG).is_file():
        llm = Path(str(config['pretrained_llm']))
    own_tokenizer = (folder / 'tokenizer_config.json').is_file()
    refuse_remote_code(config)
    num_bytes = sum(path.stat().st_size for path in folder.glob('*.safetensors'))
    check_model(config, num_bytes, what='folder')
    if base_llm is None:
        check_llm_size(str(llm), num_bytes)
    config |= {
        'pretrained_llm': str(llm),
        'pretrained_weights': False,
        'tokenizer_path': str(folder if own_tokenizer else llm),
    }
    for key in ('model_type', 'architectures', 'torch_dtype', *_LOADS):
        config.pop(key, None)
    model = VoiceTextBlender(config)
    return model.eval(), _load_strictly(model, folder)


def _load_strictly(model: VoiceTextBlender, folder: Path) -> list[str]:
    files = sorted(folder.glob('*.safetensors'))
    try:
        state = {name: value for file in files for name, value in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise _does_not_fit(folder, f'{type(error).__name__}: {error}') from error
    own = model.state_dict(keep_vars=True)
    twins: dict[int, list[str]] = {}
    for name, value in own.items():
        twins.setdefault(value.data_ptr(), []).append(name)
    completed = []
    for names in twins.values():  # tied weights are stored once
        present = [name for name in names if name in state]
        for name in set(names) - set(present) if present else ():
            state[name] = state[present[0]]
            completed.append(name)
    # what a module computes for itself is in no file: buffers that NeMo keeps out of the state dict are not in `own`
    missing, surplus = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or surplus:
        raise _does_not_fit(folder, f'missing {missing[:4]}, left over {surplus[:4]}')
    try:
        model.load_state_dict({name: value.to(own[name].dtype) for name, value in state.items()}, strict=True)
    except RuntimeError as error:
        raise _does_not_fit(folder, str(error)) from error
    return sorted(completed)


def _does_not_fit(folder: Path, got: str) -> VtbCheckpointError:
    return VtbCheckpointError(
        'The weights of the SALM folder do not fit its configuration.',
        field=str(folder),
        got=got,
        allowed='each weight of the model once, nothing else',
        remedy='copy the folder again; for Canary-Qwen give the folder of its LLM: --base-llm FOLDER',
    )


# ---- weights into a model


def warm_start(model: VoiceTextBlender, source: str | Path) -> list[str]:
    """Take the weights of a source into a model that is about to be trained.

    The LLM stays the one that the configuration names; where the source has one too, it must be the same.

    Args:
        model: The model of the new run.
        source: A `.nemo` of ours or a SALM folder (encoder, adapter, LoRA), a PEFT folder (LoRA), or an ASR `.nemo`
            (encoder).

    Returns:
        Names in the source that have no place in the model, e.g. the decoder of an ASR model.

    Raises:
        VtbCheckpointError: It is none of these, or a weight is missing, left over or of another shape.
    """
    path = Path(source).expanduser()
    with opening(path, 'model to start from'):
        return _warm_start(model, path)


def _warm_start(model: VoiceTextBlender, path: Path) -> list[str]:
    left: list[str] = []
    if is_peft_folder(path):
        load_peft(model, path)
        what = 'LoRA of a PEFT adapter'
    elif is_salm_folder(path):
        _take(model, read_salm(path, base_llm=_llm_of(model))[0])
        what = 'encoder, adapter and LoRA of a SALM folder'
    elif path.is_file() and str(read_info(path).config.get('target')).startswith('nemo.collections.asr.'):
        left = load_asr_encoder(model, path)
        what = 'encoder of an ASR model'
    elif path.is_file():
        _take(model, restore(path, 'cpu'))
        what = 'encoder, adapter and LoRA of a .nemo file'
    else:
        raise VtbCheckpointError(
            'There is nothing to start from at this path.',
            field='init_from_nemo',
            got=str(path),
            allowed='a .nemo of this toolkit, a SALM folder, a PEFT adapter folder, or the .nemo of an ASR model',
            remedy='correct the path, or leave the key out',
        )
    parts = ', '.join(sorted({name.split('.')[0] for name in left}))
    logging.info(f'warm start from {path}: {what}' + (f'; not taken: {len(left)} weights of {parts}' if left else ''))
    return left


def _llm_of(model: VoiceTextBlender) -> str | None:
    source = Path(str(model.cfg.pretrained_llm)).expanduser()
    return str(source) if source.is_dir() else None


def _take(model: VoiceTextBlender, warm: VoiceTextBlender) -> None:
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


def load_asr_encoder(model: VoiceTextBlender, source: str | Path) -> list[str]:
    """Load encoder and preprocessor of an ASR `.nemo` into a model; what the ASR model has beyond them is skipped.

    Returns:
        Names of the ASR model's weights that were not taken (decoder, joint ...).

    Raises:
        VtbCheckpointError: A weight of the encoder is missing, left over or of another shape.
    """
    state = restore_asr(str(source)).state_dict()
    for part in ASR_PARTS:
        chosen = {n.removeprefix(f'{part}.'): v for n, v in state.items() if n.startswith(f'{part}.')}
        try:
            getattr(model.perception, part).load_state_dict(chosen, strict=True)
        except RuntimeError as error:
            raise VtbCheckpointError(
                f'The {part} of the ASR model does not fit.',
                field='init_from_nemo',
                got=f'{source}: {error}',
                allowed='an ASR model with the encoder that model.perception names',
                remedy='set model.pretrained_asr to this file instead: the encoder is then built after it',
            ) from error
    return sorted(n for n in state if not n.startswith(tuple(f'{part}.' for part in ASR_PARTS)))


def is_peft_folder(path: str | Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (Path(path) / PEFT_CONFIG).is_file()


def load_peft(model: VoiceTextBlender, folder: str | Path) -> list[str]:
    """Load a PEFT adapter into the LoRA of a model; every key must find its place.

    Returns:
        The names loaded.

    Raises:
        VtbCheckpointError: The folder has no safetensors, or rank, scale or layers differ from the model's.
    """
    folder = Path(folder)
    if not (folder / _PEFT_WEIGHTS).is_file():
        raise VtbCheckpointError(
            'The PEFT folder has no weights that can be read safely.',
            field='init_from_nemo',
            got=str(folder),
            allowed=f'a folder with {PEFT_CONFIG} and {_PEFT_WEIGHTS}',
            remedy='save the adapter again with `save_pretrained`; pickled adapter_model.bin is not read',
        )
    config = json.loads((folder / PEFT_CONFIG).read_text(encoding='utf-8'))
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
    state = load_file(folder / _PEFT_WEIGHTS)
    if not model.is_built:  # its LLM is not there yet: LoRA travels as in a checkpoint
        rest = {name: value for name, value in model.state_dict().items() if not name.startswith('llm.')}
        model.load_trained_state({**{state_name(name): value for name, value in state.items()}, **rest})
    else:
        model.backbone.load_lora(state)
    return sorted(state)
