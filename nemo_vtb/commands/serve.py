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

from collections.abc import Sequence

from nemo_vtb.commands.host import read_command, run_host
from nemo_vtb.config.schema import ServeConfig

_DESCRIPTION = """\
Answer OpenAI's requests: /v1/chat/completions (recordings as input_audio), /v1/audio/transcriptions, /v1/models,
/health, /metrics. SIGTERM or Ctrl-C: running answers finish. Needs the extra `serve`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vtb serve`; returns the exit status."""
    return run_host('serve', read_command('serve', argv, ServeConfig, _DESCRIPTION), 'nemo_vtb.serving.server')
