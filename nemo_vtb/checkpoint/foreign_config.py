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
That is enough for a YAML file of one's own; a model file may come from anybody.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nemo_vtb.errors import VtbCheckpointError

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

_allowed: dict[str, set[str]] = {place: set(classes) for place, classes in PERCEPTION.items()}


def allow(place: str, cls: type) -> None:
    """Let files name a class of your own in a section of `perception`.

    Args:
        place: Key of `PERCEPTION`.
        cls: The class; its constructor must be safe with any arguments.
    """
    _allowed[place].add(f'{cls.__module__}.{cls.__qualname__}')


def check_perception(perception: Any, *, what: str = 'file') -> None:
    """Refuse what the `perception` section of a stranger's file may not name.

    Args:
        perception: The section, as plain values or OmegaConf's.
        what: Named in the error.

    Raises:
        VtbCheckpointError: A class does not belong where it stands, or an argument would build something itself.
    """
    for place, section in (perception or {}).items():
        if place in _allowed:
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
        raise _refused(path, section, 'a block of settings', what)
    named = section.get('_target_')
    if named is not None and named not in allowed:
        raise _refused(f'{path}._target_', named, list(allowed), what)
    _refuse_nested(path, {key: value for key, value in section.items() if key != '_target_'}, what)


def check_asr(config: Any) -> None:
    """Refuse an ASR model's configuration that builds anything but modules and losses of NeMo.

    Args:
        config: The whole configuration, as plain values.

    Raises:
        VtbCheckpointError: A section names another class, or an argument would build something itself.
    """
    for place, section in config.items() if isinstance(config, Mapping) else ():
        if not isinstance(section, Mapping) or '_target_' not in section:
            continue
        named = str(section['_target_'])
        # it reads a checkpoint where it is told to
        loads = named == _TRANSFORMER and (section.get('pretrained') or section.get('checkpoint_file'))
        if loads or not _ASR_CLASS.fullmatch(named):
            raise _refused(f'{place}._target_', named, 'modules and losses of nemo.collections.asr', 'ASR model')
        check_section(place, section, [named], what='ASR model')


def _refuse_nested(path: str, section: Mapping[str, Any], what: str) -> None:
    for place, key in _building_keys(section, path):
        raise _refused(place, key, 'numbers, texts and lists of them', what)


def _building_keys(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in _BUILDS:
                yield f'{path}.{key}', f'{key}: {inner!r}'[:200]
            yield from _building_keys(inner, f'{path}.{key}')
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for number, inner in enumerate(value):
            yield from _building_keys(inner, f'{path}[{number}]')


def _refused(path: str, got: Any, allowed: Any, what: str) -> VtbCheckpointError:
    return VtbCheckpointError(
        f'The configuration of the {what} names what no {what} may name; nothing of it is used.',
        field=path,
        got=got,
        allowed=allowed,
        remedy='do not use the file, and ask its author what it was meant to do; a class of your own is admitted by '
        '`nemo_vtb.checkpoint.foreign_config.allow`',
    )
