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
"""The weights of a `.nemo` file, kept apart by what they are, and the connector that writes and reads them.

NeMo's own connector opens the file too: `model_weights.ckpt` holds only a mark, and the model reads its parts while
the archive is unpacked (`read_parts`), so that `ModelPT.restore_from` needs no connector of ours.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nemo.core import ModelPT
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from nemo.utils.app_state import AppState
from omegaconf import DictConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nemo_vtb.backbone.names import is_base_weight
from nemo_vtb.checkpoint.archive import (
    CONFIG,
    PASSPORT,
    Member,
    broken,
    check_digest,
    extract,
    open_plain,
    read_members,
    read_passport,
    write_archive,
)
from nemo_vtb.errors import VtbCheckpointError
from nemo_vtb.io import file_digest

PARTS = ('llm', 'encoder', 'adapter', 'lora', 'other')
"""Each is `<part>.safetensors` in the archive, left out where it is empty."""

MARK = 'nemo_vtb.parts'
_TIES = 'ties'


def part_of(name: str) -> str:
    """The part that a key of the state dict belongs to."""
    if '.lora_' in name:
        return 'lora'
    if is_base_weight(name):
        return 'llm'
    if name.startswith(('perception.encoder', 'perception.preprocessor.')):
        return 'encoder'
    return 'adapter' if name.startswith('perception.') else 'other'


# ---- parts on disk


def _write_part(path: Path, state: Mapping[str, Tensor]) -> None:
    # safetensors takes no two names for one tensor (tied embeddings): the second is noted
    first: dict[tuple, str] = {}
    kept, ties = {}, {}
    for name, value in state.items():
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and key in first:
            ties[name] = first[key]
        else:
            first[key] = name
            kept[name] = value.detach().cpu().contiguous()
    save_file(kept, path, metadata={_TIES: json.dumps(ties, sort_keys=True)})


def _read_part(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework='pt', device='cpu') as part:
            state = {name: part.get_tensor(name) for name in part.keys()}
            ties = json.loads((part.metadata() or {}).get(_TIES, '{}'))
            return state | {name: state[first] for name, first in ties.items()}
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise VtbCheckpointError(
            'The weights cannot be read.', field=path.name, got=str(error), allowed='a safetensors file of nemo_vtb'
        ) from error


_VERIFIED: set[str] = set()


@dataclass
class Restored:
    """What was read out of an unpacked archive.

    Args:
        passport: Of the file; {} where it has none.
        state: All weights in it.
    """

    passport: dict[str, Any]
    state: dict[str, Tensor]


def read_parts() -> Restored | None:
    """Weights and passport of the archive that NeMo is restoring from at this moment; None for files without parts.

    Raises:
        VtbCheckpointError: A part is damaged; it is named.
    """
    folder = AppState().nemo_file_folder if ModelPT._is_model_being_restored() else None
    if folder is None or not (Path(folder) / PASSPORT).is_file():
        return None
    passport = json.loads((Path(folder) / PASSPORT).read_text())
    state: dict[str, Tensor] = {}
    for part in PARTS:
        path = Path(folder) / f'{part}.safetensors'
        if path.name not in passport['members']:
            continue
        if str(folder) not in _VERIFIED:  # unpacked by NeMo's connector, which compares nothing
            check_digest(path, path.name, file_digest(path), passport)
        state |= _read_part(path)
    return Restored(passport, state)


# ---- the connector


class SafeConnector(SaveRestoreConnector):
    """Reads any `.nemo` under the rules of `archive`, and writes ours.

    Args:
        passport: What a file that is written says about itself.
        omit: Keys of the state dict that are not written.
    """

    def __init__(self, passport: Mapping[str, Any] | None = None, omit: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self._passport, self._omit = passport or {}, omit

    def _save_state_dict_to_disk(self, state_dict: Mapping[str, Tensor], filepath: str) -> None:
        torch.save({MARK: torch.tensor(1)}, filepath)
        for part in PARTS:
            state = {n: v for n, v in state_dict.items() if part_of(n) == part and n not in self._omit}
            if state:
                _write_part(Path(filepath).parent / f'{part}.safetensors', state)

    def _load_state_dict_from_disk(self, model_weights: str, map_location: Any = 'cpu') -> dict[str, Tensor]:
        return torch.load(model_weights, map_location=map_location, weights_only=True)

    def _make_nemo_file_from_folder(self, filename: str, source_dir: str) -> None:
        files = {p.name: Member.whole(p) for p in sorted(Path(source_dir).iterdir())}
        write_archive(Path(filename), files, self._passport)

    def _filtered_tar_info(self, tar_path: str, filter_fn: Any = None) -> list[str]:
        with open_plain(Path(tar_path)) as plain:
            members = read_members(plain)
            read_passport(plain, members)
        # NeMo asks with the names that tar gives them
        return [name for name in members if filter_fn is None or filter_fn(f'./{name}')]

    def _unpack_nemo_file(self, path2file: str, out_folder: str, members: list[str] | None = None) -> str:
        extract(Path(path2file), Path(out_folder), None if members is None else set(members))
        _VERIFIED.add(str(out_folder))
        return out_folder

    def restore_from(self, calling_cls: Any, restore_path: str, *args: Any, **kwargs: Any) -> Any:
        """NeMo's, which leaves the process in the state of restoring when it fails.

        Raises:
            VtbCheckpointError: There is no configuration in the archive.
        """
        try:
            with open_plain(Path(restore_path)) as plain:
                if CONFIG not in read_members(plain):
                    raise broken(Path(restore_path), f'no {CONFIG} in it')
            return super().restore_from(calling_cls, restore_path, *args, **kwargs)
        except BaseException:
            ModelPT._set_model_restore_state(is_being_restored=False)
            raise
        finally:
            _VERIFIED.clear()


# ---- what a file may ask for


@dataclass(frozen=True)
class Permissions:
    """What the user allows while a file is restored; the file itself cannot.

    Args:
        remote_code: Run Python code that came with an LLM.
        base_llm: Folder of the base LLM for a file without it; None for the one that the file names.
    """

    remote_code: bool = False
    base_llm: str | None = None


_PERMISSIONS: ContextVar[Permissions] = ContextVar('permissions')


def permissions() -> Permissions:
    """What holds at this moment."""
    return _PERMISSIONS.get(Permissions())


@contextmanager
def restoring_permissions(given: Permissions) -> Iterator[None]:
    """Let them hold as long as the context is open."""
    token = _PERMISSIONS.set(given)
    try:
        yield
    finally:
        _PERMISSIONS.reset(token)


def check_restored_config(cfg: DictConfig) -> None:
    """Refuse what a file may not ask of the computer that restores it.

    Raises:
        VtbCheckpointError: It wants to run code that came with an LLM.
    """
    if cfg.get('trust_remote_code') and not permissions().remote_code:
        raise VtbCheckpointError(
            'The file asks to run Python code that came with its LLM.',
            field='trust_remote_code',
            got=True,
            allowed='false, unless you ask for it',
            remedy='if you know the author: VoiceTextBlender.restore_from(path, trust_remote_code=True)',
        )
