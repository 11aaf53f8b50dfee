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
"""From the `data` section to indexed sources and the plan: what training and the commands do alike. Without torch."""

from collections.abc import Sequence

from nemo_vtb.config.schema import DataSettings
from nemo_vtb.data.index import Meter, SourceIndex, open_index
from nemo_vtb.data.overlong import FittedSource
from nemo_vtb.data.sampler import TokenBudgetPlan
from nemo_vtb.data.sources import SourceSpec, parse_input_cfg
from nemo_vtb.errors import VtbConfigError

EVAL_SECTIONS = ('validation_ds', 'test_ds')


def train_specs(settings: DataSettings) -> list[SourceSpec]:
    """The sources of `train_ds`."""
    train = settings.train_ds
    where = 'data.train_ds.input_cfg'
    return parse_input_cfg(train.get('input_cfg') or (), where, train.get('reweight_temperature'))


def eval_specs(settings: DataSettings, section: str) -> dict[str, list[SourceSpec]]:
    """The sources of each named set of `validation_ds` or `test_ds`."""
    loader = getattr(settings, section)
    sets = loader.get('datasets') or ({'validation': loader} if loader.get('input_cfg') else {})
    return {
        name: parse_input_cfg(each.get('input_cfg') or (), f'data.{section}.datasets.{name}.input_cfg')
        for name, each in sets.items()
    }


def open_source(
    spec: SourceSpec, settings: DataSettings, meter: Meter, *, check: bool = True, quiet: bool = False
) -> SourceIndex:
    """Open the index of a source, building it where that is needed and allowed.

    Raises:
        VtbDataError: There is none and it may not be built; or, with `check`, too much of the source is broken.
    """
    index = open_index(
        spec,
        meter,
        settings.index_folder,
        build=settings.build_index,
        workers=settings.index_workers,
        quiet=quiet,
    )
    if check:
        index.check(settings.max_skip_ratio)
    return index


def make_plan(sources: Sequence[FittedSource], settings: DataSettings) -> TokenBudgetPlan:
    """The global plan that the settings ask for.

    Raises:
        VtbConfigError: The shares do not fit the sources, or that of text cannot be raised (`data.budget.auto`).
    """
    plan = TokenBudgetPlan(
        sources,
        settings.budget,
        max_tokens=settings.max_tokens,
        unit=settings.unit,
        seed=settings.seed,
        pool=settings.pool_size,
        temperature=settings.temperature,
        on_exhausted=settings.on_exhausted,
    )
    if settings.budget_auto and not 0 < plan.coming_budget.get('text', 0.0) < 1:
        raise VtbConfigError(
            'The share of text-only conversations cannot be raised.',
            field='data.budget.auto',
            got=settings.budget_auto,
            allowed='a budget with a share of text between 0 and 1',
            remedy='add a source of kind text, or set data.budget.auto=null',
        )
    return plan
