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
"""What a CUDA image lacks: the pins of this package without those that belong to the image's torch.

python tools/image_requirements.py constraints/py312-cu130.txt > rest.txt   # before the installation
python tools/image_requirements.py --check                                 # behind it
Run by the Python of the image. Its torch, what is built against it and what that is made of stay: NGC's are builds of
their own, which no registry has. `--check` looks at all that nemo_vtb needs, as far as metadata tells.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

# torch, what is compiled against it, and the CUDA that comes with it: never installed here
OF_THE_IMAGE = re.compile(r'torch|torch(vision|audio|ao)|triton|nvidia-.+|cuda-toolkit|transformer-engine.*')
# what was tried together with them: left where it is there
KEPT = re.compile(r'numpy|sympy|mpmath|networkx|cuda-bindings|cuda-pathfinder')
TORCH = Requirement('torch>=2.9.1,<2.14')  # as in setup.py


def normal(name: str) -> str:
    """A package's name as registries compare it."""
    return re.sub(r'[-_.]+', '-', name).lower()


def pins(path: Path) -> dict[str, str]:
    """Package -> version of a constraints file."""
    lines = (line.partition('#')[0].partition(';')[0].strip() for line in path.read_text().splitlines())
    pairs = (line.split('==') for line in lines if line)
    return {normal(name): pinned.strip() for name, pinned in pairs}


def installed(name: str) -> str | None:
    """Version of an installed package; None where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def rest(pinned: dict[str, str]) -> dict[str, str]:
    """The pins that are to be installed: what is not the image's, and not there in this very version.

    Raises:
        SystemExit: The image has no torch, or one that is not tried.
    """
    found = installed('torch')
    if found is None or not TORCH.specifier.contains(Version(found).base_version):
        sys.exit(f'The image has torch {found}; allowed is {TORCH.specifier}. Choose another tag: CUDA_BASE_IMAGE.')
    missing = {name: number for name, number in pinned.items() if installed(name) != number}
    return {name: number for name, number in missing.items() if not _stays(name)}


def _stays(name: str) -> bool:
    return bool(OF_THE_IMAGE.fullmatch(name) or (KEPT.fullmatch(name) and installed(name) is not None))


def conflicts(root: str = 'nemo_vtb') -> Iterator[str]:
    """What a package needs, directly or not, and does not have."""
    seen, todo = set[tuple[str, str]](), [(root, '')]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for text in distribution(name).requires or ():
            requirement = Requirement(text)
            if requirement.marker and not requirement.marker.evaluate({'extra': extra}):
                continue
            there = installed(requirement.name)
            # of a build such as 2.11.0a0+git the number counts: the image's is later than the release of that name
            number = Version(there).base_version if there and normal(requirement.name) == 'torch' else there
            if number is None or not requirement.specifier.contains(number, prereleases=True):
                # of the image's torch: its libraries lie in the image itself
                if not OF_THE_IMAGE.fullmatch(normal(requirement.name)) or normal(requirement.name) == 'torch':
                    yield f'{name} needs {requirement}, there is {there or "none"}'
                continue
            todo += [(normal(requirement.name), each) for each in ('', *requirement.extras)]


def main() -> int:
    """Print what is to be installed, or what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'constraints', type=Path, nargs='?', help='exact pins, for example constraints/py312-cu130.txt'
    )
    parser.add_argument('--check', action='store_true', help='compare what is installed with what each package needs')
    arguments = parser.parse_args()
    if arguments.check:
        found = list(conflicts())
        print('\n'.join(found) or f'torch {version("torch")} is that of the image; nothing is missing')
        return 1 if found else 0
    if arguments.constraints is None:
        parser.error('name a constraints file, or --check')
    for name, number in rest(pins(arguments.constraints)).items():
        print(f'{name}=={number}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
