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
"""`vtb assets` lists, fetches, verifies, and answers with an exit status."""

import pytest

from nemo_vtb.assets import store
from nemo_vtb.assets.catalog import ASSETS, Asset
from nemo_vtb.commands.assets import main


def build(job):
    (job.into / 'out.txt').write_text('x')


@pytest.fixture
def only_tiny(tmp_path, monkeypatch):
    """A catalog of two assets, one of which cannot be had; returns the folder of the other."""
    monkeypatch.setenv('NEMO_VTB_CACHE', str(tmp_path))
    monkeypatch.setenv('NEMO_VTB_OFFLINE', '1')
    monkeypatch.setattr(store, '_fingerprint', store._fingerprint.__wrapped__)
    for name in list(ASSETS):
        monkeypatch.delitem(ASSETS, name)
    for name, packages in (('tiny', ()), ('far', ('tts-sdist',))):
        asset = Asset(name, 'recordings', f'about {name}', '', 'MIT', packages, build)
        monkeypatch.setitem(ASSETS, name, asset)
    return tmp_path / 'tiny'


def test_list_fetches_nothing(only_tiny, capsys):
    assert main(['--list']) == 0
    shown = capsys.readouterr().out
    assert 'tiny' in shown and 'missing' in shown and 'MIT' in shown
    assert not only_tiny.exists()


def test_without_names_the_rest_goes_on(only_tiny, capsys):
    assert main([]) == 0
    captured = capsys.readouterr()
    assert 'skipped far' in captured.err
    assert 'TTS 0.0.13.2' in captured.err
    assert 'ready' in captured.out and 'missing' in captured.out
    assert (only_tiny / 'out.txt').exists()


def test_a_named_asset_must_work(only_tiny, capsys):
    assert main(['far', '--quiet']) == 1
    assert 'NEMO_VTB_OFFLINE' in capsys.readouterr().out
    assert main(['fat']) == 1
    assert "did you mean 'far'" in capsys.readouterr().out


def test_verify_finds_damage(only_tiny, capsys):
    assert main(['tiny', '--quiet']) == 0
    assert main(['--verify']) == 0
    assert 'tiny: intact' in capsys.readouterr().out
    (only_tiny / 'out.txt').write_text('y')
    assert main(['--verify', 'tiny']) == 1
    assert 'vtb assets tiny --rebuild' in capsys.readouterr().out
    assert main(['tiny', '--rebuild', '--quiet']) == 0
    assert main(['--verify']) == 0


def test_downloads_can_be_removed(only_tiny, capsys):
    assert main(['--remove-downloads']) == 0
    assert '0 MB' in capsys.readouterr().out
