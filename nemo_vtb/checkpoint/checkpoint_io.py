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

A file is put in place whole or not at all, with its SHA-256 in it (`checkpoint.seal`), and read without running any
code that is in it. For a sharded checkpoint the file holds all but the tensors, with the digest of each shard, and is
put in place last, so that it exists only when the shards are whole. The shards are those of
`torch.distributed.checkpoint`, in a folder beside that of the files.
"""

import logging
import math
import os
import pickle
import shutil
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor
from torch.distributed.checkpoint.metadata import StorageMeta

from nemo_vtb.checkpoint.seal import SealedFile, damaged, verify_file
from nemo_vtb.errors import VtbCheckpointError
from nemo_vtb.io import atomic_path, file_digest

logger = logging.getLogger(__name__)

LAST = 'last.ckpt'
"""How the name of a checkpoint ends that a run resumes from, as in NeMo."""
FORMER = '.previous'
"""How the name of the checkpoint before the last one ends: neither NeMo nor Lightning takes it for one of theirs."""
DAMAGED = '.damaged'
"""How the name of a checkpoint ends that was not as it was written."""

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
    """Reads both kinds of checkpoint; writes one file, or, when all ranks call `save_sharded`, shards.

    The checkpoint before the last one is kept, as `NAME-last.ckpt.previous`.

    Args:
        tolerant: Whether a run goes on where a checkpoint cannot be written: that is logged and counted, nothing is
            removed until a later one is whole, and `conclude` raises if there was none.
    """

    def __init__(self, *, tolerant: bool = False) -> None:
        super().__init__()
        self.tolerant = tolerant
        self.written = self.failed = 0
        self._failing = False  # the newest one could not be written
        self._thread = ThreadPoolExecutor(1, 'checkpoint')
        self._pending: Future | None = None
        self._retiring: Future | None = None
        self._removals: list[str] = []
        self._group: dist.ProcessGroup | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write one file; shards of an earlier checkpoint of this name are removed.

        Raises:
            VtbCheckpointError: It cannot be written; the previous one is untouched.
        """
        self._begin(path)
        with self._counted():
            _write_file(checkpoint, path)
            if not _former(path).exists():
                shutil.rmtree(shards_of(path), ignore_errors=True)

    def save_sharded(self, checkpoint: Mapping[str, Any], path: str | Path) -> None:
        """Begin to write; returns as soon as the tensors are copied. All ranks call it with the same path.

        Raises:
            VtbCheckpointError: The checkpoint before this one could not be written.
        """
        self._begin(path)
        if self._group is None:
            # of its own: the thread must not speak in between the collectives of training
            self._group = dist.new_group(backend='gloo')
        tensors: dict[str, Tensor] = {}
        rest = _take_tensors(checkpoint, '', tensors)
        # a folder of its own: shards of the same name serve until the new ones are whole
        token = [uuid.uuid4().hex[:12]]
        dist.broadcast_object_list(token, 0, group=self._group)
        folder = shards_of(path) / token[0]
        self._pending = self._thread.submit(self._write_shards, rest, tensors, Path(path), folder)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict:
        """Verify and read a checkpoint of either kind, by one process or by many.

        Raises:
            VtbCheckpointError: It is missing, cut off or damaged, or its shards are not there.
        """
        self.wait()
        if not verify_file(path):
            logger.warning('%s has no SHA-256: an earlier version wrote it. Only its CRC-32 sums were compared.', path)
        checkpoint = _read_file(path, map_location or 'cpu')
        listed = checkpoint.pop(_SHARDS, None)
        if not listed:
            return checkpoint
        folder = _verify_shards(path, listed)
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
        """Remove a checkpoint, as soon as a newer one is whole; the last one is kept once more, as the one before."""
        if self._pending is not None or self._failing:
            self._removals.append(str(path))
        else:
            self._remove(Path(path))

    def wait(self) -> None:
        """Wait until the last checkpoint is whole.

        Raises:
            VtbCheckpointError: It could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._counted():
                pending.result()
        retiring, self._retiring = self._retiring, None
        if retiring is not None:
            retiring.result()

    def conclude(self) -> None:
        """At the end of a run: say what could not be written.

        Raises:
            VtbCheckpointError: No checkpoint at all could be written.
        """
        self.wait()
        if self.failed and not self.written:
            raise VtbCheckpointError(
                'No checkpoint of this run could be written: what it has learned since the last one is lost.',
                field='exp_manager.explicit_log_dir',
                got=f'{self.failed} attempts, see the log',
                allowed='a folder that can be written to, with enough space',
                remedy='make room or name another folder, and start again',
            )
        if self.failed:
            logger.warning('%d checkpoints could not be written, %d were.', self.failed, self.written)

    def teardown(self) -> None:
        """Wait for what is being written."""
        self.wait()
        super().teardown()

    def _begin(self, path: str | Path) -> None:
        self.wait()
        self._removals = [each for each in self._removals if each != str(path)]

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except VtbCheckpointError as error:
            self.failed, self._failing = self.failed + 1, True
            if not self.tolerant:
                raise
            logger.error(
                'A checkpoint was not written, and the run goes on; the next one is tried as planned.\n%s', error
            )
            return
        self.written, self._failing = self.written + 1, False
        removals, self._removals = self._removals, []
        for each in removals:
            self._remove(Path(each))

    def _write_shards(self, rest: dict[str, Any], tensors: dict[str, Tensor], path: Path, folder: Path) -> None:
        digests: list[Any] = [None] * dist.get_world_size()
        rank = dist.get_rank()
        try:
            if rank == 0:
                folder.mkdir(parents=True)
        except OSError:
            pass  # all ranks will fail to write there, together
        try:
            dist.barrier(self._group)
            dcp.save(tensors, checkpoint_id=folder, process_group=self._group)
        except (OSError, RuntimeError, dcp.CheckpointException) as error:
            raise _not_written(folder, str(error)) from error
        names = [*folder.glob(f'__{rank}_*'), *([folder / '.metadata'] if rank == 0 else [])]
        try:
            own: Any = {each.name: file_digest(each) for each in names}
        except OSError as error:  # not before the others know
            own = str(error)
        dist.all_gather_object(digests, own, group=self._group)
        if wrong := [each for each in digests if isinstance(each, str)]:
            raise _not_written(folder, wrong[0])
        if rank == 0:
            files = {name: digest for each in digests for name, digest in each.items()}
            _write_file({**rest, _SHARDS: {'folder': folder.name, 'sha256': files}}, path)
            kept = {folder, _shard_folder(_former(path))}
            for old in folder.parent.iterdir():
                if old not in kept:
                    shutil.rmtree(old) if old.is_dir() else old.unlink()

    def _remove(self, path: Path) -> None:
        try:
            if path.name.endswith(LAST):
                self._retiring = self._thread.submit(remove_older, retire(path))
            else:
                super().remove_checkpoint(path)
                shutil.rmtree(shards_of(path), ignore_errors=True)
        except FileNotFoundError:
            return
        except OSError as error:
            _not_removed(error)


def _not_removed(error: OSError) -> None:
    logger.warning('A checkpoint could not be removed, which costs space alone: %s', error)


def _not_written(folder: Path, why: str) -> VtbCheckpointError:
    return VtbCheckpointError(
        'The shards of the checkpoint cannot be written; the one before is untouched.',
        field='checkpoint',
        got=f'{folder}: {why}',
        allowed='a folder that all ranks can write to, with enough space',
    )


def shards_of(path: str | Path) -> Path:
    """The folder of a checkpoint's shards: not among the checkpoints, where NeMo takes folders for others."""
    path = Path(path)
    return path.parent.with_name(f'{path.parent.name}_shards') / path.name.removesuffix(FORMER).removesuffix(DAMAGED)


