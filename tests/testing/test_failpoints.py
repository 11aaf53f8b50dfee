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
"""A script is broken at exactly the operation that was named, by a real process that really dies."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_vtb.errors import VtbConfigError
from nemo_vtb.testing.failpoints import Failpoint, damage

SCRIPT = """
import os, sys
from pathlib import Path
folder = Path(sys.argv[1])
for number in range(4):
    new = folder / f'new-{number}'
    new.write_text('x' * 100)
    os.replace(new, folder / f'file-{number}')
print('end')
"""


def run(tmp_path: Path, failpoint: str, script: str = SCRIPT) -> subprocess.CompletedProcess:
    (tmp_path / 'script.py').write_text(script)
    (tmp_path / 'out').mkdir(exist_ok=True)
    command = [sys.executable, '-m', 'nemo_vtb.testing.failpoints', failpoint, 'script.py', 'out']
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / 'out').iterdir())


@pytest.mark.parametrize(
    ('failpoint', 'code', 'left'),
    [
        ('replace:3:kill', -signal.SIGKILL, ['file-0', 'file-1', 'new-2']),
        ('replace:3:kill_after', -signal.SIGKILL, ['file-0', 'file-1', 'file-2']),
        ('open@*new-1:1:kill', -signal.SIGKILL, ['file-0']),
        ('replace:3:SIGTERM', -signal.SIGTERM, ['file-0', 'file-1', 'new-2']),
        ('open@*new-2:1:ENOSPC', 1, ['file-0', 'file-1']),
        ('replace@*file-9:1:kill', 0, ['file-0', 'file-1', 'file-2', 'file-3']),
    ],
)
def test_at_the_named_operation(tmp_path: Path, failpoint: str, code: int, left: list[str]) -> None:
    done = run(tmp_path, failpoint)
    assert done.returncode == code, done.stderr
    assert files(tmp_path) == left
    assert ('No space left on device' in done.stderr) == ('ENOSPC' in failpoint)


def test_a_finished_file_is_damaged(tmp_path: Path) -> None:
    assert run(tmp_path, 'replace:2:flip,replace:3:cut').returncode == 0
    contents = [(tmp_path / 'out' / f'file-{number}').read_bytes() for number in range(4)]
    assert [len(content) for content in contents] == [100, 100, 50, 100]
    turned = [a ^ b for a, b in zip(contents[0], contents[1], strict=True) if a != b]
    assert len(turned) == 1 and turned[0].bit_count() == 1


def test_a_torn_save_and_a_trace(tmp_path: Path) -> None:
    script = "import torch; torch.save({'a': torch.zeros(9999)}, 'out/a.pt'); torch.save([], 'out/b.pt')"
    assert run(tmp_path, f'trace={tmp_path}/trace.jsonl', script).returncode == 0
    lines = [json.loads(line) for line in (tmp_path / 'trace.jsonl').read_text().splitlines()]
    assert [(line['number'], line['path']) for line in lines if line['operation'] == 'save'] == [
        (1, 'out/a.pt'), (2, 'out/b.pt'),
    ]  # fmt: skip
    whole = (tmp_path / 'out/a.pt').stat().st_size
    done = run(tmp_path, 'save:1:tear', script)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / 'out/a.pt').stat().st_size == pytest.approx(whole // 2, abs=512)


@pytest.mark.parametrize('text', ['replace', 'replace:0:kill', 'write:1:kill', 'open:1:EWHAT', 'open:1:tear'])
def test_wrong_forms_are_refused(text: str) -> None:
    with pytest.raises(VtbConfigError) as error:
        Failpoint.parse(text)
    assert error.value.field == 'failpoint'


def test_damage_leaves_folders_alone(tmp_path: Path) -> None:
    damage(tmp_path, 'cut')
    (tmp_path / 'empty').touch()
    damage(tmp_path / 'empty', 'flip')
    assert (tmp_path / 'empty').read_bytes() == b''
