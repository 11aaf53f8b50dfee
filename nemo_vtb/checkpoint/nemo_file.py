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
"""The `.nemo` file of a `VoiceTextBlender`: weights in parts, files of the LLM, a configuration, a manifest.

`VoiceTextBlender.restore_from` goes through `NemoConnector.restore_from`, one step after the other: unpack and verify,
read the configuration, refuse what it may not ask for, construct, load. NeMo's own connector (`ModelPT.restore_from`)
does only two things with our class: it constructs it while the archive is unpacked, and loads `model_weights.ckpt`,
which is empty. `being_restored` serves it: it verifies the unpacked files and has their weights loaded instead.
"""

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from nemo.core import ModelPT
from nemo.core.classes.common import _get_allowed_target_class
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from nemo.utils import logging
from nemo.utils.get_rank import is_global_rank_zero
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nemo_vtb.checkpoint.archive import (
    CONFIG,
    Member,
    broken,
    extract,
    open_plain,
    read_info,
    read_manifest,
    read_members,
    verify_unpacked,
    write_archive,
)
from nemo_vtb.checkpoint.foreign_config import check_asr, check_model, check_own_targets, opening
from nemo_vtb.checkpoint.foreign_limits import parse_yaml
from nemo_vtb.checkpoint.manifest import SECTIONS, make_manifest, part_of
from nemo_vtb.errors import VtbCheckpointError, disk_fault, first_line
from nemo_vtb.io import atomic_path, owned_name

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender

PARTS = ('llm', 'encoder', 'adapter', 'lora', 'other')
"""Each is `<part>.safetensors` in the archive, left out where it is empty."""

_TIES = 'ties'
_UNKNOWN = 1 << 50
_WEIGHTS = 'model_weights.ckpt'


# ---- writing


def save_nemo(
    model: 'VoiceTextBlender',
    path: str | Path,
    state: Mapping[str, Tensor],
    base: Iterable[str],
    *,
    include_llm: bool = True,
) -> None:
    """Write the `.nemo` file, whole or not at all; other ranks than the first do nothing.

    Args:
        model: What is saved.
        path: Where.
        state: Its state dict, as the Hugging Face backbone names it.
        base: Names of the weights of the untouched LLM in it; none for an LLM that was trained itself.
        include_llm: False leaves the base LLM out: a small file that can be restored only beside that LLM.

    Raises:
        VtbCheckpointError: The disk is full or the folder cannot be written to; or the LLM was trained itself, so
            that no base LLM could stand in for it.
    """
    if not is_global_rank_zero():
        return
    base = frozenset(base)
    if not include_llm and not base:
        raise VtbCheckpointError(
            'The LLM of this model was trained itself: a file without it could not be restored.',
            field='include_llm',
            got=False,
            allowed='true',
            remedy='save the whole model; with LoRA and a frozen LLM the file can be small',
        )
    manifest = make_manifest(model, state, llm_trained=not base, include_llm=include_llm)
    written = state if include_llm else {name: value for name, value in state.items() if name not in base}
    with atomic_path(Path(path).expanduser().resolve()) as temporary:
        _Writer(manifest, written).save_to(model, str(temporary))


def prove_savable(model: 'VoiceTextBlender') -> None:
    """Write the file without weights and throw it away: what would fail at the end of a run fails before step 1.

    Raises:
        VtbCheckpointError: Configuration, tokenizer or other files of the model cannot be written.
    """
    if not is_global_rank_zero():
        return
    try:
        with tempfile.TemporaryDirectory(prefix=f'nemo_vtb_trial_{owned_name()}_') as folder:
            manifest = make_manifest(model, {}, llm_trained=True, include_llm=True)
            _Writer(manifest, {}).save_to(model, f'{folder}/trial.nemo')
    except VtbCheckpointError:
        raise
    except Exception as error:  # NeMo's connector copies files of any kind and raises what comes
        what, remedy = disk_fault(error) or (f'{type(error).__name__}: {first_line(error)}', None)
        raise VtbCheckpointError(
            'The .nemo file of this run could not be written at its end, so it is not begun.',
            field='model',
            got=what,
            allowed='a configuration and a tokenizer of plain files',
            remedy=remedy or 'see which file of the tokenizer or of the configuration is named',
        ) from error


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


