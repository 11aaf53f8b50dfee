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
"""The GPU suite without a GPU: packing, the script's budget, the summary, and (slow) a rehearsal of every step."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from gpu import pack, slim_fatbin

pytestmark = pytest.mark.integration
FOLDER = Path(pack.__file__).parent
SCRIPT = FOLDER / 'gpu_suite.sh'


def wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> Path:
    """As a registry has it."""
    path = folder / f'{name}-{version}-py3-none-any.whl'
    with zipfile.ZipFile(path, 'w') as archive:
        for inside, text in files.items():
            archive.writestr(inside, text)
    return path


def test_wheels_become_one_archive(tmp_path: Path) -> None:
    wheels = tmp_path / 'wheels'
    wheels.mkdir()
    wheel(
        wheels,
        'Some_Pkg',
        '1.0',
        {'some/__init__.py': 'A = 1', 'some/tests/test_a.py': '', 'Some_Pkg-1.0.data/purelib/b.py': ''},
    )
    wheel(wheels, 'Some_Pkg', '2.0', {'some/__init__.py': 'A = 2'})
    packages = {'some.pkg': '1.0'}
    pack.download(packages, wheels)  # nothing to fetch: it is there
    pack.unpack(packages, wheels, tmp_path / 'site')
    pack.pack(tmp_path / 'site', tmp_path / 'site.tar.xz')
    with tarfile.open(tmp_path / 'site.tar.xz') as archive:
        files = {member.name for member in archive if member.isfile()}
        text = archive.extractfile('some/__init__.py')
        assert text is not None and text.read() == b'A = 1'
    assert files == {'some/__init__.py', 'b.py', 'wandb/__init__.py'}


def test_what_is_too_large_to_be_carried_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, packed = tmp_path / 'repo', tmp_path / 'repo' / '.gpu'
    packed.mkdir(parents=True)
    subprocess.run(['git', 'init', '-q', str(root)], check=True)
    (root / '.gitignore').write_text('/.gpu/\n/big\n')
    (root / 'code').write_bytes(bytes(300))
    (root / 'big').write_bytes(bytes(10**6))  # ignored: stays behind
    (packed / 'site.tar.xz').write_bytes(bytes(500))
    monkeypatch.setattr(pack, 'SPARE', 0)
    monkeypatch.setattr(pack, 'LIMIT', 820)
    assert 'working tree' in pack.check_size(root, packed)
    (root / 'more').write_bytes(bytes(100))
    with pytest.raises(SystemExit, match='too large'):
        pack.check_size(root, packed)


def test_every_package_is_pinned() -> None:
    packages = pack.read_packages()
    assert {'megatron-core', 'liger-kernel', 'nemo-toolkit', 'lightning'} <= packages.keys()
    assert all(re.fullmatch(r'\d[\w.]*', version) for version in packages.values())


def test_code_for_other_gpus_is_zeroed() -> None:
    """Two entries of a fat binary, for sm_80 and sm_90."""

    def entry(architecture: int, code: bytes) -> bytes:
        return (
            struct.pack('<HHIQ', 2, 1, 64, len(code)).ljust(28, b'\0')
            + struct.pack('<I', architecture)
            + bytes(32)
            + code
        )

    body = entry(80, b'a' * 16) + entry(90, b'b' * 24)
    memory = bytes(8) + struct.pack('<IHHQ', 0xBA55ED50, 1, 16, len(body)) + body
    found = list(slim_fatbin.entries(memory, 0, len(memory)))
    assert [(kind, architecture, size) for kind, architecture, _, size in found] == [(2, 80, 16), (2, 90, 24)]
    assert [memory[place : place + size] for *_, place, size in found] == [b'a' * 16, b'b' * 24]


def suite(out: Path, *steps: str, **variables: str) -> str:
    environment = os.environ | {'REHEARSE': '1', 'PY': sys.executable, 'OUT': str(out), 'SITE': str(out / 'site')}
    environment |= {'OMP_NUM_THREADS': '1', 'GPU_WORK': str(out / 'work'), **variables}
    done = subprocess.run(['bash', str(SCRIPT), *steps], env=environment, capture_output=True, text=True, cwd=out)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / 'results.jsonl').read_text().splitlines()]


def test_no_step_begins_when_the_budget_is_spent(tmp_path: Path) -> None:
    (tmp_path / 'results.jsonl').write_text('')
    output = suite(tmp_path, 'second', BUDGET='5', PY='true')
    lines = lines_of(tmp_path)
    names = 'table_hf joint_real table_liger profile rows ablate table_torch'.split()
    assert [line['name'] for line in lines] == names and {line['rc'] for line in lines} == {125}
    assert output.count('no time left') == len(names)


def test_packed_it_runs_from_beside_the_code(tmp_path: Path) -> None:
    """`.gpu/gpu_suite.sh` finds the repository above it and unpacks its archives once."""
    packed = tmp_path / '.gpu'
    packed.mkdir()
    (tmp_path / 'nemo_vtb').mkdir()
    shutil.copy(SCRIPT, packed)
    (tmp_path / 'site').mkdir()
    (tmp_path / 'site' / 'carried.py').write_text('')
    pack.pack(tmp_path / 'site', packed / 'site.tar.xz')
    shutil.rmtree(tmp_path / 'site')
    environment = os.environ | {'OUT': str(tmp_path / 'out'), 'SITE': str(tmp_path / 'site'), 'PY': 'true'}
    command = ['bash', '-c', f'. {packed}/gpu_suite.sh nothing; echo "found $REPO $PYTHONPATH"']
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert f'found {tmp_path} {tmp_path}/site:{tmp_path}:{tmp_path}/benchmarks' in done.stdout, done.stderr
    assert (tmp_path / 'site' / 'carried.py').is_file() and 'no such step: nothing' in done.stdout


@pytest.mark.slow
def test_every_step_gives_figures(tmp_path: Path) -> None:
    output = suite(tmp_path, 'first', 'second')
    lines = lines_of(tmp_path)
    assert [line for line in lines if 'error' in line or 'answer_error' in line] == []
    assert {line['name']: line['rc'] for line in lines if line['step'] == 'step' and line['rc']} == {}
    steps = [line['step'] for line in lines]
    for step in ('env.ceilings', 'ops.attention', 'ops.loss', 'ops.norm', 'table', 'profile'):
        assert step in steps
    assert all(line['ok'] for line in lines if line['step'] in ('parity', 'resume'))
    by_shape: dict[str, set[float]] = {}
    for line in lines:
        if line['step'] == 'table':
            assert line['tokens_per_s'] > 0 and line['mfu'] > 0
            if line['tokens'] == 512:
                by_shape.setdefault(line['shape'], set()).add(round(line['loss'], 3))
    assert all(len(losses) == 1 for losses in by_shape.values()), by_shape
    joint = [line for line in lines if line['step'] == 'joint']
    assert len(joint) > 15 and all(0 < loss < 20 for line in joint for loss in line['loss'])
    assert {line['answers'] for line in joint} == {2}
    left = subprocess.run(['git', 'status', '--short'], cwd=FOLDER, capture_output=True, text=True).stdout
    assert 'ledger' not in left  # a run writes into its own folder
    assert 'parity:' in output
    unpacked = needed() - {_plain(name) for name in (*pack.read_packages(), *machine())}
    assert not unpacked, 'name them in packages.txt'


def needed() -> set[str]:
    """Distributions that the suite imports, ours apart."""
    code = (
        'import sys, json, librosa, gpu.joint, salm_side_by_side\n'
        'import nemo_vtb.training.run, nemo_vtb.backbone.megatron.model\n'
        'print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))'
    )
    environment = os.environ | {'PYTHONPATH': os.pathsep.join([str(FOLDER.parents[1]), str(FOLDER.parent)])}
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], env=environment, capture_output=True, text=True
    )
    tops = json.loads(done.stdout.splitlines()[-1])
    owners = metadata.packages_distributions()
    return {_plain(name) for top in tops for name in owners.get(top, ())} - {'nemo_vtb'}


def machine() -> list[str]:
    """What such a machine has."""
    lines = (FOLDER / 'machine.txt').read_text(encoding='utf-8').splitlines()
    return [name for line in lines if not line.startswith('#') for name in line.split()]


def _plain(name: str) -> str:
    return name.lower().replace('-', '_').replace('.', '_')
