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
"""Answers the prompts of one request from a `.nemo` file alone: `python -m nemo_vtb.checkpoint.answer_alone OUT`."""

import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Read a request from standard input, write the answers to the file named in the first argument.

    Raises:
        PermissionError: One of the forbidden sources is opened.
    """
    request = json.load(sys.stdin)
    forbidden = tuple(str(Path(p).resolve()) for p in request['forbidden'])

    def watch(event: str, args: tuple) -> None:
        if event == 'open' and isinstance(args[0], str | os.PathLike):
            path = os.path.realpath(args[0])
            if any(path == f or path.startswith(f + os.sep) for f in forbidden):
                raise PermissionError(f'{path} is a source of the model; the .nemo file must do without it')

    sys.addaudithook(watch)
    from nemo_vtb.checkpoint.nemo_file import load, read_prompts

    model = load(request['path'])
    answers = model.answer(read_prompts(request['prompts']), **request['options'])
    Path(sys.argv[1]).write_text(json.dumps(answers))


if __name__ == '__main__':
    main()
