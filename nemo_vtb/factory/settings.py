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
"""Settings of the factory: a dataclass for each kind of data; defaults, types and ranges stand here and nowhere else.

`conf/factory/*.yaml` shows every key with its meaning; a test holds those files to this one.
"""

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from nemo_vtb.config import check_keys, check_missing, check_values
from nemo_vtb.config_schema import Key, ListOf, Node, Section

T = TypeVar('T')


def option(
    default: Any, *, low: float | None = None, high: float | None = None, choices: Sequence[object] = ()
) -> Any:
    """One key: its default, and the range or the choices of its values."""
    metadata = {'low': low, 'high': high, 'choices': tuple(choices)}
    if isinstance(default, dict):  # shares of names: no other names are known
        return field(default_factory=lambda: dict(default), metadata={**metadata, 'names': tuple(default)})
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Avoid:
    """Evaluation sets that the product must not overlap with."""

    files: tuple[str, ...] = ()
    ngram: int = option(8, low=2)
    audio: bool = True
    max_bit_errors: float = option(0.35, low=0.0, high=0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What every kind of data has."""

    seed: int = option(0, low=0)
    chunk: int = option(16, low=1)
    validation_share: float = option(0.05, low=0.0, high=1.0)
    test_share: float = option(0.0, low=0.0, high=1.0)
    form: str = option('jsonl', choices=('jsonl', 'tar'))
    shard_size: int = option(1000, low=1)
    lang: str = 'en'
    avoid: Avoid = field(default_factory=Avoid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify:
    """The checks of speech. Without `asr` nothing is transcribed back."""

    asr: str | None = 'asset:whisper-tiny.en'
    max_wer: float = option(0.3, low=0.0)
    min_s: float = option(0.3, low=0.0)
    max_s: float = option(30.0, low=0.0)
    max_silence: float = option(0.6, low=0.0, high=1.0)
    max_clipping: float = option(0.001, low=0.0, high=1.0)
    check_language: bool = True
    tries: int = option(2, low=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tts:
    """The engine that speaks, and how much its voice may vary."""

    engine: str = option('pico', choices=('pico', 'endpoint', 'nemo'))
    url: str | None = None
    model: str | None = None
    voices: tuple[str, ...] = ()
    vocoder: str | None = None
    api_key_env: str = 'OPENAI_API_KEY'
    speakers: int = option(16, low=1)
    speed: tuple[float, ...] = option((0.9, 1.1))
    gain_db: tuple[float, ...] = option((-6.0, 0.0))
    concurrency: int = option(8, low=1)
    timeout_s: float = option(60.0, low=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Noise and rooms, mixed in by lhotse; nothing without files."""

    noise: tuple[str, ...] = ()
    noise_share: float = option(0.5, low=0.0, high=1.0)
    snr_db: tuple[float, ...] = option((10.0, 30.0))
    rir: tuple[str, ...] = ()
    rir_share: float = option(0.3, low=0.0, high=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Llm:
    """The language model that writes: an OpenAI-compatible endpoint, or a local Hugging Face folder."""

    model: str = 'asset:smollm2-135m-instruct'
    url: str | None = None
    api_key_env: str = 'OPENAI_API_KEY'
    structured: str = option('json_schema', choices=('json_schema', 'json_object', 'none'))
    temperature: float = option(0.7, low=0.0)
    max_tokens: int = option(256, low=1)
    concurrency: int = option(16, low=1)
    requests_per_minute: int | None = option(None, low=1)
    timeout_s: float = option(60.0, low=0.0)
    tries: int = option(6, low=1)
    invalid_tries: int = option(2, low=1)
    price_prompt: float = option(0.0, low=0.0)
    price_completion: float = option(0.0, low=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AsrAst(Common):
    """ASR and AST manifests to conversations."""

    tasks: tuple[str, ...] = option(('asr', 'ast'), choices=('asr', 'ast'))
    bank: str | None = None
    instruction_lang: str = option('source', choices=('source', 'en', 'any'))
    positions: dict[str, float] = option({'before': 0.4, 'after': 0.3, 'around': 0.3}, low=0.0)
    forms: dict[str, float] = option({'plain': 0.8, 'json': 0.1, 'timestamps': 0.1}, low=0.0)
    named_share: float = option(0.5, low=0.0, high=1.0)
    punctuation_share: float = option(0.2, low=0.0, high=1.0)
    min_words: int = option(1, low=0)
    min_s: float = option(0.1, low=0.0)
    max_s: float = option(40.0, low=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechQa(Common):
    """Transcripts to questions and answers."""

    questions: int = option(1, low=1)
    types: dict[str, float] = option(
        {'factual': 0.5, 'inference': 0.2, 'summary': 0.15, 'unanswerable': 0.15}, low=0.0
    )
    llm: Llm = field(default_factory=Llm)
    judge: str = option('overlap', choices=('overlap', 'llm', 'none'))
    min_overlap: float = option(0.5, low=0.0, high=1.0)
    max_copy: float = option(0.8, low=0.0, high=1.0)
    min_words: int = option(6, low=1)
    max_words: int = option(400, low=1)
    max_question_words: int = option(40, low=1)
    max_answer_words: int = option(80, low=1)
    min_s: float = option(0.1, low=0.0)
    max_s: float = option(40.0, low=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextChats(Common):
    """Typed chats, cleaned."""

    keep_categories: tuple[str, ...] = ()
    drop_categories: tuple[str, ...] = ()
    max_turns: int = option(20, low=1)
    max_user_words: int = option(1000, low=1)
    max_answer_words: int = option(2000, low=1)
    check_language: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedModal(TextChats):
    """Typed chats to conversations in which spans of user turns are spoken."""

    max_user_words: int = option(100, low=1)
    max_answer_words: int = option(700, low=1)
    variants: int = option(1, low=1)
    policies: dict[str, float] = option({'full_turn': 0.25, 'sentences': 0.5, 'multi_span': 0.25}, low=0.0)
    turn_share: float = option(1.0, low=0.0, high=1.0)
    max_span_words: int = option(60, low=1)
    on_failed_span: str = option('drop', choices=('drop', 'type'))
    tts: Tts = field(default_factory=Tts)
    verify: Verify = field(default_factory=Verify)
    augment: Noise = field(default_factory=Noise)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """The demonstration corpus: counts are [train, validation, test]."""

    seed: int = option(0, low=0)
    chunk: int = option(16, low=1)
    commands: tuple[int, ...] = (600, 40, 40)
    speech_qa: tuple[int, ...] = (600, 40, 40)
    mixed_modal: tuple[int, ...] = (500, 40, 40)
    text: tuple[int, ...] = (441, 40, 60)
    prefixes: tuple[str, ...] = ('',)
    llm: str | None = 'minimind2-small'
    max_new_tokens: int = option(64, low=1)
    spare_chats: float = option(1.25, low=1.0)
    bank_share: float = option(0.0, low=0.0, high=1.0)
    verify: Verify = field(default_factory=lambda: Verify(max_s=20.0))


def read_settings(cls: type[T], *layers: Mapping[str, Any]) -> T:
    """Make settings out of layers of keys, the later ones winning.

    Args:
        cls: One of the dataclasses of this module.
        layers: What a file and the command line say.

    Raises:
        VtbConfigError: An unknown key (with the nearest one), or a value of a wrong type or out of range.
    """
    from omegaconf import OmegaConf

    section = _section(cls)
    given = OmegaConf.to_container(
        OmegaConf.merge({}, *(OmegaConf.create(dict(layer)) for layer in layers)), resolve=True
    )
    check_keys(given, section)  # type: ignore[arg-type]
    merged = OmegaConf.to_container(OmegaConf.merge(settings_dict(cls()), given))
    assert isinstance(merged, dict)
    check_missing(merged)  # type: ignore[arg-type]
    check_values(merged, section)  # type: ignore[arg-type]
    return _build(cls, merged)  # type: ignore[arg-type]


def settings_dict(settings: Any) -> dict[str, Any]:
    """The settings as plain values, as they would stand in a YAML file."""
    return {name: _plain(value) for name, value in asdict(settings).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value


def _section(cls: type) -> Section:
    hints = typing.get_type_hints(cls)
    return Section({item.name: _node(hints[item.name], item.metadata) for item in fields(cls)})


def _node(hint: Any, metadata: Mapping[str, Any]) -> Node:
    if is_dataclass(hint):
        return _section(hint)  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return ListOf(_node(arguments[0], metadata))
    if origin is dict:
        return Section({name: _node(arguments[1], metadata) for name in metadata['names']})
    members = arguments if origin in (types.UnionType, typing.Union) else (hint,)
    kinds = tuple(member for member in members if member is not type(None))
    if float in kinds:
        kinds = (*kinds, int)
    return Key(
        kinds,
        low=metadata.get('low'),
        high=metadata.get('high'),
        choices=metadata.get('choices') or (),
        null=type(None) in members,
    )


def _build(cls: type[T], values: Mapping[str, Any]) -> T:
    hints = typing.get_type_hints(cls)
    made: dict[str, Any] = {}
    for item in fields(cls):  # type: ignore[arg-type]
        if item.name not in values:
            continue
        hint, value = hints[item.name], values[item.name]
        if is_dataclass(hint):
            made[item.name] = _build(hint, value)  # type: ignore[arg-type]
        elif typing.get_origin(hint) is tuple:
            made[item.name] = tuple(value)
        else:
            made[item.name] = value
    return cls(**made)
