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
"""The protocol of a task: its examples, and what one answer to one of them scores. How it is run, no task knows.

To add a benchmark: subclass `Task`, and name it in a suite of `nemo_vtb/evaluation/tasks/__init__.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nemo_vtb.data.conversation import Conversation
from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.evaluation.metrics import Measure, Statistics

Request = Literal['generate', 'likelihood', 'lm_eval']
"""What is asked of the model: text, the likelihood of the answers in the conversation, or an item of lm-eval."""

Answer = str | Sequence[float] | Mapping[str, Any]
"""Text; for a likelihood the sum of negative log-likelihoods (nats) and the number of targets; what
`lm_eval_engine.run_task` returns."""


@dataclass(frozen=True, slots=True)
class Example:
    """One question.

    Args:
        id: Unique within its task; the same for the same question in another form, so that forms compare in pairs.
        prompt: Conversation that ends with the user turn to answer; for a likelihood, the whole conversation.
        references: Right answers; () where a program checks.
        source: Where it comes from; each source of a task has metrics of its own.
        base: The prompt of the base LLM, with text in place of recordings; None where it cannot be asked.
        group: Examples of one group (speaker, dialogue) are drawn together by the bootstrap; '' is by itself.
        lang: Language of the answer; decides normaliser and tokeniser.
        extra: What the task needs to score it, plain values (constraints ...).
    """

    id: str
    prompt: Conversation
    references: tuple[str, ...] = ()
    source: str = ''
    base: Conversation | None = None
    group: str = ''
    lang: str = 'en'
    extra: Mapping[str, Any] = field(default_factory=dict)


def _ignore(*_: Any) -> None:
    """Nobody asked."""


@dataclass(frozen=True, slots=True)
class Context:
    """What tasks may read.

    Args:
        datasets: Name -> JSONL file of held-out conversations.
        limit: At most so many conversations of each source, items of each task; None for all.
        folder: Where synthesised recordings go; None where a task must not write any.
        data_root: Folder of public benchmarks, in the layout that they publish.
        settings: Options of single suites: `tasks`, `include` and `chat_template` of lm-eval.
        usable: Called with each held-out conversation; raises VtbDataError where it cannot be rendered or heard.
        on_fault: Called with the error and the place (`file`, `line`, `id`) of each example that is left out.
        keep: What tasks share, such as files that several of them read.
    """

    datasets: Mapping[str, Path] = field(default_factory=dict)
    limit: int | None = None
    folder: Path | None = None
    data_root: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    usable: Callable[[Conversation], object] = _ignore
    on_fault: Callable[[VtbDataError, Mapping[str, Any]], None] = _ignore
    keep: dict[Any, Any] = field(default_factory=dict)

    def recordings(self, suite: str) -> Path:
        """Folder for the synthesised recordings of a suite.

        Raises:
            VtbConfigError: There is none.
        """
        if self.folder is None:
            raise VtbConfigError('The suite writes recordings.', field='folder', got=None, allowed='a folder')
        return self.folder / suite


class Task(ABC):
    """A set of examples and how their answers are scored.

    Attributes:
        suite: The suite that it belongs to.
        name: Its name in records and tables.
        metrics: Names of the metrics that `measures` may return.
        request: What is asked of the model.
        max_new_tokens: Longest answer; None takes that of the run.
        title: What tables call it; '' is the name.
        minus: Name of a task of the suite with the same ids, whose score is subtracted in pairs; '' for none.
        difference: What this difference is called.
    """

    suite: str
    name: str
    metrics: tuple[str, ...] = ()
    request: Request = 'generate'
    max_new_tokens: int | None = None
    title: str = ''
    minus: str = ''
    difference: str = ''

    @abstractmethod
    def examples(self, context: Context) -> Sequence[Example]:
        """The examples, in a fixed order.

        Raises:
            VtbDataError: Their data is not there; the error names what is needed. A single broken line goes to
                `context.on_fault`.
            VtbConfigError: A package that they need is missing.
        """

    @abstractmethod
    def measures(self, examples: Sequence[Example]) -> Sequence[Measure]:
        """The metrics of examples of one source; () where only their answers are shown."""

    def score(self, example: Example, answer: Answer) -> Mapping[str, Statistics]:
        """What one answer contributes to each metric: name -> statistics, whose sums over examples make its value."""
        return {m.name: m.statistics(example.references, str(answer)) for m in self.measures([example])}

    def settle(self, examples: Sequence[Example], answers: Sequence[Answer]) -> None:  # noqa: B027
        """Called with all answers before the first is scored; for tasks that score them together, as a judge does.

        On one rank only. Called once for the model and once for its base LLM.

        Raises:
            VtbDataError: What scores them does not answer.
        """
