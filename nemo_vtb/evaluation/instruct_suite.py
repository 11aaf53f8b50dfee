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
"""The suite `instruct`: the same instructions, whose answers a program can check, typed and spoken.

The instructions are those of the text suite. An answer must be about the topic as well: a model that ignores the audio
would pass a check of the form alone.
"""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from nemo_vtb.data.conversation import Conversation, Text, Turn
from nemo_vtb.evaluation.answers import AnswerCache
from nemo_vtb.evaluation.items import read_items
from nemo_vtb.evaluation.spoken_items import Item, Recorder, difference, measure

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender

INSTRUCT_TASKS = ('typed', 'spoken')
"""The two forms; the base LLM is prompted with the typed one in both."""

_VOICES = ('en-US@0.9', 'en-GB@1.1', 'en-US@1.15', 'en-GB@0.85')
_SEED = 7
# the voices cannot pronounce abbreviations
_SOUNDS = {'JSON': 'Jason'}


def instruct_items(folder: str | Path, *, limit: int | None = None) -> list[Item]:
    """The instructions of the text suite, all typed and then all spoken.

    Args:
        folder: Where the recordings go.
        limit: At most so many instructions, evenly from all forms.

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
            typed = _prompt(line['id'], Text(line['prompt']))
            prompt = typed
            if task == 'spoken':
                voice = Random(f'{_SEED}:{line["id"]}').choice(_VOICES)
                said = [{'text': _as_said(line['prompt']), 'voice': voice}]
                prompt = _prompt(line['id'], recorder.say(said, 'en', line['id'], line['prompt']))
            on_topic = {'kind': 'one_of', 'texts': line['topic_words']}
            items.append(Item(line['id'], task, prompt, typed, [*line['constraints'], on_topic]))
    return items


def run_instruct(
    model: 'VoiceTextBlender',
    folder: str | Path,
    *,
    limit: int | None = None,
    batch_size: int = 8,
    cache: AnswerCache | None = None,
    on_task: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run all instructions in both forms, and the base LLM on the typed one.

    Args:
        model: The speech LLM.
        folder: Where the recordings go.
        limit: At most so many instructions.
        batch_size: Prompts in one batch.
        cache: Keeps answers.
        on_task: Called with the name of each task before it starts.

    Returns:
        What `measure` does, and `spoken_minus_typed`: the same instructions in pairs (value, interval, p_value).
    """
    items = instruct_items(folder, limit=limit)
    options: dict[str, Any] = {'batch_size': batch_size, 'cache': cache, 'on_task': on_task}
    found = measure(model, items, suite='instruct', metric='followed', **options)
    return found | {'spoken_minus_typed': difference(found['tasks'], 'spoken', 'typed')}


def _as_said(text: str) -> str:
    for written, sound in _SOUNDS.items():
        text = text.replace(written, sound)
    return text


def _prompt(name: str, part: Any) -> Conversation:
    kind = 'text' if isinstance(part, Text) else 'speech_qa'
    return Conversation(name, (Turn('user', (part,)),), kind, 'instruct', {'lang': 'en'})
