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
"""Held-out conversations: each assistant turn is an example, after the reference history."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from nemo_vtb.constants import KINDS
from nemo_vtb.data.conversation import Conversation, conversation_from_dict, read_jsonl, task_of
from nemo_vtb.data.faults import Reason, guarded
from nemo_vtb.errors import VtbDataError
from nemo_vtb.evaluation.metrics import EXACT_MATCH, F1, Measure, Statistics, is_long
from nemo_vtb.evaluation.task import Answer, Context, Example, Task


class HeldOut(Task):
    """The examples of one task in the files of `Context.datasets`."""

    suite = 'speech'

    def examples(self, context: Context) -> Sequence[Example]:
        """Those of all files that are of this task; a source in several languages is one for each."""
        return [e for e in held_out(context)[1] if e.extra['task'] == self.name]


class Questions(HeldOut):
    """Answers about speech: equal to the reference, and words shared with it."""

    metrics = ('exact match', 'F1')

    def measures(self, examples: Sequence[Example]) -> Sequence[Measure]:
        """F1 alone for long free answers, which never match exactly."""
        return (F1,) if is_long([e.references[0] for e in examples]) else (EXACT_MATCH, F1)

    def score(self, example: Example, answer: Answer) -> Mapping[str, Statistics]:
        """Of both metrics."""
        return {m.name: m.statistics(example.references, str(answer)) for m in (EXACT_MATCH, F1)}


def load_conversations(
    path: str | Path, name: str = '', on_fault: Callable[[int, VtbDataError], object] | None = None
) -> Iterator[Conversation]:
    """Read a JSONL file of conversations; `name` is their source, and their kind if it is one of `KINDS`.

    Args:
        path: The file.
        name: The name.
        on_fault: As of `read_jsonl`.

    Raises:
        VtbDataError: The file is missing; or without `on_fault`, a line is broken.
    """
    path = Path(path)
    kind = name if name in KINDS else next((k for k in KINDS if name.startswith(k)), None)
    for number, _, line in read_jsonl(path, on_fault):
        try:
            with guarded(Reason.OTHER, f'{path}:{number}'):
                custom = line.get('custom')
                custom = custom if isinstance(custom, Mapping) else {}
                conversation = conversation_from_dict(
                    line,
                    kind=custom.get('kind') or kind,
                    source=str(custom.get('source') or name or path.stem),
                    base_dir=path.parent,
                    where=f'{path}:{number}',
                )
        except VtbDataError as error:
            if on_fault is None:
                raise
            on_fault(number, error)
        else:
            yield conversation


def examples_of(conversation: Conversation) -> list[Example]:
    """Every assistant turn as an example after the reference history, so that one error does not affect the rest."""
    task = task_of(conversation)
    custom = conversation.custom
    spoken = str(custom.get('lang') or custom.get('source_lang') or custom.get('language') or 'en')
    lang = str(custom.get('target_lang') or spoken) if task == 'ast' else spoken
    direction = f'{spoken}-{lang}' if task == 'ast' else spoken
    c = conversation
    return [
        Example(
            f'{c.id}#{number}',
            Conversation(c.id, c.turns[:number], c.kind, c.source, c.custom),
            (turn.text,),
            c.source,
            lang=lang,
            extra={'task': task, 'direction': direction},
        )
        for number, turn in enumerate(c.turns)
        if turn.role == 'assistant' and c.turns[number - 1].role == 'user'
    ]


def held_out(context: Context) -> tuple[list[Conversation], list[Example]]:
    """Text-only conversations, and the examples of all others; `limit` per source, task and direction.

    What cannot be read, rendered or heard goes to `context.on_fault`.
    """
    if 'held_out' not in context.keep:
        context.keep['held_out'] = _read(context)
    found: tuple[list[Conversation], list[Example]] = context.keep['held_out']
    return found


def _read(context: Context) -> tuple[list[Conversation], list[Example]]:
    chats: list[Conversation] = []
    examples: list[Example] = []
    taken: Counter[tuple] = Counter()
    for name, path in context.datasets.items():

        def skip(number: int | None, error: VtbDataError, id_: str | None = None, file: str = str(path)) -> None:
            context.on_fault(error, {'file': file, 'line': number, 'id': id_})

        for conversation in load_conversations(path, name, skip):
            try:
                own = [] if conversation.kind == 'text' else examples_of(conversation)
                kinds = (own[0].extra['task'], own[0].extra['direction']) if own else ()
                group = (conversation.kind, conversation.source, *kinds)
                if context.limit is not None and taken[group] >= context.limit:
                    continue
                context.usable(conversation)
            except VtbDataError as error:
                skip(None, error, conversation.id)
                continue
            taken[group] += 1
            if conversation.kind == 'text':
                chats.append(conversation)
            examples += own
    return chats, by_direction(examples)


def by_direction(examples: Sequence[Example]) -> list[Example]:
    """The same examples; a source with several languages or directions of a task becomes one for each of them."""
    from dataclasses import replace

    directions: dict[tuple[str, str], set[str]] = {}
    for e in examples:
        directions.setdefault((e.extra['task'], e.source), set()).add(e.extra['direction'])
    return [
        replace(e, source=f'{e.source} ({e.extra["direction"]})')
        if len(directions[e.extra['task'], e.source]) > 1
        else e
        for e in examples
    ]
