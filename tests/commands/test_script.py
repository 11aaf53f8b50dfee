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
"""`vtb train|eval|generate|export`: the scripts of `examples/` from the files of the package, or from `./conf`."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_vtb import cli
from nemo_vtb.commands import script
from nemo_vtb.commands.init import main as init

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a script was called with, and the words of the process meanwhile."""
    from nemo_vtb import scripts

    calls: list[Any] = []
    for name in ('run_training', 'run_evaluation', 'run_generation', 'run_export'):
        monkeypatch.setattr(scripts, name, lambda cfg, name=name: calls.append((name, cfg, list(sys.argv))))
    return calls


@pytest.mark.integration
def test_commands_compose_the_files_of_the_package(
    seen: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ['vtb', 'train', 'trainer.max_steps=5', 'model=smollm2_whisper_tiny_en']
    monkeypatch.setattr(sys, 'argv', words)
    assert cli.main(words[1:]) == 0
    assert cli.main(['eval', 'my.nemo', '--limit', '7']) == 0
    assert cli.main(['export', 'my.nemo', '--to', 'salm', '--overwrite']) == 0
    (train, cfg, typed), (evaluate, eval_cfg, _), (export, export_cfg, _) = seen
    assert (train, evaluate, export) == ('run_training', 'run_evaluation', 'run_export')
    assert cfg.trainer.max_steps == 5 and 'smollm2' in cfg.model._content['pretrained_llm']._value()
    assert (eval_cfg.model, eval_cfg.limit, export_cfg.to, export_cfg.overwrite) == ('my.nemo', 7, 'salm', True)
    # Lightning starts further ranks with these words
    assert typed == words and sys.argv == words


@pytest.mark.integration
def test_files_of_ones_own_come_first(seen: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init([str(tmp_path)])
    mine = tmp_path / 'conf' / 'speechllm_joint_sft.yaml'
    mine.write_text(mine.read_text().replace('seed: 42', 'seed: 7'))
    monkeypatch.chdir(tmp_path)
    assert cli.main(['train']) == 0
    monkeypatch.chdir(tmp_path.parent)
    assert cli.main(['train', '--config-path', f'{tmp_path.name}/conf']) == 0
    assert cli.main(['train']) == 0
    assert [cfg.seed for _, cfg, _ in seen] == [7, 7, 42]


@pytest.mark.integration
def test_an_error_is_a_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(['train', 'trainer.max_stepz=3']) == 2
    err = capsys.readouterr().err
    assert "did you mean 'trainer.max_steps'" in err and 'Traceback' not in err


@pytest.mark.parametrize('command', sorted(script._SCRIPTS))
def test_help_is_instant_and_names_the_keys(command: str) -> None:
    code = (
        'import sys; from nemo_vtb.cli import main\n'
        f'try: main([{command!r}, "--help"])\n'
        'except SystemExit as end: assert not end.code\n'
        'print([m for m in ("torch", "nemo", "transformers", "hydra") if m in sys.modules])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == '[]' and f'usage: vtb {command}' in done.stdout
    key = {'train': 'trainer.max_steps', 'align': 'align.passes'}.get(command, 'max_new_tokens')
    assert key in done.stdout


@pytest.mark.slow
@pytest.mark.real_weights
def test_two_ranks_train_from_an_empty_folder(assets: Any, tmp_path: Path) -> None:
    assets('minimind2-small', 'whisper-tiny.en', 'demo-corpus')
    command = [sys.executable, '-m', 'nemo_vtb.cli', 'train', 'trainer.max_steps=2', 'trainer.val_check_interval=2']
    done = subprocess.run(
        [*command, 'trainer.limit_val_batches=1', 'gate.items=4'],
        cwd=tmp_path, env=os.environ | {'PYTHONPATH': str(ROOT)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / 'runs' / 'quickstart' / 'checkpoints' / 'quickstart.nemo').is_file()
