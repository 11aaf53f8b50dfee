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
"""What every script does first."""

import subprocess
import sys
from pathlib import Path

import pytest

from nemo_vtb.config.schema import EvalConfig
from nemo_vtb.scripts import start_script

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ('word', 'becomes'),
    [
        ('trainer.max_steps=3', '++trainer.max_steps=3'),
        ('model.lora.r=8', '++model.lora.r=8'),
        ('++trainer.max_steps=3', '++trainer.max_steps=3'),
        ('model=smollm2_whisper_tiny_en', 'model=smollm2_whisper_tiny_en'),
        ('name=two', '++name=two'),  # SALM's YAML has none
        ('data.train_ds.input_cfg.0.weight=2', 'data.train_ds.input_cfg.0.weight=2'),
        ('~model.lora', '~model.lora'),
        ('--help', '--help'),
    ],
)
def test_overrides_reach_our_own_check(word: str, becomes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, 'argv', ['script', word])
    start_script()
    assert sys.argv[1:] == [becomes]


def test_help_shows_the_keys_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, 'argv', ['script', '--help'])
    start_script(EvalConfig)
    assert 'judge.timeout_s' in capsys.readouterr().out
    monkeypatch.setattr(sys, 'argv', ['script'])
    start_script(EvalConfig)
    assert capsys.readouterr().out == ''


@pytest.mark.slow
def test_a_misspelt_override_names_the_nearest_key() -> None:
    script = ROOT / 'examples' / 'speechllm_joint_sft.py'
    done = subprocess.run([sys.executable, script, 'trainer.max_stepz=3'], capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean 'trainer.max_steps'" in done.stderr
    assert 'Traceback' not in done.stderr
