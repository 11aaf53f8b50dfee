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
"""The SHA-256 of a checkpoint, inside its own file: one rename puts both in place, and no copy can lose it.

`torch.save` writes a zip archive. Its comment, the last bytes of the file, holds the digest of all bytes before it, so
that any program still reads the archive, and any bit that was turned, also one of the digest, is noticed.
"""

import hashlib
import zipfile
from pathlib import Path
from typing import IO

from nemo_vtb.errors import VtbCheckpointError

_MARK = b'nemo_vtb sha256 '
_NOTE = len(_MARK) + 64
_END = b'PK\x05\x06'  # the last record of a zip archive: 22 bytes, of which the last two are the length of the comment
_END_SIZE = 22
_BLOCK = 1 << 20
_verified: set[tuple] = set()  # files of this process whose digest was right, so that loading does not read them twice


class SealedFile:
    """What `torch.save` writes into; counts the digest on the way. `close` completes the archive."""

    def __init__(self, path: str | Path) -> None:
        self.name = str(path)
        self._stream: IO[bytes] = open(path, 'wb')
        self._digest = hashlib.sha256()
        self._held = b''  # the end of what came: the length of the comment in it will change

    def write(self, block: bytes) -> int:
        """Append; the last two bytes wait."""
        whole = self._held + bytes(block)
        self._put(whole[:-2])
        self._held = whole[-2:]
        return len(block)

    def flush(self) -> None:
        """Hand over to the system what may already go there."""
        self._stream.flush()

    def close(self) -> None:
        """Write the digest and close the file."""
        self._put(_NOTE.to_bytes(2, 'little') + _MARK)
        self._stream.write(self._digest.hexdigest().encode())
        self.abort()

    def abort(self) -> None:
        """Close the file as it is."""
        self._stream.close()

    def _put(self, block: bytes) -> None:
        self._digest.update(block)
        self._stream.write(block)


def verify_file(path: str | Path) -> bool:
    """Compare a file with the digest in it.

    Returns:
        True; or False for a file of an earlier version without a digest, of which only the archive's own sums of 32
        bits were compared.

    Raises:
        VtbCheckpointError: The file is missing, cut off or changed.
    """
    path = Path(path)
    try:
        stat = path.stat()
        if not path.is_file():  # a pipe would be waited for
            raise OSError('no plain file')
        key = (str(path.absolute()), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if key in _verified:
            return True
        with path.open('rb') as stream:
            stream.seek(max(0, stat.st_size - _NOTE - _END_SIZE))
            end = stream.read()
            note = end[-_NOTE:]
            if not note.startswith(_MARK):
                _check_sums(path, end[-_END_SIZE:])
                return False
            stream.seek(0)
            found = _digest(stream, stat.st_size - 64)
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise damaged(path, str(error)) from error
    if found.encode() != note[len(_MARK) :]:
        raise damaged(
            path, f'SHA-256 {found[:16]}..., written was {note[len(_MARK) :][:16].decode(errors="replace")}...'
        )
    _verified.add(key)
    return True


def damaged(path: str | Path, why: str) -> VtbCheckpointError:
    """The error of a checkpoint that is not what was written."""
    return VtbCheckpointError(
        'The checkpoint cannot be read: it is not as it was written.',
        field='checkpoint',
        got=f'{path}: {why}',
        allowed='a complete, unchanged file that this toolkit wrote',
        remedy='start the run again: it takes the newest checkpoint that is whole; or copy the file anew',
    )


def _check_sums(path: Path, end: bytes) -> None:
    if end[:4] != _END or end[-2:] != b'\0\0':
        raise ValueError('it is cut off, or no checkpoint')
    with zipfile.ZipFile(path) as archive:
        if wrong := archive.testzip():
            raise ValueError(f'{wrong} was changed')


def _digest(stream: IO[bytes], size: int) -> str:
    digest = hashlib.sha256()
    while size and (block := stream.read(min(size, _BLOCK))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest()
