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
"""Shipped test items as JSON lines, and the YAML tasks by which lm-eval runs those of the text suite.

`tools/evaluation_items/write.py` makes them; public benchmarks cannot be redistributed.
"""

from pathlib import Path
from typing import Any

from nemo_vtb.io import parse_json_lines

FOLDER = Path(__file__).parent


def read_items(name: str) -> list[dict[str, Any]]:
    """The records of `NAME.jsonl`."""
    return parse_json_lines((FOLDER / f'{name}.jsonl').read_bytes())
