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
"""What a training checkpoint holds, and how a file is put in place: whole or not at all."""

import hashlib
import os
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from safetensors import SafetensorError
from torch import Tensor

from nemo_vtb.errors import VtbCheckpointError

__all__ = ['AtomicCheckpointIO', 'atomic_path', 'base_fingerprint', 'frozen_base', 'is_base_weight', 'plain_name']

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


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and renamed, on failure removed.

    Raises:
        VtbCheckpointError: The disk is full or the folder cannot be written to; what stood at `path` is untouched.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f'.{path.name}.', suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise _cannot_write(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open('rb') as stream:
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except VtbCheckpointError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch's writer reports a full disk as a RuntimeError, that of safetensors by a class of its own
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files: written whole or not at all, and read without running any code that is in them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            VtbCheckpointError: It cannot be written; the previous one is untouched.
        """
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict:
        """Read a checkpoint.

        Raises:
            VtbCheckpointError: It is missing, cut off or damaged.
        """
        try:
            return torch.load(path, map_location=map_location or 'cpu', weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise VtbCheckpointError(
                'The checkpoint cannot be read.',
                field='checkpoint',
                got=f'{path}: {error}',
                allowed='a complete file that this toolkit wrote',
                remedy='remove it, and the run goes on from the one before',
            ) from error


def _cannot_write(path: Path, error: Exception) -> VtbCheckpointError:
    return VtbCheckpointError(
        'The file cannot be written; what was there before is untouched.',
        field='path',
        got=f'{path}: {error}',
        allowed='a folder that can be written to, with enough space',
        remedy='free some space or name another folder (exp_manager.explicit_log_dir=...), and start again: '
        'a run goes on from its last checkpoint',
    )
