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
"""`vtb data`: indexes sources, tells their lengths, previews packed rows, shows the ledger of a run, makes data."""

import argparse
import json
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_vtb.commands.data_make import add_parser as add_make_parser
from nemo_vtb.config.command_line import config_file
from nemo_vtb.errors import VtbConfigError, VtbDataError

if TYPE_CHECKING:
    from rich.console import Console

    from nemo_vtb.config.schema import DataSettings
    from nemo_vtb.data.counting import Meter
    from nemo_vtb.data.index import SourceIndex
    from nemo_vtb.data.sources import SourceSpec

_DEFAULT_CONFIG = 'speechllm_joint_sft'
_EXAMPLES = """\
examples:
  vtb data index CONFIG.yaml [FILE.jsonl ...] [KEY=VALUE ...] [--workers N] [--shard I/N]
  vtb data preview CONFIG.yaml [KEY=VALUE ...] [-n ROWS] [--png FILE]
  vtb data stats CONFIG.yaml [KEY=VALUE ...] [--json] [--picture FILE] [--buckets N]
  vtb data ledger RUN [--json] [--png FILE]
  vtb data make KIND OUT [INPUT ...] [KEY=VALUE ...] [--config FILE] [--workers N] [--shard I/N]
"""
_YAML = ('.yaml', '.yml')


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vtb data`; returns the exit status."""
    arguments = _parser().parse_args(argv)
    from rich.console import Console

    # a pipe has no width; a truncated table would be useless
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    return arguments.action(arguments, console)


def _index(arguments: argparse.Namespace, console: 'Console') -> int:
    config, files, overrides = _targets(arguments.targets)
    settings, meter = _settings(config, overrides)
    specs = _file_specs(files) if files else _all_specs(settings)
    if arguments.shard is not None:
        return _count_shard(specs, settings, meter, arguments, console)
    done: list[tuple[SourceIndex, float]] = []
    for spec in specs:
        from nemo_vtb.data.index import open_index

        begin = time.perf_counter()
        workers = arguments.workers if arguments.workers is not None else settings.index_workers
        index = open_index(spec, meter, settings.index_folder, workers=workers)
        done.append((index, time.perf_counter() - begin))
    console.print(_index_table(done))
    console.print(f'indexes: {settings.index_folder}', highlight=False, soft_wrap=True)
    for index, _ in done:
        if index.meta['quarantined']:
            path = index.folder / 'quarantine.jsonl'
            console.print(f'{index.name}: skipped lines: {path}', highlight=False, soft_wrap=True)
    for index, _ in done:
        index.check(settings.max_skip_ratio)  # after the table, so that it is complete
    return 0


def _count_shard(
    specs: Sequence['SourceSpec'],
    settings: 'DataSettings',
    meter: 'Meter',
    arguments: argparse.Namespace,
    console: 'Console',
) -> int:
    from nemo_vtb.data.index import index_path
    from nemo_vtb.data.index_build import count_shard
    from nemo_vtb.factory.pipeline import parse_shard

    shard = parse_shard(arguments.shard)
    workers = arguments.workers if arguments.workers is not None else settings.index_workers
    for spec in specs:
        path, _ = index_path(spec, meter, settings.index_folder)
        if path.exists():
            console.print(f'{spec.name}: the index is there', highlight=False)
            continue
        mine, of = count_shard(spec, meter, path, shard, workers, quiet=False)
        console.print(f'{spec.name}: counted {mine} of {of} stretches', highlight=False)
    console.print(f'Next, when all {shard[1]} shards are counted: the same command without --shard', highlight=False)
    return 0


def _index_table(done: Sequence[tuple['SourceIndex', float]]) -> Any:
    from rich.table import Table

    table = Table(title='Indexed sources', title_justify='left')
    table.add_column('source')
    table.add_column('kind')
    for name in ('conversations', 'tokens', 'supervised', 'audio (h)', 'longest', 'skipped', 'time (s)'):
        table.add_column(name, justify='right')
    for index, seconds in done:
        totals = index.meta['totals']
        skipped = ', '.join(f'{count} {reason}' for reason, count in sorted(index.meta['quarantined'].items())) or '0'
        table.add_row(
            index.name,
            index.kind,
            f'{len(index):,}',
            f'{totals["length"]:,.0f}',
            f'{totals["supervised"]:,.0f}',
            f'{totals["seconds"] / 3600:.2f}',
            f'{int(index.column("length").max()):,}' if len(index) else '0',
            skipped,
            f'{seconds:.1f}',
        )
    return table


def _ledger(arguments: argparse.Namespace, console: 'Console') -> int:
    from nemo_vtb.data.ledger import Ledger

    path = Path(arguments.run)
    path = path / 'ledger.json' if path.is_dir() else path
    try:
        state = json.loads(path.read_text(encoding='utf-8'))
        ledger = Ledger.from_json(state)
    except OSError as error:
        raise VtbDataError(
            'There is no ledger.',
            field='RUN',
            got=f'{path}: {error.strerror}',
            allowed='the folder of a run, or its ledger.json',
            remedy='a run writes it with its first checkpoint',
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise VtbDataError(
            'The file is no ledger.',
            field='RUN',
            got=f'{path}: {type(error).__name__} {error}',
            allowed='the ledger.json of a run',
        ) from error
    if arguments.json:
        console.out(json.dumps(state, ensure_ascii=False), highlight=False)
        return 0
    ledger.table(console)
    for kind, (requested, delivered) in ledger.kind_shares().items():
        console.print(f'{kind:<12} requested {requested:7.2%}   delivered {delivered:7.2%}', highlight=False)
    if arguments.png:
        ledger.plot(arguments.png)
        console.print(f'plot: {arguments.png}', highlight=False, soft_wrap=True)
    return 0


def _preview(arguments: argparse.Namespace, console: 'Console') -> int:
    from nemo_vtb.data.index import FittedSource, open_source
    from nemo_vtb.data.preview import describe_rows, draw_rows, print_rows
    from nemo_vtb.data.sampler import make_plan
    from nemo_vtb.data.sources import train_specs

    settings, meter = _settings(*_config_and_overrides(arguments))
    sources = [
        FittedSource(open_source(spec, settings, meter), meter, settings.max_tokens, settings.overlong)
        for spec in train_specs(settings)
    ]
    plan = make_plan(sources, settings)
    rows = describe_rows(list(islice(plan, arguments.rows)), sources, settings.max_tokens)
    asked: dict[str, float] = {}
    for source, share in zip(sources, plan.shares, strict=True):
        asked[source.kind] = asked.get(source.kind, 0.0) + share
    print_rows(rows, asked, console)
    path = draw_rows(rows, asked, arguments.png)
    console.print(f'plot: {path}', highlight=False, soft_wrap=True)
    return 0


def _stats(arguments: argparse.Namespace, console: 'Console') -> int:
    from nemo_vtb.data.index import open_source
    from nemo_vtb.data.sources import train_specs
    from nemo_vtb.data.stats import Stats, draw_stats, print_stats

    settings, meter = _settings(*_config_and_overrides(arguments))
    indexes = [open_source(spec, settings, meter, check=False) for spec in train_specs(settings)]
    stats = Stats.of(indexes, settings.max_tokens, arguments.buckets)
    if arguments.json:
        console.out(json.dumps(stats.to_json(), ensure_ascii=False), highlight=False)
    else:
        print_stats(stats, console)
    if arguments.picture:
        path = draw_stats(stats, arguments.picture)
        if not arguments.json:
            console.print(f'plot: {path}', highlight=False, soft_wrap=True)
    return 0


# ---- what is read


def _config_and_overrides(arguments: argparse.Namespace) -> tuple[Path, list[str]]:
    config, files, overrides = _targets([arguments.config, *arguments.overrides])
    if files:
        raise VtbConfigError('Not an override.', field='KEY=VALUE', got=files[0], allowed='KEY=VALUE')
    return config, overrides


def _targets(words: Sequence[str]) -> tuple[Path, list[str], list[str]]:
    """Split command-line words into configuration, data files and overrides."""
    configs = [word for word in words if word.endswith(_YAML) and '=' not in word]
    overrides = [word for word in words if '=' in word and not Path(word).exists()]
    files = [word for word in words if word not in configs and word not in overrides]
    if len(configs) > 1:
        raise VtbConfigError('Only one configuration is read.', field='CONFIG', got=configs, allowed='one YAML file')
    return Path(configs[0]) if configs else config_file(_DEFAULT_CONFIG), files, overrides


def _settings(config: Path, overrides: Sequence[str]) -> tuple['DataSettings', 'Meter']:
    from nemo_vtb.assets.resolve import resolve_assets
    from nemo_vtb.commands.training_config import compose_config, frame_counter_of, read_renderer
    from nemo_vtb.config.schema import DataSettings
    from nemo_vtb.data.counting import Meter
    from nemo_vtb.scripts import start_script

    start_script()
    cfg = compose_config(config, overrides)
    settings = DataSettings.from_config(resolve_assets(cfg.data))
    renderer = read_renderer(str(cfg.model.pretrained_llm), cfg.model.get('template_date'))
    return settings, Meter.of(settings, renderer, frame_counter_of(cfg))


def _all_specs(settings: 'DataSettings') -> list['SourceSpec']:
    from nemo_vtb.data.sources import EVAL_SECTIONS, eval_specs, train_specs

    sets = [specs for section in EVAL_SECTIONS for specs in eval_specs(settings, section).values()]
    return [*train_specs(settings), *(spec for specs in sets for spec in specs)]


def _file_specs(files: Sequence[str]) -> list['SourceSpec']:
    """Files without an `input_cfg`; the first line decides the format."""
    from nemo_vtb.assets.resolve import resolve_asset
    from nemo_vtb.data.sources import parse_input_cfg

    entries = []
    for file in map(resolve_asset, files):
        if not Path(file).is_file():
            raise VtbDataError('The file does not exist.', field='FILE', got=file, remedy='correct the path')
        entries.append({'type': _type_of(file), 'manifest_filepath': file})
    return parse_input_cfg(entries, 'FILE')


def _type_of(file: str) -> str:
    """The format of a file by its name, or by the keys of its first line."""
    from nemo_vtb.data.conversation import read_jsonl

    if Path(file).suffix in ('.parquet', '.txt'):
        return Path(file).suffix[1:]
    first = next(iter(read_jsonl(file)), (0, 0, {}))[2]
    types = {'recording': 'lhotse_as_conversation', 'audio_filepath': 'nemo', 'messages': 'openai_messages'}
    return next((type_ for key, type_ in types.items() if key in first), 'multimodal_conversation')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='vtb data',
        description='Index data, show its lengths, preview rows, show ledgers, make data.',
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar='index|ledger|make|preview|stats')
    add_make_parser(commands)
    index = commands.add_parser('index', help='count the tokens of sources ahead of training')
    index.add_argument(
        'targets',
        nargs='+',
        metavar='CONFIG|FILE|KEY=VALUE',
        help=f'a training YAML (default: {_DEFAULT_CONFIG}.yaml of ./conf, else of the package), or data files to be '
        'counted with its settings; overrides',
    )
    index.add_argument('--workers', type=int, help='processes (default: one for each core when files are large)')
    index.add_argument('--shard', metavar='I/N', help='count the I-th of N parts alone (Slurm arrays)')
    index.set_defaults(action=_index)
    ledger = commands.add_parser('ledger', help='the data that a run was trained on: requested and delivered shares')
    ledger.add_argument('run', metavar='RUN', help='the folder of a run, or its ledger.json')
    ledger.add_argument('--json', action='store_true', help='print the file as one JSON line')
    ledger.add_argument('--png', metavar='FILE', help='also plot it')
    ledger.set_defaults(action=_ledger)
    preview = commands.add_parser('preview', help='plot the first packed rows of a training')
    preview.add_argument('config', metavar='CONFIG', help='a training YAML')
    preview.add_argument('overrides', nargs='*', metavar='KEY=VALUE', help='overrides of its keys')
    preview.add_argument('-n', '--rows', type=_positive, default=12, metavar='N', help='rows to plot (default: 12)')
    preview.add_argument('--png', default='preview.png', metavar='FILE', help='the plot (default: preview.png)')
    preview.set_defaults(action=_preview)
    stats = commands.add_parser('stats', help='lengths of sources and kinds: histograms, percentiles, bins of buckets')
    stats.add_argument('config', metavar='CONFIG', help='a training YAML')
    stats.add_argument('overrides', nargs='*', metavar='KEY=VALUE', help='overrides of its keys')
    stats.add_argument('--json', action='store_true', help='print all figures as one JSON line')
    stats.add_argument('--picture', metavar='FILE', help='also plot the histograms')
    stats.add_argument(
        '--buckets', type=_positive, default=30, metavar='N', help='buckets of the bins (default: 30, as in NeMo)'
    )
    stats.set_defaults(action=_stats)
    return parser


def _positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError('must be at least 1')
    return number
