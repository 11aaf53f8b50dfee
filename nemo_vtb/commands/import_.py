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
"""`vtb import`: converts a SALM folder (of NeMo, of Canary-Qwen) to a `.nemo` file of this toolkit."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vtb import`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='vtb import',
        description='Read a SALM folder, or a checkpoint of a run (.ckpt), and write a self-contained .nemo file.',
    )
    parser.add_argument('folder', metavar='FOLDER', help='with config.json and safetensors, or a .ckpt of a run')
    parser.add_argument('output', metavar='OUT.nemo', help='the file')
    parser.add_argument(
        '--base-llm',
        metavar='LLM',
        help='folder of the LLM, if FOLDER has neither, or a run had it elsewhere',
    )
    arguments = parser.parse_args(argv)
    from rich.console import Console

    from nemo_vtb.errors import VtbCheckpointError
    from nemo_vtb.model.pretrained import is_salm_folder, read_salm
    from nemo_vtb.scripts import quiet_logs

    quiet_logs()
    if Path(arguments.folder).suffix == '.ckpt':
        from nemo_vtb.model.pretrained import read_checkpoint

        read_checkpoint(arguments.folder, base_llm=arguments.base_llm).save_to(arguments.output)
        Console().print(f'written: {Path(arguments.output)}', highlight=False, markup=False, soft_wrap=True)
        return 0
    if not is_salm_folder(arguments.folder):
        raise VtbCheckpointError(
            'Not a SALM folder.',
            field='FOLDER',
            got=arguments.folder,
            allowed='a folder whose config.json has `perception` and `pretrained_llm`',
            remedy='PEFT adapters and ASR models are incomplete models: train with init_from_nemo=PATH',
        )
    model, completed = read_salm(arguments.folder, base_llm=arguments.base_llm)
    model.save_to(arguments.output)
    console = Console()
    console.print(f'{len(model.state_dict())} weights read, none unused', highlight=False)
    if completed:
        console.print(f'tied weights, stored once: {", ".join(completed)}', highlight=False, markup=False)
    console.print(f'written: {Path(arguments.output)}', highlight=False, markup=False, soft_wrap=True)
    return 0
