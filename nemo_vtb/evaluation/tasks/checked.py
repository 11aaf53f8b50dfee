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
"""Questions with recordings made here, whose answers a program checks; the base LLM reads the transcripts."""

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_vtb.data.conversation import Conversation
from nemo_vtb.evaluation.constraints import follows
from nemo_vtb.evaluation.metrics import Measure, Statistics, mean_of
from nemo_vtb.evaluation.task import Answer, Example, Task

ANSWER_TOKENS = 64
"""Longest answer, as in the task `vtb_instructions` of lm-eval."""


class Checked(Task):
    """Share of answers that satisfy every constraint of their example.

    Args:
        name: Of the task.
    """

    max_new_tokens = ANSWER_TOKENS

    def __init__(self, name: str) -> None:
        self.name = name

    def measures(self, examples: Sequence[Example]) -> Sequence[Measure]:
        """The share of answers that pass."""
        return (mean_of(self.metrics[0], lambda references, answer: 0.0),)

    def score(self, example: Example, answer: Answer) -> Mapping[str, Statistics]:
        """1 where the answer passes."""
        return {self.metrics[0]: (float(follows(str(answer), example.extra['constraints'])), 1.0)}


def checked(
    id_: str,
    prompt: Conversation,
    typed: Conversation,
    constraints: Sequence[Mapping[str, Any]],
    reference: str = '',
) -> Example:
    """An example of a `Checked` task.

    Args:
        id_: The same for the same question in another form.
        prompt: For the model.
        typed: For its base LLM: the same, with the transcript in place of each recording.
        constraints: What the answer must satisfy.
        reference: A right answer, '' where there are many.
    """
    return Example(
        id_, prompt, (reference,) if reference else (), '', typed, extra={'constraints': tuple(constraints)}
    )
