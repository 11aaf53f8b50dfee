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
"""Files are whole or absent, and others may read what the user's umask lets them read."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_vtb.io import atomic_folder, bring_back, write_atomically


@pytest.fixture(params=[0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_the_mode_follows_the_umask(tmp_path: Path, umask: int) -> None:
    write_atomically(tmp_path / 'ledger.json', '{}\n')
    assert (tmp_path / 'ledger.json').stat().st_mode & 0o777 == 0o666 & ~umask
    with atomic_folder(tmp_path / 'index') as folder:
        (folder / 'meta.json').write_text('{}')
    assert (tmp_path / 'index').stat().st_mode & 0o777 == 0o777 & ~umask


def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / 'a', 'old')
    monkeypatch.setattr('os.replace', lambda *_: (_ for _ in ()).throw(OSError('full')))
    with pytest.raises(OSError, match='full'):
        write_atomically(tmp_path / 'a', 'new')
    assert [p.name for p in tmp_path.iterdir()] == ['a']
    assert (tmp_path / 'a').read_text() == 'old'


def test_an_error_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='broken'), atomic_folder(tmp_path / 'index') as folder:
        (folder / 'part').write_text('x')
        raise ValueError('broken')
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_process_made_is_kept(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / 'index') as folder:
        (folder / 'part').write_text('second')
        (tmp_path / 'index').mkdir()
        (tmp_path / 'index' / 'part').write_text('first')
    assert (tmp_path / 'index' / 'part').read_text() == 'first'


def test_what_a_resume_has_moved_away_comes_back(tmp_path: Path) -> None:
    """NeMo moves every file of a run to run_<n>/ when it resumes; a curve must not begin anew."""
    path = tmp_path / 'history.jsonl'
    assert not bring_back(path)
    for number in (0, 2, 10):
        (tmp_path / f'run_{number}').mkdir()
        (tmp_path / f'run_{number}' / 'history.jsonl').write_text(f'{number}\n')
    (tmp_path / 'run_11').mkdir()  # killed before it wrote one
    (tmp_path / 'run_old').mkdir()
    assert bring_back(path)
    assert path.read_text() == '10\n'
    path.write_text('new')
    assert not bring_back(path)
    assert path.read_text() == 'new'
