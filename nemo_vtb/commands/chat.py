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
"""`vtb chat`: talks with a model, in text and recordings, at the terminal or through a pipe."""

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vtb chat`; returns the exit status: through a pipe 1 if a line failed."""
    arguments = _parser().parse_args(argv)
    # after the parsing, so that --help is instant
    from nemo_vtb.scripts import quiet_logs, start_script

    start_script()
    quiet_logs()
    from nemo_vtb.model.pretrained import restore
    from nemo_vtb.serving.chat import ChatSession
    from nemo_vtb.serving.engine import Engine, Sampling
    from nemo_vtb.serving.terminal import Terminal, lines_of

    keys = ('max_new_tokens', 'temperature', 'top_p', 'seed')
    sampling = Sampling(**{key: getattr(arguments, key) for key in keys})
    model = restore(arguments.model, arguments.device, base_llm=arguments.base_llm)
    session = ChatSession(Engine(model), sampling=sampling, system=arguments.system)
    is_pipe = not sys.stdin.isatty()
    if not is_pipe:
        sys.stderr.write('Type a question, drag recordings in; /help lists the commands, Ctrl-D ends.\n')
    failed = Terminal(session, out=sys.stdout, notes=sys.stderr).run(lines_of(sys.stdin))
    return int(is_pipe and failed > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='vtb chat',
        description='Talk with a model: several turns, text and recordings mixed. Reads questions from a pipe, too.',
    )
    parser.add_argument('model', metavar='MODEL', help='a .nemo file, the folder of a run, or a SALM folder')
    parser.add_argument('--system', metavar='TEXT', help='system turn in front of the conversation')
    parser.add_argument(
        '--max-new-tokens', type=int, default=256, metavar='N', help='longest answer in tokens (default: 256)'
    )
    parser.add_argument(
        '--temperature', type=float, default=0.0, metavar='X', help='0: the most likely tokens (default: 0)'
    )
    parser.add_argument('--top-p', type=float, default=1.0, metavar='X', help='of the probability (default: 1)')
    parser.add_argument('--seed', type=int, metavar='N', help='of sampling; the same answers again')
    parser.add_argument('--base-llm', metavar='FOLDER', help='the LLM, if the model does not contain it')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda ... (default: auto)')
    return parser
