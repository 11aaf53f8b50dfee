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
"""The adapters that ship with the package: the right bytes, of the LLM and the encoder that they are for."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_vtb.assets import shipped
from nemo_vtb.assets.catalog import ASSETS
from nemo_vtb.errors import VtbAssetError
from nemo_vtb.model.aligned_adapter import AlignedAdapterFile

ADAPTERS = [name for name, asset in ASSETS.items() if asset.kind == 'adapter']


@pytest.mark.parametrize('name', ADAPTERS)
def test_it_is_small_and_says_what_it_was_made_of(name: str, tmp_path: Path) -> None:
    job: Any = SimpleNamespace(asset=ASSETS[name], into=tmp_path, params=ASSETS[name].params)
    shipped.build_adapter(job)
    file = AlignedAdapterFile.read(tmp_path / 'adapter.safetensors')
    assert file.path.stat().st_size < 15_000_000
    assert file.manifest['data']['hours'] > 1 and file.manifest['wer']
    assert file.manifest['llm']['name'] in name or name.endswith(file.manifest['llm']['name'])
    assert (tmp_path / 'card.md').read_text(encoding='utf-8').strip()


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = ADAPTERS[0]
    (tmp_path / f'{name}.safetensors').write_bytes(b'something else')
    monkeypatch.setattr(shipped, '_FOLDER', tmp_path)
    job: Any = SimpleNamespace(asset=ASSETS[name], into=tmp_path, params=ASSETS[name].params)
    with pytest.raises(VtbAssetError) as error:
        shipped.build_adapter(job)
    assert error.value.field == f'{name}.safetensors'
