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
"""The command line: light, guarded, and each command against its own purpose."""

import subprocess
import sys

import pytest

from nemo_vtb import cli
from nemo_vtb.errors import VtbDataError


def run(*argv: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    try:
        status = cli.main(argv)
    except SystemExit as end:
        status = int(end.code or 0)
    return status, *capsys.readouterr()


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, expected in (((), 2), (('--help',), 0)):
        status, out, _ = run(*argv, capsys=capsys)
        assert status == expected
        assert all(f'  {name}  ' in out for name in cli._COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from nemo_vtb import __version__

    assert run('--version', capsys=capsys)[:2] == (0, f'vtb {__version__}\n')


@pytest.mark.parametrize(
    'command', ['inspect', 'train', 'eval', 'generate', 'export', 'init', 'info', 'doctor', 'assets']
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(command, '--help', capsys=capsys)
    assert status == 0 and out.startswith(f'usage: vtb {command}')


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run('trian', capsys=capsys)
    assert status == 2 and 'invalid choice' in err


def test_an_error_of_ours_is_a_panel_without_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run('inspect', 'absent.jsonl', capsys=capsys)
    assert status == 2 and out == ''
    assert 'VtbDataError' in err and 'absent.jsonl' in err and 'remedy' in err and 'Traceback' not in err


def test_traceback_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run('inspect', 'absent.jsonl', '--traceback', capsys=capsys)
    assert status == 2 and 'Traceback' in err


def test_guard(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(error: BaseException) -> None:
        raise error

    assert cli.run_guarded(lambda: None) == 0
    assert cli.run_guarded(lambda: 1) == 1
    assert cli.run_guarded(lambda: fails(VtbDataError('[red]x'))) == 2
    assert '[red]x' in capsys.readouterr().err
    assert cli.run_guarded(lambda: fails(KeyboardInterrupt())) == 130
    with pytest.raises(ZeroDivisionError):
        cli.run_guarded(lambda: fails(ZeroDivisionError()))


@pytest.mark.integration
def test_help_loads_nothing_heavy() -> None:
    code = (
        'import sys; from nemo_vtb.cli import main\n'
        'try: main(["--help"])\n'
        'except SystemExit: pass\n'
        'print([m for m in ("torch", "nemo", "transformers", "numpy", "rich") if m in sys.modules])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == '[]'


@pytest.mark.slow
def test_the_terminal_belongs_to_the_command() -> None:
    """No import warnings of NeMo or Megatron, and no telemetry lines, over the table."""
    done = subprocess.run([sys.executable, '-m', 'nemo_vtb.cli', 'doctor'], capture_output=True, text=True)
    assert 'check' in done.stdout and done.stderr == ''
