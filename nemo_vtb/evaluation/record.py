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
"""What of an evaluation goes into the manifest of a `.nemo` file: the numbers, not the answers."""

from pathlib import Path
from typing import Any

from nemo_vtb.evaluation.result import Evaluation, finite

_INFO = ('datasets', 'limit', 'max_new_tokens', 'suites', 'judge')


def summary(result: Evaluation) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The sections `evaluation` and `retention` of a manifest.

    Args:
        result: Of `vtb eval`.

    Returns:
        `rows` (a record for each measure) with `info` of what was asked; `verdict` and what was `kept` of each measure
        of text ability, None where none was made.
    """
    from nemo_vtb.evaluation.report import Subject, judge, text_kept

    rows = [
        {
            'task': row.task, 'source': row.source, 'measure': row.metric, 'n': row.n, 'base': row.base,
            'model': row.ours, 'low': row.low, 'high': row.high, 'signature': row.signature,
        }
        for row in result.rows
    ]  # fmt: skip
    for suite, found in result.suites.items():
        for name, task in found['tasks'].items():
            low, high = task.get('interval') or (None, None)
            base = (task.get('base') or {}).get('value')
            rows.append(
                {
                    'task': suite, 'source': name, 'measure': task['metric'], 'n': task['n'], 'base': base,
                    'model': task['value'], 'low': low, 'high': high, 'signature': '',
                }
            )  # fmt: skip
    kept = [{key: value for key, value in one.items() if key != 'p_value'} for one in text_kept(result)]
    verdict = judge(Subject('', result))
    retention = {'verdict': verdict.level, 'sentence': verdict.sentence, 'kept': kept} if kept else None
    return {'rows': rows, 'info': {key: result.info[key] for key in _INFO if key in result.info}}, retention


def record(file: str | Path, result: Evaluation) -> None:
    """Write the numbers into the manifest of the file that was measured; exports carry them in their model card.

    Args:
        file: The `.nemo` file; replaced when the new one is whole.
        result: What was measured.

    Raises:
        VtbCheckpointError: The file is damaged, has no manifest, or cannot be written.
    """
    from nemo_vtb.checkpoint.archive import change_sections

    evaluation, retention = summary(result)
    change_sections(Path(file), finite({'evaluation': evaluation, 'retention': retention}))
