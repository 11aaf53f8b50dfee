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
"""Each key is one dataclass field: what is checked, shown and documented is made from it."""

from pathlib import Path
from typing import Any

import pytest

from nemo_vtb.config.keys import describe, help_text, keys_of
from nemo_vtb.config.schema import CONFIGS, DataSettings, TrainConfig
from nemo_vtb.errors import VtbConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize('cls', CONFIGS.values(), ids=CONFIGS)
def test_every_key_has_a_meaning_and_stands_in_the_help(cls: type) -> None:
    text = help_text(cls)
    for row in describe(cls):
        assert row.meaning and f'  {row.path} ' in text


def test_every_field_of_the_settings_is_a_key_but_one() -> None:
    keys = {item.name for item, _ in keys_of(DataSettings)}
    assert set(DataSettings.__dataclass_fields__) - keys == {'budget_auto'}
    assert {item.name for item, _ in keys_of(TrainConfig)} >= {'name', 'seed', 'model', 'data', 'trainer', 'gate'}


def test_pages_and_files_are_those_of_the_dataclasses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / 'tools')
    import config_reference

    stale = [path.name for path, text in config_reference.pages().items() if path.read_text(encoding='utf-8') != text]
    assert stale == [], 'python tools/config_reference.py'


@pytest.mark.parametrize(
    ('section', 'field'),
    [
        ({'max_tokens': 0}, 'data.max_tokens'),
        ({'unit': 'token'}, 'data.unit'),
        ({'resample': 'no'}, 'data.resample'),
        ({'max_skip_ratio': 2}, 'data.max_skip_ratio'),
        ({'budget': {'text': 1.0, 'auto': 0.7}}, 'data.budget.auto'),
        ({'sampler': 'nemo'}, 'data.sampler'),
    ],
)
def test_settings_refuse_what_the_check_refuses(section: dict[str, Any], field: str) -> None:
    with pytest.raises(VtbConfigError) as caught:
        DataSettings.from_config(section)
    assert caught.value.field == field
