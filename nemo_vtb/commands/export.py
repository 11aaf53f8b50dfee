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
"""`vtb export`: converts a model for another program, and verifies that it answers the same."""

import argparse
from collections.abc import Sequence

_TARGETS = ('nemo', 'salm', 'vllm', 'hf-merged', 'peft', 'asr')

_TARGETS_HELP = """\
targets:
  nemo       one self-contained .nemo file
  salm       a folder for NeMo's SALM.from_pretrained
  vllm       a folder for NeMo's vLLM plugin
  hf-merged  the LLM with LoRA merged into it, for transformers (text)
  peft       LoRA as a PEFT adapter for the base LLM (text)
  asr        the speech encoder in a stock ASR .nemo, for ASRModel.restore_from and SALM's pretrained_asr

Each export answers twelve prompts in a separate process that cannot open the source files of the model; one that
answers differently from the model is removed.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vtb export`; returns the exit status."""
    arguments = _parser().parse_args(argv)
    from rich.console import Console

    from nemo_vtb.export.export import TARGETS, default_export_path, export_model
    from nemo_vtb.model.pretrained import restore
    from nemo_vtb.scripts import quiet_logs

    console = Console()
    quiet_logs()
    output = arguments.output or default_export_path(arguments.file, arguments.to)
    model = restore(arguments.file, 'cpu', base_llm=arguments.base_llm)
    parity = export_model(
        model,
        arguments.to,
        output,
        check=not arguments.no_check,
        overwrite=arguments.overwrite,
        include_llm=not arguments.without_llm,
        asr_source=arguments.asr,
        base_llm=arguments.base_llm,
    )
    if parity is None:
        console.print('not verified (--no-check)', style='yellow')
    else:
        console.print(parity.table())
    console.print(f'{TARGETS[arguments.to].meaning}: {output}', highlight=False, markup=False, soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='vtb export',
        description='Convert a model for another program, and verify that it answers the same.',
        epilog=_TARGETS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('file', metavar='FILE.nemo', help='the model')
    parser.add_argument('--to', required=True, choices=_TARGETS, help='the target, see below')
    parser.add_argument('--output', metavar='PATH', help='file or folder (default: beside FILE.nemo)')
    parser.add_argument('--overwrite', action='store_true', help='replace an existing file or folder')
    parser.add_argument('--asr', metavar='ASR.nemo', help='for asr: the ASR model whose decoder is kept')
    parser.add_argument('--without-llm', action='store_true', help='for nemo: a small file that refers to its LLM')
    parser.add_argument('--base-llm', metavar='FOLDER', help='the LLM, if FILE.nemo does not contain it')
    parser.add_argument('--no-check', action='store_true', help='do not compare answers')
    return parser