def verify_checkpoint(path: str | Path) -> int:
    """Compare all files of a checkpoint with their digests; returns its optimizer step.

    Raises:
        VtbCheckpointError: It is missing, cut off or changed.
    """
    verify_file(path)
    content = _read_file(path, 'cpu', mmap=True)
    if listed := content.get(_SHARDS):
        _verify_shards(path, listed)
    return int(content['global_step'])


def checkpoint_step(path: str | Path) -> float:
    """Optimizer step of a checkpoint by what it says itself, unverified; infinite where it says nothing."""
    try:
        return int(_read_file(path, 'cpu', mmap=True)['global_step'])
    except (VtbCheckpointError, KeyError, TypeError, ValueError):
        return math.inf


def retire(path: str | Path) -> Path:
    """Make a last checkpoint the one before; returns its new path. Its shards stay where they are."""
    path = Path(path)
    os.replace(path, _former(path))
    return _former(path)


def remove_older(former: Path) -> None:
    """Remove what was kept before `former`, but only if that is whole: a verified one must always be left."""
    older = [path for path in former.parent.glob(f'*{LAST}{FORMER}') if path != former]
    if not older:
        return
    try:
        verify_checkpoint(former)
    except VtbCheckpointError as error:
        logger.error('%s is kept, because the checkpoint after it is damaged.\n%s', older[0], error)
        return
    for path in older:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:  # tried again behind the next one
            _not_removed(error)
            continue
        if not path.with_name(path.name.removesuffix(FORMER)).exists():
            shutil.rmtree(shards_of(path), ignore_errors=True)


