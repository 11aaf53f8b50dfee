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
"""The archive accounts for each of its bytes and refuses what no model file holds."""

import gzip
import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_vtb.checkpoint.archive import Member, extract, open_plain, read_manifest, read_members, write_archive
from nemo_vtb.errors import VtbCheckpointError


@pytest.fixture
def written(tmp_path: Path) -> Path:
    (tmp_path / 'a').write_bytes(random.Random(0).randbytes(3000))
    (tmp_path / 'b').write_bytes(b'')
    files = {'a.bin': Member.whole(tmp_path / 'a'), 'b.txt': Member.whole(tmp_path / 'b')}
    write_archive(tmp_path / 'x.nemo', files, {'note': 1.5})
    return tmp_path / 'x.nemo'


def unpack(path: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    extract(path, folder)


def test_round_trip(written: Path, tmp_path: Path) -> None:
    members = read_members(written)
    manifest = read_manifest(written, members)
    assert manifest is not None and manifest['note'] == 1.5
    assert manifest['members']['a.bin'] == {'bytes': 3000, 'sha256': members['a.bin'].digest()}
    unpack(written, tmp_path / 'out')
    assert (tmp_path / 'out' / 'a.bin').read_bytes() == (tmp_path / 'a').read_bytes()
    with tarfile.open(written) as tar:  # any tar reads it
        assert tar.getnames() == ['./a.bin', './b.txt', './manifest.json']


def test_each_changed_byte_and_each_cut_is_refused(written: Path, tmp_path: Path) -> None:
    raw = written.read_bytes()
    for position in range(0, len(raw), 3):
        damaged = bytearray(raw)
        damaged[position] ^= 1 << position % 8
        (tmp_path / 'bad').write_bytes(damaged)
        with pytest.raises(VtbCheckpointError):
            unpack(tmp_path / 'bad', tmp_path / 'out')
    for length in range(0, len(raw), 7):
        (tmp_path / 'bad').write_bytes(raw[:length])
        with pytest.raises(VtbCheckpointError):
            unpack(tmp_path / 'bad', tmp_path / 'out')


def test_the_changed_member_is_named(written: Path, tmp_path: Path) -> None:
    raw = bytearray(written.read_bytes())
    raw[600] ^= 1
    written.write_bytes(raw)
    with pytest.raises(VtbCheckpointError, match=r'a\.bin has SHA-256'):
        unpack(written, tmp_path / 'out')


def plain(name: str, content: bytes = b'x') -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def special(name: str, kind: bytes, link: str = '') -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, b''


HOSTILE: dict[str, list[tuple[tarfile.TarInfo, bytes]]] = {
    'traversal': [plain('../sentinel')],
    'hidden traversal': [plain('a/../../sentinel')],
    'absolute': [plain('/tmp/sentinel')],
    'backslash': [plain('..\\sentinel')],
    'drive': [plain('C:sentinel')],
    'symbolic link': [special('a', tarfile.SYMTYPE, '/etc/passwd')],
    'link, then through it': [special('d', tarfile.SYMTYPE, '..'), plain('d/sentinel')],
    'hard link': [special('a', tarfile.LNKTYPE, '/etc/passwd')],
    'device': [special('a', tarfile.CHRTYPE)],
    'block device': [special('a', tarfile.BLKTYPE)],
    'pipe': [special('a', tarfile.FIFOTYPE)],
    'sparse file': [special('a', tarfile.GNUTYPE_SPARSE)],
    'duplicate': [plain('a'), plain('./a', b'y')],
}


@pytest.mark.parametrize('case', HOSTILE)
def test_hostile_archives(case: str, tmp_path: Path) -> None:
    path = tmp_path / 'in' / 'x.nemo'
    path.parent.mkdir()
    with tarfile.open(path, 'w') as tar:
        for info, content in [plain('model_config.yaml', b'target: x'), *HOSTILE[case]]:
            tar.addfile(info, io.BytesIO(content))
    before = sorted(p.name for p in tmp_path.iterdir())
    (tmp_path / 'in' / 'out').mkdir()
    with pytest.raises(VtbCheckpointError, match='never holds'):
        extract(path, tmp_path / 'in' / 'out')
    assert not list((tmp_path / 'in' / 'out').iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == before and not Path('/tmp/sentinel').exists()


def test_a_bomb_stops_early(tmp_path: Path) -> None:
    path = tmp_path / 'bomb.nemo'
    with gzip.open(path, 'wb', compresslevel=9) as stream:
        for _ in range(100):
            stream.write(bytes(2**20))
    with pytest.raises(VtbCheckpointError, match='unpacks to more than'), open_plain(path):
        pass
    with tarfile.open(path, 'w:gz') as tar:  # an archive of NeMo 1.0 is compressed too
        info, content = plain('./model_config.yaml', b'target: x')
        tar.addfile(info, io.BytesIO(content))
    with open_plain(path) as unpacked:
        assert list(read_members(unpacked)) == ['model_config.yaml']


def swap(written: Path, change: Callable[[dict[str, Member]], dict[str, Member]]) -> None:
    members = read_members(written)
    manifest = read_manifest(written, members)
    with tarfile.open(written.with_suffix('.new'), 'w', format=tarfile.GNU_FORMAT) as tar:
        for name, member in change(members).items():
            info, content = plain(f'./{name}', b''.join(member.chunks()))
            info.mtime = 0
            tar.addfile(info, io.BytesIO(content))
    assert manifest is not None
    written.with_suffix('.new').rename(written)


def test_members_more_or_less_than_the_manifest_lists(written: Path, tmp_path: Path) -> None:
    swap(written, lambda members: {n: m for n, m in members.items() if n != 'a.bin'})
    with pytest.raises(VtbCheckpointError, match=r'a\.bin.*but not in both'):
        extract(written, tmp_path)
