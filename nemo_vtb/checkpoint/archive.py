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
"""The `.nemo` archive: written in one form only, read with suspicion. Nothing of torch, nothing is unpacked unasked.

A file of ours is a tar of plain files whose last member, the manifest, holds size and SHA-256 of each other member and
of itself. Each byte is accounted for: headers must be those that we write, padding must be zero. Archives of NeMo (an
ASR model, a file of our first version) have no manifest; they are read under the same rules for names and kinds.
"""

import gzip
import hashlib
import json
import stat
import tarfile
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from nemo_vtb.checkpoint.foreign_limits import parse_yaml
from nemo_vtb.errors import VtbCheckpointError
from nemo_vtb.io import atomic_path, owned_name

CONFIG = 'model_config.yaml'
MANIFEST = 'manifest.json'
FORMAT = 2
"""Version of the layout, in the manifest; raised when an older reader would misread a file."""

_OLDER_MANIFEST = 'passport.json'
_OLDER_KEYS = {'values': 'parameters'}

_BLOCK, _CHUNK = 512, 2**20
_MAX_MEMBERS = 4096
_MAX_TEXT_BYTES = 64 * 2**20
# weights hardly compress: what grows beyond this was made to fill a disk
_MAX_GROWTH, _FREE_GROWTH = 8, 64 * 2**20

_COLUMNS = tuple('task source name measure metric n base model ours kept low high signature'.split())


@dataclass(frozen=True, slots=True)
class Member:
    """Bytes of a file: `size` of them from `offset` on; a whole file has offset 0."""

    path: Path
    offset: int
    size: int

    @classmethod
    def whole(cls, path: Path) -> 'Member':
        """A file as it stands on disk."""
        return cls(path, 0, path.stat().st_size)

    def chunks(self) -> Iterator[bytes]:
        """The bytes, a piece at a time.

        Raises:
            VtbCheckpointError: The file ends before.
        """
        with self.path.open('rb') as stream:
            stream.seek(self.offset)
            left = self.size
            while left:
                piece = stream.read(min(_CHUNK, left))
                if not piece:
                    raise broken(self.path, f'it ends {left} bytes too early')
                left -= len(piece)
                yield piece

    def digest(self) -> str:
        """SHA-256 of the bytes."""
        return _copy(self, lambda piece: None)

    def text(self) -> str:
        """The content of a small text file.

        Raises:
            VtbCheckpointError: It is no UTF-8 text, or longer than any configuration is.
        """
        if self.size > _MAX_TEXT_BYTES:
            raise broken(self.path, f'a text of {self.size} bytes')
        try:
            return b''.join(self.chunks()).decode('utf-8')
        except UnicodeDecodeError as error:
            raise broken(self.path, f'{error}') from error


# ---- writing


