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
"""`vtb web`: a page in the browser to talk with one model."""

import os
import tempfile
from collections.abc import Sequence

from nemo_vtb.commands.host import read_command, run_host
from nemo_vtb.config.schema import WebConfig

_DESCRIPTION = """\
Talk with a model in the browser: microphone, recordings, several turns, the base LLM beside. It listens at loopback
unless --host says otherwise, and nothing is loaded from or sent to other hosts. Ctrl-C ends. Needs the extra `web`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vtb web`; returns the exit status."""
    settings = read_command('web', argv, WebConfig, _DESCRIPTION)
    with tempfile.TemporaryDirectory(prefix='vtb-web-') as uploads:
        # read when gradio is imported; what was uploaded goes with the process
        os.environ.update(GRADIO_ANALYTICS_ENABLED='False', GRADIO_TEMP_DIR=uploads)
        return run_host('web', settings, 'nemo_vtb.serving.web')