# ---- reading


@dataclass(frozen=True, slots=True)
class Restored:
    """The file that a model is being restored from.

    Args:
        manifest: Of the file; {} where it has none.
        num_bytes: Of all its members.
        base_llm: Folder of the base LLM that the caller gave, for a file without it.
    """

    manifest: Mapping[str, Any]
    num_bytes: int
    base_llm: str | None = None

    def base_folder(self, cfg: DictConfig) -> str | None:
        """Folder of the LLM that the file does not hold; None where it holds it."""
        if not self.manifest or self.manifest['base_llm']['included']:
            return None
        return self.base_llm or str(cfg.pretrained_llm)

    def completed(self, model: 'VoiceTextBlender', weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of the file and, where it holds no LLM, those of the model's."""
        return dict(weights) if self.base_folder(model.cfg) is None else {**weights, **model.base_weights()}

    def provenance(self, model: 'VoiceTextBlender') -> dict[str, Any]:
        """The sections of the manifest that are kept; where the file holds no LLM, that of the model is compared.

        Raises:
            VtbCheckpointError: The LLM is not the one that the file was trained on.
        """
        folder = self.base_folder(model.cfg)
        if folder is not None and (here := model.base_digest()) != self.manifest['base_llm']['weights_sha256']:
            base = self.manifest['base_llm']
            raise VtbCheckpointError(
                'The file holds no LLM, and the one that is here is not the one that it was trained on.',
                field='base_llm',
                got=f'{folder}: weights with SHA-256 {here[:12]}',
                allowed=f'{base["name"]}: weights with SHA-256 {base["weights_sha256"][:12]}',
                remedy='VoiceTextBlender.restore_from(path, base_llm=FOLDER), or `--base-llm FOLDER`',
            )
        return {name: self.manifest.get(name) for name in SECTIONS} if self.manifest else {}


class RestoredConfig(DictConfig):
    """The configuration of a file, with what `NemoConnector` knows beyond it; no file can make one.

    Args:
        cfg: The configuration, checked.
        restored: The file.
    """

    def __init__(self, cfg: DictConfig, restored: Restored) -> None:
        super().__init__(OmegaConf.to_container(cfg, resolve=True))
        self.__dict__['restored'] = restored  # an attribute, where DictConfig would make a key


def being_restored(model: 'VoiceTextBlender', cfg: Any) -> Restored | None:
    """The file that a model under construction comes from; None for a new model.

    Args:
        model: It has its configuration, and nothing else yet.
        cfg: What its constructor was given.

    Raises:
        VtbCheckpointError: A file differs from its manifest, or the configuration wants to run code.
        VtbConfigError: The configuration of a new model names a function.
    """
    if isinstance(cfg, RestoredConfig):
        return cfg.__dict__['restored']  # checked by `NemoConnector`
    if not ModelPT._is_model_being_restored():
        check_own_targets(model.cfg, 'model')
        return None
    refuse_remote_code(model.cfg)
    folder = _unpacked_by_nemo(model)
    num_bytes = _UNKNOWN if folder is None else _num_bytes(folder)
    check_model(OmegaConf.to_container(model.cfg), num_bytes)
    if folder is None:
        return None
    restored = Restored(verify_unpacked(folder) or {}, num_bytes)
    # NeMo reads it again, and would run what is in it where $TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD says so
    with opening(folder / _WEIGHTS, 'file of weights'):
        torch.load(folder / _WEIGHTS, map_location='meta', weights_only=True)
    if restored.manifest:
        # now, since NeMo removes the folder before it loads
        model.register_load_state_dict_pre_hook(partial(_supply, restored, _read_parts(folder)))
    return restored


def _unpacked_by_nemo(model: 'VoiceTextBlender') -> Path | None:
    """The folder where NeMo's connector has unpacked the archive; None while a training checkpoint is loaded."""
    try:
        return Path(model.register_artifact('archive', 'nemo:.'))
    except TypeError:  # NeMo has no folder to look in
        return None
    finally:
        model.artifacts.pop('archive', None)
        model.cfg.pop('archive', None)


def _supply(
    restored: Restored,
    weights: dict[str, Tensor],
    model: 'VoiceTextBlender',
    state: dict[str, Tensor],
    prefix: str,
    *_: Any,
) -> None:
    """Pre-hook of `load_state_dict`: put the weights of the file, once, where its `model_weights.ckpt` has none."""
    if weights and not prefix:
        state.pop('nemo_vtb.parts', None)  # what `model_weights.ckpt` held in older files
        state |= restored.completed(model, weights)
        weights.clear()


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())


