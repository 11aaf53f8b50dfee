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
"""Suites of public benchmarks: the tasks behind `--suite NAME`, `--suite NAME:PART` and `--suite paper`."""

from collections.abc import Sequence

from nemo_vtb.errors import VtbConfigError, VtbDataError, VtbError
from nemo_vtb.evaluation.benchmarks.catalog import BenchmarkTask, Row, catalog, place_of
from nemo_vtb.evaluation.lm_eval_engine import own_folder
from nemo_vtb.evaluation.metrics import Measure
from nemo_vtb.evaluation.task import Context, Example, Task
from nemo_vtb.evaluation.tasks.text import lm_eval_tasks

PAPER = (
    'librispeech', 'mls', 'common_voice', 'fleurs', 'voxpopuli', 'covost2', 'europarl_st', 'fleurs_st',
    'spoken_squad', 'heysquad', 'librisqa', 'voicebench', 'speech_ifeval', 'air_bench', 'mmau',
    'mmlu', 'gsm8k', 'ifeval', 'bbh', 'hellaswag', 'arc', 'truthfulqa',
)  # fmt: skip
"""Suites of `--suite paper`: recognition, translation, questions about speech, instructions, text before and after."""


def rows_of(name: str) -> list[tuple[Row, str]]:
    """Rows of a suite, each with the part that is asked for ('' for all); [] for a name that is none.

    A part is a task (`voicebench:bbh`), or a language, direction or subset (`mls:german`, `covost2:de_en`).
    """
    suite, _, part = name.partition(':')
    if suite == 'paper':
        return [(row, '') for known in PAPER for row in catalog()[known]]
    rows = catalog().get(suite, ())
    return [(row, '') for row in rows if row.name == part] or [(row, part) for row in rows]


def benchmark_tasks(name: str, context: Context) -> list[Task]:
    """The tasks of a suite; those of lm-eval read the user's snapshots."""
    tasks: list[Task] = []
    for row, part in rows_of(name):
        if row.kind != 'text':
            tasks.append(BenchmarkTask(row, part))
            continue
        try:
            data = str(place_of(row, context.data_root) / row.dataset)
            tasks += lm_eval_tasks(context, (row.name,), row.suite, include=(own_folder(row.suite),), data=data)
        except (VtbDataError, VtbConfigError) as error:
            tasks.append(_Missing(row, error))
    return tasks


class _Missing(Task):
    """A benchmark of lm-eval whose tasks are not known, since their data is not there: said where it is asked."""

    def __init__(self, row: Row, error: VtbError) -> None:
        self.suite, self.name, self._error = row.suite, row.name, error

    def examples(self, context: Context) -> Sequence[Example]:
        """None.

        Raises:
            VtbDataError: The data is not there.
            VtbConfigError: lm-eval is not installed.
        """
        raise self._error

    def measures(self, examples: Sequence[Example]) -> Sequence[Measure]:
        """None."""
        return ()