def write_archive(path: Path, files: Mapping[str, Member], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write an archive in its one form; the caller puts it in place (`atomic_path`).

    Args:
        path: Where.
        files: Name -> content.
        manifest: What the file says about itself; sizes and digests are added.

    Returns:
        The manifest as written.
    """
    members: dict[str, dict[str, Any]] = {}
    with path.open('wb') as out:
        for name, member in files.items():
            out.write(_header(name, member.size))
            digest = _copy(member, out.write)
            out.write(bytes(-member.size % _BLOCK))
            members[name] = {'bytes': member.size, 'sha256': digest}
        raw = _seal({**manifest, 'format': FORMAT, 'members': members})
        out.write(_header(MANIFEST, len(raw)) + raw + bytes(-len(raw) % _BLOCK))
        out.write(bytes(2 * _BLOCK))
    return json.loads(raw)


def change_sections(path: Path, sections: Mapping[str, Any]) -> None:
    """Replace sections of a manifest; the weights are copied as they are.

    Args:
        path: A file of ours; replaced when the new one is whole.
        sections: Name -> what `json` can write.

    Raises:
        VtbCheckpointError: The file is damaged, or has no manifest.
    """
    members = read_members(path)
    manifest = read_manifest(path, members)
    if manifest is None:
        raise broken(path, f'no {MANIFEST} in it')
    files = {name: members[name] for name in manifest['members']}
    with atomic_path(path) as temporary:
        written = write_archive(temporary, files, {**manifest, **sections})
        for name in files:
            check_digest(path, name, written['members'][name]['sha256'], manifest)


def in_order(names: Iterable[str]) -> list[str]:
    """Names of measures in the order of a table; the JSON of a manifest is sorted by name."""
    return sorted(names, key=lambda name: _COLUMNS.index(name) if name in _COLUMNS else len(_COLUMNS))


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(f'./{name}')
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info.tobuf(tarfile.GNU_FORMAT)


def _copy(member: Member, write: Callable[[bytes], Any]) -> str:
    digest = hashlib.sha256()
    for piece in member.chunks():
        digest.update(piece)
        write(piece)
    return digest.hexdigest()


def _seal(manifest: Mapping[str, Any]) -> bytes:
    body = {key: value for key, value in manifest.items() if key != 'sha256'}
    plain = json.loads(json.dumps(body, default=str))
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    return json.dumps({**plain, 'sha256': digest}, indent=1, sort_keys=True).encode()


# ---- reading


def read_members(path: Path) -> dict[str, Member]:
    """The plain files of an archive by name, without reading their contents.

    Raises:
        VtbCheckpointError: It is no complete tar, or holds what a model file has no use for: links, devices, sparse
            files, names that lead out of the folder or occur twice. Nothing is skipped in silence.
    """
    members: dict[str, Member] = {}
    end = 0
    try:
        total = path.stat().st_size
        with tarfile.open(path, 'r:') as tar:
            for info in tar:
                name = _checked_name(path, info)
                end = info.offset_data + -(-info.size // _BLOCK) * _BLOCK
                if end > total:
                    raise broken(path, f'{info.name} ends {end - total} bytes behind the end of the file')
                if info.isdir():
                    continue
                if name in members or len(members) == _MAX_MEMBERS:
                    raise hostile(path, f'{info.name} occurs twice' if name in members else 'too many members')
                members[name] = Member(path, info.offset_data, info.size)
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        raise broken(path, f'{type(error).__name__}: {error}') from error
    rest = total - end
    # tarfile takes a damaged header for the end of the archive
    if not members or rest < 2 * _BLOCK or any(any(piece) for piece in Member(path, end, rest).chunks()):
        raise broken(path, f'no end of archive behind {list(members)[-1:]}')
    return members


def _checked_name(path: Path, info: tarfile.TarInfo) -> str:
    parts = PurePosixPath(info.name).parts
    if info.name.startswith('/') or '..' in parts or '\\' in info.name or '\0' in info.name or ':' in info.name:
        raise hostile(path, f'{info.name!r} leads out of the folder')
    if not info.isdir() and (info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.issparse()):
        raise hostile(path, f'{info.name} is a link, a device or a sparse file')
    return '/'.join(parts)


def read_manifest(path: Path, members: Mapping[str, Member]) -> dict[str, Any] | None:
    """The manifest of a file of ours, its own digest and the form of the archive checked; None for other archives.

    Raises:
        VtbCheckpointError: It is damaged, or the archive is not in the form that we write.
    """
    manifest = _listed_manifest(path, members)
    if manifest is None:
        return None
    for name, member in members.items():
        padding = Member(path, member.offset + member.size, -member.size % _BLOCK)
        header = Member(path, member.offset - _BLOCK, _BLOCK)
        if b''.join(header.chunks()) != _header(name, member.size) or any(b''.join(padding.chunks())):
            raise broken(path, f'{name}: its header or padding was changed')
    return manifest


def verify_unpacked(folder: Path) -> dict[str, Any] | None:
    """The manifest of an archive that NeMo's own connector has unpacked, each file compared with it; None without one.

    Raises:
        VtbCheckpointError: A file differs, is missing or is not listed; it is named.
    """
    members = {str(file.relative_to(folder)): Member.whole(file) for file in folder.rglob('*') if file.is_file()}
    manifest = _listed_manifest(folder, members)
    if manifest is not None:
        for name in manifest['members']:
            check_digest(folder, name, members[name].digest(), manifest)
    return manifest


def _listed_manifest(path: Path, members: Mapping[str, Member]) -> dict[str, Any] | None:
    own = next((name for name in (MANIFEST, _OLDER_MANIFEST) if name in members), None)
    if own is None:
        return None
    manifest = _parse_manifest(path, members[own])
    listed, others = manifest['members'].keys(), members.keys() - {own}
    if listed != others:
        raise broken(path, f'{sorted(listed ^ others)[:4]} are in the archive or in {own}, but not in both')
    return manifest


def _parse_manifest(path: Path, member: Member) -> dict[str, Any]:
    raw = member.text()
    try:
        manifest = json.loads(raw)
        whole = isinstance(manifest, dict) and _seal(manifest) == raw.encode()
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise broken(path, 'its manifest does not have the SHA-256 that it names')
    if manifest['format'] != FORMAT:
        raise broken(path, f'format {manifest["format"]}; this version of nemo_vtb reads {FORMAT}')
    return {_OLDER_KEYS.get(key, key): value for key, value in manifest.items()}


@dataclass(frozen=True, slots=True)
class NemoInfo:
    """What a `.nemo` archive says about itself.

    Args:
        path: The file.
        files: Name -> bytes of every member.
        config: The model's configuration.
        manifest: Template hash, ledger, retention card ...; {} where the file has none.
    """

    path: Path
    files: Mapping[str, int]
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]


def read_info(path: str | Path, *, check: bool = False) -> NemoInfo:
    """Read names, configuration and manifest of a `.nemo` file; nothing is unpacked or executed.

    Args:
        path: The file.
        check: Read every byte and compare each member with its SHA-256.

    Raises:
        VtbCheckpointError: The file is missing, no archive, cut off, changed, or without a configuration.
    """
    path = Path(path)
    with open_plain(path) as plain:
        members = read_members(plain)
        manifest = read_manifest(plain, members) or {}
        if CONFIG not in members:
            raise broken(path, f'no {CONFIG} among {sorted(members)[:8]}')
        config = parse_yaml(members[CONFIG].text())
        if check and manifest:
            for name in manifest['members']:
                check_digest(path, name, members[name].digest(), manifest)
        if not isinstance(config, dict):
            raise broken(path, 'its configuration is no mapping')
        return NemoInfo(path, {name: m.size for name, m in members.items()}, config, manifest)


def extract(path: Path, folder: Path, names: Container[str] | None = None) -> dict[str, Any] | None:
    """Write members into an empty folder, each compared with the SHA-256 of the manifest if there is one.

    Args:
        path: The archive; a compressed one is unpacked first, up to a bound.
        folder: Where the files go.
        names: Which; None takes all.

    Returns:
        The manifest; None where the archive has none.

    Raises:
        VtbCheckpointError: The archive is damaged (the member is named) or hostile.
    """
    with open_plain(path) as plain:
        members = read_members(plain)
        manifest = read_manifest(plain, members)
        for name in members if names is None else [name for name in members if name in names]:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open('xb') as stream:
                digest = _copy(members[name], stream.write)
            if manifest and name in manifest['members']:
                check_digest(path, name, digest, manifest)
    return manifest


def check_digest(path: Path, name: str, digest: str, manifest: Mapping[str, Any]) -> None:
    """Compare a member with its manifest.

    Raises:
        VtbCheckpointError: It differs; the member is named.
    """
    expected = manifest['members'][name]['sha256']
    if digest != expected:
        raise broken(path, f'{name} has SHA-256 {digest[:12]}, its manifest says {expected[:12]}')


@contextmanager
def open_plain(path: Path) -> Iterator[Path]:
    """The archive as an uncompressed file: itself, or a temporary one for an archive of NeMo before 1.7.

    Raises:
        VtbCheckpointError: It cannot be read, or grows beyond any model.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise broken(path, 'no plain file')
        with path.open('rb') as stream:
            compressed = stream.read(2) == b'\x1f\x8b'
    except OSError as error:
        raise broken(path, f'{type(error).__name__}: {error}') from error
    if not compressed:
        yield path
        return
    limit = path.stat().st_size * _MAX_GROWTH + _FREE_GROWTH
    with tempfile.TemporaryDirectory(prefix=f'nemo_vtb_unzip_{owned_name()}_') as folder:
        plain, size = Path(folder) / 'plain.tar', 0
        try:
            with gzip.open(path) as packed, plain.open('wb') as out:
                while piece := packed.read(_CHUNK):
                    size += len(piece)
                    if size > limit:
                        raise hostile(path, f'it unpacks to more than {limit} bytes')
                    out.write(piece)
        except (OSError, EOFError) as error:
            raise broken(path, f'{type(error).__name__}: {error}') from error
        yield plain


def broken(path: Path, got: str) -> VtbCheckpointError:
    """The error for a file that is cut off, damaged or something else."""
    return VtbCheckpointError(
        'This is no complete .nemo file.',
        field=str(path),
        got=got,
        allowed='an archive as nemo_vtb or NeMo wrote it',
        remedy='correct the path, or copy the file again: it may have been cut off or changed on its way',
    )


def hostile(path: Path, got: str) -> VtbCheckpointError:
    """The error for an archive that holds what no model needs."""
    return VtbCheckpointError(
        'This archive holds what a model file never holds; nothing of it is used.',
        field=str(path),
        got=got,
        allowed='plain files, each name once, none outside the archive',
        remedy='do not use the file, and ask its author what it was meant to do',
    )
