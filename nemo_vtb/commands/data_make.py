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
"""`vtb data make`: makes training data from manifests and text-only conversations; resumes an interrupted run."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_vtb.errors import VtbConfigError, VtbDataError

if TYPE_CHECKING:
    from rich.console import Console

    from nemo_vtb.factory.dataset_files import DataCard

KINDS = {
    'asr_ast': 'NeMo ASR and AST manifests, or what `lhotse prepare` writes, to conversations',
    'speech_qa': 'ASR manifests to questions and answers, by a language model',
    'mixed_modal': 'text-only conversations to conversations in which parts of user turns are speech',
    'text': 'text-only conversations, cleaned',
    'demo': 'the demonstration corpus: all four kinds, from the embedded recordings and texts',
}
_EXAMPLES = """\
examples:
  vtb data make demo OUT
  vtb data make asr_ast OUT FOLDER_OF_LHOTSE_PREPARE
  vtb data make mixed_modal OUT chats.jsonl --workers 8 verify.max_wer=0.2
  vtb data make speech_qa OUT manifest.jsonl llm.url=http://localhost:8000/v1 llm.model=NAME
  vtb data make asr_ast OUT manifest.jsonl --config asr_ast.yaml --shard 3/64
Keys with meaning and default: conf/factory/KIND.yaml.
"""


def add_parser(commands: Any) -> None:
    """Add `make` to the parsers of `vtb data`."""
    make = commands.add_parser(
        'make', help='make training data: asr_ast, speech_qa, mixed_modal, text, demo', epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    make.add_argument('kind', choices=sorted(KINDS), help='; '.join(f'{name}: {what}' for name, what in KINDS.items()))
    make.add_argument('out', metavar='OUT', help='output folder; an interrupted run in it is resumed')
    make.add_argument('words', nargs='*', metavar='INPUT|KEY=VALUE', help='input files or folders; overrides')
    make.add_argument('--config', metavar='FILE', help='a YAML file of settings, as in conf/factory')
    make.add_argument('--workers', type=int, default=os.cpu_count(), help='processes (default: one for each core)')
    make.add_argument('--shard', default='0/1', metavar='I/N', help='make only the I-th of N parts (Slurm arrays)')
    make.set_defaults(action=run)


def run(arguments: argparse.Namespace, console: 'Console') -> int:
    """Make one kind of data; returns the exit status."""
    from nemo_vtb.factory.dataset_files import finish
    from nemo_vtb.factory.pipeline import make_stage, parse_shard, produce
    from nemo_vtb.scripts import start_script

    start_script()
    shard = parse_shard(arguments.shard)
    inputs = [word for word in arguments.words if '=' not in word or Path(word).exists()]
    changes = [word for word in arguments.words if word not in inputs]
    layers = [_file(arguments.config), _changes(changes)]
    out = Path(arguments.out)
    if arguments.kind == 'demo':
        return _demo(arguments, inputs, layers, console)
    stage = make_stage(arguments.kind, inputs, *layers)
    produced = produce(stage, out, workers=arguments.workers, shard=shard)
    console.print(
        f'{produced.made} chunks made in {produced.seconds:.0f} s; {produced.left} of {produced.chunks} left',
        highlight=False,
    )
    if produced.left:
        return 0
    card = finish(stage, stage.settings, out)  # type: ignore[attr-defined]
    show_card(card, out, console)
    if not card.to_json()['kept']:
        raise VtbDataError(
            'Nothing was kept.', field='INPUT', got=', '.join(inputs), remedy=f'see {out / "rejected.jsonl"} for why'
        )
    return 0


def show_card(card: 'DataCard', out: Path, console: 'Console') -> None:
    """Print the yield and where the card lies."""
    from rich.table import Table

    facts = card.to_json()
    table = Table(title=f'{card.kind}: {facts["kept"]:,} of {facts["outcomes"]:,} kept', title_justify='left')
    table.add_column('outcome')
    table.add_column('count', justify='right')
    table.add_column('share', justify='right')
    for reason, count in facts['reasons'].items():
        table.add_row(reason, f'{count:,}', f'{count / facts["outcomes"]:.1%}')
    console.print(table)
    console.print(f'card: {out / "card.md"}', highlight=False, soft_wrap=True)


def _demo(
    arguments: argparse.Namespace, inputs: Sequence[str], layers: Sequence[Mapping[str, Any]], console: 'Console'
) -> int:
    from nemo_vtb.config import read_settings
    from nemo_vtb.factory.demo.build import make_demo
    from nemo_vtb.factory.settings import Demo

    if inputs or arguments.shard != '0/1':
        raise VtbConfigError('The demonstration takes no inputs and no shard.', field='INPUT', got=list(inputs))
    settings = read_settings(Demo, *layers)
    out = Path(arguments.out)
    make_demo(settings, out, workers=arguments.workers, say=lambda text: console.print(text, highlight=False))
    console.print(f'card: {out / "card.md"}', highlight=False, soft_wrap=True)
    return 0


def _file(path: str | None) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if path is None:
        return {}
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise VtbConfigError('The settings cannot be read.', field='--config', got=f'{path}: {error}') from error
    if not isinstance(content, dict):
        raise VtbConfigError('The settings are no block of keys.', field='--config', got=path)
    return content  # type: ignore[return-value]


def _changes(words: Sequence[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.from_dotlist(list(words)))  # type: ignore[return-value]
