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
"""The trained parts of a model under the names that they have on the Hugging Face backbone, whatever backbone it has.

So a checkpoint says nothing about how it was made: Hugging Face, Megatron on one rank or on eight go on from each
other's. The untouched LLM is read from its own folder, a tensor at a time.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from nemo_vtb.errors import VtbCheckpointError, VtbModelError

if TYPE_CHECKING:

    class _Module(nn.Module):
        backbone: Any
        is_split: bool
        is_sharded: bool
        _first_lora: dict[str, Tensor]
        _built: bool

        def base_weights(self) -> dict[str, Tensor]: ...
else:
    _Module = object  # a mixin at run time

_LLM = ('llm.', 'embed_tokens.')
_DTYPES = {'F64': torch.float64, 'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16}


_SAMPLE = 256


def is_base_weight(name: str) -> bool:
    """Whether a key of the state dict belongs to the LLM as it was published, LoRA apart."""
    return (name.startswith('llm.') and '.lora_' not in name) or name.startswith('embed_tokens.')


def plain_name(name: str) -> str:
    """A key as it is without LoRA: PEFT wraps layers, which changes their names but not their weights."""
    return name.replace('base_model.model.', '').replace('.base_layer.', '.')


def frozen_base(model: torch.nn.Module) -> dict[str, Tensor]:
    """The weights of the untouched LLM in a model's state dict; an LLM that is trained itself has none."""
    state = model.state_dict(keep_vars=True)  # the parameters themselves, so that tied weights count as trained too
    return {n: v.detach() for n, v in state.items() if is_base_weight(n) and not v.requires_grad}


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
    for file in _weight_files(folder):
        for name, tensor in _mapped(file):
            module, _, leaf = name.rpartition('.')
            if module == 'model.embed_tokens':
                state['embed_tokens.weight'] = tensor
            else:
                state[f'{inside}{module}{".base_layer" if module in wrapped else ""}.{leaf}'] = tensor
    state.setdefault(f'{inside}lm_head.weight', state['embed_tokens.weight'])
    return state


def _mapped(file: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a safetensors file, each with memory of its own: `torch.save` writes whole memories."""
    with file.open('rb') as stream:
        size = int.from_bytes(stream.read(8), 'little')
        header = json.loads(stream.read(size))
    for name, entry in header.items():
        if name == '__metadata__':
            continue
        begin, end = entry['data_offsets']
        raw = np.memmap(file, np.uint8, mode='c', offset=8 + size + begin, shape=(end - begin,))
        yield name, torch.from_numpy(raw).view(_DTYPES[entry['dtype']]).view(entry['shape'])


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


class Portable(_Module):
    """Mixin of `VoiceTextBlender`: what is trained, under the names and in the order of the Hugging Face backbone."""

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of all that is trained, in the order that optimizer states follow."""
        own = {name: p for name, p in self.named_parameters() if p.requires_grad}
        if not self.is_split:
            return own
        lora = self.backbone.lora_parameters()
        named = {state_name(name): lora[name] for name in self._first_lora}
        return {**named, **{name: p for name, p in own.items() if not name.startswith('llm.')}}

    def trained_state(self) -> dict[str, Tensor]:
        """State dict without the LLM, LoRA whole. The ranks that hold one LLM call it together."""
        lora = self.backbone.lora_state()
        named = {state_name(name): lora[name] for name in (self._first_lora if self.is_split else lora)}
        return {**named, **{name: v for name, v in self.state_dict().items() if not name.startswith(_LLM)}}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Take what `trained_state` gave, on any backbone and number of ranks.

        Raises:
            VtbCheckpointError: Keys are missing or left over.
        """
        lora = {peft_name(n): v for n, v in state.items() if n.startswith('llm.')}
        if self.is_split and not self._built:  # ranks cut out their parts later
            shapes = [{name: tuple(v.shape) for name, v in each.items()} for each in (self._first_lora, lora)]
            if shapes[0] != shapes[1]:
                raise VtbCheckpointError(
                    'The LoRA weights do not fit this model.',
                    field='lora',
                    got=sorted(f'{name} {shape}' for name, shape in shapes[1].items() - shapes[0].items())[:3],
                    allowed=sorted(f'{name} {shape}' for name, shape in shapes[0].items() - shapes[1].items())[:3],
                    remedy='use the rank and the target modules that the weights were trained with',
                )
            self._first_lora = {name: lora[name].detach().clone() for name in self._first_lora}
        else:
            self.backbone.load_lora(lora)
        own = {name for name in self.state_dict() if not name.startswith(_LLM)}
        rest = {name: value for name, value in state.items() if not name.startswith(_LLM)}
        missing, surplus = sorted(own - rest.keys()), sorted(rest.keys() - own)
        if missing or surplus:
            raise VtbCheckpointError(
                'The checkpoint does not fit this model.',
                field='checkpoint',
                got=f'missing {missing[:3]}, left over {surplus[:3]}',
                allowed=f'{len(own)} keys besides LoRA',
                remedy='use the encoder and the adapter that it was trained with',
            )
        self.load_state_dict(rest, strict=False)
