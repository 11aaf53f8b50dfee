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
"""What SALM's YAML has elsewhere is found there, and its units are converted."""

import logging
from typing import Any

import pytest
from omegaconf import OmegaConf

from nemo_vtb.config.salm import complete_config
from nemo_vtb.errors import VtbConfigError


def completed(**changes: Any) -> Any:
    cfg = OmegaConf.create(
        {
            'trainer': {'devices': 1, 'max_steps': 10},
            'data': {'train_ds': {'seed': 7}},
            'exp_manager': {'name': 'salm', 'explicit_log_dir': 'salm_results'},
        }
    )
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace('__', '.'), value, merge=False, force_add=True)
    OmegaConf.set_struct(cfg, True)
    return complete_config(cfg)


def test_seed_and_name_come_from_where_salm_has_them() -> None:
    cfg = completed()
    assert cfg.seed == 7 and cfg.name == 'salm'
    assert completed(data__train_ds__seed='trng').seed == 42
    assert completed(seed=3, name='mine').seed == 3


def test_a_run_without_exp_manager_gets_a_folder() -> None:
    cfg = completed(exp_manager=None)
    assert cfg.exp_manager.explicit_log_dir == 'runs/salm'
    assert cfg.trainer.logger is False and cfg.trainer.enable_checkpointing is False


@pytest.mark.parametrize(
    ('loader', 'tokens'),
    [
        ({'batch_tokens': 4000, 'token_equivalent_duration': 0.08}, 4000),
        ({'batch_duration': 100, 'token_equivalent_duration': 0.04}, 2500),
        ({'batch_duration': 100}, 1250),
        ({'batch_size': 4}, None),
    ],
)
def test_a_batch_becomes_a_row_that_holds_as_much(
    loader: dict[str, Any], tokens: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        cfg = completed(data__train_ds=loader)
    assert cfg.data.get('max_tokens') == tokens
    assert next(iter(loader)) in caplog.text


def test_own_lengths_are_left_alone() -> None:
    cfg = completed(data__max_tokens=512, data__train_ds__batch_tokens=4000)
    assert cfg.data.max_tokens == 512


def test_an_interval_in_batches_becomes_one_in_steps() -> None:
    changes = {'trainer__accumulate_grad_batches': 4, 'trainer__val_check_interval': 100}
    assert completed(**changes).trainer.val_check_interval == 25
    assert completed(**changes, data__max_tokens=512).trainer.val_check_interval == 100  # ours counts steps
    with pytest.raises(VtbConfigError) as caught:
        completed(**{**changes, 'trainer__val_check_interval': 102})
    assert caught.value.field == 'trainer.val_check_interval'


def test_epochs_become_steps() -> None:
    changes = {'trainer__max_steps': -1, 'trainer__max_epochs': 3, 'trainer__limit_train_batches': 100}
    cfg = completed(**changes, trainer__accumulate_grad_batches=2)
    assert cfg.trainer.max_steps == 150 and 'max_epochs' not in cfg.trainer
    assert completed(**changes, data__rows_per_batch=4, trainer__devices=2).trainer.max_steps == 150
    assert completed(trainer__max_epochs=3).trainer.max_steps == 10  # what comes first ends the run, as in Lightning


@pytest.mark.parametrize('limit', [None, 1.0, 101])
def test_epochs_without_a_length_are_refused(limit: Any) -> None:
    with pytest.raises(VtbConfigError) as caught:
        completed(
            trainer__max_steps=-1, trainer__max_epochs=3, trainer__limit_train_batches=limit,
            trainer__accumulate_grad_batches=2,
        )  # fmt: skip
    assert caught.value.field == 'trainer.max_epochs' and 'trainer.max_steps' in str(caught.value.remedy)


def test_batches_of_a_validation_are_said_to_be_rows(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        cfg = completed(trainer__limit_val_batches=3)
    assert cfg.trainer.limit_val_batches == 3 and 'limit_val_batches=3: packed rows' in caplog.text
