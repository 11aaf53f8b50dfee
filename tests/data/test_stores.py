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
"""Reading from stores: ranges, retries, what each fault of a store is called, and whom a web server may lead to."""

import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import pytest
import requests

from nemo_vtb.data import stores
from nemo_vtb.data.stores import ObjectChanged, check_peer, fetch, file_facts, object_names
from nemo_vtb.errors import VtbConfigError, VtbStoreError
from nemo_vtb.testing.s3_server import ACCESS_KEY, SECRET_KEY, S3Server, StoreFault, serve_s3

pytestmark = pytest.mark.unit
CONTENT = bytes(range(256)) * 400


@pytest.fixture(params=['s3', 'http', 'ais'])
def address(request: pytest.FixtureRequest, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same object by three ways to it."""
    s3.put('bucket/dir/x.bin', CONTENT)
    if request.param != 's3':
        s3.keys = {}
    if request.param == 'ais':
        s3.put('v1/objects/bucket/dir/x.bin', CONTENT)
        monkeypatch.setenv('AIS_ENDPOINT', s3.url)
    return {'s3': 's3://bucket/dir/x.bin', 'http': f'{s3.url}/bucket/dir/x.bin', 'ais': 'ais://bucket/dir/x.bin'}[
        request.param
    ]


def test_ranges(address: str, s3: S3Server) -> None:
    facts = file_facts(address)
    assert facts.size == len(CONTENT) and facts.tag
    assert fetch(address, 1000, 1300) == CONTENT[1000:1300]
    assert fetch(address, len(CONTENT) - 5, len(CONTENT) + 100) == CONTENT[-5:]
    assert fetch(address, len(CONTENT), len(CONTENT) + 1) == b''
    assert s3.of('x.bin', 'GET')[-1].sent == 5


@pytest.mark.parametrize('fault', [StoreFault(status=503), StoreFault(status=500), StoreFault(cut=0.5, method='GET')])
def test_what_fails_now_and_then_is_asked_again(address: str, s3: S3Server, fault: StoreFault) -> None:
    file_facts(address)
    fault.times = 2
    s3.faults[:] = [fault]
    assert fetch(address, 0, 5000) == CONTENT[:5000]
    assert fault.times == 0


def test_a_store_that_never_answers_is_given_up(address: str, s3: S3Server) -> None:
    file_facts(address)
    s3.faults[:] = [StoreFault(status=503, times=-1)]
    before = len(s3.requests)
    stores._client_of.cache_clear()
    with pytest.raises(VtbStoreError) as caught:
        fetch(address, 0, 10)
    assert caught.value.busy
    assert stores.TRIES <= len(s3.requests) - before


def test_what_is_not_there(address: str) -> None:
    with pytest.raises(FileNotFoundError):
        file_facts(f'{address}.none')


def test_an_object_that_changed_is_noticed(address: str, s3: S3Server) -> None:
    file_facts(address)
    for name in list(s3.objects):
        s3.put(name, CONTENT[::-1])
    stores._client_of.cache_clear()
    with pytest.raises(ObjectChanged):
        fetch(address, 0, 10)


def test_an_object_that_shrank_is_noticed(s3: S3Server) -> None:
    """Also where the client has it open: the range lies behind its end."""
    s3.put('bucket/x', CONTENT)
    file_facts('s3://bucket/x')
    s3.put('bucket/x', CONTENT[:50_050])
    with pytest.raises(ObjectChanged):
        fetch('s3://bucket/x', 60_000, 60_100)
    with pytest.raises(ObjectChanged):
        fetch('s3://bucket/x', 50_000, 50_100)


def test_an_object_that_changes_while_it_is_read_is_noticed(s3: S3Server) -> None:
    s3.put('bucket/x', CONTENT)
    file_facts('s3://bucket/x')
    s3.before_answer = lambda served: s3.put('bucket/x', CONTENT[:50_050]) if served.method == 'GET' else None
    with pytest.raises(ObjectChanged):
        fetch('s3://bucket/x', 50_000, 50_100)


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, bytes], None]]:
    """Google Cloud Storage on loopback; puts an object into its bucket `bucket`."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    # pyarrow holds the interpreter's lock while it waits: not in this process
    words = ['start', '--host=127.0.0.1', f'--port={port}', '--in-memory', '--default-bucket=bucket']
    server = subprocess.Popen([sys.executable, '-m', 'gcp_storage_emulator', *words], stderr=subprocess.DEVNULL)
    while server.poll() is None:
        with suppress(ConnectionError), socket.create_connection(('127.0.0.1', port), timeout=5):
            break
        time.sleep(0.05)
    monkeypatch.setenv('STORAGE_EMULATOR_HOST', f'http://127.0.0.1:{port}')
    url = f'http://127.0.0.1:{port}/upload/storage/v1/b/bucket/o?uploadType=media&name='

    def put(name: str, content: bytes) -> None:
        kind = {'Content-Type': 'application/octet-stream'}
        requests.post(url + quote(name, safe=''), data=content, headers=kind, timeout=30).raise_for_status()

    stores._client_of.cache_clear()
    stores.forget_facts()
    yield put
    stores._client_of.cache_clear()
    stores.forget_facts()
    server.kill()
    server.wait()


def test_google_cloud_storage(google: Callable[[str, bytes], None]) -> None:
    google('dir/x.bin', CONTENT)
    google('dir/y.bin', b'y')
    facts = file_facts('gs://bucket/dir/x.bin')
    assert facts.size == len(CONTENT) and facts.tag
    assert fetch('gs://bucket/dir/x.bin', 1000, 1300) == CONTENT[1000:1300]
    assert fetch('gs://bucket/dir/x.bin', len(CONTENT) - 5, len(CONTENT) + 100) == CONTENT[-5:]
    assert object_names('gs://bucket/dir') == ['x.bin', 'y.bin']
    with pytest.raises(FileNotFoundError):
        file_facts('gs://bucket/dir/none')
    with pytest.raises(VtbStoreError) as caught:
        file_facts('gs://other/x')
    assert 'no bucket other' in str(caught.value)


def test_another_object_of_the_same_size_at_google_is_noticed(google: Callable[[str, bytes], None]) -> None:
    google('x', CONTENT)
    file_facts('gs://bucket/x')
    google('x', CONTENT[::-1])
    with pytest.raises(ObjectChanged):
        fetch('gs://bucket/x', 0, 10)
    stores.forget_facts()
    assert fetch('gs://bucket/x', 0, 10) == CONTENT[::-1][:10]
    google('x', CONTENT[:500])  # while it is open
    with pytest.raises(ObjectChanged):
        fetch('gs://bucket/x', 600, 610)


@pytest.mark.parametrize(
    ('key', 'secret', 'bucket', 'said'),
    [
        ('expired', SECRET_KEY, 'bucket', '400'),
        ('unknown', SECRET_KEY, 'bucket', 'INVALID_ACCESS_KEY_ID'),
        (ACCESS_KEY, 'wrong', 'bucket', 'SIGNATURE_DOES_NOT_MATCH'),
        (ACCESS_KEY, SECRET_KEY, 'other', 'no bucket other'),
    ],
)
def test_a_store_that_refuses_all(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, key: str, secret: str, bucket: str, said: str
) -> None:
    s3.put('bucket/x', CONTENT)
    s3.expired.add('expired')
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', key)
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', secret)
    with pytest.raises(VtbStoreError) as caught:
        file_facts(f's3://{bucket}/x')
    assert not caught.value.busy and said in str(caught.value.got)
    assert len(s3.requests) <= 4, 'it is not asked again and again'
    assert secret not in str(caught.value)


def test_one_object_that_may_not_be_read(s3: S3Server) -> None:
    s3.put('bucket/x', CONTENT)
    s3.faults[:] = [StoreFault('x', status=403, code='AccessDenied', times=-1)]
    with pytest.raises(PermissionError):
        file_facts('s3://bucket/x')


def test_names_in_a_folder(s3: S3Server) -> None:
    for name in ('b', 'a', 'deeper/c'):
        s3.put(f'bucket/dir/{name}', b'1')
    assert object_names('s3://bucket/dir') == ['a', 'b']
    with pytest.raises(VtbConfigError):
        object_names(f'{s3.url}/bucket/dir')


def test_a_kind_of_store_that_nothing_reads() -> None:
    with pytest.raises(VtbConfigError, match='zzz'):
        file_facts('zzz://bucket/x')


def test_what_fsspec_knows(s3: S3Server) -> None:
    import fsspec

    fsspec.filesystem('memory').pipe_file('/bucket/dir/x', CONTENT)
    assert fetch('memory://bucket/dir/x', 10, 20) == CONTENT[10:20]
    assert object_names('memory://bucket/dir') == ['x']
    with pytest.raises(FileNotFoundError):
        file_facts('memory://bucket/none')


def test_a_redirect_to_another_host_is_refused_before_it_is_asked(s3: S3Server) -> None:
    s3.keys = {}
    s3.put('bucket/x', CONTENT)
    with serve_s3(keys={}) as other:
        other.put('bucket/x', CONTENT)
        s3.faults[:] = [StoreFault(status=302, location=f'{other.url}/bucket/x', times=-1)]
        with pytest.raises(VtbStoreError) as caught:
            file_facts(f'{s3.url}/bucket/x')
        assert not caught.value.busy and 'redirect' in str(caught.value.got)
        assert other.requests == []
    s3.faults[:] = [StoreFault('/moved', status=302, location='/bucket/x', times=-1)]
    assert fetch(f'{s3.url}/bucket/moved', 0, 3) == CONTENT[:3], 'within the host it is followed'


@pytest.mark.parametrize(
    'peer', ['127.0.0.1', '169.254.169.254', '0.0.0.0', '::1', 'fe80::1%eth0', '::ffff:127.0.0.1']
)
def test_a_name_may_not_lead_to_this_machine(peer: str) -> None:
    """A stranger owns the names of its domain, and says where they lead."""

    class Sock:
        closed = False

        def getpeername(self) -> tuple[str, int]:
            return peer, 80

        def close(self) -> None:
            self.closed = True

    sock = Sock()
    with pytest.raises(VtbStoreError):
        check_peer('data.stranger.org', sock)
    assert sock.closed
    assert check_peer('127.0.0.1', Sock()) and check_peer('localhost', Sock())


def test_a_name_that_leads_here_hears_nothing(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.keys = {}
    s3.put('bucket/x', CONTENT)
    port, ask = int(s3.url.rpartition(':')[2]), socket.getaddrinfo

    def lead(host: str, *args: Any, **keys: Any) -> Any:
        return ask('127.0.0.1' if host == 'data.stranger.org' else host, *args, **keys)

    monkeypatch.setattr(socket, 'getaddrinfo', lead)
    with pytest.raises(VtbStoreError):
        file_facts(f'http://data.stranger.org:{port}/bucket/x')
    assert s3.requests == []


def test_no_credential_is_logged(s3: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    s3.keys = {}
    s3.put('bucket/x', CONTENT)
    host = s3.url.removeprefix('http://')
    with caplog.at_level(logging.INFO):
        assert fetch(f'http://user:passw0rd@{host}/bucket/x?X-Amz-Signature=5ecret', 0, 3) == CONTENT[:3]
        s3.faults[:] = [StoreFault(status=503, times=-1)]
        stores.forget_facts()
        with pytest.raises(VtbStoreError) as caught:
            file_facts(f'http://user:passw0rd@{host}/bucket/x?X-Amz-Signature=5ecret')
    for text in (caplog.text, str(caught.value), str(vars(caught.value))):
        assert 'passw0rd' not in text and '5ecret' not in text
