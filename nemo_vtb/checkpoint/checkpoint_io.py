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
"""Training checkpoints on disk: one file, or shards that all ranks write together in the background.

A file is put in place whole or not at all, and read without running any code that is in it. For a sharded checkpoint
the file holds all but the tensors and is put in place last, so that it exists only when the shards are whole. The
shards are those of `torch.distributed.checkpoint`, in a folder beside that of the files.
"""

import pickle
import shutil
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor
from torch.distributed.checkpoint.metadata import StorageMeta

from nemo_vtb.errors import VtbCheckpointError
from nemo_vtb.io import atomic_path

_SHARDS = 'vtb_shards'
_RECORDS = {
    'BytesStorageMetadata', 'ChunkStorageMetadata', 'Metadata', 'MetadataIndex', 'StorageMeta', 'TensorProperties',
    'TensorStorageMetadata', '_MEM_FORMAT_ENCODING', '_StorageInfo',
}  # fmt: skip
_PLAIN = {
    ('collections', 'OrderedDict'), ('torch', 'Size'), ('torch.serialization', '_get_layout'),
    ('pathlib', 'PosixPath'), ('pathlib', 'Path'),
}  # fmt: skip
_TYPES = {name for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Reads both kinds of checkpoint; writes one file, or, when all ranks call `save_sharded`, shards."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = ThreadPoolExecutor(1, 'checkpoint')
        self._pending: Future | None = None
        self._removals: list[str] = []
        self._group: dist.ProcessGroup | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write one file; shards of an earlier checkpoint of this name are removed.

        Raises:
            VtbCheckpointError: It cannot be written; the previous one is untouched.
        """
        self.wait()
        _write_file(checkpoint, path)
        shutil.rmtree(shards_of(path), ignore_errors=True)

    def save_sharded(self, checkpoint: Mapping[str, Any], path: str | Path) -> None:
        """Begin to write; returns as soon as the tensors are copied. All ranks call it with the same path.

        Raises:
            VtbCheckpointError: The checkpoint before this one could not be written.
        """
        self.wait()
        if self._group is None:
            # of its own: the thread must not speak in between the collectives of training
            self._group = dist.new_group(backend='gloo')
        tensors: dict[str, Tensor] = {}
        rest = _take_tensors(checkpoint, '', tensors)
        # a folder of its own: shards of the same name serve until the new ones are whole
        token = [uuid.uuid4().hex[:12]]
        dist.broadcast_object_list(token, 0, group=self._group)
        folder = shards_of(path) / token[0]
        if dist.get_rank() == 0:
            folder.mkdir(parents=True)
        dist.barrier(self._group)
        self._pending = self._thread.submit(self._write_shards, rest, tensors, Path(path), folder)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict:
        """Read a checkpoint of either kind, by one process or by many.

        Raises:
            VtbCheckpointError: It is missing, cut off or damaged, or its shards are not there.
        """
        self.wait()
        checkpoint = _read_file(path, map_location or 'cpu')
        token = checkpoint.pop(_SHARDS, False)
        if not token:
            return checkpoint
        # the name of a folder, never a path to elsewhere; True: an earlier version had no folder for each writing
        folder = shards_of(path) if token is True else shards_of(path) / Path(str(token)).name
        try:
            reader = _Reader(folder)
            entries = reader.read_metadata().state_dict_metadata
            tensors = {n: torch.empty(e.size, dtype=e.properties.dtype) for n, e in entries.items()}
            dcp.load(tensors, storage_reader=reader, no_dist=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, dcp.CheckpointException) as error:
            raise VtbCheckpointError(
                'The shards of the checkpoint cannot be read.',
                field='checkpoint',
                got=f'{folder}: {type(error).__name__}: {error}',
                allowed='the folder as it was written',
                remedy='copy it together with the checkpoint, or resume from the checkpoint before',
            ) from error
        return _put_tensors(checkpoint, tensors)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint, as soon as the one that is being written is whole."""
        if self._pending is not None and not self._pending.done():
            self._removals.append(str(path))
            return
        self._remove(path)

    def wait(self) -> None:
        """Wait until the last checkpoint is whole.

        Raises:
            VtbCheckpointError: It could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
        removals, self._removals = self._removals, []
        for path in removals:
            self._remove(path)

    def teardown(self) -> None:
        """Wait for what is being written."""
        self.wait()
        super().teardown()

    def _write_shards(self, rest: dict[str, Any], tensors: dict[str, Tensor], path: Path, folder: Path) -> None:
        try:
            dcp.save(tensors, checkpoint_id=folder, process_group=self._group)
        except (OSError, RuntimeError, dcp.CheckpointException) as error:
            raise VtbCheckpointError(
                'The shards of the checkpoint cannot be written; the one before is untouched.',
                field='checkpoint',
                got=f'{folder}: {error}',
                allowed='a folder that all ranks can write to, with enough space',
            ) from error
        if dist.get_rank() == 0:
            _write_file({**rest, _SHARDS: folder.name}, path)
            for old in folder.parent.iterdir():
                if old != folder:
                    shutil.rmtree(old) if old.is_dir() else old.unlink()

    def _remove(self, path: str | Path) -> None:
        super().remove_checkpoint(path)
        shutil.rmtree(shards_of(path), ignore_errors=True)


def shards_of(path: str | Path) -> Path:
    """The folder of a checkpoint's shards: not among the checkpoints, where NeMo takes folders for others."""
    path = Path(path)
    return path.parent.with_name(f'{path.parent.name}_shards') / path.name


def _write_file(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    with atomic_path(path) as temporary:
        torch.save(checkpoint, temporary)


def _read_file(path: str | Path, map_location: Any) -> dict[str, Any]:
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise VtbCheckpointError(
            'The checkpoint cannot be read.',
            field='checkpoint',
            got=f'{path}: {error}',
            allowed='a complete file that this toolkit wrote',
            remedy='remove it, and the run resumes from the one before',
        ) from error


class _Reader(dcp.FileSystemReader):
    """Reads the list of shards, which torch pickles, without running any code that is in it."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        """As in torch.

        Raises:
            pickle.UnpicklingError: The file names anything but what torch writes there.
        """
        with (Path(self.path) / '.metadata').open('rb') as stream:
            metadata = _MetadataUnpickler(stream).load()
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = module in ('torch.distributed.checkpoint.metadata', 'torch.distributed.checkpoint.filesystem')
        plain = (module, name) in _PLAIN or (module == 'torch' and name in _TYPES)
        if '.' in name or not (plain or (known and name in _RECORDS)):
            raise pickle.UnpicklingError(f'{module}.{name} does not belong into a list of shards')
        return super().find_class(module, name)


def _take_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Copy tensors (but not numbers) out of nested dictionaries and lists; a placeholder stays in their place."""
    if isinstance(value, Tensor):
        copy = value.detach().to('cpu', copy=True)  # numbers, too: an optimizer counts its steps in place
        if not value.dim():
            return copy
        tensors[path] = copy
        return {_SHARDS: path}
    if isinstance(value, Mapping):
        return {key: _take_tensors(item, f'{path}/{key}', tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_take_tensors(item, f'{path}/{number}', tensors) for number, item in enumerate(value)]
    return value


def _put_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, Mapping):
        if value.keys() == {_SHARDS}:
            return tensors[value[_SHARDS]]
        return {key: _put_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_put_tensors(item, tensors) for item in value]
    return value
