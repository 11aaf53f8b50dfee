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
"""What is installed in a CUDA image: never what its torch is made of, all else as pinned, and what does not fit."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tools'))

import image_requirements  # noqa: E402

pytestmark = pytest.mark.unit
CUDA = ROOT / 'constraints' / 'py312-cu130.txt'
CPU = ROOT / 'constraints' / 'py311-cpu.txt'


@pytest.fixture
def image(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Packages of an image of NGC."""
    there = {
        'torch': '2.11.0a0+a36e1d3',
        'triton': '3.6.0',
        'numpy': '2.1.0',
        'transformer-engine': '2.13.0',
        'sympy': '1.13.1',
    }
    monkeypatch.setattr(image_requirements, 'installed', there.get)
    return there


def test_torch_and_what_is_built_against_it_stay(image: dict[str, str]) -> None:
    pinned = image_requirements.pins(CUDA)
    rest = image_requirements.rest(pinned)
    assert not rest.keys() & {'torch', 'triton', 'numpy', 'transformer-engine', 'sympy'}
    assert not [name for name in rest if name.startswith('nvidia-')]
    assert {'nemo-toolkit', 'megatron-core', 'liger-kernel', 'peft', 'transformers'} <= rest.keys()
    assert all(pinned[name] == version for name, version in rest.items())


def test_what_is_there_as_pinned_is_left_and_what_the_image_lacks_comes(image: dict[str, str]) -> None:
    pinned = image_requirements.pins(CUDA)
    image['peft'] = pinned['peft']
    image['transformers'] = '4.57.0'
    del image['sympy']
    rest = image_requirements.rest(pinned)
    assert 'peft' not in rest and rest['transformers'] == pinned['transformers'] and rest['sympy'] == pinned['sympy']


@pytest.mark.parametrize('torch', [None, '2.8.0a0+34c6371', '2.14.1'])
def test_an_image_with_a_torch_that_was_not_tried_is_refused(image: dict[str, str], torch: str | None) -> None:
    image.pop('torch')
    if torch is not None:
        image['torch'] = torch
    with pytest.raises(SystemExit, match='CUDA_BASE_IMAGE'):
        image_requirements.rest(image_requirements.pins(CUDA))


def test_its_range_of_torch_is_that_of_setup() -> None:
    [line] = [line for line in (ROOT / 'setup.py').read_text().splitlines() if line.strip().startswith("'torch>")]
    assert Requirement(line.strip().strip("',")).specifier == image_requirements.TORCH.specifier


def test_this_environment_has_what_the_package_needs() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'image_requirements.py', '--check'],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout


def test_a_package_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = image_requirements.installed
    old: dict[str, Any] = {'peft': '0.17.0', 'transformers': None}
    monkeypatch.setattr(image_requirements, 'installed', lambda name: old[name] if name in old else real(name))
    found = list(image_requirements.conflicts())
    assert any(line.startswith('nemo_vtb needs peft') and line.endswith('there is 0.17.0') for line in found)
    assert any('needs transformers' in line and line.endswith('there is none') for line in found)


# ---- the constraints files


@pytest.mark.parametrize('path', [CPU, CUDA], ids=lambda path: path.name)
def test_constraints_fit_what_pinned_packages_need(path: Path) -> None:
    """As far as metadata of installed packages tells, at the versions that are pinned."""
    from importlib.metadata import PackageNotFoundError, distribution

    pinned, checked = image_requirements.pins(path), 0
    for name, version in pinned.items():
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        if found.version.partition('+')[0] != version:
            continue
        for text in found.requires or ():
            requirement = Requirement(text)
            if requirement.marker and not requirement.marker.evaluate({'extra': ''}):
                continue
            needed = pinned.get(image_requirements.normal(requirement.name))
            if needed is not None:
                checked += 1
                assert requirement.specifier.contains(needed, prereleases=True), f'{name} needs {text}: {needed}'
    assert checked > 200


def test_both_files_agree_but_for_the_device() -> None:
    cpu, cuda = image_requirements.pins(CPU), image_requirements.pins(CUDA)
    assert cpu['torch'] == cuda['torch']
    assert {name for name in cpu.keys() & cuda.keys() if cpu[name] != cuda[name]} == set()
    extra = {name for name in cuda.keys() - cpu.keys() if not image_requirements.OF_THE_IMAGE.fullmatch(name)}
    of_transformer_engine = {
        'apache-tvm-ffi',
        'importlib-metadata',
        'lazy-importer',
        'nvdlfw-inspect',
        'onnx-ir',
        'onnxscript',
        'zipp',
    }
    assert extra == {'liger-kernel', *of_transformer_engine}
    assert {'nvidia-nccl-cu13', 'triton', 'transformer-engine', 'liger-kernel'} <= cuda.keys()


@pytest.mark.slow
@pytest.mark.parametrize(('path', 'extras'), [(CPU, '[dev]'), (CUDA, '[megatron-cpu,serve,stores]')])
def test_a_resolver_finds_exactly_the_pins(path: Path, extras: str, tmp_path: Path) -> None:
    """Asks the registry; nothing is installed."""
    import json

    report, copy = tmp_path / 'report.json', tmp_path / 'copy'
    copy.mkdir()
    for name in ('setup.py', 'README.md', 'LICENSE', 'NOTICE'):
        shutil.copy(ROOT / name, copy)
    for folder in ('nemo_vtb', 'conf'):  # metadata needs no more of them
        shutil.copytree(
            ROOT / folder,
            copy / folder,
            ignore=lambda _, names: [n for n in names if not n.endswith(('package_info.py', '__init__.py', '.yaml'))],
        )
    more = ['liger-kernel', 'transformer-engine'] if path == CUDA else []
    command = [
        sys.executable, '-m', 'pip', 'install', '--quiet', '--dry-run', '--ignore-installed', '--report', str(report),
        '--constraint', str(path), f'{copy}{extras}', *more,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    pinned = image_requirements.pins(path)
    found = {
        image_requirements.normal(item['metadata']['name']): item['metadata']['version'].partition('+')[0]
        for item in json.loads(report.read_text())['install']
    }
    found.pop('nemo-vtb')
    assert found and {name: pinned.get(name) for name in found} == found
