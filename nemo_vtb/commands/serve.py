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
"""`vtb serve`: an OpenAI-compatible server of one model."""

import sys
from collections.abc import Sequence
from typing import Any

from nemo_vtb.config.command_line import overrides_of, usage
from nemo_vtb.config.schema import ServeConfig
from nemo_vtb.errors import VtbConfigError

_DESCRIPTION = """\
Answer OpenAI's requests: /v1/chat/completions (recordings as input_audio), /v1/audio/transcriptions, /v1/models,
/health, /metrics. SIGTERM or Ctrl-C: running answers finish. Needs the extra `serve`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vtb serve`; returns the exit status."""
    words = list(sys.argv[2:] if argv is None else argv)
    if '--help' in words or '-h' in words:
        sys.stdout.write(usage('serve', ServeConfig, _DESCRIPTION))
        sys.exit(0)
    settings = read_options(words)
    from nemo_vtb.scripts import quiet_logs, start_script

    start_script()
    quiet_logs()
    try:
        from nemo_vtb.serving.server import serve
    except ImportError as error:
        raise VtbConfigError(
            'A package of the server is missing.',
            field='vtb serve',
            got=str(error),
            remedy="pip install 'nemo_vtb[serve]'",
        ) from error
    from nemo_vtb.model.pretrained import restore
    from nemo_vtb.serving.engine import Engine

    model = restore(settings.model, settings.device, base_llm=settings.base_llm)
    sys.stderr.write(f'listening at http://{settings.host}:{settings.port}/v1\n')
    serve(Engine(model), settings)
    return 0


def read_options(words: Sequence[str]) -> ServeConfig:
    """The settings of a command line.

    Raises:
        VtbConfigError: An unknown option, or a value that is not allowed.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from nemo_vtb.config.check import read_settings

    try:
        parsed = OverridesParser.create().parse_overrides(overrides_of(words, ServeConfig))
        given: dict[str, Any] = {override.key_or_group: override.value() for override in parsed}
    except HydraException as error:
        raise VtbConfigError('An option cannot be read.', field='vtb serve', got=str(error)) from error
    return read_settings(ServeConfig, {k: str(v) if hasattr(v, 'text') else v for k, v in given.items()})
