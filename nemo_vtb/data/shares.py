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
"""The share of each source in all tokens, from the shares of the kinds and the weights inside them."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from nemo_vtb.errors import VtbConfigError, VtbDataError


class BudgetedSource(Protocol):
    """What the plan needs to know of a source (see `index.SourceIndex`)."""

    name: str
    kind: str
    weight: float
    max_repeats: int | None
    digest: str

    def __len__(self) -> int: ...

    def measure(self, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, supervised tokens and seconds of audio of some entries, each (len(entries),)."""
        ...


def resolve_shares(
    sources: Sequence[BudgetedSource],
    budget: Mapping[str, float] | None,
    temperature: float = 1.0,
    unit: str = 'tokens',
) -> list[float]:
    """The share of each source in all tokens: the share of its kind times its part of the weights of that kind.

    Raises:
        VtbConfigError: See `TokenBudgetPlan`.
        VtbDataError: See `TokenBudgetPlan`.
    """
    if unit not in ('tokens', 'supervised_tokens'):
        raise VtbConfigError(
            'Unknown unit of shares.', field='data.train_ds.unit', got=unit, allowed='tokens, supervised_tokens'
        )
    for source in sources:
        if not len(source):
            raise VtbDataError(
                'A source has no usable conversation.',
                field=f'source {source.name}',
                got='0 conversations',
                remedy='correct its manifest, or take it out of input_cfg',
            )
        if unit == 'supervised_tokens' and not source.measure(np.arange(len(source)))[1].any():
            raise VtbDataError(
                'A source has no supervised tokens, so that it can have no share of them.',
                field=f'source {source.name}',
                got='0 supervised tokens',
                remedy='set data.unit to tokens',
            )
    if not sources:
        raise VtbDataError('There is no source of data.', field='data.train_ds.input_cfg', got='[]')
    weights = [max(float(s.weight), 0.0) ** temperature if s.weight else 0.0 for s in sources]
    kinds = sorted({s.kind for s in sources})
    if budget is None:
        budget = _proportional(sources, unit)
    _check_budget(budget, kinds)
    inside = {kind: sum(w for w, s in zip(weights, sources, strict=True) if s.kind == kind) for kind in kinds}
    for kind in kinds:
        if budget.get(kind, 0) > 0 and inside[kind] <= 0:
            raise VtbConfigError('All sources of a kind have weight 0.', field=f'budget.{kind}', got=0, allowed='> 0')
    return [
        float(budget.get(s.kind, 0.0)) * (w / inside[s.kind] if inside[s.kind] else 0.0)
        for w, s in zip(weights, sources, strict=True)
    ]


def _check_budget(budget: Mapping[str, float], kinds: Sequence[str]) -> None:
    field = 'data.train_ds.budget'
    for kind, share in budget.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise VtbConfigError(
                'A share must be a number from 0 to 1.', field=f'{field}.{kind}', got=share, allowed='0 ... 1'
            )
        if share > 0 and kind not in kinds:
            raise VtbConfigError(
                'A kind of data has a share but no source.',
                field=f'{field}.{kind}',
                got=share,
                allowed=f'kinds with a source: {", ".join(kinds)}',
                remedy=f'add a source of kind {kind} to input_cfg, or give its share to the others',
            )
    for kind in kinds:
        if kind not in budget:
            raise VtbConfigError(
                'A kind of data has sources but no share.',
                field=f'{field}.{kind}',
                got='absent',
                remedy='give it a share; 0 leaves it out',
            )
    if abs(sum(budget.values()) - 1) > 1e-6:
        raise VtbConfigError(
            'The shares do not sum to 1.',
            field=field,
            got=f'{dict(budget)}, sum {sum(budget.values()):.6g}',
            allowed='sum 1',
        )


def _proportional(sources: Sequence[BudgetedSource], unit: str) -> dict[str, float]:
    """Each kind in proportion to what it has, so that every conversation is seen equally often."""
    tokens: dict[str, int] = {}
    for source in sources:
        measured = source.measure(np.arange(len(source)))
        tokens[source.kind] = tokens.get(source.kind, 0) + int(
            measured[1 if unit == 'supervised_tokens' else 0].sum(dtype=np.int64)
        )
    total = sum(tokens.values())
    return {kind: count / total for kind, count in tokens.items()}
