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
"""`vtb align|train|eval|generate|export`: the scripts of `examples/` as commands, from the package's YAML files."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_vtb.config.command_line import config_file, overrides_of, usage
from nemo_vtb.errors import VtbError, disk_error

if TYPE_CHECKING:
    from omegaconf import DictConfig

# command -> YAML file in conf/, function of nemo_vtb.scripts, what it does
_SCRIPTS = {
    'align': ('speechllm_align_adapter', 'run_alignment', 'Teach an adapter to hear before joint training.'),
    'train': ('speechllm_joint_sft', 'run_training', 'Joint speech-text SFT in one stage.'),
    'eval': ('eval/speechllm_eval', 'run_evaluation', 'Evaluate a model and its base LLM on held-out conversations.'),
    'generate': ('eval/speechllm_generate', 'run_generation', 'Answers of a model about recordings.'),
    'export': (
        'eval/speechllm_export',
        'run_export',
        'Convert a model for another program, and verify that it answers the same (docs/files.md).',
    ),
}


def run_script(command: str, argv: Sequence[str] | None) -> int:
    """Run one of the scripts with Hydra; returns the exit status.

    The YAML files of `./conf` are taken where `vtb init` put them there, else those of the package. `--help` ends the
    process, as argparse does.

    Raises:
        VtbError: Whatever the script raises.
    """
    from nemo_vtb.config.schema import CONFIGS

    file, function, description = _SCRIPTS[command]
    cls = CONFIGS[Path(file).name]
    words = list(sys.argv[2:] if argv is None else argv)
    if '--help' in words or '-h' in words:
        sys.stdout.write(usage(command, cls, description))
        sys.exit(0)
    overrides = _absolute(words if command in ('align', 'train') else overrides_of(words, cls))
    path = config_file(file)
    if not path.is_absolute():
        sys.stderr.write(f'configuration: {path}\n')
    _run_hydra(path.resolve(), function, overrides)
    return 0


def _run_hydra(path: Path, function: str, overrides: Sequence[str]) -> None:
    from nemo_vtb import scripts

    typed, failed = list(sys.argv), list[VtbError]()
    sys.argv = [typed[0], *overrides]
    scripts.start_script()
    from nemo.core.config import hydra_runner

    def task(cfg: 'DictConfig') -> float | None:
        # Lightning starts the other ranks with the words that this process was started with
        sys.argv = typed
        try:
            return getattr(scripts, function)(cfg)
        except VtbError as error:  # Hydra would print its traceback
            failed.append(error)
        except OSError as error:
            if (named := disk_error(error)) is None:
                raise
            failed.append(named)
        return None

    try:
        hydra_runner(config_path=str(path.parent), config_name=path.stem)(task)()
    finally:
        sys.argv = typed
    if failed:
        raise failed[0]


def _absolute(words: Sequence[str]) -> list[str]:
    """`--config-path DIR` counts from where the command is typed, not from a module of ours."""
    made = list[str]()
    for before, word in zip(['', *words], words, strict=False):
        option, equals, value = word.partition('=')
        if before in ('--config-path', '-cp') and Path(word).is_dir():
            word = os.path.abspath(word)
        elif equals and option in ('--config-path', '-cp') and Path(value).is_dir():
            word = f'{option}={os.path.abspath(value)}'
        made.append(word)
    return made
