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
"""`vtb info`: shows the contents of a `.nemo` file without loading its weights."""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_vtb.checkpoint.archive import NemoInfo, in_order, read_info
from nemo_vtb.checkpoint.foreign_config import opening


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vtb info`; returns the exit status."""
    parser = argparse.ArgumentParser(prog='vtb info', description='Show the contents of a .nemo file.')
    parser.add_argument('file', metavar='FILE.nemo')
    parser.add_argument('--config', action='store_true', help='print the whole configuration as YAML')
    parser.add_argument('--check', action='store_true', help='read every byte and verify the SHA-256 checksums')
    parser.add_argument('--json', action='store_true', help='print everything as a JSON object')
    arguments = parser.parse_args(argv)
    from rich.console import Console

    with opening(arguments.file):  # whose sections may hold anything
        return _show(arguments, Console())


def _show(arguments: argparse.Namespace, console: Any) -> int:
    info = read_info(arguments.file, check=arguments.check)
    if arguments.json:
        value = {'path': str(info.path), 'files': dict(info.files), 'config': info.config, 'manifest': info.manifest}
        console.out(json.dumps(value, ensure_ascii=False, default=str), highlight=False)
        return 0
    console.print(_table(info))
    for table in _manifest_tables(info.manifest):
        console.print(table)
    if not info.manifest:
        console.print('manifest: none in this file, so nothing in it can be checked', style='dim')
    elif arguments.check:
        console.print(f'every byte is as it was written: {len(info.manifest["members"])} members', style='green')
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
    table = Table(show_header=False, title='Contents of the file', title_justify='left')
    for name, value in rows.items():
        # brackets in a configuration are not markup
        table.add_row(name, Text(str(value)))
    return table


def _manifest_tables(manifest: Mapping[str, Any]) -> list[Any]:
    from rich.table import Table
    from rich.text import Text

    if not manifest:
        return []
    base, counts = manifest['base_llm'], manifest['parameters']
    rows = {
        'saved by': ', '.join(f'{name} {number}' for name, number in manifest['versions'].items()),
        'git revision': manifest['git_revision'] or 'unknown: the package was installed',
        'parameters': ', '.join(f'{part} {count:,}' for part, count in counts.items()),
        'base LLM': ('in the file' if base['included'] else 'not in the file')
        + (', trained itself' if base['trained'] else f', weights with SHA-256 {base["weights_sha256"]}'),
        'chat template': f'SHA-256 {manifest["template_sha256"]}',
        'template and tokenizer': f'SHA-256 {manifest["renderer_sha256"]}',
    }
    table = Table(show_header=False, title='Manifest', title_justify='left')
    for name, value in rows.items():
        table.add_row(name, Text(str(value)))
    for name in ('run_config', 'ledger', 'evaluation', 'retention', 'parity'):
        table.add_row(name, 'in the file (`--json` prints it)' if manifest.get(name) else Text('none', style='dim'))
    tables = [table, *_measured(manifest)]
    if ledger := manifest.get('ledger'):
        columns = ('name', 'kind', 'conversations', 'tokens')
        trained = Table('source', *columns[1:], title='Trained on', title_justify='left')
        for one in ledger['sources']:
            trained.add_row(*(Text(str(one.get(key))) for key in columns))
        tables.append(trained)
    return tables


def _measured(manifest: Mapping[str, Any]) -> list[Any]:
    from rich.table import Table
    from rich.text import Text

    tables = []
    retention = manifest.get('retention') or {}
    for title, rows in (
        ('Measured', (manifest.get('evaluation') or {}).get('rows')),
        (f'Text ability kept: {retention.get("sentence", "")}', retention.get('kept')),
    ):
        if rows:
            columns = [name for name in in_order(rows[0]) if name != 'signature']
            table = Table(*columns, title=Text(title), title_justify='left')
            for row in rows:
                values = (row.get(name) for name in columns)
                shown = ('-' if v is None else f'{v:.4g}' if isinstance(v, float) else str(v) for v in values)
                table.add_row(*map(Text, shown))
            tables.append(table)
    return tables


def _short(section: Mapping[str, Any] | None) -> str:
    if not section:
        return 'none'
    name = str(section.get('_target_', '?')).rpartition('.')[2]
    sizes = [
        f'{label} {section[key]}' for key, label in (('n_layers', 'layers:'), ('d_model', 'width:')) if key in section
    ]
    return f'{name} ({", ".join(sizes)})' if sizes else name


def _size(count: int) -> str:
    return f'{count / 1e9:.2f} GB' if count >= 1e9 else f'{count / 1e6:.1f} MB' if count >= 1e5 else f'{count} bytes'
