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
"""`vtb parity`: compares all exports of a model with the model."""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

_FORMS = ('nemo', 'salm', 'vllm', 'hf-merged', 'peft', 'asr')


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vtb parity`; returns the exit status: 1 when a form answers differently."""
    arguments = _parser().parse_args(argv)
    from rich.console import Console

    from nemo_vtb.checkpoint.archive import change_sections
    from nemo_vtb.export.export import export_forms
    from nemo_vtb.export.parity import compare
    from nemo_vtb.model.pretrained import restore
    from nemo_vtb.scripts import quiet_logs

    console = Console()
    quiet_logs()
    model = restore(arguments.file, 'cpu', base_llm=arguments.base_llm)
    ranks = [] if arguments.forms else [1, 2]
    with tempfile.TemporaryDirectory(prefix='nemo_vtb_forms_') as folder:
        wanted = arguments.forms or _FORMS
        forms = {'nemo': Path(arguments.file)} if 'nemo' in wanted else {}
        forms |= export_forms(model, Path(folder), [form for form in wanted if form != 'nemo'], console)
        parity = compare(
            model,
            forms,
            tensor_parallel=arguments.tensor_parallel if arguments.tensor_parallel is not None else ranks,
            base_llm=arguments.base_llm,
        )
    console.print(parity.table())
    if arguments.answers:
        console.print(parity.answers_table())
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(parity.to_json(), indent=1) + '\n', encoding='utf-8')
    if arguments.record:
        change_sections(Path(arguments.file), {'parity': parity.to_json()})
        console.print(f'written into the manifest of {arguments.file}', highlight=False, markup=False, soft_wrap=True)
    return 0 if parity.ok else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='vtb parity',
        description='Compare the answers of a model and its exports to twelve prompts, each in its own process.',
        epilog='Exit status: 0 all answer the same, 1 one does not, 2 usage error or failed export.',
    )
    parser.add_argument('file', metavar='FILE.nemo', help='the model')
    parser.add_argument('--forms', nargs='+', choices=_FORMS, help='targets (default: all, and Megatron)')
    parser.add_argument(
        '--tensor-parallel', nargs='*', type=int, metavar='N', help='also Megatron on N ranks (default: 1 2)'
    )
    parser.add_argument('--answers', action='store_true', help='print each answer')
    parser.add_argument('--json', metavar='OUT.json', help='write the comparison')
    parser.add_argument('--record', action='store_true', help='write the comparison into the manifest of FILE.nemo')
    parser.add_argument('--base-llm', metavar='FOLDER', help='the LLM, if FILE.nemo does not contain it')
    return parser
