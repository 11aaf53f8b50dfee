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
"""What a model kept of the text ability of its base LLM: the one definition, for training, report and manifest.

    chats     = the least over the sets of held-out text-only chats of
                exp((NLL of the base LLM - NLL of the model) / targets), over all targets of the set
    tasks     = mean over the text tasks of value of the model / value of the base LLM; the value of a multiple-choice
                task is the mean probability of the right choice among the choices, that of any other its own metric
    retention = the smaller of the two

Both sides always see the same items. docs/evaluation.md says what this cannot see; why it is so: ADR 0067.
"""

import math
from collections.abc import Mapping

from nemo_vtb.errors import VtbDataError


def kept_of_chats(base_nll: float, nll: float, targets: float) -> float:
    """Share kept of the probability of a token of one set: perplexity of the base LLM by that of the model.

    Args:
        base_nll: Sum of the base LLM's negative log-likelihoods [nats].
        nll: That of the model.
        targets: Target tokens.

    Raises:
        VtbDataError: There is no target.
    """
    if targets <= 0:
        raise VtbDataError('There is no target to measure retention on.', field='targets', got=targets, allowed='> 0')
    return math.exp(min((base_nll - nll) / targets, 700.0)) if not math.isnan(nll) else 0.0


def kept_of_tasks(ours: Mapping[str, float], base: Mapping[str, float]) -> float | None:
    """Mean over the tasks of model by base LLM; None where the base LLM can do none of them.

    Args:
        ours: Task -> value of the model, higher is better.
        base: Those of the base LLM; a task that it cannot do at all (0) says nothing and is left out.
    """
    ratios = [ours[name] / value for name, value in base.items() if value > 0 and name in ours]
    return sum(ratios) / len(ratios) if ratios else None


def retention(parts: Mapping[str, float | None]) -> float | None:
    """The smallest part that was measured; 0 if one is not a number, None if none was measured."""
    values = [value for value in parts.values() if value is not None]
    if not values:
        return None
    return min(values) if all(map(math.isfinite, values)) else 0.0
