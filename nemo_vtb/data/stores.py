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
"""Object stores and web servers: the facts of an object, ranges of its bytes, and how often they are asked for.

`s3://` and `gs://` are read by pyarrow, `http(s)://` by requests, `ais://` by the SDK of AIStore as NeMo does, all
else by what fsspec knows. Credentials come from where these look for them. `addresses` decides who may be asked.
"""

import ipaddress
import os
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urljoin

from nemo_vtb.data.addresses import is_address, scheme_of, split_address, store_of, without_query
from nemo_vtb.errors import VtbConfigError, VtbStoreError, first_line

T = TypeVar('T')

TRIES = 8
"Of each request, before a store counts as one that does not answer: about 13 s of waiting between them."
BACKOFF_S = 0.1
"Before the second try; twice as long before each further one, less up to a half by chance."
CONNECT_S, READ_S = 5.0, 30.0
"Longest silence of a store while it is called, and while it answers."
_MOST_FACTS = 200_000
_MOST_REDIRECTS = 5
_MOST_OPEN = 256
_REFUSED = re.compile(
    r'EXPIRED_?TOKEN|INVALID_?ACCESS_?KEY|INVALID_?CLIENT_?TOKEN|INVALID_?TOKEN|SIGNATURE_?DOES_?NOT_?MATCH|TOKEN_?REFRESH'
    r'|REQUEST_?TIME_?TOO_?SKEWED|UNRECOGNIZED_?CLIENT|MISSING_?AUTHENTICATION|INCOMPLETE_?SIGNATURE|HTTP STATUS 401',
    re.IGNORECASE,
)
_BUSY = re.compile(
    r'NETWORK_CONNECTION|SLOW_?DOWN|THROTTL|SERVICE_?UNAVAILABLE|REQUEST_?TIMEOUT|INTERNAL_?(FAILURE|ERROR)|CURLCODE'
    r'|HTTP STATUS (408|429|5\d\d)|TIMED? ?OUT|CONNECTION',
    re.IGNORECASE,
)
_dice = random.Random()  # the global generator belongs to the run, which repeats what it draws


@dataclass(frozen=True, slots=True)
class Facts:
    """What tells one version of an object from the next: its bytes, and the tag or time that the store gives it."""

    size: int
    tag: str


class ObjectChanged(OSError):
    """An object is not the one whose facts are known."""


class Busy(Exception):
    """A store did not answer this time."""


class _Client(Protocol):
    """Reads one kind of store. Raises OSError for an object, VtbStoreError for a store, Busy to be asked again."""

    def facts(self, address: str) -> Facts: ...

    def read(self, address: str, start: int, stop: int, facts: Facts) -> bytes: ...

    def names(self, address: str) -> list[str]: ...


# ---- for readers

_facts: dict[str, Facts] = {}


def file_facts(path: str) -> Facts:
    """Facts of a file or an object; those of an object are asked for once in a process.

    Raises:
        OSError: It is not there, or may not be read.
        VtbStoreError: The store refuses the credentials, or does not answer.
    """
    if not is_address(path):
        stat = os.stat(path)
        return Facts(stat.st_size, str(stat.st_mtime_ns))
    found = _facts.get(path)
    if found is None:
        found = _tried(path, lambda client: client.facts(path))
        if len(_facts) >= _MOST_FACTS:
            _facts.pop(next(iter(_facts)), None)
        _facts[path] = found
    return found


def facts_of_all(paths: list[str]) -> None:
    """Ask for the facts of many objects at once; what is wrong with one is raised by `file_facts`."""
    from concurrent.futures import ThreadPoolExecutor

    def ask(path: str) -> None:
        try:
            file_facts(path)
        except (OSError, VtbStoreError):
            return

    unknown = [path for path in paths if is_address(path) and path not in _facts]
    if len(unknown) > 1:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(ask, unknown))


def forget_facts() -> None:
    """Ask for all facts anew: a run begins with the objects as they are then."""
    _facts.clear()


def object_identity(address: str) -> list[Any]:
    """What an index knows an object by, in place of a file's path, size, time and contents."""
    facts = file_facts(address)
    return [without_query(address), facts.size, facts.tag]


def fetch(address: str, start: int, stop: int) -> bytes:
    """The bytes [start, stop) of an object.

    Raises:
        ObjectChanged: It is not as it was when its facts were asked for.
        OSError: It is not there, or may not be read.
        VtbStoreError: The store refuses the credentials, or does not answer.
    """
    facts = file_facts(address)
    stop = min(stop, facts.size)
    if start >= stop:
        return b''

    def read(client: _Client) -> bytes:
        data = client.read(address, start, stop, facts)
        if len(data) != stop - start:
            raise Busy(f'{len(data)} of {stop - start} bytes came')
        return data

    return _tried(address, read)


