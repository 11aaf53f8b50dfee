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
"""`vtb compare`: benchmarks of several models, and published numbers, side by side."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nemo_vtb.errors import VtbConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vtb compare`; returns the exit status."""
    arguments = _parser().parse_args(argv)
    from rich.console import Console

    from nemo_vtb.evaluation.compare import as_json, compare_runs, markdown, read_published, read_run, show
    from nemo_vtb.io import write_atomically

    output = Path(arguments.output) if arguments.output else None
    if output is not None and output.suffix not in ('.md', '.json'):
        raise VtbConfigError('Unknown form of a table.', field='output', got=str(output), allowed='*.md, *.json')
    runs = [read_run(value) for value in arguments.runs]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise VtbConfigError(
            'Two runs have one name.', field='runs', got=names, remedy='give them names: NAME=FILE NAME=FILE'
        )
    known = list(dict.fromkeys(key for run in runs for key in run.metrics))
    published = read_published(arguments.published, known) if arguments.published else {}
    lines = compare_runs(runs, published)
    console = Console()
    show(lines, console)
    if output is not None:
        write_atomically(output, markdown(lines) if output.suffix == '.md' else as_json(lines))
        console.print(f'written: {output}', highlight=False, markup=False, soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='vtb compare',
        description='Benchmarks of several models side by side: each figure with its change from the first run.',
    )
    parser.add_argument('runs', nargs='+', metavar='RUN', help='results of vtb eval: FILE.eval.jsonl, or NAME=FILE')
    parser.add_argument(
        '--published', metavar='FILE', help='YAML of published numbers: NAME: {SUITE/TASK/SOURCE/METRIC: number}'
    )
    parser.add_argument('--output', metavar='FILE', help='write the table, too: *.md or *.json')
    return parser
