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
"""The catalog is complete, consistent and light."""

import re
import subprocess
import sys

import pytest

from nemo_vtb.assets.catalog import ASSETS, CLIENTS, PACKAGES, get_asset, get_package, package_choices
from nemo_vtb.errors import VtbAssetError

HEX64 = re.compile(r'[0-9a-f]{64}')


@pytest.mark.parametrize('package', PACKAGES.values(), ids=PACKAGES)
def test_package_is_pinned(package):
    assert package.client in CLIENTS
    assert HEX64.fullmatch(package.sha256)
    assert package.version and package.licence and package.size_mb > 0
    assert '/' not in package.file and package.version.replace(':', '%3a') in package.file


@pytest.mark.parametrize('asset', ASSETS.values(), ids=ASSETS)
def test_asset_refers_to_known_things(asset):
    listed = [package.key for entry in asset.packages for package in package_choices(entry)]
    listed += [get_package(key).key for key in asset.optional_packages]
    for file in asset.files:
        assert file.package in listed
        assert file.sha256 is None or HEX64.fullmatch(file.sha256)
    for need in (*asset.needs, *asset.optional_needs):
        assert get_asset(need).name == need
    assert asset.authors and asset.licence and asset.about
    assert asset.outputs and asset.size_mb > 0 and asset.build_s > 0
    assert callable(asset.builder)


def test_no_two_packages_share_a_file_or_a_sum():
    assert len({package.file for package in PACKAGES.values()}) == len(PACKAGES)
    assert len({package.sha256 for package in PACKAGES.values()}) == len(PACKAGES)


def test_weights_are_checked_inside_the_package_too():
    for asset in ASSETS.values():
        if asset.kind in ('llm', 'encoder'):
            assert any(file.sha256 for file in asset.files) or 'joined_sha256' in asset.params


def test_the_contract_names_are_there():
    wanted = {'smollm2-135m-instruct', 'minimind2-small', 'whisper-tiny.en', 'whisper-tiny', 'whisper-base'}
    wanted |= {f'asterisk-{lang}' for lang in ('en', 'es', 'fr', 'it', 'ru')}
    wanted |= {'jfk', 'librivox', 'ljspeech', 'demo-corpus'}
    assert wanted <= set(ASSETS)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(VtbAssetError, match="did you mean 'whisper-tiny'"):
        get_asset('whisper-tinny')
    with pytest.raises(VtbAssetError, match='no embedded package'):
        get_package('nothing-like-it')


def test_alternatives_come_in_order():
    keys = [package.key for package in package_choices('pocketsphinx-testdata|pocketsphinx-sdist')]
    assert keys == ['pocketsphinx-testdata', 'pocketsphinx-sdist']


def test_every_asset_is_in_the_notice(request):
    notice = (request.config.rootpath / 'NOTICE').read_text(encoding='utf-8')
    for name in ASSETS:
        assert name in notice
    for package in PACKAGES.values():
        # language variants of a Debian package are listed as '-en, -en-g722' after their common stem
        assert package.name in notice or package.name.removeprefix('asterisk-core-sounds') in notice


def test_importing_the_assets_loads_nothing_heavy():
    code = (
        'import sys, nemo_vtb.assets, nemo_vtb.commands.assets\n'
        'heavy = {"torch", "transformers", "nemo", "onnx", "gguf", "numpy", "av"} & set(sys.modules)\n'
        'sys.exit(f"loaded: {heavy}" if heavy else 0)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