def object_names(address: str) -> list[str]:
    """Names of the objects directly in a folder of a store, sorted.

    Raises:
        OSError: There is no such folder.
        VtbConfigError: This kind of store has no folders to look into.
        VtbStoreError: The store refuses the credentials, or does not answer.
    """
    return sorted(_tried(address, lambda client: client.names(address)))


def _tried(address: str, action: Callable[[_Client], T]) -> T:
    """Ask a store until it answers, `TRIES` times at most."""
    for attempt in range(TRIES):
        try:
            return action(_client_of(os.getpid(), scheme_of(address)))
        except Busy as error:
            last = first_line(error)
        if attempt + 1 < TRIES:
            time.sleep(BACKOFF_S * 2**attempt * (1 - _dice.random() / 2))
    raise VtbStoreError(
        'The object store does not answer.',
        busy=True,
        field=without_query(address),
        got=last,
        allowed=f'an answer to one of {TRIES} tries',
        remedy='start again when it does: the run resumes from its last checkpoint',
    )


@lru_cache(maxsize=32)
def _client_of(_pid: int, scheme: str) -> _Client:
    """The client of a process: none survives a fork."""
    match scheme:
        case 'http' | 'https':
            return _Web()
        case 's3':
            return _Arrow()
        case 'gs' | 'gcs':
            return _Google()
        case 'ais':
            return _AIStore()
    return _Fsspec(scheme)


def _refusal(address: str, got: str, remedy: str) -> VtbStoreError:
    return VtbStoreError('The object store refuses this.', field=store_of(address), got=got, remedy=remedy)


_CREDENTIALS = 'renew the credentials where they are looked for: AWS_PROFILE, AWS_ACCESS_KEY_ID, ~/.aws, ~/.netrc'
_BUCKET = 'correct the bucket, or the endpoint (AWS_ENDPOINT_URL, AIS_ENDPOINT)'


# ---- http, https


class _Web:
    """Web servers: ranges, redirects within the same host alone, no host that turns out to be this machine."""

    def __init__(self) -> None:
        import requests

        self._session = requests.Session()
        for scheme, adapter in _checked_adapters().items():
            self._session.mount(f'{scheme}://', adapter)

    def facts(self, address: str) -> Facts:
        with self._get(address, 0, 1) as response:
            facts = _web_facts(address, response)
            if response.status_code == 206:
                response.raw.drain_conn()  # else it could not be used again
            return facts

    def read(self, address: str, start: int, stop: int, facts: Facts) -> bytes:
        with self._get(address, start, stop) as response:
            if _web_facts(address, response) != facts:
                raise ObjectChanged(f'{without_query(address)}: another size, tag or time than before')
            try:
                if response.status_code == 206:
                    return response.content
                data = bytearray()  # ranges are not known here: all from the start
                for chunk in response.iter_content(1 << 20):
                    data += chunk
                    if len(data) >= stop:
                        break
                return bytes(data[start:stop])
            except OSError as error:  # requests' errors are
                raise Busy(type(error).__name__) from error

    def names(self, address: str) -> list[str]:
        raise VtbConfigError(
            'A web server has no folders to look into.', field='shar_path', got=address,
            allowed='{cuts: https://.../cuts.{000000..000009}.jsonl.gz, recording: ...}',
        )  # fmt: skip

    def _get(self, address: str, start: int, stop: int) -> Any:
        """A response whose status is 200, 206 or 416 (beyond the end)."""
        import requests

        headers = {'Range': f'bytes={start}-{stop - 1}', 'Accept-Encoding': 'identity'}
        at = address
        for _ in range(_MOST_REDIRECTS + 1):
            try:
                response = self._session.get(
                    at, headers=headers, stream=True, allow_redirects=False, timeout=(CONNECT_S, READ_S)
                )
            except requests.exceptions.InvalidURL as error:
                raise FileNotFoundError(f'{without_query(address)}: no address') from error
            except requests.exceptions.RequestException as error:
                raise Busy(type(error).__name__) from error
            if not response.is_redirect:
                break
            to = urljoin(at, response.headers['location'])
            response.close()
            if store_of(to) != store_of(address):
                raise _refusal(address, f'a redirect to {store_of(to)}', 'name the address where the object really is')
            at = to
        status = response.status_code
        if status in (200, 206, 416):
            return response
        response.close()
        if status in (404, 410):
            raise FileNotFoundError(2, 'the web server does not have it', without_query(address))
        if status == 401:
            raise _refusal(address, 'HTTP status 401', _CREDENTIALS)
        if status in (408, 425, 429) or status >= 500:
            raise Busy(f'HTTP status {status}')
        raise PermissionError(13, f'HTTP status {status}', without_query(address))


