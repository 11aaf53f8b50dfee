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

import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from nemo_vtb.errors import VtbCheckpointError
from nemo_vtb.io import atomic_path


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
