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
"""A configuration key is a dataclass field: its meaning, unit, default and bounds stand there and nowhere else.

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True, kw_only=True)
... class Packing:
...     max_tokens: int = key(4096, 'Length of a packed row', unit='tokens', low=1)
>>> section_of(Packing).keys['max_tokens'].low
1

The checks (`check.py`), the text of `--help` and `docs/config.md` (`describe`) are made from these fields. Sections
that belong to classes of others (`more`) are known by the signatures of those classes.
"""

import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from nemo_vtb.errors import VtbConfigError

T = TypeVar('T')

NO_DEFAULT: Any = MISSING
"""The default of a key that has none, or whose default belongs to another library."""

_LISTS = (list, tuple, Sequence)
_MAPS = (dict, Mapping)


@dataclass(frozen=True, slots=True)
class Key:
    """One value: the types it may have (none given: anything), its range or choices, and whether it may be null.

    `refused` names values that look right and are not, each with what to do instead.
    """

    types: tuple[type, ...] = ()
    low: float | None = None
    high: float | None = None
    choices: tuple[object, ...] = ()
    null: bool = True
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def allowed(self) -> str:
        """The values that are allowed, in words."""
        if self.choices:
            return ', '.join(str(item) for item in self.choices)
        names = {'dict': 'block', 'str': 'text'}
        text = ' or '.join(names.get(t.__name__, t.__name__) for t in self.types) or 'a value'
        if self.low is not None and self.high is not None:
            return f'{text} from {self.low:g} to {self.high:g}'
        return text if self.low is None else f'{text} of at least {self.low:g}'

    def check(self, path: str, value: object) -> None:
        """Raises VtbConfigError unless a value is allowed; interpolations are left to whoever resolves them."""
        if isinstance(value, str) and '${' in value:
            return
        if value is None:
            if not self.null:
                raise VtbConfigError('the value may not be null', field=path, got=None, allowed=self.allowed)
            return
        # bool is a subclass of int, yet `max_tokens: true` is a mistake
        right_type = not self.types or (
            isinstance(value, self.types) and (bool in self.types or not isinstance(value, bool))
        )
        numeric = right_type and isinstance(value, int | float)
        too_low = numeric and self.low is not None and value < self.low  # type: ignore[operator]
        too_high = numeric and self.high is not None and value > self.high  # type: ignore[operator]
        if not right_type or too_low or too_high or (self.choices and value not in self.choices):
            raise VtbConfigError(
                'the value is not allowed', field=path, got=value, allowed=self.allowed, remedy=self._remedy(value)
            )

    def _remedy(self, value: object) -> str | None:
        if not isinstance(value, str):
            return None
        if value in self.refused:
            return self.refused[value]
        if float in self.types and re.fullmatch(r'[-+]?\d+(\.\d*)?[eE][-+]?\d+', value):
            return f'YAML reads {value} as text; write it with a decimal point, as in 1.0e-4'
        close = difflib.get_close_matches(value, [str(item) for item in self.choices], n=1)
        return f"did you mean '{close[0]}'?" if close else None


@dataclass(frozen=True, slots=True)
class Section:
    """A block of known keys. `more` names whose class takes further keys (`check.more_keys`)."""

    keys: Mapping[str, 'Node'] = field(default_factory=dict)
    more: str | None = None


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list whose entries all follow one node; `or_text`: or the path of a YAML file that holds it."""

    item: 'Node'
    or_text: bool = False


@dataclass(frozen=True, slots=True)
class MapOf:
    """A block whose names the user chooses, and whose values all follow one node."""

    item: 'Node'


Node = Key | Section | ListOf | MapOf


def key(
    default: Any,
    meaning: str,
    *,
    unit: str = '',
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[object] = (),
    refused: Mapping[str, str] | None = None,
    keys: type | None = None,
    more: str | None = None,
) -> Any:
    """A dataclass field that is a configuration key; its type is the field's annotation.

    Args:
        default: Its default, or NO_DEFAULT. A dict of values: no other names are known. A dataclass, or one of its
            instances: a block with its defaults.
        meaning: What it is, in a few words.
        unit: What it counts, or the form of the value.
        low: Least number.
        high: Largest number.
        choices: The only values.
        refused: Values that are refused by name -> what to do instead.
        keys: The dataclass whose keys the block holds, where the annotation is a plain mapping.
        more: Whose class takes further keys in this block (`check.more_keys`).
    """
    rule = Key((), low, high, tuple(choices), refused=dict(refused or {}))
    metadata = {'meaning': meaning, 'unit': unit, 'rule': rule, 'keys': keys, 'more': more}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata={**metadata, 'names': tuple(default)})
    if is_dataclass(default):
        return field(default_factory=default if isinstance(default, type) else lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


def keys_of(cls: type) -> Iterator[tuple[Field, Any]]:
    """The fields of a dataclass that are configuration keys, each with its type."""
    hints = typing.get_type_hints(cls)
    for item in fields(cls):
        if item.metadata:
            yield item, hints[item.name]


@cache
def section_of(cls: type, more: str | None = None) -> Section:
    """The keys of a dataclass with their types and bounds, as the checks read them."""
    return _section(cls, more, {})


def _section(cls: type, more: str | None, seen: dict[type, Section]) -> Section:
    known: dict[str, Node] = {}
    # a group of sources holds sources: the section must be known before its keys are
    section = seen[cls] = Section(known, more)
    for item, hint in keys_of(cls):
        known[item.name] = _node(hint, item.metadata, seen)
    return section


def _node(hint: Any, metadata: Mapping[str, Any], seen: dict[type, Section]) -> Node:
    inner = metadata['keys'] or hint
    if is_dataclass(inner):
        known = seen.get(inner)  # type: ignore[arg-type]
        more = metadata['more']
        return known if known is not None and known.more == more else _section(inner, more, seen)  # type: ignore[arg-type]
    members = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    kinds = tuple(member for member in members if member is not type(None))
    for member in kinds:
        origin, arguments = typing.get_origin(member), typing.get_args(member)
        if origin in _LISTS:
            return ListOf(_node(arguments[0], metadata, seen), or_text=str in kinds)
        if origin in _MAPS and 'names' in metadata:
            return Section({name: _node(arguments[1], metadata, seen) for name in metadata['names']})
        if origin in _MAPS:
            return MapOf(_node(arguments[1], metadata, seen))
    if Any in kinds:
        return Key()
    accepted = (*kinds, int) if float in kinds else kinds
    return replace(metadata['rule'], types=accepted, null=type(None) in members)


def typed_values(values: object, node: Node, path: str = '') -> Iterator[tuple[str, object, Key]]:
    """Yields (dotted key, value, what it may be) for every value below a node."""
    if isinstance(node, Key):
        yield path, values, node
    elif isinstance(values, str) and '${' in values or values is None:
        return
    elif isinstance(node, ListOf):
        if not isinstance(values, list | tuple):
            yield path, values, Key((list, str) if node.or_text else (list,))
            return
        for index, value in enumerate(values):
            yield from typed_values(value, node.item, f'{path}[{index}]')
    elif not isinstance(values, Mapping):
        yield path, values, Key((dict,))
    else:
        for name, value in values.items():
            child = node.item if isinstance(node, MapOf) else node.keys.get(name, Key())
            yield from typed_values(value, child, join(path, name))


def join(path: str, name: object) -> str:
    """The dotted name of a key inside a block."""
    return f'{path}.{name}' if path else str(name)


def settings_dict(settings: Any) -> dict[str, Any]:
    """Settings as plain values, as they would stand in a YAML file."""
    return plain_value(asdict(settings))


def plain_value(value: Any) -> Any:
    """A default as YAML has it: lists for tuples, text for paths."""
    if isinstance(value, dict):
        return {name: plain_value(inner) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass of checked values; blocks become the dataclasses of their fields, lists become tuples."""
    made: dict[str, Any] = {}
    for item, hint in keys_of(cls):
        if item.name not in values:
            continue
        value = values[item.name]
        if is_dataclass(hint):
            made[item.name] = build(hint, value)  # type: ignore[arg-type]
        else:
            made[item.name] = tuple(value) if typing.get_origin(hint) is tuple else value
    return cls(**made)


