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
"""The suite `instruct`: the same instructions, whose answers a program can check, asked by typing and by speaking.

The instructions are those of the text suite. An answer must be about the topic as well: one sentence is one sentence
whatever was heard, and a deaf model would pass.
"""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from nemo_vtb.data.conversation import Conversation, Text, Turn
from nemo_vtb.evaluation.asked import Item, Recorder, difference, measure
from nemo_vtb.evaluation.items import read_items
from nemo_vtb.evaluation.journal import Journal

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender

INSTRUCT_TASKS = ('typed', 'spoken')
"""The ways of asking; the base LLM is asked by typing in both."""

_VOICES = ('en-US@0.9', 'en-GB@1.1', 'en-US@1.15', 'en-GB@0.85')
_SEED = 7
# the voices know no abbreviation
_SOUNDS = {'JSON': 'Jason'}


def instruct_items(folder: str | Path, *, limit: int | None = None) -> list[Item]:
    """The instructions of the text suite, all typed and then all spoken.

    Args:
        folder: Where the recordings go.
        limit: At most so many instructions; taken from all forms in turn.

    Raises:
        VtbAssetError: The embedded voices are missing.
    """
    lines = read_items('instructions')
    if limit is not None:
        # the file holds form after form: a few of each say more than all of the first
        forms: dict[str, int] = {}
        places = []
        for number, line in enumerate(lines):
            form = line['id'].partition('-')[0]
            forms[form] = forms.get(form, 0) + 1
            places.append((forms[form], number))
        lines = [lines[number] for _, number in sorted(places)[:limit]]
    recorder = Recorder(folder)
    items = []
    for task in INSTRUCT_TASKS:
        for line in lines:
            typed = _asked(line['id'], Text(line['prompt']))
            prompt = typed
            if task == 'spoken':
                voice = Random(f'{_SEED}:{line["id"]}').choice(_VOICES)
                said = [{'text': _as_said(line['prompt']), 'voice': voice}]
                prompt = _asked(line['id'], recorder.say(said, 'en', line['id'], line['prompt']))
            on_topic = {'kind': 'one_of', 'texts': line['topic_words']}
            items.append(Item(line['id'], task, prompt, typed, [*line['constraints'], on_topic]))
    return items


def run_instruct(
    model: 'VoiceTextBlender',
    folder: str | Path,
    *,
    limit: int | None = None,
    batch_size: int = 8,
    journal: Journal | None = None,
    on_task: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Ask all instructions both ways, and the base LLM by typing.

    Args:
        model: The speech LLM.
        folder: Where the recordings go.
        limit: At most so many instructions.
        batch_size: Prompts answered at once.
        journal: Remembers answers.
        on_task: Called with the name of each task before it is asked.

    Returns:
        What `measure` does, and `spoken_minus_typed`: the same instructions in pairs (value, interval, p_value).
    """
    items = instruct_items(folder, limit=limit)
    options: dict[str, Any] = {'batch_size': batch_size, 'journal': journal, 'on_task': on_task}
    found = measure(model, items, suite='instruct', metric='followed', **options)
    return found | {'spoken_minus_typed': difference(found['tasks'], 'spoken', 'typed')}


def _as_said(text: str) -> str:
    for written, sound in _SOUNDS.items():
        text = text.replace(written, sound)
    return text


def _asked(name: str, part: Any) -> Conversation:
    kind = 'text' if isinstance(part, Text) else 'speech_qa'
    return Conversation(name, (Turn('user', (part,)),), kind, 'instruct', {'lang': 'en'})