def _read_parts(folder: Path) -> dict[str, Tensor]:
    paths = [folder / f'{part}.safetensors' for part in PARTS]
    return {name: value for path in paths if path.is_file() for name, value in _read_part(path).items()}


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


def refuse_remote_code(cfg: Mapping[str, Any]) -> None:
    """Raise VtbCheckpointError where a configuration grants itself what only the caller may grant."""
    if cfg.get('trust_remote_code'):
        raise VtbCheckpointError(
            'The file asks to run Python code that came with its LLM.',
            field='trust_remote_code',
            got=True,
            allowed='false, unless you ask for it',
            remedy='if you know the author: VoiceTextBlender.restore_from(path, trust_remote_code=True)',
        )


# ---- connectors


class SafeConnector(SaveRestoreConnector):
    """NeMo's connector, which reads any `.nemo` under the rules of `archive`."""

    def _load_state_dict_from_disk(self, model_weights: str, map_location: Any = 'cpu') -> dict[str, Tensor]:
        return torch.load(model_weights, map_location=map_location, weights_only=True)

    def _filtered_tar_info(self, tar_path: str, filter_fn: Any = None) -> list[str]:
        with open_plain(Path(tar_path)) as plain:
            members = read_members(plain)
            read_manifest(plain, members)
        # NeMo's filter wants the names that tar gives them
        return [name for name in members if filter_fn is None or filter_fn(f'./{name}')]

    def _unpack_nemo_file(self, path2file: str, out_folder: str, members: list[str] | None = None) -> str:
        extract(Path(path2file), Path(out_folder), members)
        return out_folder

    def restore_from(self, calling_cls: Any, restore_path: str, *args: Any, **kwargs: Any) -> Any:
        """NeMo's, which leaves the process in the state of restoring when it fails.

        Raises:
            VtbCheckpointError: There is no configuration in the archive, or it names what no model needs.
        """
        try:
            with opening(restore_path, 'ASR model'):
                info = read_info(restore_path)
                check_asr(info.config, sum(info.files.values()))
                return super().restore_from(calling_cls, restore_path, *args, **kwargs)
        except BaseException:
            ModelPT._set_model_restore_state(is_being_restored=False)
            raise


class NemoConnector(SafeConnector):
    """Restores a `VoiceTextBlender`, or a subclass of it, from a `.nemo` file.

    Args:
        trust_remote_code: Run code that came with an LLM, if the file asks for it.
        base_llm: Folder of the base LLM, for a file without it; None for the one that the file names.
    """

    def __init__(self, *, trust_remote_code: bool = False, base_llm: str | Path | None = None) -> None:
        super().__init__()
        self._trust_remote_code, self._base_llm = trust_remote_code, None if base_llm is None else str(base_llm)

    def restore_from(
        self,
        calling_cls: Any,
        restore_path: str,
        override_config_path: Any = None,
        map_location: Any = None,
        strict: bool = True,
        return_config: bool = False,
        trainer: Any = None,
        validate_access_integrity: bool = True,
    ) -> Any:
        """As in NeMo: the model, or its configuration alone.

        Raises:
            VtbCheckpointError: The file is cut off, changed or hostile, wants to run code, or belongs to another LLM.
        """
        prefix = f'nemo_vtb_restore_{owned_name()}_'
        with tempfile.TemporaryDirectory(prefix=prefix) as name, opening(restore_path):
            folder = Path(name)
            manifest = extract(Path(restore_path), folder, {CONFIG} if return_config else None)
            if not (folder / CONFIG).is_file():
                raise broken(Path(restore_path), f'no {CONFIG} in it')
            cfg = _read_config(folder / CONFIG if override_config_path is None else override_config_path)
            if return_config:
                return cfg
            if not self._trust_remote_code:
                refuse_remote_code(cfg)
            restored = Restored(manifest or {}, _num_bytes(folder), self._base_llm)
            cls = _named_class(calling_cls, cfg)
            check_model(OmegaConf.to_container(cfg), restored.num_bytes)
            if not isinstance(cfg.get('pretrained_llm'), str):
                raise broken(Path(restore_path), 'its configuration names no LLM')
            calling_cls._set_model_restore_state(is_being_restored=True, folder=name)
            try:
                options = {'trainer': trainer} if cls._inspect_signature_for_trainer(cls) else {}
                model = cls(cfg=RestoredConfig(cfg, restored), **options)
                model = model.to(map_location or ('cuda' if torch.cuda.is_available() else 'cpu'))
                # also where it is empty: code in it, which another program might run, is an error here
                state = self._load_state_dict_from_disk(str(folder / self.model_weights_ckpt))
                if manifest:
                    state = restored.completed(model, _read_parts(folder))
                _load(model, state, strict)
            finally:
                calling_cls._set_model_restore_state(is_being_restored=False)
        logging.info(f'Model {type(model).__name__} was successfully restored from {restore_path}.')
        return model


