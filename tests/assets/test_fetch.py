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
"""Packages come through the real pip and npm (from a local index) and are verified; failures name their remedy."""

import dataclasses
import hashlib
import http.server
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile

import pytest

from nemo_vtb.assets import fetch as fetch_module
from nemo_vtb.assets.catalog import Package
from nemo_vtb.assets.fetch import client_missing, fetch
from nemo_vtb.errors import VtbAssetError

WHEEL = 'vtb_tiny_asset-1.0-py3-none-any.whl'


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """No pauses, no memory of other tests' failures, and no network for the clients."""
    monkeypatch.setattr(fetch_module, 'BACKOFF_S', (0.0, 0.0))
    monkeypatch.setattr(fetch_module, '_unreachable_since', {})
    monkeypatch.setenv('PIP_INDEX_URL', 'http://127.0.0.1:9/simple')
    monkeypatch.setenv('PIP_EXTRA_INDEX_URL', '')
    monkeypatch.delenv('PIP_RETRIES', raising=False)
    monkeypatch.setenv('npm_config_registry', 'http://127.0.0.1:9/')
    for name in ('NEMO_VTB_OFFLINE', 'NEMO_VTB_DOWNLOADS'):
        monkeypatch.delenv(name, raising=False)


def package_of(content, client, file):
    return Package(
        f'tiny-{client}', client, 'vtb-tiny-asset', '1.0', file, hashlib.sha256(content).hexdigest(), 0.1, 'MIT'
    )


def wheel_bytes():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        archive.writestr('vtb_tiny_asset/weights.bin', b'weights')
        info = 'vtb_tiny_asset-1.0.dist-info'
        archive.writestr(f'{info}/METADATA', 'Metadata-Version: 2.1\nName: vtb-tiny-asset\nVersion: 1.0\n')
        archive.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        archive.writestr(f'{info}/RECORD', '')
    return buffer.getvalue()


def tar_bytes(top, extra=None):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
        files = {'package.json': b'{"name": "vtb-tiny-asset", "version": "1.0.0"}', **(extra or {})}
        for name, content in files.items():
            info = tarfile.TarInfo(f'{top}/{name}')
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel that pip finds in a local folder."""
    index = tmp_path / 'index'
    index.mkdir()
    content = wheel_bytes()
    (index / WHEEL).write_bytes(content)
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(index))
    return package_of(content, 'pypi-wheel', WHEEL)


def fake_client(folder, name, script):
    """Put an executable of this name into a folder."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f'#!/bin/sh\n{script}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


def test_a_wheel_through_pip(wheel, tmp_path):
    lines = []
    path = fetch(wheel, tmp_path / 'downloads', lines.append)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == wheel.sha256
    assert any('vtb-tiny-asset 1.0' in line for line in lines)
    assert [item.name for item in (tmp_path / 'downloads').iterdir()] == [WHEEL]


def test_a_verified_file_needs_no_client(wheel, tmp_path, monkeypatch):
    first = fetch(wheel, tmp_path / 'downloads')
    monkeypatch.setattr(fetch_module, '_run', lambda *_: pytest.fail('a client was started'))
    assert fetch(wheel, tmp_path / 'downloads') == first


def test_a_damaged_file_is_fetched_again(wheel, tmp_path):
    path = fetch(wheel, tmp_path / 'downloads')
    path.write_bytes(b'damaged')
    assert zipfile.is_zipfile(fetch(wheel, tmp_path / 'downloads'))


def test_another_sum_is_refused_and_leaves_nothing(wheel, tmp_path):
    wrong = dataclasses.replace(wheel, sha256='0' * 64)
    with pytest.raises(VtbAssetError, match='sha256 is') as caught:
        fetch(wrong, tmp_path / 'downloads')
    assert 'never use such a file' in caught.value.remedy
    assert list((tmp_path / 'downloads').iterdir()) == []


