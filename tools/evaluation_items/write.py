#!/usr/bin/env python3
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
"""Write the evaluation items that the package ships, the same bytes each time.

    python tools/evaluation_items/write.py

The package reads these files only; nothing of this folder is imported by it.
"""

import json
from pathlib import Path
from typing import Any

from emergent_items import make_emergent
from text_items import make_choices, make_instructions

from nemo_vtb.io import write_atomically

ROOT = Path(__file__).resolve().parents[2]


def contents() -> dict[Path, str]:
    """Path -> text of each file."""
    items = ROOT / 'nemo_vtb' / 'evaluation' / 'items'
    return {
        ROOT / 'nemo_vtb' / 'training' / 'retention_items.jsonl': _lines(make_choices()),
        items / 'instructions.jsonl': _lines(make_instructions()),
        items / 'emergent.jsonl': _lines(make_emergent()),
    }


def _lines(items: list[dict[str, Any]]) -> str:
    return ''.join(json.dumps(item, ensure_ascii=False) + '\n' for item in items)


if __name__ == '__main__':
    for path, text in contents().items():
        write_atomically(path, text)
        print(path.relative_to(ROOT))
