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
"""Folders are built once, atomically, by one process at a time; a kill or a full disk leaves nothing behind."""

import errno
import importlib
import json
import signal
import subprocess
import sys
import types

import pytest

from nemo_vtb.assets import ensure, ensure_available, names, store
from nemo_vtb.assets.catalog import ASSETS, PACKAGES, Asset, Package
from nemo_vtb.errors import VtbAssetError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of its own; clients are forbidden."""
    monkeypatch.setenv('NEMO_VTB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('NEMO_VTB_OFFLINE', '1')
    monkeypatch.setattr(store, '_fingerprint', store._fingerprint.__wrapped__)
    return tmp_path / 'cache'


TOOLS = types.SimpleNamespace()


@pytest.fixture
def builders():
    """A builder, and the list of what it built."""
    TOOLS.built = []

    def build(job):
        TOOLS.built.append(job.asset.name)
        (job.scratch / 'unpacked').write_text('not kept')
        (job.into / 'wav').mkdir()
        (job.into / 'wav' / 'a.wav').write_bytes(b'sound')
        (job.into / 'out.txt').write_text(f'{job.params.get("word")} {sorted(job.assets)} {sorted(job.unavailable)}')

    TOOLS.build = build
    return TOOLS


def add_asset(monkeypatch, name, **changes):
    settings = {'builder': lambda job: TOOLS.build(job), 'packages': (), 'outputs': ('out.txt',), **changes}
    asset = Asset(name, 'recordings', 'a tiny one', 'nobody', 'MIT', **settings)
    monkeypatch.setitem(ASSETS, name, asset)
    return asset


def test_names_are_the_catalog():
    assert names() == tuple(ASSETS)


def test_a_folder_is_built_once(cache, builders, monkeypatch, capsys):
    add_asset(monkeypatch, 'tiny', params={'word': 'hello'})
    assert store.state('tiny') == 'missing'
    assert ensure('tiny') == {'tiny': cache / 'tiny'}
    assert 'building tiny' in capsys.readouterr().err
    assert ensure('tiny', quiet=True) == {'tiny': cache / 'tiny'}
    assert builders.built == ['tiny']
    assert (cache / 'tiny' / 'out.txt').read_text() == 'hello [] []'
    assert sorted(path.name for path in cache.iterdir()) == ['locks', 'tiny']
    assert store.state('tiny') == 'ready'
    assert capsys.readouterr().err == ''


def test_a_changed_recipe_is_built_anew(cache, builders, monkeypatch):
    add_asset(monkeypatch, 'tiny')
    add_asset(monkeypatch, 'upper', needs=('tiny',))
    ensure('upper', quiet=True)
    add_asset(monkeypatch, 'tiny', revision=2)
    assert store.state('tiny') == store.state('upper') == 'outdated'
    ensure('upper', quiet=True)
    assert builders.built == ['tiny', 'upper'] * 2
    ensure('upper', quiet=True, rebuild=True)
    assert builders.built[4:] == ['upper']


def test_a_lost_or_cut_file_is_noticed(cache, builders, monkeypatch):
    add_asset(monkeypatch, 'tiny')
    folder = ensure('tiny', quiet=True)['tiny']
    (folder / 'wav' / 'a.wav').write_bytes(b'cut')
    assert store.verify('tiny') == ['wav/a.wav']
    ensure('tiny', quiet=True)
    assert store.verify('tiny') == []
    (folder / 'wav' / 'a.wav').unlink()
    ensure('tiny', quiet=True)
    assert (folder / 'wav' / 'a.wav').read_bytes() == b'sound'
    (folder / store.STAMP).write_text('{')
    assert store.state('tiny') == 'missing'
    ensure('tiny', quiet=True)
    assert store.state('tiny') == 'ready'


def test_optional_needs_are_left_out_with_a_reason(cache, builders, monkeypatch):
    package = Package('far', 'npm', 'far-away', '1', 'far.tgz', '0' * 64, 1.0, 'MIT')
    monkeypatch.setitem(PACKAGES, 'far', package)
    add_asset(monkeypatch, 'there')
    add_asset(monkeypatch, 'far', packages=('far',))
    add_asset(monkeypatch, 'whole', optional_needs=('there', 'far'), optional_packages=('far',))
    ensure('whole', quiet=True)
    assert (cache / 'whole' / 'out.txt').read_text() == "None ['there'] ['far']"
    assert store.state('whole') == 'partial'
    assert 'NEMO_VTB_OFFLINE' in store.unavailable('whole')['far']
    paths, reasons = ensure_available('far', 'there', quiet=True)
    assert set(paths) == {'there'} and 'far-away 1' in reasons['far']
    with pytest.raises(VtbAssetError, match='far-away 1'):
        ensure('there', 'far', quiet=True)


def test_an_unknown_name_builds_nothing(cache, builders, monkeypatch):
    add_asset(monkeypatch, 'tiny')
    for function in (ensure, ensure_available):
        with pytest.raises(VtbAssetError, match="did you mean 'tiny'"):
            function('tiny', 'tinny', quiet=True)
    assert builders.built == []


@pytest.mark.parametrize(
    ('failure', 'message'),
    [
        (OSError(errno.ENOSPC, 'No space left on device'), 'not enough room'),
        (OSError(errno.EACCES, 'denied'), 'cannot be written'),
        (VtbAssetError('broken file'), 'broken file'),
    ],
)
def test_a_failed_build_leaves_nothing(cache, builders, monkeypatch, failure, message):
    def build(job):
        (job.into / 'out.txt').write_text('half')
        raise failure

    builders.build = build
    add_asset(monkeypatch, 'tiny')
    with pytest.raises(VtbAssetError, match=message):
        ensure('tiny', quiet=True)
    assert [path.name for path in cache.iterdir()] == ['locks']


def test_a_failed_rebuild_keeps_the_old_folder(cache, builders, monkeypatch):
    add_asset(monkeypatch, 'tiny')
    ensure('tiny', quiet=True)
    builders.build = lambda job: None
    with pytest.raises(VtbAssetError, match='did not write all its files'):
        ensure('tiny', quiet=True, rebuild=True)
    assert store.state('tiny') == 'ready'


def test_a_missing_module_is_named(cache, monkeypatch):
    add_asset(monkeypatch, 'tiny', builder=lambda job: importlib.import_module('no_such_module_here'))
    with pytest.raises(VtbAssetError, match='no_such_module_here') as caught:
        ensure('tiny', quiet=True)
    assert 'pip install' in caught.value.remedy


def test_the_second_of_two_packages_is_taken(cache, builders, monkeypatch):
    content = b'second'
    sha256 = '16367aacb67a4a017c8da8ab95682ccb390863780f7114dda0a0e0c55644c7c4'
    monkeypatch.setitem(PACKAGES, 'a', Package('a', 'npm', 'first', '1', 'first.tgz', '0' * 64, 0.1, 'MIT'))
    monkeypatch.setitem(PACKAGES, 'b', Package('b', 'npm', 'second', '1', 'second.tgz', sha256, 0.1, 'MIT'))
    (cache / 'downloads').mkdir(parents=True)
    (cache / 'downloads' / 'second.tgz').write_bytes(content)
    builders.build = lambda job: (job.into / 'out.txt').write_text(str(dict(job.packages)))
    add_asset(monkeypatch, 'tiny', packages=('a|b',))
    folder = ensure('tiny', quiet=True)['tiny']
    assert str({'b': cache / 'downloads' / 'second.tgz'}) == (folder / 'out.txt').read_text()
    assert store.remove_downloads() == len(content)
    assert store.state('tiny') == 'ready'


def test_the_stamp_tells_the_licence_and_files_are_readable(cache, builders, monkeypatch):
    def build(job):
        (job.into / 'out.txt').write_text('x')
        (job.into / 'out.txt').chmod(0o600)

    builders.build = build
    add_asset(monkeypatch, 'tiny')
    folder = ensure('tiny', quiet=True)['tiny']
    stamp = json.loads((folder / store.STAMP).read_text())
    assert stamp['licence'] == 'MIT' and list(stamp['files']) == ['out.txt']
    assert (folder / 'out.txt').stat().st_mode == (folder / store.STAMP).stat().st_mode


CHILD = """
import sys, time
from nemo_vtb.assets import ensure
from nemo_vtb.assets.catalog import ASSETS, Asset
def build(job):
    (job.into / 'half.bin').write_bytes(b'half')
    print('half', flush=True)
    time.sleep(float(sys.argv[1]))
    (job.into / 'out.txt').write_text('whole')
ASSETS['tiny'] = Asset('tiny', 'recordings', '', '', 'MIT', (), build, outputs=('out.txt',))
ensure('tiny', quiet=True)
"""


def test_a_killed_conversion_leaves_no_half_folder(cache):
    child = subprocess.Popen([sys.executable, '-c', CHILD, '60'], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == 'half\n'
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (cache / 'tiny').exists()
    assert list(cache.glob('.tiny.*/tiny/half.bin'))
    done = subprocess.run([sys.executable, '-c', CHILD, '0'], capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (cache / 'tiny' / 'out.txt').read_text() == 'whole'
    assert not list(cache.glob('.tiny.*'))


def test_two_processes_build_once(cache):
    children = [
        subprocess.Popen([sys.executable, '-c', CHILD, '0.5'], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    printed = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert sorted(printed) == ['', '', 'half\n']
