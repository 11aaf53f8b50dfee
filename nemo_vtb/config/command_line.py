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
"""The command line of `vtb train|eval|generate|export`, made of the dataclass of its keys: options become overrides.

>>> from nemo_vtb.config.schema import EvalConfig
>>> overrides_of(['my.nemo', '--limit', '5', '--no-chat-template', '--judge-url', 'http://host/v1'], EvalConfig)
["model='my.nemo'", 'limit=5', 'chat_template=false', "judge.url='http://host/v1'"]
"""

import difflib
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nemo_vtb.config.keys import Key, ListOf, Node, Section, help_text, join, section_of
from nemo_vtb.errors import VtbConfigError

_KEY_VALUE = re.compile(r'[+~]{0,2}[A-Za-z_][\w./@]*(=|$)')
_HYDRA = {'--config-path': 1, '--config-name': 1, '--config-dir': 1, '--cfg': 1, '--package': 1, '--info': 1}
_HYDRA |= {'-cp': 1, '-cn': 1, '-cd': 1, '-c': 1, '-p': 1, '-i': 1, '-m': 0, '-r': 0}
_HYDRA |= {'--multirun': 0, '--resolve': 0, '--hydra-help': 0, '--version': 0}


def conf_folder() -> Path:
    """The folder of the YAML files: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / 'conf'
    return inside if inside.is_dir() else package.parent / 'conf'


def config_file(name: str) -> Path:
    """`NAME.yaml` of `./conf`, where `vtb init` put it, else that of the package."""
    own = Path('conf') / f'{name}.yaml'
    return own if own.is_file() else conf_folder() / f'{name}.yaml'


def overrides_of(words: Sequence[str], cls: type) -> list[str]:
    """Options of a command line as Hydra's overrides; `KEY=VALUE` and Hydra's own options pass.

    Args:
        words: `MODEL` (the first word that is neither option nor override), `--key VALUE ...`, `--flag`, `--no-flag`;
            a key inside a block is written with dashes, as `--judge-url` for `judge.url`.
        cls: The dataclass of the keys.

    Raises:
        VtbConfigError: An unknown option (with the nearest one), or one without its value.
    """
    keys = dict(_options(section_of(cls)))
    rest, made = list(words), list[str]()
    while rest:
        word = rest.pop(0)
        option, _, attached = word.partition('=')
        if option in _HYDRA:
            made += [word] if attached else [option, *(rest.pop(0) for _ in range(_HYDRA[option]) if rest)]
        elif word.startswith('-'):
            path, node, value = _option(option, keys)
            values = [attached] if attached else _take(rest, node) if value is None else [value]
            made.append(f'{path}={_value(values, node, option)}')
        elif '=' in word and _KEY_VALUE.match(word) or word.startswith('~'):
            made.append(word)
        elif not any(m.startswith('model=') for m in made):
            made.append(f'model={_quoted(word)}')
        else:
            raise VtbConfigError(
                'A word that is no option.', field=word, allowed='[MODEL] [KEY=VALUE ...] [--key VALUE]'
            )
    return made


def usage(command: str, cls: type, description: str) -> str:
    """What `vtb COMMAND --help` prints."""
    takes_options = isinstance(section_of(cls).keys['model'], Key)
    lines = [
        f'usage: vtb {command} {"[MODEL] [--key VALUE ...] " if takes_options else ""}[KEY=VALUE ...]',
        '',
        description,
    ]
    lines += ['', "Hydra's options work too: --config-path DIR, --config-name NAME, --cfg job, --multirun ..."]
    if takes_options:
        names = ', '.join(option for option, _ in _options(section_of(cls)))
        text = f'Each key is an option as well (--no-... for a flag): {names}'
        lines += textwrap.wrap(text, 119, break_on_hyphens=False)
    return '\n'.join([*lines, '', help_text(cls), ''])


def _options(section: Section, path: str = '') -> Iterator[tuple[str, tuple[str, Node]]]:
    for name, node in section.keys.items():
        full = join(path, name)
        if isinstance(node, Section):
            yield from _options(node, full)
        else:
            yield f'--{full.replace(".", "-").replace("_", "-")}', (full, node)


def _option(option: str, keys: Mapping[str, tuple[str, Node]]) -> tuple[str, Node, str | None]:
    """Key, what it may be, and the value that the option itself says."""
    positive = option.replace('--no-', '--', 1)
    if positive != option and positive in keys and _is_flag(keys[positive][1]):
        return *keys[positive], 'false'
    if option in keys:
        return *keys[option], 'true' if _is_flag(keys[option][1]) else None
    near = difflib.get_close_matches(option, keys, n=1)
    raise VtbConfigError(
        f'unknown option {option}' + (f': did you mean {near[0]}?' if near else ''),
        field=option,
        allowed=', '.join(keys),
    )


def _take(rest: list[str], node: Node) -> list[str]:
    """The words that belong to an option: one, or for a list all up to the next option or override."""
    taken = list[str]()
    while rest and not rest[0].startswith('--') and not (taken and not isinstance(node, ListOf)):
        if taken and '=' in rest[0] and _KEY_VALUE.match(rest[0]):
            break
        taken.append(rest.pop(0))
    return taken


def _value(values: Sequence[str], node: Node, option: str) -> str:
    if not values:
        raise VtbConfigError('The option has no value.', field=option, allowed=f'{option} VALUE')
    item = node.item if isinstance(node, ListOf) else node
    texts = [_quoted(v) if isinstance(item, Key) and str in item.types and v != 'null' else v for v in values]
    return f'[{",".join(texts)}]' if isinstance(node, ListOf) else texts[0]


def _quoted(text: str) -> str:
    """As Hydra's grammar reads a text with commas, equal signs or brackets in it."""
    return "'" + text.replace("'", "\\'") + "'"


def _is_flag(node: Node) -> bool:
    return isinstance(node, Key) and node.types == (bool,)