def _web_facts(address: str, response: Any) -> Facts:
    headers = response.headers
    size = headers.get('Content-Range', '').rpartition('/')[2] or headers.get('Content-Length', '')
    if response.status_code == 200:
        size = headers.get('Content-Length', '')
    if not size.isdigit():
        raise OSError(f'{without_query(address)}: the web server does not tell its size')
    return Facts(int(size), headers.get('ETag') or headers.get('Last-Modified') or '')


def _checked_adapters() -> dict[str, Any]:
    """Adapters whose connections look at whom they reached before they say anything: a name can lead anywhere."""
    import urllib3
    from requests.adapters import HTTPAdapter

    class Plain(urllib3.connection.HTTPConnection):
        def _new_conn(self) -> Any:
            return check_peer(self.host, super()._new_conn())

    class Secure(urllib3.connection.HTTPSConnection):
        def _new_conn(self) -> Any:
            return check_peer(self.host, super()._new_conn())

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

    adapters = {scheme: HTTPAdapter(pool_maxsize=16, max_retries=0) for scheme in ('http', 'https')}
    for adapter in adapters.values():
        adapter.poolmanager.pool_classes_by_scheme = {'http': PlainPool, 'https': SecurePool}
    return adapters


def check_peer(host: str, sock: Any) -> Any:
    """The open connection, unless a name led to this machine or to a link-local address (where clouds keep secrets).

    Who means such a machine names its number, or localhost.

    Raises:
        VtbStoreError: The name leads there.
    """
    literal = host.strip('[]').partition('%')[0]
    try:
        ipaddress.ip_address(literal)
        return sock
    except ValueError:
        pass
    found = ipaddress.ip_address(sock.getpeername()[0].partition('%')[0])
    found = getattr(found, 'ipv4_mapped', None) or found
    inward = found.is_loopback or found.is_link_local or found.is_unspecified or found.is_multicast
    if inward and literal.lower() != 'localhost':
        sock.close()
        raise VtbStoreError(
            'The name of a host leads to a machine that it must not name.', field=host, got=str(found),
            allowed='an address beyond this machine and its link', remedy='name the number in data.allowed_urls',
        )  # fmt: skip
    return sock


# ---- s3, gs