def test_a_source_archive_runs_no_code_of_its_own(tmp_path, monkeypatch):
    trap = tmp_path / 'ran'
    setup = f'open({str(trap)!r}, "w").close()'.encode()
    content = tar_bytes('vtb_tiny_asset-1.0', {'setup.py': setup, 'data.bin': b'data'})
    index = tmp_path / 'index'
    index.mkdir()
    (index / 'vtb_tiny_asset-1.0.tar.gz').write_bytes(content)
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(index))
    package = package_of(content, 'pypi-sdist', 'vtb_tiny_asset-1.0.tar.gz')
    assert fetch(package, tmp_path / 'downloads').read_bytes() == content
    assert not trap.exists()


@pytest.mark.parametrize('client', ['pypi-wheel', 'pypi-sdist'])
def test_a_version_that_is_gone(client, tmp_path, monkeypatch):
    (tmp_path / 'index').mkdir()
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path / 'index'))
    with pytest.raises(VtbAssetError, match='does not offer this version') as caught:
        fetch(package_of(b'', client, 'vtb_tiny_asset-1.0.tar.gz'), tmp_path / 'downloads')
    assert str(tmp_path / 'downloads') in caught.value.remedy


@pytest.mark.parametrize('client', ['pypi-wheel', 'pypi-sdist'])
def test_no_network(client, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module, 'BACKOFF_S', ())
    with pytest.raises(VtbAssetError, match='no network') as caught:
        fetch(package_of(b'', client, 'vtb_tiny_asset-1.0.tar.gz'), tmp_path / 'downloads')
    assert 'check' in caught.value.remedy


def test_without_a_network_later_packages_are_tried_once(tmp_path, monkeypatch):
    log = tmp_path / 'log'
    fake_client(tmp_path / 'bin', 'npm', f'echo x >> {log}; echo "npm ERR! code ENOTFOUND" >&2; exit 1')
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:{os.environ["PATH"]}')
    package = package_of(b'', 'npm', 'tiny.tgz')
    for attempts in (3, 4):
        with pytest.raises(VtbAssetError, match='no network'):
            fetch(package, tmp_path / 'downloads')
        assert len(log.read_text().split()) == attempts


class Registry(http.server.BaseHTTPRequestHandler):
    """Just enough of an npm registry for one package."""

    tarball = b''

    def do_GET(self):
        if self.path.endswith('.tgz'):
            body = self.tarball
        else:
            url = f'http://127.0.0.1:{self.server.server_address[1]}/vtb-tiny-asset-1.0.0.tgz'
            sha1 = hashlib.sha1(self.tarball).hexdigest()
            version = {'name': 'vtb-tiny-asset', 'version': '1.0.0', 'dist': {'tarball': url, 'shasum': sha1}}
            body = json.dumps(
                {'name': 'vtb-tiny-asset', 'dist-tags': {'latest': '1.0.0'}, 'versions': {'1.0.0': version}}
            ).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.mark.skipif(shutil.which('npm') is None, reason='needs npm')
def test_a_tarball_through_npm_runs_no_script(tmp_path, monkeypatch):
    trap = tmp_path / 'ran'
    manifest = {'name': 'vtb-tiny-asset', 'version': '1.0.0', 'scripts': {'postinstall': f'touch {trap}'}}
    Registry.tarball = tar_bytes('package', {'package.json': json.dumps(manifest).encode(), 'w.bin': b'weights'})
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv('npm_config_registry', f'http://127.0.0.1:{server.server_address[1]}/')
    monkeypatch.setenv('npm_config_cache', str(tmp_path / 'npm'))
    package = dataclasses.replace(package_of(Registry.tarball, 'npm', 'tiny.tgz'), version='1.0.0')
    try:
        assert fetch(package, tmp_path / 'downloads').read_bytes() == Registry.tarball
    finally:
        server.shutdown()
    assert not trap.exists()