def _read_config(source: Any) -> DictConfig:
    cfg: Any = source
    if not isinstance(source, DictConfig):
        cfg = OmegaConf.create(parse_yaml(Path(source).read_text(encoding='utf-8')))
    return cfg.model if 'model' in cfg else cfg


def _load(model: Any, state: dict[str, Tensor], strict: bool) -> None:
    try:
        model.load_state_dict(state, strict=strict)
    except RuntimeError as error:
        raise VtbCheckpointError(
            'The weights do not fit the configuration.',
            field='weights',
            got=str(error),
            allowed='each weight of the model once, nothing else',
            remedy='restore it with the configuration that is in the file',
        ) from error


def _named_class(calling_cls: Any, cfg: DictConfig) -> Any:
    """The class that the configuration names, of NeMo's allowed ones, or the calling one if that is a subclass."""
    cls = calling_cls
    try:
        named = _get_allowed_target_class(cfg.target)
        if not issubclass(named, cls) and not issubclass(cls, named):
            raise VtbCheckpointError(
                'The file holds another kind of model.',
                field='target',
                got=cfg.target,
                allowed=f'{cls.__name__}, or a subclass of it',
                remedy='open it with the class that wrote it',
            )
        return cls if issubclass(cls, named) else named
    except (AttributeError, ImportError):
        logging.warning(f'{cfg.get("target")} is not there any more; {cls.__name__} is restored in its place')
        return cls


class _Writer(SafeConnector):
    """Writes the weights in parts and the archive in our form."""

    def __init__(self, manifest: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._manifest, self._state = manifest, state

    def _save_state_dict_to_disk(self, state_dict: Mapping[str, Tensor], filepath: str) -> None:
        torch.save({}, filepath)
        for part in PARTS:
            if state := {name: value for name, value in self._state.items() if part_of(name) == part}:
                _write_part(Path(filepath).parent / f'{part}.safetensors', state)

    def _make_nemo_file_from_folder(self, filename: str, source_dir: str) -> None:
        files = {p.name: Member.whole(p) for p in sorted(Path(source_dir).iterdir())}
        write_archive(Path(filename), files, self._manifest)


def extract_state(
    cls: type['VoiceTextBlender'],
    restore_path: str | Path,
    save_dir: str | Path,
    split_by_module: bool = False,
    save_restore_connector: SaveRestoreConnector | None = None,
) -> dict[str, Tensor]:
    """NeMo's `extract_state_dict_from`: the weights of a `.nemo` file, also written into a folder.

    Args:
        cls: The model's class.
        restore_path: The file.
        save_dir: The folder.
        split_by_module: One file for each module, without its name in the keys, instead of one for all.
        save_restore_connector: Another connector.
    """
    model = cls.restore_from(restore_path, map_location='cpu', save_restore_connector=save_restore_connector)
    state, parts, folder = dict(model.state_dict()), dict[str, dict[str, Tensor]](), Path(save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in state.items():
        module, _, rest = name.partition('.')
        parts.setdefault(module if split_by_module else 'model_weights', {})[rest if split_by_module else name] = value
    for module, values in parts.items():
        torch.save(values, folder / f'{module}.ckpt')
    return state
