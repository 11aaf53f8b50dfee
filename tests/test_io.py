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

import errno
import multiprocessing
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nemo_vtb.errors import report_errors
from nemo_vtb.io import (
    append_text,
    atomic_replace,
    bring_back,
    cache_dir,
    file_lock,
    json_line,
    map_array,
    parse_json_lines,
    read_json_lines,
    tolerated,
    write_atomically,
)


@pytest.fixture(params=[0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_the_mode_follows_the_umask(tmp_path: Path, umask: int) -> None:
    write_atomically(tmp_path / 'ledger.json', '{}\n')
    assert (tmp_path / 'ledger.json').stat().st_mode & 0o777 == 0o666 & ~umask
    with atomic_replace(tmp_path / 'index', folder=True) as folder:
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
    with pytest.raises(ValueError, match='broken'), atomic_replace(tmp_path / 'index', folder=True) as folder:
        (folder / 'part').write_text('x')
        raise ValueError('broken')
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_process_made_is_kept(tmp_path: Path) -> None:
    with atomic_replace(tmp_path / 'index', folder=True, keep_existing=True) as folder:
        (folder / 'part').write_text('second')
        (tmp_path / 'index').mkdir()
        (tmp_path / 'index' / 'part').write_text('first')
    assert (tmp_path / 'index' / 'part').read_text() == 'first'


def test_a_folder_replaces_another_whole(tmp_path: Path) -> None:
    for number in (1, 2):
        with atomic_replace(tmp_path / 'corpus', folder=True) as folder:
            assert folder.name == 'corpus'
            (folder / 'wav').mkdir()
            (folder / 'wav' / f'{number}.wav').touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob('*.wav')] == ['corpus/wav/2.wav']
    assert [path.name for path in tmp_path.iterdir()] == ['corpus']


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'corpus').mkdir()
    (tmp_path / 'corpus' / 'old').touch()
    rename = os.rename

    def fail(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / 'corpus' and not list(Path(source).iterdir()):
            raise OSError('full')
        rename(source, target)

    monkeypatch.setattr('os.rename', fail)
    with pytest.raises(OSError, match='full'), atomic_replace(tmp_path / 'corpus', folder=True):
        pass
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob('*')] == ['corpus', 'corpus/old']


def test_a_line_that_was_cut_off_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / 'history.jsonl'
    assert read_json_lines(path) == []
    path.write_bytes('{"a": "\u2028"}\n'.encode() + b'{"b": \xc3\n[1]\n{"c"')
    assert read_json_lines(path) == [{'a': '\u2028'}, [1]]


def test_a_lock_is_free_when_its_holder_dies(tmp_path: Path) -> None:
    path = tmp_path / 'locks' / 'a.lock'
    context = multiprocessing.get_context('fork')
    held = context.Event()

    def hold() -> None:
        with file_lock(path):
            held.set()
            # the kernel frees the lock of a process that dies
            os.kill(os.getpid(), 9)

    child = context.Process(target=hold)
    child.start()
    assert held.wait(60)
    child.join()
    with file_lock(path) as waited:
        assert not waited


def test_nothing_heavy_is_loaded() -> None:
    code = 'import sys, nemo_vtb.io; sys.exit(bool({"torch", "numpy", "nemo"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0


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


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv('NEMO_VTB_CACHE', str(tmp_path / 'own'))
    assert cache_dir() == tmp_path / 'own'
    monkeypatch.delenv('NEMO_VTB_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    assert cache_dir() == tmp_path / 'xdg' / 'nemo_vtb'
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert cache_dir() == tmp_path / '.cache' / 'nemo_vtb'


ODD_TEXTS = [f'a{character}b' for character in '\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029\0\ud800\udfff\ufeff']


def test_json_lines_end_with_a_line_feed_and_nothing_else(tmp_path: Path) -> None:
    written = ''.join(map(json_line, ([number, text] for number, text in enumerate(ODD_TEXTS))))
    values = [[number, text] for number, text in enumerate(ODD_TEXTS)]
    assert parse_json_lines(written) == values
    (tmp_path / 'a.jsonl').write_text(written, encoding='utf-8', newline='')
    assert read_json_lines(tmp_path / 'a.jsonl') == values
    assert parse_json_lines((tmp_path / 'a.jsonl').read_bytes() + b'\n\n') == values


def test_a_json_line_that_is_cut_is_skipped_only_where_that_is_meant(tmp_path: Path) -> None:
    (tmp_path / 'a.jsonl').write_bytes(b'{"a": 1}\n{"a": ')
    assert read_json_lines(tmp_path / 'a.jsonl') == [{'a': 1}]
    with pytest.raises(ValueError, match='Expecting value'):
        parse_json_lines('{"a": 1}\n{"a": ')


def test_nobody_cuts_json_lines_with_splitlines() -> None:
    package = Path(__file__).parents[1] / 'nemo_vtb'
    for path in package.rglob('*.py'):
        for number, line in enumerate(path.read_text(encoding='utf-8').split('\n'), start=1):
            assert not ('.splitlines()' in line and 'json' in line), f'{path.name}:{number}'


def test_an_append_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / 'new' / 'lines'
    append_text(path, 'one\n')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match='too large'):
            append_text(path, 'two\n' * 9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == 'one\n'
    append_text(path, 'three\n')
    assert path.read_text() == 'one\nthree\n'


def test_only_a_disk_is_tolerated(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        with tolerated('history.jsonl'):
            raise OSError(errno.ENOSPC, 'No space left on device')
    assert len(caplog.records) == 1 and 'disk is full' in caplog.text
    with pytest.raises(BrokenPipeError), tolerated('history.jsonl'):
        raise BrokenPipeError(errno.EPIPE, 'Broken pipe')


def test_a_script_names_what_the_disk_says(capsys: pytest.CaptureFixture) -> None:
    @report_errors
    def main() -> None:
        raise OSError(errno.EROFS, 'Read-only file system', '/run/config.yaml')

    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err
    assert end.value.code == 2 and 'file system is read-only' in said and '/run/config.yaml' in said


def test_a_mapped_file_holds_no_descriptor(tmp_path: Path) -> None:
    """`np.memmap` holds one for each array: a hundred sources, or an LLM's tensors, were more than a process may."""
    path, values = tmp_path / 'x.npy', np.arange(5000, dtype=np.int64)
    np.save(path, values)
    before = len(os.listdir('/proc/self/fd'))
    mapped = [map_array(path) for _ in range(9)]
    assert len(os.listdir('/proc/self/fd')) == before
    path.unlink()  # as an index that vanishes while it is used
    assert all(np.array_equal(each, values) and not each.flags.writeable for each in mapped)
    with pytest.raises(OSError, match='No such file'):
        map_array(path)
    np.save(path, values)
    os.truncate(path, 4096)
    with pytest.raises(ValueError, match='shape'):
        map_array(path)
