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
"""Reads data files out of packages (.whl, .tgz, .tar.gz, .deb) without installing them or running their code."""

import io
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from nemo_vtb.errors import VtbAssetError

_AR_MAGIC = b'!<arch>\n'
_AR_HEADER = 60


def members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Regular files of a package in archive order; each stream is valid until the next step.

    Args:
        path: A .whl, .zip, .tgz, .tar.gz or .deb file.

    Returns:
        Pairs of the name, without a leading './', and a readable stream.

    Raises:
        VtbAssetError: The file is broken or of another format.
    """
    try:
        if path.suffix in ('.whl', '.zip'):
            yield from _zip_members(path)
        elif path.suffix == '.deb':
            yield from _deb_members(path)
        else:
            with tarfile.open(path, 'r|gz') as archive:
                yield from _tar_members(archive)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise VtbAssetError(
            'A package cannot be unpacked.',
            field=str(path),
            got=str(error),
            remedy='delete the file and try again',
        ) from error


def extract(path: Path, targets: Mapping[str, Path]) -> None:
    """Write some files of a package to the given places.

    Args:
        path: The package.
        targets: Name inside the package -> file to write.

    Raises:
        VtbAssetError: A name is not in the package, or the package is broken.
    """
    missing = dict(targets)
    for name, stream in members(path):
        target = missing.pop(name, None)
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open('wb') as out:
                shutil.copyfileobj(stream, out, 1 << 20)
        if not missing:
            return
    if missing:
        raise VtbAssetError(
            'A package does not hold the files that were expected in it.',
            field=str(path),
            got='no ' + ', '.join(missing),
            remedy='delete the file and try again; if it stays so, report it to the nemo_vtb authors',
        )


def _zip_members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                with archive.open(info) as stream:
                    yield info.filename, stream


def _tar_members(archive: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    for info in archive:
        stream = archive.extractfile(info) if info.isreg() else None
        if stream is not None:
            yield info.name.removeprefix('./'), stream


def _deb_members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    suffix, start, size = _deb_data(path)
    if suffix in ('.tar.xz', '.tar.gz', '.tar'):
        with path.open('rb') as stream:
            stream.seek(start)
            data = io.BytesIO(stream.read(size))
        with tarfile.open(fileobj=data, mode='r:*') as archive:
            yield from _tar_members(archive)
        return
    # Python 3.11 has no zstd, which newer Debian releases use; dpkg-deb comes with every such release
    if shutil.which('dpkg-deb') is None:
        raise VtbAssetError(
            'A .deb package cannot be unpacked.',
            field=str(path),
            got=f'compression {suffix}',
            remedy='install the Debian package dpkg',
        )
    done = subprocess.run(['dpkg-deb', '--fsys-tarfile', str(path)], capture_output=True, check=False)
    with tarfile.open(fileobj=io.BytesIO(done.stdout), mode='r:') as archive:
        yield from _tar_members(archive)


def _deb_data(path: Path) -> tuple[str, int, int]:
    """Suffix, offset and size in bytes of the data archive inside a .deb, which is an `ar` archive."""
    with path.open('rb') as stream:
        if stream.read(len(_AR_MAGIC)) != _AR_MAGIC:
            raise tarfile.ReadError('not a Debian package')
        while len(header := stream.read(_AR_HEADER)) == _AR_HEADER:
            name = header[:16].decode('ascii', 'replace').rstrip().rstrip('/')
            size = int(header[48:58])
            if name.startswith('data.tar'):
                return name.removeprefix('data'), stream.tell(), size
            stream.seek(size + size % 2, io.SEEK_CUR)
    raise tarfile.ReadError('a Debian package without data')
