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
"""Small file tools of the asset cache: checksums, locks between processes, durable writes."""

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from nemo_vtb.errors import VtbAssetError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def sha256_of(path: Path) -> str:
    """sha256 of a file, 64 hexadecimal digits."""
    with path.open('rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[bool]:
    """Hold an exclusive lock between processes; yields True if another process was waited for.

    The kernel drops the lock when its holder dies, so a killed process never blocks the next one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        waited = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield waited
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Flush every file below a folder, and the folders themselves, to the disk."""
    for path in (*folder.rglob('*'), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def full_disk_error(folder: Path, needed_mb: float) -> VtbAssetError:
    """The error for a disk without room for `needed_mb` MB below `folder`."""
    return VtbAssetError(
        'There is not enough room on the disk for an embedded asset.',
        field=str(folder),
        allowed=f'at least {needed_mb:.0f} MB free',
        remedy='free some space, or point NEMO_VTB_CACHE to a folder on a larger disk',
    )
