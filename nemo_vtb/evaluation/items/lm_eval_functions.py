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
"""Functions that the YAML tasks of this folder name: loading the items, scoring an instruction."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from nemo_vtb.evaluation.constraints import follows
from nemo_vtb.evaluation.items import read_items
from nemo_vtb.training.retention_monitor import retention_items

if TYPE_CHECKING:
    from datasets import Dataset


def load_choices(part: str, **metadata: Any) -> 'dict[str, Dataset]':
    """The multiple-choice items of a part as the split `test`."""
    return _split(line for line in retention_items() if line['part'] == part)


def load_instructions(**metadata: Any) -> 'dict[str, Dataset]':
    """The instructions as the split `test`; the constraints as JSON, since a column has one type."""
    return _split(line | {'constraints': json.dumps(line['constraints'])} for line in read_items('instructions'))


def score_instruction(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the answer keeps all constraints of the instruction."""
    return {'followed': float(follows(results[0], json.loads(doc['constraints'])))}


def _split(lines: Iterable[dict[str, Any]]) -> 'dict[str, Dataset]':
    from datasets import Dataset

    return {'test': Dataset.from_list(list(lines))}
