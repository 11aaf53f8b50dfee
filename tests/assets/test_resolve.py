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
"""Names of assets become paths when a configuration is composed, and nowhere else."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_vtb.assets.resolve import register_resolvers, resolve_asset, resolve_assets
from nemo_vtb.config import check_config
from nemo_vtb.errors import VtbConfigError


class Cache:
    """A stand-in for `ensure` that remembers what it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.requested = folder, []
        (folder / 'wav').mkdir()
        (folder / 'wav' / 'a.b_c-1.jsonl').touch()

    def __call__(self, *names: str) -> dict[str, Path]:
        self.requested.extend(names)
        return dict.fromkeys(names, self.folder)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    stand_in = Cache(tmp_path)
    monkeypatch.setattr('nemo_vtb.assets.resolve.ensure', stand_in)
    return stand_in


def test_names_become_paths(cache: Cache) -> None:
    assert resolve_asset('plain/path') == 'plain/path' and cache.requested == []
    assert resolve_asset('asset:corpus') == str(cache.folder)
    assert resolve_asset('asset:corpus/wav/a.b_c-1.jsonl') == f'{cache.folder}/wav/a.b_c-1.jsonl'
    # shards are expanded by whoever reads them
    assert resolve_asset('asset:corpus/wav/{1..3}.jsonl') == f'{cache.folder}/wav/{{1..3}}.jsonl'
    with pytest.raises(VtbConfigError) as caught:
        resolve_asset('asset:corpus/absent')
    assert caught.value.field == 'asset:corpus/absent'


def test_a_configuration_is_resolved_as_a_whole_after_the_check(cache: Cache) -> None:
    register_resolvers()
    text = '${vtb_asset:whisper-tiny.en}'
    leaf = {'type': 'nemo', 'manifest_filepath': [text + '/wav', 'asset:corpus/wav', 'own.jsonl']}
    cfg = OmegaConf.create(
        {
            'name': 'x',
            'model': {'pretrained_llm': text, 'tokenizer_path': '${model.pretrained_llm}', 'prompt_format': '???'},
            'data': {'train_ds': {'input_cfg': [{'type': 'group', 'input_cfg': [leaf]}]}},
        }
    )
    cfg.model.prompt_format = 'chatml'
    check_config(cfg)
    assert cache.requested == []
    assert resolve_assets(cfg) is cfg
    assert sorted(set(cache.requested)) == ['corpus', 'whisper-tiny.en']
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert plain['model']['pretrained_llm'] == str(cache.folder)
    assert plain['model']['tokenizer_path'] == '${model.pretrained_llm}'
    inner = plain['data']['train_ds']['input_cfg'][0]['input_cfg'][0]['manifest_filepath']
    assert inner == [f'{cache.folder}/wav', f'{cache.folder}/wav', 'own.jsonl']
    # resolved once: nothing is left to ask for
    before = list(cache.requested)
    resolve_assets(cfg)
    assert cache.requested == before


def test_a_file_of_sources_that_names_assets_is_read(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / 'blend.yaml').write_text('- {type: nemo, manifest_filepath: "asset:corpus/wav"}\n')
    (tmp_path / 'plain.yaml').write_text('- {type: nemo, manifest_filepath: a.jsonl}\n')
    cfg = OmegaConf.create({name: {'input_cfg': f'{tmp_path}/{name}.yaml'} for name in ('blend', 'plain')})
    resolve_assets(cfg)
    assert cfg.blend.input_cfg == [{'type': 'nemo', 'manifest_filepath': f'{cache.folder}/wav'}]
    assert cfg.plain.input_cfg == f'{tmp_path}/plain.yaml'


def test_part_of_a_configuration(cache: Cache) -> None:
    cfg = OmegaConf.create({'root': '${vtb_asset:corpus}', 'data': {'a': '${root}/wav', 'b': 'asset:corpus/wav'}})
    resolve_assets(cfg.data)
    assert OmegaConf.to_container(cfg.data) == {'a': '${root}/wav', 'b': f'{cache.folder}/wav'}
    assert cfg.data.a == f'{cache.folder}/wav'
