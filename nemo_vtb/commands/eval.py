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
"""`vtb eval`: evaluates a model and its base LLM on held-out data."""

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vtb eval`; returns the exit status."""
    arguments = _parser().parse_args(argv)
    # after the parsing, so that --help is instant
    from rich.console import Console

    from nemo_vtb.evaluation.inputs import DEMO_SETS, find_datasets
    from nemo_vtb.evaluation.judge import judge_of
    from nemo_vtb.evaluation.runner import Plan, evaluate_file, needs_data, suites_of
    from nemo_vtb.scripts import quiet_logs

    console = Console()
    quiet_logs()
    suites = suites_of(arguments.suite)
    plan = Plan(
        suites=suites,
        datasets=find_datasets(arguments.data or DEMO_SETS) if needs_data(suites) else {},
        limit=arguments.limit,
        batch_size=arguments.batch_size,
        max_new_tokens=arguments.max_new_tokens,
        tasks=arguments.tasks,
        include=arguments.include,
        chat_template=not arguments.no_chat_template,
        judge=judge_of(arguments.judge_url, arguments.judge_model, suites, api_key_env=arguments.judge_key_env),
    )
    options = {'device': arguments.device, 'record': arguments.record}
    result, path = evaluate_file(arguments.model, plan, arguments.output, console=console, **options)
    result.show(console)
    answers = len(result.samples) + sum(len(suite.get('samples', ())) for suite in result.suites.values())
    console.print(f'All {answers} answers: {path}', highlight=False, markup=False, soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='vtb eval', description='Evaluate a model on held-out conversations, and its base LLM where possible.'
    )
    parser.add_argument('model', metavar='MODEL.nemo', help='the model')
    parser.add_argument(
        '--data', nargs='+', metavar='PATH', help='JSONL files, folders, asset:NAME[/FILE] (default: the demo corpus)'
    )
    parser.add_argument(
        '--suite',
        default='speech',
        help='speech (with perplexity), text (lm-eval), instruct (typed and spoken instructions), emergent (tasks '
        'outside the training data), ladder (typed to spoken) or all (default: speech)',
    )
    parser.add_argument('--tasks', nargs='+', default=(), metavar='NAME', help='lm-eval tasks (default: our own)')
    parser.add_argument('--include', nargs='+', default=(), metavar='DIR', help='folders with YAML tasks for lm-eval')
    parser.add_argument('--no-chat-template', action='store_true', help="send lm-eval's questions as plain text")
    parser.add_argument('--limit', type=int, help='maximum number of conversations per source and of items per task')
    parser.add_argument('--batch-size', type=int, default=8, help='prompts in one batch (default: 8)')
    parser.add_argument('--max-new-tokens', type=int, default=64, help='maximum answer length in tokens (default: 64)')
    parser.add_argument(
        '--judge-url',
        metavar='URL',
        help='OpenAI-compatible server that judges answers about speech (default: none)',
    )
    parser.add_argument('--judge-model', metavar='NAME', help='model name on that server')
    parser.add_argument(
        '--judge-key-env',
        default='OPENAI_API_KEY',
        metavar='VAR',
        help='environment variable with its API key (default: OPENAI_API_KEY)',
    )
    parser.add_argument('--output', help='JSON file for numbers and answers (default: beside the model)')
    parser.add_argument('--record', action='store_true', help="also write the numbers into the file's manifest")
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda ... (default: auto)')
    return parser
