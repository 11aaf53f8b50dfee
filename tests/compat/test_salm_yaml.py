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
"""SALM's configurations train as they are."""

import json
from pathlib import Path

import pytest
from ranks import run
from salm_yaml import FORMS, parts, salm_config

pytestmark = pytest.mark.integration


@pytest.fixture(scope='module')
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return parts(tmp_path_factory.mktemp('salm'))


SLOW = ('salm_2025_09', 'lora')


@pytest.mark.parametrize(
    'form', [pytest.param(form, marks=pytest.mark.slow) if form in SLOW else form for form in FORMS]
)
def test_a_salm_configuration_trains(values: dict[str, str], form: str, tmp_path: Path) -> None:
    folder = run(salm_config(values, tmp_path, FORMS[form]))
    steps = [json.loads(line) for line in (folder / 'history.jsonl').read_text().splitlines()]
    assert [s['step'] for s in steps if s['type'] == 'train'] == [1, 2]
    assert all('val_acc_val_set_0' in s['metrics'] for s in steps if s['type'] == 'validation')
