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
"""Collect what a machine with a GPU and without a network lacks into `.gpu` (ignored by git), and check the size.

python benchmarks/gpu/pack.py [--te te.tar.xz]     `make gpu-pack [TE=te.tar.xz]` does the same
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIMIT = 64 * 2**20
"""Bytes that such a machine takes: the working tree and `.gpu` together."""
SPARE = 2**20
PLATFORMS = ('manylinux_2_28', 'manylinux_2_27', 'manylinux_2_24', 'manylinux_2_17', 'manylinux2014', 'manylinux1')
FROM_SOURCE = ('antlr4-python3-runtime',)
"""Published without a wheel; pure Python."""


def read_packages(file: Path = HERE / 'packages.txt') -> dict[str, str]:
    """Name -> version of what is packed; lines after a hash are comments."""
    lines = (line.split('#')[0].strip() for line in file.read_text(encoding='utf-8').splitlines())
    return dict(line.split('==') for line in lines if line)


def wheel_of(name: str, version: str, folder: Path) -> Path | None:
    """The wheel of a package, however its file spells the name."""
    named = {(_plain(wheel.name.split('-')[0]), wheel.name.split('-')[1]): wheel for wheel in folder.glob('*.whl')}
    return named.get((_plain(name), version))


def _plain(name: str) -> str:
    return name.lower().replace('-', '_').replace('.', '_')


def download(packages: dict[str, str], folder: Path) -> None:
    """Fetch wheels for Python 3.12 on Linux that are not there yet.

    Raises:
        SystemExit: One cannot be had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = ['--only-binary=:all:', '--python-version', '3.12', '--implementation', 'cp']
    target += [word for platform in PLATFORMS for word in ('--platform', f'{platform}_x86_64')]
    for name, version in packages.items():
        if wheel_of(name, version, folder):
            continue
        how = ['wheel', '-w', str(folder)] if name in FROM_SOURCE else ['download', *target, '-d', str(folder)]
        done = subprocess.run(
            [sys.executable, '-m', 'pip', how[0], '-q', '--no-deps', *how[1:], f'{name}=={version}'],
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode or not wheel_of(name, version, folder):
            raise SystemExit(f'{name}=={version} cannot be had for Python 3.12:\n{done.stderr[-800:]}')


def unpack(packages: dict[str, str], folder: Path, site: Path) -> None:
    """Lay the wheels out as pip would: one archive of all is smaller than they are, and quick to unpack."""
    for name, version in packages.items():
        wheel = wheel_of(name, version, folder)
        assert wheel is not None, name
        zipfile.ZipFile(wheel).extractall(site)
    for data in site.glob('*.data'):
        for kind in ('purelib', 'platlib'):
            if (data / kind).is_dir():
                shutil.copytree(data / kind, site, dirs_exist_ok=True)
        shutil.rmtree(data)
    # NeMo's text-to-speech imports the name; nothing here uses it, and its wheel has 20 MB
    (site / 'wandb').mkdir(exist_ok=True)
    (site / 'wandb' / '__init__.py').write_text('"""A stand-in."""\n', encoding='utf-8')
    for tests in [path for path in site.rglob('tests') if path.is_dir() and path.parent.name != 'lhotse']:
        shutil.rmtree(tests, ignore_errors=True)


def pack(site: Path, archive: Path) -> None:
    """One compressed archive of a folder."""
    with tarfile.open(archive, 'w:xz', preset=6) as tar:
        for path in sorted(site.iterdir()):
            tar.add(path, path.name)


def check_size(root: Path, packed: Path) -> str:
    """Sizes in words.

    Raises:
        SystemExit: Working tree and archives together are too large to be carried.
    """
    listed = subprocess.run(
        ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    tree = sum((root / name).lstat().st_size for name in listed.stdout.split('\0') if name and (root / name).exists())
    carried = sum(path.stat().st_size for path in packed.rglob('*') if path.is_file())
    words = f'working tree {tree / 2**20:.1f} MiB + .gpu {carried / 2**20:.1f} MiB of {LIMIT / 2**20:.0f} MiB'
    if tree + carried > LIMIT - SPARE:
        raise SystemExit(f'{words}: too large; leave Transformer Engine out, or carry it in a call of its own')
    return words


def main(arguments: Sequence[str] | None = None) -> None:
    """Download, unpack, compress, copy the script, check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--te', type=Path, help='te.tar.xz as build_te.sh makes it; without it there is none there')
    parser.add_argument('--wheels', type=Path, default=Path.home() / '.cache' / 'nemo_vtb' / 'gpu_wheels')
    parser.add_argument('--out', type=Path, default=ROOT / '.gpu')
    args = parser.parse_args(arguments)
    packages, site = read_packages(), args.wheels / 'site'
    download(packages, args.wheels)
    shutil.rmtree(site, ignore_errors=True)
    unpack(packages, args.wheels, site)
    args.out.mkdir(parents=True, exist_ok=True)
    pack(site, args.out / 'site.tar.xz')
    shutil.copy(HERE / 'gpu_suite.sh', args.out)
    if args.te:
        shutil.copy(args.te, args.out / 'te.tar.xz')
    print(check_size(ROOT, args.out))


if __name__ == '__main__':
    main()
