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
"""The suite `emergent`: tasks that no training data teaches, 20 items each, every answer checked by a program."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_vtb.data.conversation import Conversation
from nemo_vtb.evaluation.answers import AnswerCache
from nemo_vtb.evaluation.items import read_items
from nemo_vtb.evaluation.spoken_items import Item, Recorder, difference, measure, typed_turns

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender

EMERGENT_TASKS = (
    'unseen_prompts', 'formats', 'names_given', 'names_not_given', 'direction', 'two_speakers', 'maths', 'multi_turn',
)  # fmt: skip
"""The tasks as they are reported; `names_not_given` is the control of `names_given`, on the same recordings."""


def emergent_items(folder: str | Path, *, limit: int | None = None) -> list[Item]:
    """The items with their recordings.

    Args:
        folder: Where synthesised recordings go.
        limit: At most so many items of each task.

    Raises:
        VtbAssetError: The embedded voices or recordings are missing.
    """
    recorder = Recorder(folder)
    taken: dict[str, int] = {}
    items = []
    for record in read_items('emergent'):
        name, task = record['id'], record['task']
        taken[task] = taken.get(task, 0) + 1
        if limit is not None and taken[task] > limit:
            continue
        prompt = Conversation(name, recorder.turns(record['turns'], name), 'mixed_modal', 'emergent')
        typed = Conversation(name, typed_turns(record['turns']), 'text', 'emergent')
        items.append(Item(name, task, prompt, typed, record['constraints'], record['right']))
    return items


def run_emergent(
    model: 'VoiceTextBlender',
    folder: str | Path,
    *,
    limit: int | None = None,
    batch_size: int = 8,
    cache: AnswerCache | None = None,
    on_task: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run all items; the base LLM reads the transcript in place of each recording, which is an upper bound.

    Args:
        model: The speech LLM.
        folder: Where synthesised recordings go.
        limit: At most so many items of each task.
        batch_size: Prompts in one batch.
        cache: Keeps answers.
        on_task: Called with the name of each task before it starts.

    Returns:
        What `measure` does, and `change_by_names`: names in the prompt against the same recordings without them.
    """
    items = emergent_items(folder, limit=limit)
    options: dict[str, Any] = {'batch_size': batch_size, 'cache': cache, 'on_task': on_task}
    found = measure(model, items, suite='emergent', metric='right', **options)
    return found | {'change_by_names': difference(found['tasks'], 'names_given', 'names_not_given')}
