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
"""`vtb doctor` finds what is broken and says what to do."""

import importlib.metadata
import json
import re
import runpy
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from nemo_vtb.commands import doctor

ROOT = Path(__file__).resolve().parents[2]


def by_name() -> dict[str, doctor.Finding]:
    return {f.name: f for f in doctor.examine(fast=True)}


def fake_version(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name not in versions:
            return real(name)
        if versions[name] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return str(versions[name])

    monkeypatch.setattr(importlib.metadata, 'version', version)


def test_this_installation_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(['--fast']) == 0
    assert 'All is well' in capsys.readouterr().out
    assert doctor.main(['--fast', '--json']) == 0
    assert {'name', 'state', 'found', 'remedy'} == set(json.loads(capsys.readouterr().out)[0])


@pytest.mark.integration
def test_torch_and_nemo_are_looked_at() -> None:
    findings = {f.name: f for f in doctor.examine()}
    assert findings['NeMo plugin'].state == 'ok' and 'GPU' in findings


def test_wrong_missing_and_malicious_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_version(monkeypatch, torch='1.0', peft=None, lightning='2.6.2', transformers='5.22.0')
    found = list(doctor.examine(fast=True))
    problems = {(f.name, f.found): f for f in found if f.state == 'problem'}
    assert problems['torch', '1.0, but >=2.9.1,<2.14 is required'].remedy == "pip install 'torch>=2.9.1,<2.14'"
    assert problems['peft', 'not installed'].remedy == "pip install 'peft==0.18.0'"
    assert ('lightning', '2.6.2 is a malicious release') in problems
    assert next(f for f in found if f.name == 'transformers').state == 'note'
    assert doctor.main(['--fast']) == 1


def test_clients_cache_and_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple('usage', 'total used free')
    monkeypatch.setenv('NEMO_VTB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(1, 1, 10**8))
    found = by_name()
    assert found['npm'].state == found['apt-get'].state == 'note' and 'apt-get install npm' in found['npm'].remedy
    assert found['disk'].state == 'problem' and found['cache'].remedy.startswith('to have the rest too: vtb assets')
    assert str(tmp_path) in found['cache'].found


def test_an_import_that_fails_is_a_finding() -> None:
    def broken() -> doctor.Finding:
        raise OSError('libtorch.so: cannot open')

    assert doctor._guarded('torch', broken).state == 'problem'


def test_table_is_that_of_setup_and_of_the_documentation() -> None:
    required = {}
    for item in _install_requires():
        match = re.match(r'([A-Za-z0-9_-]+)(?:\[\w+\])?(.*)', item)
        assert match is not None
        required[match[1]] = match[2].replace(',!=2.6.2,!=2.6.3', '')
    for name, (bound, _) in doctor.TESTED.items():
        assert required[name] == bound, name
    documented = (ROOT / 'docs' / 'versions.md').read_text()
    for name in ('torch', 'lightning', 'peft', 'transformers', 'lhotse'):
        row = next(line for line in documented.splitlines() if line.startswith(f'| {name} '))
        assert doctor.TESTED[name][1] in row, row


def _install_requires() -> list[str]:
    import setuptools

    caught: dict = {}
    original, setuptools.setup = setuptools.setup, lambda **kwargs: caught.update(kwargs)
    try:
        runpy.run_path(str(ROOT / 'setup.py'))
    finally:
        setuptools.setup = original
    return caught['install_requires']


@pytest.mark.integration
def test_a_forecast_has_memory_and_the_cost_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    """The same counts as docs/step_costs.md, at a rate that is given."""
    config = str(ROOT / 'conf' / 'speechllm_joint_sft.yaml')
    choice = ['model=gemma2b_canary1b', 'data=paper_blend', 'trainer=slurm_8x8_h100']
    assert doctor.main(['--config', config, *choice, '--tflops', '500', '--share', '0.5']) == 0
    output = capsys.readouterr().out
    assert 'gradients and moments' in output and '500 TFLOP/s at 50%' in output
    assert 'TFLOP' in output.split('products')[1] and 'sound to decode' in output
