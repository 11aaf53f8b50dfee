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
"""`vtb report`: one page on models: speech metrics, text ability kept, worst answers."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_vtb.errors import VtbConfigError, VtbDataError

if TYPE_CHECKING:
    from rich.console import Console

    from nemo_vtb.evaluation.report.collect import Subject

_LLM = 'llm'
_STATUS = {'green': 0, 'amber': 0, 'red': 1}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vtb report`; returns the exit status: 1 when the verdict is red."""
    arguments = _parser().parse_args(argv)
    from rich.console import Console

    from nemo_vtb.evaluation.report.collect import make_report, write_report

    console = Console()
    output = _folder(arguments.output)
    base = None if arguments.base == _LLM else _subject(arguments.base, output, arguments, console)
    subjects = [_subject(path, output, arguments, console) for path in arguments.models]
    report = make_report(subjects, base)
    paths = write_report(report, output)
    colours = {'green': 'green', 'amber': 'yellow', 'red': 'red'}
    for model in report['models']:
        if not model['is_base']:
            level, sentence = model['verdict']['level'], model['verdict']['sentence']
            console.print(f'[bold {colours[level]}]{level}[/] ', end='')
            console.print(f'{model["name"]}: {sentence}', highlight=False, markup=False, soft_wrap=True)
    for path in paths.values():
        console.print(f'written: {path}', highlight=False, markup=False, soft_wrap=True)
    return _STATUS[report['verdict']['level']]


def _folder(value: str) -> Path:
    """The folder of the report, created before anything is measured.

    Raises:
        VtbConfigError: It cannot be created.
    """
    folder = Path(value)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VtbConfigError(
            'The folder of the report cannot be created.',
            field='output',
            got=f'{value}: {error.strerror}',
            allowed='a folder that can be written',
            remedy='name another with --output',
        ) from error
    return folder


def _subject(value: str, output: Path, arguments: argparse.Namespace, console: 'Console') -> 'Subject':
    """A result, or a `.nemo` file that is measured now.

    Raises:
        VtbDataError: There is no such file.
    """
    from nemo_vtb.evaluation.report.collect import name_of, read_subject

    name, _, file = value.rpartition('=')
    path = Path(file)
    if not path.is_file():
        raise VtbDataError(
            'There is no such model or result.',
            field='models',
            got=value,
            allowed='an .eval.jsonl file of `vtb eval`, a .nemo file, or NAME=FILE',
            remedy='correct the path',
        )
    name = name or name_of(path)
    if path.suffix != '.nemo':
        return read_subject(path, name)
    return read_subject(_measure(path, output / f'{name}.eval.jsonl', arguments, console), name)


def _measure(path: Path, result: Path, arguments: argparse.Namespace, console: 'Console') -> Path:
    """Measure everything, unless there is a result of this file with these settings."""
    import json
    from dataclasses import asdict

    from nemo_vtb.evaluation.inputs import DEMO_SETS, find_datasets
    from nemo_vtb.evaluation.runner import Plan, evaluate_file, stamp_of, suites_of
    from nemo_vtb.scripts import quiet_logs

    quiet_logs()
    plan = Plan(
        suites=suites_of('all'),
        datasets=find_datasets(arguments.data or DEMO_SETS),
        limit=arguments.limit,
        batch_size=arguments.batch_size,
        max_new_tokens=arguments.max_new_tokens,
    )
    # a report is often made again, for instance with one more model: results are reused
    settings = result.with_suffix('.settings')
    wanted = json.dumps([stamp_of(path), asdict(plan)], default=str, sort_keys=True)
    if result.is_file() and settings.is_file() and settings.read_text(encoding='utf-8') == wanted:
        console.print(f'reusing {result}', highlight=False, markup=False, soft_wrap=True)
        return result
    console.print(f'measuring {path}', highlight=False, markup=False, soft_wrap=True)
    evaluate_file(path, plan, result, device=arguments.device, console=console)
    settings.write_text(wanted, encoding='utf-8')
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='vtb report',
        description='Write one page (HTML, markdown, JSON) on models: speech metrics and text ability kept.',
    )
    parser.add_argument('base', metavar='BASE', help='reference: llm (the base LLM of each model), or as MODEL')
    parser.add_argument(
        'models',
        metavar='MODEL',
        nargs='+',
        help='an .eval.jsonl file of `vtb eval`, or a .nemo file, evaluated now (all suites); NAME=FILE names it',
    )
    parser.add_argument('--output', default='report', help='folder (default: report)')
    parser.add_argument(
        '--data', nargs='+', metavar='PATH', help='held-out data for .nemo files (default: the demo corpus)'
    )
    parser.add_argument('--limit', type=int, help='maximum number of conversations per source (default: all)')
    parser.add_argument('--batch-size', type=int, default=8, help='prompts in one batch (default: 8)')
    parser.add_argument('--max-new-tokens', type=int, default=64, help='maximum answer length in tokens (default: 64)')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda ... (default: auto)')
    return parser
