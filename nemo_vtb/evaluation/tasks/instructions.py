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
"""The same instructions, whose answers a program can check, typed and spoken.

The instructions are those of `vtb_instructions`. An answer must be about the topic as well: a model that ignores the
audio would pass a check of the form alone.
"""

from collections.abc import Sequence
from random import Random
from typing import Any

from nemo_vtb.data.conversation import Conversation, Text, Turn
from nemo_vtb.evaluation.items import read_items
from nemo_vtb.evaluation.recorder import Recorder
from nemo_vtb.evaluation.task import Context, Example
from nemo_vtb.evaluation.tasks.checked import Checked, checked

_VOICES = ('en-US@0.9', 'en-GB@1.1', 'en-US@1.15', 'en-GB@0.85')
_SEED = 7
# the voices cannot pronounce abbreviations
_SOUNDS = {'JSON': 'Jason'}


class Instructions(Checked):
    """One form of the instructions, 'typed' or 'spoken'; the base LLM is prompted with the typed one in both."""

    suite, metrics = 'instruct', ('followed',)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        if name == 'spoken':
            self.minus, self.difference = 'typed', 'spoken_minus_typed'

    def examples(self, context: Context) -> Sequence[Example]:
        """The instructions, with a `limit` evenly from all forms.

        Raises:
            VtbAssetError: The embedded voices are missing.
            VtbConfigError: There is no folder for recordings.
        """
        found = []
        recorder = Recorder(context.recordings('instruct'))
        for line in _lines(context.limit):
            typed = _prompt(line['id'], Text(line['prompt']))
            prompt = typed
            if self.name == 'spoken':
                voice = Random(f'{_SEED}:{line["id"]}').choice(_VOICES)
                said = [{'text': _as_said(line['prompt']), 'voice': voice}]
                prompt = _prompt(line['id'], recorder.say(said, 'en', line['id'], line['prompt']))
            on_topic = {'kind': 'one_of', 'texts': line['topic_words']}
            found.append(checked(line['id'], prompt, typed, [*line['constraints'], on_topic]))
        return found


def _lines(limit: int | None) -> list[dict[str, Any]]:
    lines = read_items('instructions')
    if limit is None:
        return lines
    # the file holds form after form: a few of each say more than all of the first
    forms: dict[str, int] = {}
    places = []
    for number, line in enumerate(lines):
        form = line['id'].partition('-')[0]
        forms[form] = forms.get(form, 0) + 1
        places.append((forms[form], number))
    return [lines[number] for _, number in sorted(places)[:limit]]


def _as_said(text: str) -> str:
    for written, sound in _SOUNDS.items():
        text = text.replace(written, sound)
    return text


def _prompt(name: str, part: Any) -> Conversation:
    kind = 'text' if isinstance(part, Text) else 'speech_qa'
    return Conversation(name, (Turn('user', (part,)),), kind, 'instruct', {'lang': 'en'})
