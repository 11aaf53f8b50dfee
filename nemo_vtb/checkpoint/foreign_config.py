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
"""What the configuration in a file may name: known classes, each in its place, and nothing inside their arguments.

NeMo's own allow-list admits whole namespaces, in which there are functions and classes that read, write and unpickle.
A model file may come from anybody, so that it is held to the lists here; a YAML file of one's own may name any class
that NeMo admits, but no function (`check_own_targets`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_vtb.checkpoint.foreign_limits import check_interpolations, check_patterns, check_sizes, refused
from nemo_vtb.errors import VtbConfigError, VtbError, VtbModelError, first_line

_ASR = 'nemo.collections.asr.modules.'
_ADAPTERS = 'nemo.collections.speechlm2.modules.perception.'
_ENCODERS = (
    f'{_ASR}ConformerEncoder',
    f'{_ASR}conformer_encoder.ConformerEncoder',
    f'{_ASR}ConformerMultiLayerFeatureExtractor',
    f'{_ASR}conformer_encoder.ConformerMultiLayerFeatureExtractor',
    'nemo_vtb.model.whisper.WhisperEncoder',
)

PERCEPTION: Mapping[str, tuple[str, ...]] = {
    'preprocessor': (
        f'{_ASR}AudioToMelSpectrogramPreprocessor',
        f'{_ASR}audio_preprocessing.AudioToMelSpectrogramPreprocessor',
        'nemo_vtb.model.whisper.WhisperMelPreprocessor',
    ),
    'encoder': _ENCODERS,
    'modality_adapter': (
        *_ENCODERS[:2],
        f'{_ADAPTERS}IdentityConnector',
        f'{_ADAPTERS}QformerConnector',
        f'{_ADAPTERS}MultiLayerProjectionConnector',
        'nemo_vtb.model.aligned_adapter.AlignedAdapter',
        'nemo_vtb.model.perception.StackedMLPAdapter',
    ),
    'spec_augment': (f'{_ASR}SpectrogramAugmentation', f'{_ASR}audio_preprocessing.SpectrogramAugmentation'),
}
"""Section of `perception` -> classes that a file may name there; `allow` adds one of your own."""

_TRAINING = {
    'optimizer': re.compile(r'(torch\.optim|nemo\.core\.optim)(\.[a-z_]+)*\.[A-Z]\w+'),
    'lr_scheduler': re.compile(r'(torch\.optim|nemo\.core\.optim)\.lr_scheduler\.[A-Z]\w+'),
}
_ASR_MODEL = re.compile(
    r'nemo\.collections\.asr\.models\.([a-z_]+\.)*'
    r'(EncDec(CTC|RNNT|HybridRNNTCTC)(BPE)?Model|EncDecHybridRNNTCTCBPEModelWithPrompt|EncDecRNNTBPEModelWithPrompt'
    r'|EncDecMultiTaskModel|EncDec(Denoise)?MaskedTokenPredModel|SpeechEncDecSelfSupervisedModel|ASRModel)'
)
_TRANSFORMER = f'{_ASR}transformer.get_nemo_transformer'
# not BeamSearchDecoderWithLM, which opens the file of a language model
_ASR_CLASS = re.compile(
    r'nemo\.collections\.asr\.modules\.([a-z_]+\.)*(?!BeamSearch)[A-Z]\w+'
    r'|nemo\.collections\.asr\.modules\.transformer\.get_nemo_transformer'
    r'|nemo\.collections\.asr\.parts\.submodules\.token_classifier\.TokenClassifier'
    r'|nemo\.collections\.(asr|common)\.losses\.([a-z_]+\.)*[A-Z]\w+'
)

# keys with which Hydra or NeMo build something out of a mapping
_BUILDS = ('_target_', '_args_', '_partial_', '_convert_', '_recursive_')

_allowed: dict[str, set[str]] = {
    place: set(classes) for place, classes in (*PERCEPTION.items(), *dict.fromkeys(_TRAINING, ()).items())
}


def allow(place: str, cls: type) -> None:
    """Let files name a class of your own.

    Args:
        place: Key of `PERCEPTION`, or `optimizer` or `lr_scheduler`.
        cls: The class; its constructor must be safe with any arguments.
    """
    _allowed[place].add(f'{cls.__module__}.{cls.__qualname__}')


def check_model(config: Any, num_bytes: int, *, what: str = 'file') -> None:
    """Refuse what the configuration of a stranger's model may not hold, before anything is built from it.

    Args:
        config: The whole configuration, as plain values, interpolations not resolved.
        num_bytes: Of the weights that came with it.
        what: Named in the error.

    Raises:
        VtbCheckpointError: It names a class that does not belong where it stands, an argument would build something
            itself, or it describes what never ends or does not fit the weights.
    """
    if not isinstance(config, Mapping):
        raise refused('', type(config).__name__, 'a block of settings', what)
    check_interpolations(config, what=what)
    for place, section in config.items():
        if place == 'perception':
            check_perception(section, what=what)
            check_sizes(place, section, num_bytes, what=what)
        elif place in _TRAINING:
            _check_training(place, section, what)
        else:
            _refuse_nested(str(place), {place: section}, what)
    check_patterns(config, what=what)


def _check_training(place: str, section: Any, what: str) -> None:
    named = section.get('_target_') if isinstance(section, Mapping) else None
    known = [str(named)] if _TRAINING[place].fullmatch(str(named)) else [*_allowed[place], _TRAINING[place].pattern]
    check_section(place, section, known, what=what)


def check_perception(perception: Any, *, what: str = 'file') -> None:
    """Refuse what the `perception` section of a stranger's file may not name.

    Args:
        perception: The section, as plain values or OmegaConf's.
        what: Named in the error.

    Raises:
        VtbCheckpointError: A class does not belong where it stands, or an argument would build something itself.
    """
    if not isinstance(perception or {}, Mapping):
        raise refused('perception', perception, 'a block of settings', what)
    for place, section in (perception or {}).items():
        if place in PERCEPTION:
            check_section(f'perception.{place}', section, sorted(_allowed[place]), what=what)
        elif place not in ('target', '_target_'):  # of the module itself, which the model builds whatever they say
            _refuse_nested(f'perception.{place}', {place: section}, what)


def check_section(path: str, section: Any, allowed: Sequence[str], *, what: str = 'file') -> None:
    """Refuse a section that builds anything but one of the allowed classes with plain arguments.

    Args:
        path: Its place in the configuration.
        section: A mapping with `_target_`, or None.
        allowed: Full names of classes.
        what: Named in the error.

    Raises:
        VtbCheckpointError: It does.
    """
    if section is None:
        return
    if not isinstance(section, Mapping):
        raise refused(path, section, 'a block of settings', what)
    named = section.get('_target_')
    if named is not None and named not in allowed:
        raise refused(f'{path}._target_', named, list(allowed), what)
    _refuse_nested(path, {key: value for key, value in section.items() if key != '_target_'}, what)


def check_asr(config: Any, num_bytes: int) -> None:
    """Refuse an ASR model's configuration that builds anything but modules and losses of NeMo.

    Args:
        config: The whole configuration, as plain values, interpolations not resolved.
        num_bytes: Of the weights that came with it.

    Raises:
        VtbCheckpointError: It is no ASR model that an encoder is taken from, a section names another class, an
            argument would build something itself, or it describes what does not fit the weights.
    """
    if not isinstance(config, Mapping):
        raise refused('', type(config).__name__, 'a block of settings', 'ASR model')
    target = config.get('target')
    if target is not None and not _ASR_MODEL.fullmatch(str(target)):
        raise refused('target', target, 'an ASR model of NeMo with an encoder', 'ASR model')
    check_interpolations(config, what='ASR model')
    _check_asr_sections(config, '', num_bytes)


def _check_asr_sections(config: Mapping[Any, Any], path: str, num_bytes: int) -> None:
    for place, section in config.items():
        where = f'{path}.{place}'.removeprefix('.')
        if place in _BUILDS:
            raise refused(where, section, 'sections with `_target_`', 'ASR model')
        if not isinstance(section, Mapping) or '_target_' not in section:
            inner = section if isinstance(section, Mapping) else {}
            _check_asr_sections(inner, where, num_bytes)  # a hybrid model has its second decoder inside `aux_ctc`
            if not inner:
                _refuse_nested(where, {place: section}, 'ASR model')
            continue
        named = str(section['_target_'])
        # it reads a checkpoint where it is told to
        loads = named == _TRANSFORMER and (section.get('pretrained') or section.get('checkpoint_file'))
        if loads or not _ASR_CLASS.fullmatch(named):
            raise refused(f'{where}._target_', named, 'modules and losses of nemo.collections.asr', 'ASR model')
        check_section(where, section, [named], what='ASR model')
        check_sizes(where, section, num_bytes, what='ASR model')


_BUILT_LAST = re.compile(r'model\.(optimizer|lr_scheduler)\._target_')


def check_own_targets(config: Any, path: str) -> None:
    """Refuse a YAML of one's own that names a function, or a strategy, callback or logger that is none.

    NeMo's allow-list comes first: what it does not admit is not imported, and NeMo says so where it is built; of
    optimizer and schedule, which are built last, it is said here.

    Args:
        config: A section, as plain values or OmegaConf's.
        path: Its place.

    Raises:
        VtbConfigError: A `_target_` is not a class, or not one that belongs there.
    """
    import hydra
    from nemo.core.classes.common import _is_target_allowed

    for where, named in _targets(config, path):
        if not isinstance(named, str) or not _is_target_allowed(named):
            if _BUILT_LAST.fullmatch(where):
                raise _not_built(where, named, "what NeMo's allow-list admits, as torch.optim.AdamW")
            continue
        try:
            found = hydra.utils.get_object(named)
        except Exception as error:  # an import can raise anything
            raise _not_built(
                where, f'{named}: {type(error).__name__}: {first_line(error)}', 'what can be imported'
            ) from error
        while hasattr(found, '__wrapped__'):  # NeMo's @experimental
            found = found.__wrapped__
        base = _base_of(where)
        if not isinstance(found, type) or (base is not None and not issubclass(found, base)):
            raise _not_built(where, named, 'a class' if base is None else f'a subclass of {base.__name__}')


def _base_of(where: str) -> type | None:
    from lightning.pytorch import Callback
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.strategies import Strategy

    bases = {'trainer.strategy': Strategy, 'trainer.callbacks': Callback, 'trainer.logger': Logger}
    return bases.get(re.sub(r'\[\d+\]', '', where).removesuffix('._target_'))


def _not_built(where: str, got: Any, allowed: str) -> VtbConfigError:
    return VtbConfigError(
        'A function or another class may not be named here.', field=where, got=got, allowed=allowed,
        remedy='name a class; an object of your own can be given to the Trainer in a script',
    )  # fmt: skip


@contextmanager
def opening(path: str | Path, what: str = 'model') -> Iterator[None]:
    """Turn whatever is raised while a stranger's file is opened into an error that names the file.

    Args:
        path: The file or folder.
        what: What it was taken for.

    Raises:
        VtbModelError: Something else than an error of this package was raised.
    """
    try:
        yield
    except VtbError:
        raise
    except Exception as error:  # yaml, OmegaConf, torch, transformers, PEFT and NeMo have dozens of classes
        raise VtbModelError(
            f'The {what} cannot be restored.',
            field='model',
            got=f'{path}: {type(error).__name__}: {first_line(error)}',
            allowed='a file or folder as nemo_vtb or NeMo wrote it',
            remedy='`vtb info FILE` says what is in a .nemo file; copy it again if it is cut off',
        ) from error


def _refuse_nested(path: str, section: Mapping[str, Any], what: str) -> None:
    for place, key in _building_keys(section, path):
        raise refused(place, key, 'numbers, texts and lists of them', what)


def _building_keys(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in _BUILDS:
                yield f'{path}.{key}', f'{key}: {inner!r}'[:200]
            yield from _building_keys(inner, f'{path}.{key}')
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for number, inner in enumerate(value):
            yield from _building_keys(inner, f'{path}[{number}]')


def _targets(config: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(config, Mapping):
        for key, inner in config.items():
            where = f'{path}.{key}'.removeprefix('.')
            if key == '_target_':
                yield where, inner
            yield from _targets(inner, where)
    elif isinstance(config, Sequence) and not isinstance(config, str):
        for number, inner in enumerate(config):
            yield from _targets(inner, f'{path}[{number}]')
