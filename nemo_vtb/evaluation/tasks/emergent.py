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
"""Tasks that no training data teaches, 20 items each, every answer checked by a program."""

from collections.abc import Sequence

from nemo_vtb.data.conversation import Conversation
from nemo_vtb.evaluation.items import read_items
from nemo_vtb.evaluation.recorder import Recorder, typed_turns
from nemo_vtb.evaluation.task import Context, Example
from nemo_vtb.evaluation.tasks.checked import Checked, checked

EMERGENT_TASKS = (
    'unseen_prompts', 'formats', 'names_given', 'names_not_given', 'direction', 'two_speakers', 'maths', 'multi_turn',
)  # fmt: skip
"""The tasks as they are reported; `names_not_given` is the control of `names_given`, on the same recordings."""


class Emergent(Checked):
    """One of `EMERGENT_TASKS`; the base LLM reads the transcript in place of each recording: an upper reference."""

    suite, metrics = 'emergent', ('right',)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        if name == 'names_given':
            self.minus, self.difference = 'names_not_given', 'change_by_names'

    def examples(self, context: Context) -> Sequence[Example]:
        """The items with their recordings.

        Raises:
            VtbAssetError: The embedded voices or recordings are missing.
            VtbConfigError: There is no folder for recordings.
        """
        recorder = Recorder(context.recordings('emergent'))
        found = []
        for record in [r for r in read_items('emergent') if r['task'] == self.name][: context.limit]:
            name = record['id']
            prompt = Conversation(name, recorder.turns(record['turns'], name), 'mixed_modal', 'emergent')
            typed = Conversation(name, typed_turns(record['turns']), 'text', 'emergent')
            found.append(checked(name, prompt, typed, record['constraints'], record['right']))
        return found
