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
"""Addresses in manifests and configurations: which are well formed, and which a line may name.

A line is written by whoever made the data. It may name what lies in the store of its own manifest, and what the user
allows; all else would let a stranger make a training node call anywhere.
"""

import posixpath
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from nemo_vtb.data.faults import Reason, data_fault

_SCHEME = re.compile(r'([A-Za-z][A-Za-z0-9+.-]*)://')
_CONTROL = re.compile(r'[\x00-\x1f\x7f\\]')
# what is no store: the disk by another name, or a wrapper of fsspec that opens something else
_NO_STORES = frozenset(
    'asynclocal blockcache cached data dir file filecache generic git jlab jupyter libarchive local pipe reference '
    'simplecache tar zip'.split()
)
_PORTS = {'http': 80, 'https': 443}
ANY = '*'
"Covers every address: to look at a line without opening what it names. No configuration can name it."


def is_address(path: str) -> bool:
    """Whether a path is `scheme://...`."""
    return '://' in path and _SCHEME.match(path) is not None


def scheme_of(address: str) -> str:
    """The scheme of an address in lower case: 's3', 'https'."""
    return address.partition('://')[0].lower()


def split_address(address: str) -> tuple[str, str]:
    """Bucket (or host) and key of an address; in a key of a store `?` and `#` are ordinary characters."""
    bucket, _, key = address.partition('://')[2].partition('/')
    return bucket, key


def store_of(address: str) -> str:
    """The store that an address lies in: scheme and bucket, or scheme, host and port without a user."""
    scheme = scheme_of(address)
    if scheme not in _PORTS:
        return f'{scheme}://{split_address(address)[0]}'
    parts = urlsplit(address)
    return f'{scheme}://{(parts.hostname or "").lower()}:{parts.port or _PORTS[scheme]}'


def without_query(address: str) -> str:
    """The address of a web server without user, password and query, which may change; any other as it is."""
    scheme, _, rest = address.partition('://')
    if scheme.lower() not in _PORTS:
        return f'{scheme.lower()}://{rest}'
    host, slash, key = rest.partition('/')
    return f'{scheme.lower()}://{host.rpartition("@")[2]}{slash}{key.partition("?")[0]}'


def folder_of(address: str) -> str:
    """The address of the folder of an object, which no signature holds for."""
    return address.partition('?')[0].rpartition('/')[0]


def parent_of(path: str) -> str:
    """The folder of a file or an object."""
    return folder_of(path) if is_address(path) else str(Path(path).parent)


def malformed(address: str) -> str | None:
    """What is wrong with an address; None where it can be one of an object."""
    if _CONTROL.search(address):
        return 'a control character or a backslash'
    if scheme_of(address) in _NO_STORES:
        return f'{scheme_of(address)}:// is no object store'
    bucket, key = split_address(address)
    try:
        store_of(address)
    except ValueError as error:  # a port that is no number
        return str(error)
    if not bucket.rpartition('@')[2] or not key:
        return 'no bucket (or host), or no object in it'
    path = unquote(key.partition('?')[0]) if scheme_of(address) in _PORTS else key
    if any(part in ('.', '..') for part in path.split('/')):
        return 'a step to another folder (..)'
    return None


def covers(entry: str, address: str) -> bool:
    """Whether an entry of `data.allowed_urls` names an address: its store, and the beginning of its path."""
    if entry == ANY:
        return True
    if not is_address(entry) or store_of(entry) != store_of(address):
        return False
    wanted = without_query(entry).partition('://')[2].partition('/')[2].rstrip('/')
    path = without_query(address).partition('://')[2].partition('/')[2]
    return not wanted or path == wanted or path.startswith(f'{wanted}/')


def resolve_address(path: str, base: str, allowed: Iterable[str]) -> str:
    """The address that a line names, itself or beside its manifest.

    Args:
        path: An address, or a path that counts from `base`.
        base: Folder of the manifest (or archive, with `!` behind it), perhaps an address.
        allowed: Addresses that the user allows, and stores that the configuration names.

    Raises:
        VtbDataError: With the reason `refused_path`: nobody allowed it.
    """
    if not is_address(path):  # beside the manifest: steps up are taken here, within its store
        scheme, _, rest = base.partition('://')
        bucket, _, folder = rest.partition('/')
        return f'{scheme}://{bucket}{posixpath.normpath("/" + "/".join(filter(None, (folder, path))))}'
    wrong = malformed(path)
    own = not wrong and is_address(base) and store_of(base) == store_of(path)
    if wrong or not (own or any(covers(entry, path) for entry in allowed)):
        raise data_fault(
            Reason.REFUSED_PATH,
            field='value',
            got=f'{path}: {wrong}' if wrong else path,
            allowed='a path, or an address in the store of its manifest or in data.allowed_urls',
            remedy=None if wrong else f"data.allowed_urls=['{store_of(path)}/'] if it may be fetched",
        )
    return path


def stores_named(paths: Sequence[str]) -> tuple[str, ...]:
    """The stores of the addresses that a configuration names."""
    return tuple(dict.fromkeys(store_of(path) for path in paths if is_address(path)))