class _Arrow:
    """S3 through pyarrow: credentials as the SDK of AWS looks for them."""

    def __init__(self) -> None:
        import pyarrow.fs

        self._arrow = pyarrow.fs
        self._clients: dict[str, Any] = {}
        self._files: dict[str, tuple[Facts, Any]] = {}  # as it was when it was looked at last, and open
        self._lock = threading.Lock()

    def facts(self, address: str) -> Facts:
        return self._open(address)[0]

    def read(self, address: str, start: int, stop: int, facts: Facts) -> bytes:
        with self._lock:
            kept = self._files.get(address)
        found, file = kept or self._open(address)
        data = b''
        if found == facts:
            try:
                data = file.read_at(stop - start, start)
            except OSError as error:
                with self._lock:
                    self._files.pop(address, None)  # the next try looks at it first
                raise self._fault(address, error) from error
            # a look behind: of an object that became shorter, pyarrow gives bytes that nobody sent
            found = self._open(address)[0]
        if found != facts:
            raise ObjectChanged(f'{address}: another size or tag than before')
        return data

    def names(self, address: str) -> list[str]:
        bucket, key = split_address(address)
        selector = self._arrow.FileSelector(f'{bucket}/{key}'.rstrip('/'))
        try:
            found = self._client(bucket).get_file_info(selector)
        except OSError as error:
            raise self._fault(address, error) from error
        return [info.base_name for info in found if info.is_file]

    def _open(self, address: str) -> tuple[Facts, Any]:
        """Look at an object, and open it."""
        bucket, key = split_address(address)
        try:
            file = self._client(bucket).open_input_file(f'{bucket}/{key}')
            told = file.metadata() or {}
            facts = Facts(file.size(), (told.get('ETag') or told.get('Last-Modified') or b'').decode())
        except OSError as error:
            raise self._fault(address, error) from error
        return self._keep(address, facts, file)

    def _keep(self, address: str, facts: Facts, file: Any) -> tuple[Facts, Any]:
        with self._lock:
            if len(self._files) >= _MOST_OPEN:
                self._files.pop(next(iter(self._files)))
            self._files[address] = facts, file
        return facts, file

    def _client(self, bucket: str) -> Any:
        with self._lock:
            if bucket not in self._clients:
                self._clients[bucket] = self._connect(bucket)
            return self._clients[bucket]

    def _connect(self, bucket: str) -> Any:
        endpoint = os.environ.get('AWS_ENDPOINT_URL_S3') or os.environ.get('AWS_ENDPOINT_URL') or ''
        region = os.environ.get('AWS_REGION') or os.environ.get('AWS_DEFAULT_REGION')
        if not region:
            region = 'us-east-1' if endpoint else self._region(bucket)
        return self._arrow.S3FileSystem(
            region=region,
            connect_timeout=CONNECT_S,
            request_timeout=READ_S,
            retry_strategy=self._arrow.AwsStandardS3RetryStrategy(max_attempts=1),  # `_tried` counts
            **_endpoint(endpoint),
        )

    def _region(self, bucket: str) -> str:
        try:
            return self._arrow.resolve_s3_region(bucket)
        except OSError as error:
            raise self._fault(f's3://{bucket}/', error) from error

    def _fault(self, address: str, error: OSError) -> Exception:
        """What an error of the SDK means; of HEAD, which has no words, the bucket is asked why."""
        said = str(error)
        bucket = split_address(address)[0]
        if isinstance(error, FileNotFoundError):
            return self._of_bucket(address, bucket) or FileNotFoundError(2, 'the store does not have it', address)
        if _REFUSED.search(said):
            return _refusal(address, _code(said), _CREDENTIALS)
        if 'NO_SUCH_BUCKET' in said:
            return _refusal(address, f'no bucket {bucket}', _BUCKET)
        if re.search(r'ACCESS_DENIED|HTTP status (400|403)', said):
            return self._of_bucket(address, bucket) or PermissionError(13, _code(said), address)
        if re.search(r'HTTP status (412|416)', said):
            return ObjectChanged(f'{address}: another one than before')
        return Busy(_code(said)) if _BUSY.search(said) else OSError(5, _code(said), address)

    def _of_bucket(self, address: str, bucket: str) -> Exception | None:
        try:
            selector = self._arrow.FileSelector(f'{bucket}/{split_address(address)[1]}', allow_not_found=False)
            self._clients[bucket].get_file_info(selector)
        except FileNotFoundError:
            with_bucket = self._clients[bucket].get_file_info(bucket)
            if with_bucket.type == self._arrow.FileType.NotFound:
                return _refusal(address, f'no bucket {bucket}', _BUCKET)
        except OSError as error:
            if _REFUSED.search(str(error)):
                return _refusal(address, _code(str(error)), _CREDENTIALS)
            if 'NO_SUCH_BUCKET' in str(error):
                return _refusal(address, f'no bucket {bucket}', _BUCKET)
        return None


class _Google(_Arrow):
    """Google Cloud Storage through pyarrow: an open object is one generation of it, which each request names."""

    def facts(self, address: str) -> Facts:
        bucket, key = split_address(address)
        try:
            info = self._client(bucket).get_file_info(f'{bucket}/{key}')
        except OSError as error:
            raise self._fault(address, error) from error
        if not info.is_file:
            raise self._fault(address, FileNotFoundError())
        return Facts(info.size, str(info.mtime_ns))

    def read(self, address: str, start: int, stop: int, facts: Facts) -> bytes:
        with self._lock:
            kept = self._files.get(address)
        found, file = kept or self._open(address)
        if found == facts:
            try:
                data = file.read_at(stop - start, start)
            except FileNotFoundError:
                data = b''
            except OSError as error:
                raise self._fault(address, error) from error
            if len(data) == stop - start:
                return data
            with self._lock:
                self._files.pop(address, None)
            if self.facts(address) == facts:
                return data
        raise ObjectChanged(f'{address}: another size or time than before')

    def _open(self, address: str) -> tuple[Facts, Any]:
        bucket, key = split_address(address)
        try:
            file = self._client(bucket).open_input_file(f'{bucket}/{key}')
        except OSError as error:
            raise self._fault(address, error) from error
        facts = self.facts(address)  # behind it: they are of what was opened, or of something newer
        return self._keep(address, facts, file)

    def _connect(self, bucket: str) -> Any:
        from datetime import timedelta

        endpoint = os.environ.get('STORAGE_EMULATOR_HOST', '')
        place = _endpoint(endpoint) | {'anonymous': True} if endpoint else {}
        return self._arrow.GcsFileSystem(retry_time_limit=timedelta(seconds=READ_S), **place)


def _endpoint(url: str) -> dict[str, str]:
    if not url:
        return {}
    scheme, mark, host = url.rpartition('://')
    return {'endpoint_override': host.rstrip('/'), 'scheme': scheme if mark else 'http'}


