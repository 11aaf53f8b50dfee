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
"""Addresses: what is one, in which store it lies, and which a line may name."""

import pytest

from nemo_vtb.data.addresses import covers, is_address, malformed, resolve_address, store_of
from nemo_vtb.errors import VtbConfigError, VtbDataError, redacted

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ('address', 'store'),
    [
        ('s3://bucket/a/b.wav', 's3://bucket'),
        ('S3://bucket/a?b#c', 's3://bucket'),
        ('http://Host/x', 'http://host:80'),
        ('http://host:80/x', 'http://host:80'),
        ('https://host/x', 'https://host:443'),
        ('https://user:secret@host:8443/x?sig=1', 'https://host:8443'),
        ('http://good.org@evil.org/x', 'http://evil.org:80'),
        ('http://[::1]:9000/x', 'http://::1:9000'),
        ('ais://bucket/x', 'ais://bucket'),
        ('abfs://box@account.net/x', 'abfs://box@account.net'),
    ],
)
def test_the_store_of_an_address(address: str, store: str) -> None:
    assert is_address(address) and malformed(address) is None
    assert store_of(address) == store


@pytest.mark.parametrize(
    'address',
    [
        'file:///etc/passwd', 'local://x/y', 'simplecache://x/y', 'reference://x/y', 'tar://a/b', 's3://bucket',
        's3://bucket/', 's3:///key', 'http:///x', 'http://host/a/../b', 'http://host/a/%2e%2e/b', 'http://host:x/y',
        's3://bucket/../other/x', 'http://host\\@evil/x', 'http://host/a\nb', 's3://bucket/a\0b',
    ],
)  # fmt: skip
def test_what_is_no_address_of_an_object(address: str) -> None:
    assert malformed(address)


@pytest.mark.parametrize('path', ['simplecache::s3://b/x', '/a/b', 'a/b', 'pipe:cat s3://b/x', 'C:\\x', 'a://'[:1]])
def test_what_is_no_address(path: str) -> None:
    assert not is_address(path)


@pytest.mark.parametrize(
    ('entry', 'address', 'named'),
    [
        ('s3://b', 's3://b/x', True),
        ('s3://b/', 's3://b/x/y', True),
        ('s3://b/dir', 's3://b/dir/x', True),
        ('s3://b/dir', 's3://b/directory/x', False),
        ('s3://b/dir/', 's3://b/other/x', False),
        ('s3://b', 's3://bb/x', False),
        ('s3://b', 'gs://b/x', False),
        ('https://h/', 'http://h/x', False),
        ('https://h', 'https://h:444/x', False),
        ('https://h', 'https://h.evil/x', False),
        ('https://h', 'https://h@evil/x', False),
        ('h', 'https://h/x', False),
    ],
)
def test_what_an_allowed_address_covers(entry: str, address: str, named: bool) -> None:
    assert covers(entry, address) is named


@pytest.mark.parametrize(
    ('base', 'path', 'found'),
    [
        ('s3://b/dir', 'x.wav', 's3://b/dir/x.wav'),
        ('s3://b/dir', '../wav/x.wav', 's3://b/wav/x.wav'),
        ('s3://b/dir', '../../../x.wav', 's3://b/x.wav'),
        ('s3://b', 'x.wav', 's3://b/x.wav'),
        ('s3://b/x.tar!', './m.wav', 's3://b/x.tar!/m.wav'),
        ('s3://b/dir', 's3://b/else/x.wav', 's3://b/else/x.wav'),
        ('/data', 's3://c/x.wav', 's3://c/x.wav'),
    ],
)
def test_what_a_line_may_name(base: str, path: str, found: str) -> None:
    assert resolve_address(path, base, ['s3://c/']) == found


@pytest.mark.parametrize(
    ('base', 'path'),
    [
        ('/data', 's3://b/x.wav'),
        ('s3://b/dir', 's3://other/x.wav'),
        ('s3://b/dir', 'http://169.254.169.254/latest/meta-data'),
        ('http://h/dir', 'http://h:8080/x'),
        ('http://h/dir', 'https://h/x'),
        ('http://h/dir', 'http://h@evil/x'),
        ('s3://b/dir', 'file:///etc/passwd'),
        ('s3://b/dir', 's3://b/../c/x'),
    ],
)
def test_what_a_line_may_not_name(base: str, path: str) -> None:
    with pytest.raises(VtbDataError) as caught:
        resolve_address(path, base, ['s3://c/'])
    assert caught.value.reason == 'refused_path'


def test_no_secret_is_in_a_message() -> None:
    secret = 'https://user:p@ss@host/x.tar?X-Amz-Signature=abc!/a.wav'
    assert redacted(f'got {secret} there') == 'got https://***@host/x.tar?*** there'
    assert redacted('s3://b/a@b and 3 > 2 ? yes') == 's3://b/a@b and 3 > 2 ? yes'
    error = VtbConfigError(f'Not {secret}.', field=secret, got=[secret], allowed=secret, remedy=secret)
    for text in (str(error), repr(error), error.field, str(VtbConfigError('x', got=secret).got)):
        assert 'abc' not in str(text) and 'p@ss' not in str(text)
