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
"""Writes what is made of the configuration's dataclasses: the tables of docs/config.md, conf/eval and conf/factory.

Usage: python tools/config_reference.py [--check]
The head of each YAML file (up to the first empty line) and the text between the tables are written by hand.
"""

import sys
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

from nemo_vtb.config.keys import describe, keys_of, plain_value, section_of, yaml_text
from nemo_vtb.config.schema import CONFIGS, AlignConfig, TrainConfig
from nemo_vtb.factory import settings

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / 'docs' / 'config.md'
FILES = {f'eval/{name}': cls for name, cls in CONFIGS.items() if cls not in (TrainConfig, AlignConfig)} | {
    'factory/asr_ast': settings.AsrAst,
    'factory/demo': settings.Demo,
    'factory/mixed_modal': settings.MixedModal,
    'factory/speech_qa': settings.SpeechQa,
    'factory/text': settings.TextChats,
}
WIDTH = 119


def table(cls: type) -> str:
    """A markdown table of the keys of a configuration."""
    lines = ['| key | meaning [unit] | default | allowed |', '| --- | --- | --- | --- |']
    for row in describe(cls):
        default = '' if row.default is None else f'`{row.default}`'
        cells = (f'`{row.path}`', row.described, default, row.allowed)
        lines.append('| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |')
    return '\n'.join(lines) + '\n'


def yaml_lines(values: object, indent: str = '') -> Iterator[str]:
    """The keys of settings with their values, each with its meaning above it."""
    for item, hint in keys_of(type(values)):
        value, unit = getattr(values, item.name), item.metadata['unit']
        choices = section_of(type(values)).keys[item.name]
        named = f' [{unit}]' if unit else ''
        named += f' ({choices.allowed})' if getattr(choices, 'choices', ()) else ''
        text = f'{indent}# {item.metadata["meaning"]}{named}'
        yield from textwrap.wrap(text, WIDTH, subsequent_indent=f'{indent}# ', break_on_hyphens=False)
        if is_dataclass(hint):
            yield f'{indent}{item.name}:'
            yield from yaml_lines(value, indent + '  ')
            continue
        line = f'{indent}{item.name}: {yaml_text(plain_value(value))}'
        if len(line) <= WIDTH or not isinstance(value, tuple):
            yield line
        else:
            yield f'{indent}{item.name}:'
            yield from (f'{indent}  - {yaml_text(entry)}' for entry in value)


def pages() -> dict[Path, str]:
    """Every file as it should be."""
    made = {}
    for name, cls in FILES.items():
        path = ROOT / 'conf' / f'{name}.yaml'
        head = path.read_text(encoding='utf-8').partition('\n\n')[0]
        made[path] = head + '\n\n' + '\n'.join(yaml_lines(cls())) + '\n'
    text = PAGE.read_text(encoding='utf-8')
    for name, cls in CONFIGS.items():
        begin, end = f'<!-- {name}: tools/config_reference.py -->\n', '<!-- end -->'
        before, _, rest = text.partition(begin)
        text = before + begin + table(cls) + end + rest.partition(end)[2]
    made[PAGE] = text
    return made


def main() -> int:
    """Write the files, or with --check name those that differ; returns the exit status."""
    old = {path: text for path, text in pages().items() if path.read_text(encoding='utf-8') != text}
    for path, text in old.items():
        print(path.relative_to(ROOT))
        if '--check' not in sys.argv[1:]:
            path.write_text(text, encoding='utf-8')
    return int(bool(old) and '--check' in sys.argv[1:])


if __name__ == '__main__':
    sys.exit(main())