def _code(said: str) -> str:
    """What an SDK said without the request, which may hold more than is good for a log."""
    found = re.search(r'AWS Error (\w+)(?: \(HTTP status \d+\))?', said)
    return found[0] if found else said.partition('\n')[0][:120]


# ---- AIStore, and what fsspec knows


class _AIStore:
    """AIStore at `AIS_ENDPOINT`, as lhotse and NeMo read it."""

    def __init__(self) -> None:
        import aistore
        from aistore.sdk.retry_config import RetryConfig
        from tenacity import Retrying, stop_after_attempt
        from urllib3 import Retry

        endpoint = os.environ.get('AIS_ENDPOINT')
        if not endpoint:
            raise VtbConfigError(
                'There is no AIStore.', field='AIS_ENDPOINT', got=endpoint, allowed='http://HOST:PORT of its proxy'
            )
        once = RetryConfig(Retry(0, status_forcelist=()), Retrying(stop=stop_after_attempt(1), reraise=True))
        self._client = aistore.Client(
            endpoint,
            max_pool_size=50,
            timeout=(CONNECT_S, READ_S),
            retry_config=once,  # `_tried` counts
        )

    def facts(self, address: str) -> Facts:
        found = self._asked(address, lambda it: it.head('size,checksum,version,etag'))
        return Facts(int(found.size), str(found.checksum_value or found.etag or found.obj_version or ''))

    def read(self, address: str, start: int, stop: int, facts: Facts) -> bytes:
        if self.facts(address) != facts:
            raise ObjectChanged(f'{address}: another size or checksum than before')
        return self._asked(address, lambda it: it.get_reader(byte_range=f'bytes={start}-{stop - 1}').read_all())

    def names(self, address: str) -> list[str]:
        bucket, key = split_address(address)
        prefix = f'{key.rstrip("/")}/' if key else ''
        listed = self._client.bucket(bucket).list_all_objects(prefix=prefix)
        return [name for entry in listed if '/' not in (name := entry.name.removeprefix(prefix))]

    def _asked(self, address: str, action: Callable[[Any], T]) -> T:
        from aistore.sdk import errors
        from requests.exceptions import RequestException

        try:
            return action(self._client.get_object_from_url(address))
        except errors.ErrObjNotFound as error:
            raise FileNotFoundError(2, 'the store does not have it', address) from error
        except errors.ErrBckNotFound as error:
            raise _refusal(address, f'no bucket {split_address(address)[0]}', _BUCKET) from error
        except errors.AISError as error:
            status = getattr(error, 'status_code', 0)
            if status == 404:  # HEAD does not say of what
                raise FileNotFoundError(2, 'the store does not have it', address) from error
            if status == 401:
                raise _refusal(address, 'HTTP status 401', 'set AIS_AUTHN_TOKEN') from error
            if status == 403:
                raise PermissionError(13, 'HTTP status 403', address) from error
            raise Busy(f'HTTP status {status}') from error
        except RequestException as error:
            raise Busy(type(error).__name__) from error


class _Fsspec:
    """Any other store that fsspec has a file system for; its packages retry and find credentials by themselves."""

    _TAGS = (
        'ETag',
        'etag',
        'generation',
        'content_md5',
        'md5Hash',
        'checksum',
        'LastModified',
        'mtime',
    )

    def __init__(self, scheme: str) -> None:
        import fsspec

        try:
            self._system = fsspec.filesystem(scheme)
        except (ImportError, ValueError) as error:
            raise VtbConfigError(
                'Nothing here reads addresses of this kind.', field=f'{scheme}://', got=first_line(error),
                allowed='s3, gs, http, https, ais, and what fsspec has a package for',
            ) from error  # fmt: skip

    def facts(self, address: str) -> Facts:
        found = self._asked(lambda: self._system.info(address))
        tag = next((str(found[name]) for name in self._TAGS if found.get(name)), str(found.get('created', '')))
        return Facts(int(found['size']), tag)

    def read(self, address: str, start: int, stop: int, facts: Facts) -> bytes:
        if self.facts(address) != facts:
            raise ObjectChanged(f'{without_query(address)}: another size, tag or time than before')
        return self._asked(lambda: self._system.cat_file(address, start=start, end=stop))

    def names(self, address: str) -> list[str]:
        found = self._asked(lambda: self._system.ls(address, detail=True))
        return [Path(entry['name']).name for entry in found if entry['type'] == 'file']

    def _asked(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except (FileNotFoundError, PermissionError):
            raise
        except (OSError, TimeoutError) as error:
            raise Busy(first_line(error)[:200]) from error
