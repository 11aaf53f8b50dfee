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
"""`vtb info`: what is in a `.nemo` file, read from its archive without loading a weight."""

import argparse
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from nemo_vtb.errors import VtbCheckpointError

__all__ = ['NemoInfo', 'main', 'read_info']

_CONFIG = 'model_config.yaml'
_MAX_TEXT_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class NemoInfo:
    """What a `.nemo` archive says about itself.

    Args:
        path: The file.
        files: Name -> bytes of every member.
        config: The model's configuration.
        passport: Template hash, ledger, retention card ...; {} where the file has none.
    """

    path: Path
    files: Mapping[str, int]
    config: Mapping[str, Any]
    passport: Mapping[str, Any]


def read_info(path: str | Path) -> NemoInfo:
    """Read names, configuration and passport of a `.nemo` file; nothing is unpacked or executed.

    Raises:
        VtbCheckpointError: The file is missing, no archive, cut off, or without a configuration.
    """
    import yaml

    path = Path(path)
    try:
        with tarfile.open(path) as archive:
            members = {PurePosixPath(m.name).name: m for m in archive.getmembers() if m.isfile()}
            if _CONFIG not in members:
                raise _broken(path, f'no {_CONFIG} among {sorted(members)[:8]}')
            config = yaml.safe_load(_text(archive, members[_CONFIG], path))
            passports = [m for name, m in members.items() if 'passport' in name and name.endswith(('.json', '.yaml'))]
            passport = yaml.safe_load(_text(archive, passports[0], path)) if passports else {}
    except (OSError, EOFError, tarfile.TarError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise _broken(path, f'{type(error).__name__}: {error}') from error
    if not isinstance(config, dict) or not isinstance(passport, dict):
        raise _broken(path, 'its configuration is no mapping')
    return NemoInfo(path, {name: m.size for name, m in members.items()}, config, passport)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vtb info`; returns the exit status."""
    parser = argparse.ArgumentParser(prog='vtb info', description='Show what is in a .nemo file.')
    parser.add_argument('file', metavar='FILE.nemo')
    parser.add_argument('--config', action='store_true', help='print the whole configuration as YAML')
    parser.add_argument('--json', action='store_true', help='print everything as one JSON object')
    arguments = parser.parse_args(argv)
    from rich.console import Console

    info = read_info(arguments.file)
    console = Console()
    if arguments.json:
        value = {'path': str(info.path), 'files': dict(info.files), 'config': info.config, 'passport': info.passport}
        console.out(json.dumps(value, ensure_ascii=False, default=str), highlight=False)
        return 0
    console.print(_table(info))
    if info.passport:
        console.print_json(json.dumps(info.passport, ensure_ascii=False, default=str))
    else:
        console.print('passport: none in this file', style='dim')
    if arguments.config:
        import yaml
        from rich.syntax import Syntax

        console.print(Syntax(yaml.safe_dump(dict(info.config), sort_keys=False, allow_unicode=True), 'yaml'))
    return 0


def _table(info: NemoInfo) -> Any:
    from rich.table import Table
    from rich.text import Text

    config = info.config
    perception = config.get('perception') or {}
    lora = config.get('lora') or {}
    rows = {
        'file': f'{info.path} ({_size(sum(info.files.values()))})',
        'class': config.get('target', 'not named'),
        'NeMo version': config.get('nemo_version', 'not named'),
        'LLM': config.get('pretrained_llm', 'not named'),
        'speech encoder': f'{_short(perception.get("encoder"))}, from {config.get("pretrained_asr") or "scratch"}',
        'adapter': _short(perception.get('modality_adapter')),
        'LoRA': f'r = {lora.get("r")}, alpha = {lora.get("lora_alpha")}' if lora else 'none',
        'files': '\n'.join(f'{name} ({_size(size)})' for name, size in sorted(info.files.items())),
    }
    table = Table(show_header=False, title='What is in the file', title_justify='left')
    for name, value in rows.items():
        # a configuration is not ours to format: brackets in it are no markup
        table.add_row(name, Text(str(value)))
    return table


def _short(section: Mapping[str, Any] | None) -> str:
    if not section:
        return 'none'
    name = str(section.get('_target_', '?')).rpartition('.')[2]
    sizes = [
        f'{label} {section[key]}' for key, label in (('n_layers', 'layers:'), ('d_model', 'width:')) if key in section
    ]
    return f'{name} ({", ".join(sizes)})' if sizes else name


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> str:
    stream = archive.extractfile(member)
    if stream is None or member.size > _MAX_TEXT_BYTES:
        raise _broken(path, f'{member.name} cannot be read as text')
    return stream.read().decode('utf-8')


def _size(count: int) -> str:
    return f'{count / 1e9:.2f} GB' if count >= 1e9 else f'{count / 1e6:.1f} MB' if count >= 1e5 else f'{count} bytes'


def _broken(path: Path, got: str) -> VtbCheckpointError:
    return VtbCheckpointError(
        'This is no complete .nemo file.',
        field=str(path),
        got=got,
        allowed='an archive with model_config.yaml, model_weights.ckpt and the files that the configuration names',
        remedy='correct the path, or copy the file again: it may have been cut off',
    )
