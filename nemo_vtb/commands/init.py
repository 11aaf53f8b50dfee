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
"""`vtb init`: copies the YAML files of the package into a new folder, to be edited there."""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from nemo_vtb.config.command_line import conf_folder
from nemo_vtb.errors import VtbConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vtb init`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='vtb init',
        description='Copy the YAML files of the package to FOLDER/conf; `vtb train` in FOLDER then reads those.',
    )
    parser.add_argument('folder', metavar='FOLDER', help='the folder of your project; made if it is not there')
    folder = Path(parser.parse_args(argv).folder)
    conf = folder / 'conf'
    if conf.exists():
        raise VtbConfigError(
            'There are YAML files already; they are untouched.',
            field='FOLDER',
            got=str(conf),
            allowed='a folder without conf/',
            remedy='name another folder, or move the old conf/ away',
        )
    try:
        shutil.copytree(conf_folder(), conf, ignore=shutil.ignore_patterns('__pycache__', '*.py'))
    except OSError as error:
        raise VtbConfigError('The folder cannot be made.', field='FOLDER', got=f'{folder}: {error}') from error
    from rich.console import Console

    console = Console()
    for path in sorted(conf.rglob('*.yaml')):
        console.print(f'  {path}', highlight=False, markup=False, soft_wrap=True)
    console.print(
        f'Next:\n  cd {folder}\n  vtb train --help\n  vtb train', highlight=False, markup=False, soft_wrap=True
    )
    return 0