@pytest.mark.parametrize(
    ('client', 'missing', 'remedy'),
    [('npm', 'npm', 'apt-get install npm'), ('apt', 'apt-get', 'Debian'), ('pypi-wheel', 'pip', 'ensurepip')],
)
def test_a_missing_client_is_named_with_its_remedy(client, missing, remedy, tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setattr(sys, 'executable', '/bin/false')
    package = package_of(b'', client, 'tiny.bin')
    assert client_missing(package) == missing
    with pytest.raises(VtbAssetError, match=f'client {missing} is not installed') as caught:
        fetch(package, tmp_path / 'downloads')
    assert remedy in caught.value.remedy


def test_apt_without_package_lists(tmp_path, monkeypatch):
    log = tmp_path / 'log'
    script = f'echo "$1" >> {log}; [ "$1" = update ] && exit 0; echo "E: Unable to locate package x" >&2; exit 100'
    fake_client(tmp_path / 'bin', 'apt-get', script)
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:{os.environ["PATH"]}')
    package = package_of(b'', 'apt', 'tiny.deb')
    for user, calls in ((1000, ['download']), (0, ['download', 'update', 'download'])):
        log.write_text('')
        monkeypatch.setattr(os, 'geteuid', lambda user=user: user)
        with pytest.raises(VtbAssetError, match='Unable to locate') as caught:
            fetch(package, tmp_path / 'downloads')
        assert 'apt-get update' in caught.value.remedy
        assert log.read_text().split() == calls


def test_files_brought_by_hand(tmp_path, monkeypatch):
    package = package_of(b'by hand', 'npm', 'tiny.tgz')
    (tmp_path / 'usb').mkdir()
    (tmp_path / 'usb' / 'tiny.tgz').write_bytes(b'by hand')
    monkeypatch.setenv('NEMO_VTB_OFFLINE', '1')
    with pytest.raises(VtbAssetError, match='NEMO_VTB_OFFLINE forbids'):
        fetch(package, tmp_path / 'downloads')
    monkeypatch.setenv('NEMO_VTB_DOWNLOADS', f'{tmp_path / "none"}:{tmp_path / "usb"}')
    assert fetch(package, tmp_path / 'downloads').read_bytes() == b'by hand'


def test_a_full_disk_is_said_before_the_download(wheel, tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(100, 99, 1)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage)
    with pytest.raises(VtbAssetError, match='not enough room') as caught:
        fetch(wheel, tmp_path / 'downloads')
    assert 'NEMO_VTB_CACHE' in caught.value.remedy


def test_a_folder_that_cannot_be_written(wheel, tmp_path):
    (tmp_path / 'file').write_text('no folder')
    with pytest.raises(VtbAssetError, match='cannot be written'):
        fetch(wheel, tmp_path / 'file' / 'downloads')


CHILD = """
import sys
from pathlib import Path
from nemo_vtb.assets.catalog import Package
from nemo_vtb.assets.fetch import fetch
print('ready', flush=True)
fetch(Package('tiny-npm', 'npm', 'vtb-tiny-asset', '1.0', 'tiny.tgz', sys.argv[1], 0.1, 'MIT'), Path(sys.argv[2]))
"""


def slow_npm(tmp_path, monkeypatch, seconds):
    """An npm that logs its start, takes its time, and then delivers b'content'; returns log and sum."""
    log = tmp_path / 'log'
    script = f'echo start >> {log}; printf conte > tiny.tgz; sleep {seconds}; printf content > tiny.tgz'
    fake_client(tmp_path / 'bin', 'npm', script)
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:{os.environ["PATH"]}')
    return log, hashlib.sha256(b'content').hexdigest()


def test_two_processes_fetch_once(tmp_path, monkeypatch):
    log, sha256 = slow_npm(tmp_path, monkeypatch, 0.5)
    command = [sys.executable, '-c', CHILD, sha256, str(tmp_path / 'downloads')]
    children = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    assert log.read_text().split() == ['start']
    assert [path.name for path in (tmp_path / 'downloads').iterdir()] == ['tiny.tgz']


def test_a_killed_fetch_leaves_no_half_file(tmp_path, monkeypatch):
    log, sha256 = slow_npm(tmp_path, monkeypatch, 60)
    command = [sys.executable, '-c', CHILD, sha256, str(tmp_path / 'downloads')]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    while not log.exists():
        assert child.poll() is None
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert not (tmp_path / 'downloads' / 'tiny.tgz').exists()
    slow_npm(tmp_path, monkeypatch, 0)
    assert subprocess.run(command, check=False, timeout=60).returncode == 0
    assert [path.name for path in (tmp_path / 'downloads').iterdir()] == ['tiny.tgz']
