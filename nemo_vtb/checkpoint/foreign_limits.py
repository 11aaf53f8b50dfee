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
"""Bounds on what the configuration in a file may describe: sizes, references and expressions that come to an end.

They are judged on paper, before memory is taken or anything is matched: a configuration of a billion layers costs a
kilobyte, and who opens it waits for ever.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nemo_vtb.errors import VtbCheckpointError, first_line

# where a configuration holds regular expressions, which are matched with names of parameters
_PATTERNS = ('freeze_params', 'prevent_freeze_params', 'target_modules', 'exclude_modules', 'layers_pattern', 'match')
_PATTERN_KEYS = ('rank_pattern', 'alpha_pattern')
_MOST_CHARACTERS, _MOST_REPETITIONS = 1000, 3

# the largest sizes of any encoder are a hundred times smaller; two of them make a matrix
_MOST_LAYERS, _MOST_SIZE, _FREE_SIZE = 1024, 1 << 20, 1 << 26

# the configuration of a large ASR model has 100 KB (its vocabulary), 10,000 values and 10 levels
_MOST_YAML_BYTES, _MOST_VALUES, _MOST_LEVELS = 1 << 23, 1 << 20, 64


def parse_yaml(text: str, *, what: str = 'file') -> Any:
    """Plain values of a stranger's YAML: small, flat, and without an alias, which a few lines of make grow for ever.

    Args:
        text: The YAML.
        what: Named in the error.

    Raises:
        VtbCheckpointError: It is no YAML, or larger or deeper than any configuration.
    """
    import yaml

    loader = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
    if len(text) > _MOST_YAML_BYTES:
        raise refused('', f'{len(text)} characters', f'<= {_MOST_YAML_BYTES}', what)
    level = 0
    try:
        # events come one after the other: nothing is built until it is known to be small
        for number, event in enumerate(yaml.parse(text, Loader=loader)):
            level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if level > _MOST_LEVELS or number > _MOST_VALUES or isinstance(event, yaml.AliasEvent):
                raise refused(
                    f'line {event.start_mark.line + 1}', type(event).__name__,
                    f'{_MOST_LEVELS} levels, {_MOST_VALUES} values, no aliases (*name)', what,
                )  # fmt: skip
        return loader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise refused('', f'{type(error).__name__}: {first_line(error)}', 'YAML', what) from error


def check_sizes(path: str, section: Any, num_bytes: int, *, what: str = 'file') -> None:
    """Refuse sizes that no encoder has, or that do not fit the weights, before memory is taken for them.

    Args:
        path: Place of the section in the configuration.
        section: A block of settings with blocks inside.
        num_bytes: Of the weights that came with it. A matrix of the two largest sizes of a block must be in them.
        what: Named in the error.

    Raises:
        VtbCheckpointError: They are too large.
    """
    if not isinstance(section, Mapping):
        return
    sizes: dict[str, int] = {}
    for name, value in section.items():
        where = f'{path}.{name}'.removeprefix('.')
        for number in _flat(value):
            check_sizes(where, number, num_bytes, what=what)
            if isinstance(number, int) and not isinstance(number, bool):
                most = _MOST_LAYERS if 'layers' in str(name) or 'blocks' in str(name) else _MOST_SIZE
                if number > most:
                    raise refused(where, number, f'<= {most}', what)
                sizes[where] = max(number, sizes.get(where, 0))
    largest = sorted(sizes, key=lambda name: sizes[name])[-2:]
    if len(largest) == 2 and sizes[largest[0]] * sizes[largest[1]] > 2 * num_bytes + _FREE_SIZE:
        got = f'{sizes[largest[0]]} and {sizes[largest[1]]} ({largest[1]})'
        raise refused(largest[0], got, f'sizes of weights of {num_bytes} bytes', what)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _flat(inner)
    else:
        yield value


def check_interpolations(config: Any, *, what: str = 'file') -> None:
    """Refuse all interpolations but `${path.to.a.value}`: resolvers run code, references to references have no end.

    Args:
        config: The whole configuration, as plain values.
        what: Named in the error.

    Raises:
        VtbCheckpointError: There is another one.
    """
    for path, value in _texts(config, ''):
        if '${' not in value:
            continue
        found = re.fullmatch(r'\$\{(\.*)([\w.]+)\}', value)
        parts = path.split('.')
        begin = [] if not found or not found[1] else parts[: -len(found[1])] if len(found[1]) <= len(parts) else parts
        node: Any = config
        for name in [*begin, *(found[2].split('.') if found else ('',))]:
            node = node.get(name) if isinstance(node, Mapping) else None
        if isinstance(node, Mapping | list | tuple) or node is None or '${' in str(node):
            raise refused(path, value, '${path.to.a.value} of the same file', what)


def check_patterns(config: Any, *, what: str = 'file') -> None:
    """Refuse regular expressions whose matching may take for ever.

    Args:
        config: The whole configuration, as plain values.
        what: Named in the error.

    Raises:
        VtbCheckpointError: One repeats what repeats or has alternatives, repeats too often, or is none.
    """
    for path, pattern in _patterns(config, ''):
        if isinstance(pattern, str) and _is_endless(pattern):
            raise refused(path, pattern[:200], 'a regular expression without repetitions inside of repetitions', what)


def _is_endless(pattern: str) -> bool:
    if len(pattern) > _MOST_CHARACTERS:
        return True
    bare = re.sub(r'\\.|\[\^?\]?[^\]]*\]', 'x', pattern)
    if sum(bare.count(sign) for sign in '*+{') > _MOST_REPETITIONS:
        return True
    groups = [False]  # whether there is a repetition or a choice in each group that is open
    for place, letter in enumerate(bare):
        if letter == '(':
            groups.append(False)
        elif letter == ')' and len(groups) > 1:
            inside, repeated = groups.pop(), bare[place + 1 : place + 2] in ('*', '+', '{')
            if inside and repeated:
                return True
            groups[-1] |= inside or repeated
        elif letter in '*+{|':
            groups[-1] = True
    return False


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(key, path) if isinstance(key, str) and '${' in key else ()
            yield from _texts(inner, f'{path}.{key}'.removeprefix('.'))
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _texts(inner, f'{path}.')


def _patterns(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            where = f'{path}.{key}'.removeprefix('.')
            if key in _PATTERN_KEYS and isinstance(inner, Mapping):
                yield from ((where, name) for name in inner)
            elif key in _PATTERNS:
                yield from ((where, each) for each in (inner if isinstance(inner, list | tuple) else [inner]))
            else:
                yield from _patterns(inner, where)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _patterns(inner, f'{path}[{number}]')


def refused(path: str, got: Any, allowed: Any, what: str) -> VtbCheckpointError:
    """The error for a configuration that holds what none may hold.

    Args:
        path: Place in the configuration.
        got: What stands there.
        allowed: What may stand there.
        what: The kind of file.
    """
    return VtbCheckpointError(
        f'The configuration of the {what} names what no {what} may name; nothing of it is used.',
        field=path,
        got=got,
        allowed=allowed,
        remedy='do not use the file, and ask its author what it was meant to do; a class of your own is admitted by '
        '`nemo_vtb.checkpoint.foreign_config.allow`',
    )