# ---- what people read


@dataclass(frozen=True, slots=True)
class Row:
    """One key in words. `default` is None where it is a block, or where no default is ours."""

    path: str
    meaning: str
    unit: str
    default: str | None
    allowed: str

    @property
    def described(self) -> str:
        """Meaning and unit, as in `Length of a packed row [tokens]`."""
        return f'{self.meaning} [{self.unit}]' if self.unit else self.meaning


def describe(cls: type, path: str = '', seen: set[type] | None = None) -> Iterator[Row]:
    """The keys of a dataclass and of the blocks inside it, in order; a block that comes again is not repeated."""
    seen = {cls} if seen is None else seen
    for item, hint in keys_of(cls):
        name = join(path, item.name)
        inner, suffix = _inner(item.metadata['keys'] or hint)
        allowed = '' if inner else _allowed(_node(hint, item.metadata, {}))
        yield Row(name, item.metadata['meaning'], item.metadata['unit'], _default(item), allowed)
        if inner is not None and inner not in seen:
            seen.update(inner.__mro__)
            yield from describe(inner, name + suffix, seen)


def help_text(cls: type, width: int = 34) -> str:
    """The table of keys that `--help` prints: name, meaning, default, allowed values."""
    lines = ['keys (KEY=VALUE):']
    for row in describe(cls):
        default = '' if row.default is None else f'; default {row.default}'
        lines.append(f'  {row.path:<{width}}  {row.described}{default}')
        if row.allowed:
            lines.append(f'  {"":<{width}}  allowed: {row.allowed}')
    return '\n'.join(lines)


def yaml_text(value: Any) -> str:
    """A default on one line, as YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: 'null', True: 'true', False: 'false'}[value]
    if isinstance(value, list):
        return f'[{", ".join(map(yaml_text, value))}]'
    if isinstance(value, dict):
        return '{' + ', '.join(f'{name}: {yaml_text(inner)}' for name, inner in value.items()) + '}'
    if value == '' or isinstance(value, str) and set(value) & set('{}[],#:') and not value.startswith('asset:'):
        return f'"{value}"'
    return str(value)


def _inner(hint: Any) -> tuple[type | None, str]:
    """The dataclass inside an annotation, and what its keys have before them."""
    if is_dataclass(hint):
        return hint, ''  # type: ignore[return-value]
    for member in typing.get_args(hint):
        found, suffix = _inner(member)
        if found is not None:
            origin = typing.get_origin(hint)
            return found, ('[]' if origin in _LISTS else '.NAME' if origin in _MAPS else '') + suffix
    return None, ''


def _default(item: Field) -> str | None:
    if item.default_factory is MISSING:
        return None if item.default is MISSING else yaml_text(plain_value(item.default))
    value = None if isinstance(item.default_factory, type) else item.default_factory()
    return yaml_text(plain_value(value)) if isinstance(value, dict) and value else None


def _allowed(node: Node) -> str:
    if isinstance(node, Key):
        return node.allowed if node.choices or node.low is not None or node.high is not None else ''
    if isinstance(node, ListOf | MapOf):
        return _allowed(node.item)
    return next(map(_allowed, node.keys.values()), '')  # the same for all names of a block of shares
