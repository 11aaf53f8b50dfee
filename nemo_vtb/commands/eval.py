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
"""`vtb eval`: measures a model on held-out data."""

import argparse
from collections.abc import Sequence
from pathlib import Path

__all__ = ['main']

_DEMO_SETS = ('asr_ast', 'speech_qa', 'mixed_modal', 'text', 'text_reference')


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vtb eval`; returns the exit status."""
    arguments = _parser().parse_args(argv)
    # after the parsing, so that --help is instant
    from rich.console import Console

    from nemo_vtb.evaluation import evaluate
    from nemo_vtb.evaluation.asking import find_datasets, load_model
    from nemo_vtb.scripts import quiet_logs

    console = Console()
    quiet_logs()
    datasets = find_datasets(arguments.data or [f'asset:demo-corpus/{name}.test.jsonl' for name in _DEMO_SETS])
    model = load_model(arguments.model, arguments.device)
    result = evaluate(
        model,
        datasets,
        limit=arguments.limit,
        batch_size=arguments.batch_size,
        max_new_tokens=arguments.max_new_tokens,
        console=console,
    )
    result.table(console)
    result.show_examples(console)
    path = result.to_json(arguments.output or Path(arguments.model).with_suffix('.eval.json'))
    console.print(f'All {len(result.samples)} answers: {path}', highlight=False, markup=False, soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='vtb eval', description='Measure a model on held-out conversations, its base LLM beside it.'
    )
    parser.add_argument('model', metavar='MODEL.nemo', help='the model')
    parser.add_argument(
        '--data', nargs='+', metavar='PATH', help='JSONL files, folders, asset:NAME[/FILE] (default: the demo corpus)'
    )
    parser.add_argument('--limit', type=int, help='conversations of each source at most (default: all)')
    parser.add_argument('--batch-size', type=int, default=8, help='prompts answered at once (default: 8)')
    parser.add_argument('--max-new-tokens', type=int, default=64, help='longest answer (default: 64)')
    parser.add_argument('--output', help='JSON file for numbers and answers (default: beside the model)')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda ... (default: auto)')
    return parser