def _former(path: str | Path) -> Path:
    path = Path(path)
    return path.with_name(f'{path.name}{FORMER}')


def _write_file(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    with atomic_path(path) as temporary:
        stream = SealedFile(temporary)
        try:
            torch.save(checkpoint, stream)
            stream.close()
        finally:
            stream.abort()
        _keep_former(Path(path))


def _keep_former(path: Path) -> None:
    """Before a last checkpoint is replaced by one of the same name: keep it under the name of the one before."""
    former = _former(path)
    others = [other for other in path.parent.glob(f'*{LAST}{FORMER}') if other != former]
    if not path.name.endswith(LAST) or not path.exists() or others:
        return
    link = path.with_name(f'.{path.name}.former.ckpt')
    try:
        verify_file(path)
        link.unlink(missing_ok=True)
        os.link(path, link)
        os.replace(link, former)
    except VtbCheckpointError as error:
        logger.error('It is about to be replaced, and %s stays.\n%s', former.name, error)
    except OSError:
        pass  # a file system without links: the one before is another name's


def _read_file(path: str | Path, map_location: Any, *, mmap: bool = False) -> dict[str, Any]:
    try:
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise damaged(path, str(error)) from error


def _shard_folder(path: Path) -> Path | None:
    """The folder of the shards that a checkpoint names; None without any."""
    try:
        listed = _read_file(path, 'cpu', mmap=True).get(_SHARDS) if path.exists() else None
    except VtbCheckpointError:
        return None
    return _folder_of(path, listed) if listed else None


def _folder_of(path: str | Path, listed: Any) -> Path:
    token = listed.get('folder') if isinstance(listed, Mapping) else listed
    # the name of a folder, never a path to elsewhere; True: an earlier version had no folder for each writing
    return shards_of(path) if token is True else shards_of(path) / Path(str(token)).name


def _verify_shards(path: str | Path, listed: Any) -> Path:
    """The folder of the shards, each of which was compared with its digest; those of earlier versions have none."""
    folder = _folder_of(path, listed)
    for name, digest in (listed['sha256'] if isinstance(listed, Mapping) else {}).items():
        try:
            found = file_digest(folder / Path(name).name)
        except OSError as error:
            raise damaged(folder / name, f'one of its shards: {error.strerror}') from error
        if found != digest:
            raise damaged(folder / name, f'one of its shards: SHA-256 {found[:16]}..., written was {digest[:16]}...')
    return folder


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
