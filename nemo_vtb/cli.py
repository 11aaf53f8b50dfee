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
"""`vtb`: the command line. Nothing heavy is imported before a command needs it, so that `vtb --help` is instant."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType

from nemo_vtb.errors import VtbError
from nemo_vtb.package_info import __version__
from nemo_vtb.scripts import quiet_imports

USER_ERROR = 2
_INTERRUPTED = 130

_HELP = """\
commands:
  init      copy the YAML files of the package into a new folder
  align     teach an adapter to hear before joint training, without a pass of the LLM
  train     train a speech LLM on text and speech in one stage
  generate  ask a model about recordings
  chat      talk with a model, in text and recordings
  serve     answer OpenAI's requests over HTTP
  web       talk with a model in the browser: microphone, recordings, the base LLM beside
  assets    fetch the embedded models, recordings and the demonstration corpus
  inspect   show rendered conversations: roles, recordings, supervised tokens
  eval      evaluate a model and its base LLM on held-out data
  report    one page on models: speech metrics, text ability kept, worst answers
  compare   benchmarks of several models and published numbers side by side
  info      show the contents of a .nemo file without loading its weights
  doctor    check this installation and suggest remedies
  export    convert a model for NeMo's SALM, vLLM, transformers, PEFT or stock ASR, and verify its answers
  parity    compare all exports of a model with the model
  import    convert a SALM folder to a .nemo file
  data      index sources, preview packed rows, show the ledger of a run, make data

`vtb COMMAND --help` explains one of them.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vtb`; returns the exit status: 0, 1 (a check failed), 2 (usage error or bad input)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    show_traceback = '--traceback' in argv
    argv = [word for word in argv if word != '--traceback']
    parser = argparse.ArgumentParser(
        prog='vtb',
        description='Joint speech-text fine-tuning of speech LLMs.',
        usage='vtb COMMAND ...',
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'vtb {__version__}')
    parser.add_argument('--traceback', action='store_true', help='show the traceback of an error')
    parser.add_argument('command', choices=sorted(_COMMANDS), help=argparse.SUPPRESS, metavar='COMMAND')
    if not argv:
        parser.print_help()
        return USER_ERROR
    # the other arguments belong to the command, which has its own parser
    command = parser.parse_args(argv[:1]).command
    quiet_imports()
    return run_guarded(lambda: _module(command).main(argv[1:]), show_traceback)


def run_guarded(action: Callable[[], int | None], show_traceback: bool = False) -> int:
    """Run an action and return its exit status; a `VtbError` becomes a panel without a traceback."""
    try:
        return action() or 0
    except VtbError as error:
        if show_traceback:
            traceback.print_exc()
        show_error(error)
        return USER_ERROR
    except KeyboardInterrupt:
        sys.stderr.write('\ninterrupted\n')
        return _INTERRUPTED
    except BrokenPipeError:
        # the reader (head, less) is gone; closing standard output would raise again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def show_error(error: VtbError) -> None:
    """Print an error as a red panel on standard error."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    console = Console(stderr=True)
    console.print(Panel(Text(str(error)), title=type(error).__name__, title_align='left', border_style='red'))


def _module(command: str) -> ModuleType:
    return import_module(_COMMANDS[command])


# imported when it is called: `vtb --help` must not wait for torch
_COMMANDS: dict[str, str] = {
    'align': 'nemo_vtb.commands.align',
    'assets': 'nemo_vtb.commands.assets',
    'chat': 'nemo_vtb.commands.chat',
    'compare': 'nemo_vtb.commands.compare',
    'data': 'nemo_vtb.commands.data',
    'doctor': 'nemo_vtb.commands.doctor',
    'eval': 'nemo_vtb.commands.eval',
    'export': 'nemo_vtb.commands.export',
    'generate': 'nemo_vtb.commands.generate',
    'init': 'nemo_vtb.commands.init',
    'import': 'nemo_vtb.commands.import_',
    'info': 'nemo_vtb.commands.info',
    'inspect': 'nemo_vtb.commands.inspect',
    'parity': 'nemo_vtb.commands.parity',
    'report': 'nemo_vtb.commands.report',
    'serve': 'nemo_vtb.commands.serve',
    'train': 'nemo_vtb.commands.train',
    'web': 'nemo_vtb.commands.web',
}


if __name__ == '__main__':
    sys.exit(main())
