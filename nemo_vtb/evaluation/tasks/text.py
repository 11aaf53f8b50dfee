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
"""Text ability: the likelihood of held-out text-only conversations, and tasks of lm-eval."""

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_vtb.data.conversation import Conversation
from nemo_vtb.evaluation.metrics import PERPLEXITY, Measure, Statistics
from nemo_vtb.evaluation.task import Answer, Context, Example, Task
from nemo_vtb.evaluation.tasks.held_out import examples_of, held_out

TEXT_TASKS = ('vtb_facts', 'vtb_commonsense', 'vtb_language', 'vtb_arithmetic', 'vtb_reading', 'vtb_instructions')
"""The tasks of lm-eval in the package: 200 multiple-choice items and 50 instructions that a program can check."""


class Chats(Task):
    """Perplexity of held-out text-only conversations, by model and base LLM."""

    suite, name, metrics, request = 'speech', 'text', ('perplexity',), 'likelihood'

    def examples(self, context: Context) -> Sequence[Example]:
        """Each conversation as a whole."""
        return [Example(c.id, c, (), c.source, c) for c in _by_source(held_out(context)[0])]

    def measures(self, examples: Sequence[Example]) -> Sequence[Measure]:
        """Perplexity alone."""
        return (PERPLEXITY,)

    def score(self, example: Example, answer: Answer) -> Mapping[str, Statistics]:
        """The answer is the statistics."""
        assert not isinstance(answer, str | Mapping)
        nll, targets = answer
        return {'perplexity': (float(nll), float(targets))}


class FirstChats(Task):
    """The first text-only conversation of each source, answered by model and base LLM for people to read."""

    suite, name = 'speech', 'text'

    def examples(self, context: Context) -> Sequence[Example]:
        """One of each source, with its first question."""
        firsts = {c.source: c for c in reversed(held_out(context)[0])}.values()
        questions = [examples_of(chat)[0] for chat in [*firsts][::-1]]
        return [Example(q.id, q.prompt, q.references, q.source, q.prompt, lang=q.lang) for q in questions]

    def measures(self, examples: Sequence[Example]) -> Sequence[Measure]:
        """None: there is no right answer."""
        return ()


def _by_source(chats: Sequence[Conversation]) -> list[Conversation]:
    sources = list(dict.fromkeys(chat.source for chat in chats))
    return sorted(chats, key=lambda chat: sources.index(chat.source))


class LmEval(Task):
    """A task of lm-eval, asked and scored by lm-eval itself (`lm_eval_engine.py`); its one example is the whole task.

    Args:
        name: Of the task.
        loaded: The task, by lm-eval.
        suite: The suite that it belongs to.
        settings: What changes the answers: where the data comes from, `chat_template`, `limit`.
    """

    request = 'lm_eval'

    def __init__(self, name: str, loaded: Any, suite: str, settings: Mapping[str, Any]) -> None:
        self.name, self.loaded, self.suite, self.settings = name, loaded, suite, settings

    def examples(self, context: Context) -> Sequence[Example]:
        """The whole task."""
        empty = Conversation(self.name, (), 'text', self.name)
        return [Example(self.name, empty, (), '', empty, extra=self.settings)]

    def measures(self, examples: Sequence[Example]) -> Sequence[Measure]:
        """None: the figures are lm-eval's own."""
        return ()


def lm_eval_tasks(
    context: Context, names: Sequence[str], suite: str, *, include: Sequence[str] = (), data: str = ''
) -> list[Task]:
    """Tasks of lm-eval, groups and tags resolved.

    Args:
        context: Whose settings hold.
        names: Of tasks, groups and tags.
        suite: The suite that they belong to.
        include: Folders with YAML tasks.
        data: A folder in place of the repository that the tasks name; '' for that.

    Raises:
        VtbConfigError: lm-eval is not installed, or a task is unknown.
        VtbDataError: The data of a task is not on this machine.
    """
    from nemo_vtb.evaluation.lm_eval_engine import load_tasks

    settings = {'from': [*names, *include, data], 'limit': context.limit}
    settings |= {'chat_template': bool(context.settings.get('chat_template', True))}
    return [LmEval(name, task, suite, settings) for name, task in load_tasks(names, include, data).items()]


def text_tasks(context: Context) -> list[Task]:
    """The requested tasks of lm-eval, or those of the package; errors as of `lm_eval_tasks`."""
    names = tuple(context.settings.get('tasks') or TEXT_TASKS)
    return lm_eval_tasks(context, names, 'text', include=tuple(context.settings.get('include') or ()))
