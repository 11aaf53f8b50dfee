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
"""The `data` section of a configuration as one typed object; defaults stand here and nowhere else."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nemo_vtb.errors import VtbConfigError
from nemo_vtb.io import cache_dir

_CHOICES = {
    'sampler': ('budget', 'nemo'),
    'unit': ('tokens', 'supervised_tokens'),
    'overlong': ('cut', 'drop', 'error'),
    'on_exhausted': ('stop', 'drop'),
    'on_duration_mismatch': ('quarantine', 'error', 'segment'),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """What the data engine reads from `data`. Shares are counted in `unit`; lengths are tokens."""

    train_ds: Mapping[str, Any] = field(default_factory=dict)
    'NeMo loader section: `input_cfg`, `seed`, `sample_rate`, `num_workers`.'
    validation_ds: Mapping[str, Any] = field(default_factory=dict)
    'NeMo loader section with `datasets: {name: {input_cfg}}`.'
    test_ds: Mapping[str, Any] = field(default_factory=dict)
    'As `validation_ds`.'
    budget: Mapping[str, float] | None = None
    'Share of each kind, sum 1; None: in proportion to the tokens that each kind has.'
    budget_auto: float | None = None
    'Added to the share of text by `data.budget.auto` after a validation under `gate.limit`; None: never.'
    unit: str = 'tokens'
    'What shares are counted in: tokens (text and audio frames) or supervised_tokens.'
    sampler: str = 'budget'
    'What draws the conversations: the token budget, or (to compare) NeMo\'s own lhotse loader.'
    max_tokens: int = 4096
    'Length of a packed row.'
    rows_per_batch: int | None = None
    'Rows of a global batch; None: data-parallel ranks x trainer.accumulate_grad_batches.'
    pool_size: int = 512
    'Conversations in the look-ahead pool, over all sources.'
    num_workers: int = 2
    'Loader processes of each rank.'
    prefetch_factor: int = 4
    'Rows that each loader process keeps ready.'
    seed: int = 42
    'Of the order inside the sources; train_ds.seed wins.'
    temperature: float = 1.0
    'Weights inside a kind are raised to this power.'
    overlong: str = 'cut'
    'A conversation longer than max_tokens: cut between turns, drop, or error.'
    on_exhausted: str = 'stop'
    'When a source with max_repeats is used up: stop the run, or drop the source.'
    on_duration_mismatch: str = 'quarantine'
    'A duration field that differs from the file: quarantine, error, or take it as a segment from the beginning.'
    max_skip_ratio: float = 0.01
    'Share of the lines of a source that may be broken before the run stops.'
    sample_rate: int = 16000
    'Rate in Hz at which the encoder reads.'
    resample: bool = True
    'Whether recordings of another rate are resampled, or left out.'
    balance: bool = True
    'Whether the rows of a global batch are dealt to the ranks by cost, or in turn.'
    refund_batches: int = 32
    'A conversation that fails while it is loaded is made up for after this many global batches.'
    index_dir: str | None = None
    'Where indexes are kept; None: `index` in the cache folder.'
    index_workers: int = 0
    'Processes that build an index; 0: one for each core when the files are large.'
    build_index: bool = True
    'Whether a missing or outdated index is built, or an error.'
    quarantine: str | None = None
    'The file that lists what was left out; None: quarantine.jsonl in the folder of the run.'
    allow_changed: bool = False
    'Whether a checkpoint may be continued with other files, shares or template.'

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> 'DataSettings':
        """Read the section; keys of others (NeMo's own loader keys) are left to `nemo_vtb.config`.

        Raises:
            VtbConfigError: A value is not allowed.
        """
        plain = _plain(cfg)
        train = plain.get('train_ds') or {}
        known = {f.name for f in fields(cls)}
        # a loader key in train_ds is where a SALM user has it
        merged = {k: v for k, v in train.items() if k in ('seed', 'sample_rate', 'num_workers')}
        merged |= {k: v for k, v in plain.items() if k in known and (v is not None or k not in merged)}
        merged |= {'seed': train['seed']} if isinstance(train.get('seed'), int) else {}
        if not isinstance(merged.get('seed', 0), int):
            del merged['seed']  # NeMo's 'trng' and 'randomized' cannot be repeated: our default seed is taken
        budget = merged.get('budget')
        if isinstance(budget, Mapping) and 'auto' in budget:
            merged['budget_auto'] = budget['auto']
            merged['budget'] = {kind: share for kind, share in budget.items() if kind != 'auto'} or None
        for name in ('train_ds', 'validation_ds', 'test_ds'):
            merged[name] = merged.get(name) or {}
        settings = cls(**merged)
        settings._check()
        return settings

    def _check(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise VtbConfigError(
                    'Value not allowed.', field=f'data.{name}', got=getattr(self, name), allowed=', '.join(allowed)
                )
        for name in ('max_tokens', 'pool_size', 'refund_batches', 'sample_rate'):
            if int(getattr(self, name)) < 1:
                raise VtbConfigError('Value too small.', field=f'data.{name}', got=getattr(self, name), allowed='>= 1')
        if self.budget_auto is not None and (self.sampler == 'nemo' or not 0 < self.budget_auto <= 0.5):
            raise VtbConfigError(
                'The share of typed chats cannot be raised like this.', field='data.budget.auto',
                got=f'{self.budget_auto}, data.sampler={self.sampler}',
                allowed='null, or above 0 and at most 0.5 with data.sampler=budget',
            )  # fmt: skip
        if not 0 <= self.max_skip_ratio <= 1:
            raise VtbConfigError(
                'Not a ratio.', field='data.max_skip_ratio', got=self.max_skip_ratio, allowed='0 ... 1'
            )

    @property
    def index_folder(self) -> Path:
        """Where indexes are kept."""
        if self.index_dir:
            return Path(self.index_dir)
        return cache_dir() / 'index'


def _plain(cfg: Any) -> dict[str, Any]:
    from omegaconf import DictConfig, OmegaConf

    if isinstance(cfg, DictConfig):
        return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]
    return dict(cfg)
