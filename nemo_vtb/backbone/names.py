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
"""Canonical names of weights, those of the Hugging Face backbone, whatever backbone a model has.

So a checkpoint says nothing about how it was made: Hugging Face, Megatron on one rank or on eight resume from each
other's. The untouched LLM is read from its own folder, a tensor at a time.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from nemo_vtb.errors import VtbModelError
from nemo_vtb.io import map_bytes

_DTYPES = {'F64': torch.float64, 'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16}
_SAMPLE = 256


def is_base_weight(name: str) -> bool:
    """Whether a key of the state dict belongs to the LLM as it was published, LoRA apart."""
    return (name.startswith('llm.') and '.lora_' not in name) or name.startswith('embed_tokens.')


def is_llm_weight(name: str) -> bool:
    """Whether a key of the state dict belongs to the LLM or to LoRA on it."""
    return name.startswith(('llm.', 'embed_tokens.'))


def plain_name(name: str) -> str:
    """A key as it is without LoRA: PEFT wraps layers, which changes their names but not their weights."""
    return name.replace('base_model.model.', '').replace('.base_layer.', '.')


def base_fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and a sample of the given weights: cheap, and enough to tell two LLMs apart."""
    digest = hashlib.sha256()
    for name in sorted(state):
        flat = state[name].detach().flatten()
        step = max(1, flat.numel() // _SAMPLE)
        sample = flat[::step][:_SAMPLE].float().cpu().contiguous()
        digest.update(f'{plain_name(name)}{tuple(state[name].shape)}'.encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def state_name(name: str) -> str:
    """PEFT's name of a LoRA weight as the model's state dict has it: with the adapter's name, below `llm`."""
    return 'llm.' + re.sub(r'\.lora_([AB])\.weight$', r'.lora_\1.default.weight', name)


def peft_name(name: str) -> str:
    """The inverse of `state_name`."""
    return name.removeprefix('llm.').replace('.default.weight', '.weight')


def lora_like_peft(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """First LoRA weights as PEFT would draw them now: the same seed gives the same start on any backbone.

    Args:
        shapes: PEFT's name -> shape, A (r, in) and B (out, r) of each layer, in the order of the model.
    """
    state: dict[str, Tensor] = {}
    for name in (n for n in shapes if '.lora_A.' in n):
        other = name.replace('.lora_A.', '.lora_B.')
        # PEFT makes both linear layers, which draws, then draws A anew and sets B to zero
        a, b = (nn.Linear(shapes[n][1], shapes[n][0], bias=False) for n in (name, other))
        nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5))
        state[name], state[other] = a.weight.detach(), torch.zeros_like(b.weight)
    return state


def base_weights(folder: str | Path, lora_names: Iterable[str] = ()) -> dict[str, Tensor]:
    """The LLM's published weights under the names of our state dict: each mapped from its file, read when it is used.

    Args:
        folder: The LLM's folder or the name of one in the local hub cache.
        lora_names: PEFT's names of the LoRA weights; the layers under them are named as PEFT names them.

    Raises:
        VtbModelError: There are no safetensors files.
    """
    wrapped = {n.split('.lora_')[0].removeprefix('base_model.model.') for n in lora_names}
    inside = 'llm.base_model.model.' if wrapped else 'llm.'
    state: dict[str, Tensor] = {}
    for name, tensor in published_weights(folder).items():
        module, _, leaf = name.rpartition('.')
        if module == 'model.embed_tokens':
            state['embed_tokens.weight'] = tensor
        else:
            state[f'{inside}{module}{".base_layer" if module in wrapped else ""}.{leaf}'] = tensor
    state.setdefault(f'{inside}lm_head.weight', state['embed_tokens.weight'])
    return state


def published_weights(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of an LLM under the names of its own files, each mapped and read when it is used.

    Args:
        folder: As of `base_weights`.

    Raises:
        VtbModelError: There are no safetensors files.
    """
    return {name: tensor for file in _weight_files(folder) for name, tensor in _mapped(file)}


def _mapped(file: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a safetensors file, each with memory of its own: `torch.save` writes whole memories."""
    with file.open('rb') as stream:
        size = int.from_bytes(stream.read(8), 'little')
        if size > file.stat().st_size:
            raise ValueError(f'{file.name} has a header of {size} bytes')
        header = json.loads(stream.read(size))
    data = map_bytes(file)[8 + size :]
    for name, entry in header.items():
        if name == '__metadata__':
            continue
        begin, end = entry['data_offsets']
        yield name, torch.from_numpy(data[begin:end]).view(_DTYPES[entry['dtype']]).view(entry['shape'])


def has_safetensors(folder: str | Path) -> bool:
    """Whether the weights of an LLM can be read a tensor at a time."""
    try:
        return bool(_weight_files(folder))
    except (VtbModelError, OSError, ValueError):
        return False


def weight_bytes(folder: str | Path) -> int:
    """Size of the safetensors files of an LLM.

    Raises:
        VtbModelError: There are none.
    """
    return sum(file.stat().st_size for file in _weight_files(folder))


def _weight_files(folder: str | Path) -> list[Path]:
    path = Path(folder).expanduser()
    if not path.is_dir():
        from huggingface_hub import snapshot_download

        path = Path(snapshot_download(str(folder), allow_patterns=['*.safetensors', '*.json']))
    files = sorted(path.glob('*.safetensors'))
    if not files:
        raise VtbModelError(
            'The LLM has no weights that can be read piece by piece.',
            field='model.pretrained_llm',
            got=str(folder),
            allowed='a folder with *.safetensors',
            remedy='save it with `save_pretrained`, which writes safetensors',
        )
    return files
