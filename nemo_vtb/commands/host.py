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
"""What `vtb serve` and `vtb web` share: options that are the keys of a dataclass, the extra, the model."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, TypeVar

from nemo_vtb.config.command_line import overrides_of, usage
from nemo_vtb.config.schema import HostConfig
from nemo_vtb.errors import VtbConfigError

T = TypeVar('T', bound=HostConfig)


def read_command(command: str, argv: Sequence[str] | None, cls: type[T], description: str) -> T:
    """The settings of a command; `--help` prints them and ends the process.

    Args:
        command: Its name.
        argv: `MODEL`, `--key VALUE`, `KEY=VALUE`; None: the words of the process.
        cls: The dataclass of its keys.
        description: For `--help`.

    Raises:
        VtbConfigError: An unknown option, or a value that is not allowed.
    """
    words = list(sys.argv[2:] if argv is None else argv)
    if '--help' in words or '-h' in words:
        sys.stdout.write(usage(command, cls, description))
        sys.exit(0)
    return read_options(words, command, cls)


def read_options(words: Sequence[str], command: str, cls: type[T]) -> T:
    """The settings of a command line.

    Args:
        words: Its words behind the command.
        command: For messages.
        cls: The dataclass of the keys.

    Raises:
        VtbConfigError: An unknown option, or a value that is not allowed.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from nemo_vtb.config.check import read_settings

    try:
        parsed = OverridesParser.create().parse_overrides(overrides_of(words, cls))
        given: dict[str, Any] = {override.key_or_group: override.value() for override in parsed}
    except HydraException as error:
        raise VtbConfigError('An option cannot be read.', field=f'vtb {command}', got=str(error)) from error
    return read_settings(cls, {k: str(v) if hasattr(v, 'text') else v for k, v in given.items()})


def run_host(command: str, settings: HostConfig, module: str) -> int:
    """Restore the model and serve it until the end; returns the exit status.

    Args:
        command: For messages.
        settings: Of the command.
        module: Has `serve(engine, settings)`.

    Raises:
        VtbConfigError: A package of the extra is missing.
    """
    from nemo_vtb.scripts import quiet_logs, start_script

    start_script()
    quiet_logs()
    try:
        serve = import_module(module).serve
    except ImportError as error:
        raise VtbConfigError(
            'A package of this command is missing.',
            field=f'vtb {command}',
            got=str(error),
            remedy=f"pip install 'nemo_vtb[{command}]'",
        ) from error
    from nemo_vtb.model.pretrained import restore
    from nemo_vtb.serving.engine import Engine

    serve(Engine(restore(settings.model, settings.device, base_llm=settings.base_llm)), settings)
    return 0
