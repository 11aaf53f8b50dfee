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
"""docs/nemo.md says of every key of NeMo's loaders, exp_manager and Lightning's Trainer what it does here."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from nemo_vtb.config.schema import REFUSED_LOADER_KEYS
from nemo_vtb.errors import VtbConfigError

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / 'docs' / 'nemo.md').read_text(encoding='utf-8')


def named(heading: str) -> set[str]:
    """Names in backquotes in the tables below a heading, up to the next one."""
    part = PAGE.partition(f'{heading}\n')[2]
    rows = re.split(r'\n##+ ', part)[0]
    return set(re.findall(r'`([a-z_0-9]+)`', rows))


def test_loader_keys() -> None:
    from nemo.collections.common.data.lhotse.dataloader import LhotseDataLoadingConfig

    assert {field.name for field in fields(LhotseDataLoadingConfig)} - named('### Loader sections') == set()


def test_arguments_of_the_trainer() -> None:
    from lightning.pytorch import Trainer

    names = set(inspect.signature(inspect.unwrap(Trainer.__init__)).parameters) - {'self'}
    assert names - named("## Lightning's Trainer") == set()


def test_options_of_exp_manager() -> None:
    from nemo.utils.exp_manager import ExpManagerConfig

    assert {field.name for field in fields(ExpManagerConfig)} - named('## exp_manager') == set()


@pytest.mark.parametrize('key', REFUSED_LOADER_KEYS)
def test_what_would_change_the_data_is_refused(key: str) -> None:
    from nemo_vtb import check_config

    cfg = {'data': {'validation_ds': {'datasets': {'a': {key: 'x.jsonl'}}}}}
    with pytest.raises(VtbConfigError) as caught:
        check_config(cfg)
    assert caught.value.field == f'data.validation_ds.datasets.a.{key}'
    check_config({'data': {'train_ds': {key: REFUSED_LOADER_KEYS[key]}}})


def test_keys_of_salms_own_files() -> None:
    """Each key of the forms of its YAML is on this page, or in the reference of keys."""
    from omegaconf import OmegaConf
    from salm_yaml import BUCKETING, FORMS, SALM

    yaml = OmegaConf.to_container(OmegaConf.create(re.sub(r'\{(\w+)\}(?!\})', r'\1', SALM.replace('{{', '{'))))
    reference = (ROOT / 'docs' / 'config.md').read_text(encoding='utf-8')
    known = set(re.findall(r'`([a-z_0-9.]+)`', PAGE)) | set(re.findall(r'[`.]([a-z_0-9]+)`', reference))
    changed = {path.rpartition('.')[2] for changes in FORMS.values() for path in changes}
    assert (set(_names(yaml)) | set(BUCKETING) | changed) - known - _OF_A_CLASS == set()


_OF_A_CLASS = {
    *('betas', 'lr', 'weight_decay', 'foreach', 'warmup_steps', 'min_lr'),  # optimizer and schedule
    *('d_model', '_target_', 'val_set_0', 'gradient_as_bucket_view', 'find_unused_parameters'),
    *('filename', 'monitor', 'mode', 'every_n_train_steps', 'every_n_epochs', 'save_top_k'),  # NeMo's callback
    *('always_save_nemo', 'save_nemo_on_train_end', 'resume', 'project'),
}
"""Arguments of classes that a `_target_` or NeMo names: `check_config` compares them with the signature."""


def _names(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield name
            yield from _names(value)
    elif isinstance(node, list):
        for item in node:
            yield from _names(item)
