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
"""An S3 server on loopback for tests and benchmarks: objects in memory, signatures verified, faults on request.

It speaks what a reader of S3 asks: GET and HEAD of objects with ranges, lists of a bucket, errors in S3's words.
Without keys it is an ordinary web server with ranges and tags.
"""

import hashlib
import hmac
import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

ACCESS_KEY, SECRET_KEY = 'AKIDEXAMPLE', 'wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY'
_PIECE = 64 << 10


@dataclass(slots=True)
class StoreFault:
    """What goes wrong with requests whose path has `match` in it.

    Args:
        match: Part of the path.
        status: Answered in place of the object; 0: none.
        code: S3's word for it.
        cut: Share of the body after which the connection is closed; 1: all of it.
        seconds: Waited before the body.
        times: Requests that it happens to; -1: all.
        method: GET or HEAD alone; '': both.
        location: Where a redirect leads.
    """

    match: str = ''
    status: int = 0
    code: str = 'SlowDown'
    cut: float = 1.0
    seconds: float = 0.0
    times: int = 1
    method: str = ''
    location: str = ''


@dataclass(slots=True)
class Served:
    """One request: method, path, first and last byte asked for, status, bytes of the body."""

    method: str
    path: str
    start: int | None
    stop: int | None
    status: int = 0
    sent: int = 0


@dataclass
class S3Server:
    """The server; a bucket is there when it has an object.

    Args:
        keys: Access key -> secret; none: signatures are not looked at.
        public: Whether requests without a signature are answered, too.
        expired: Access keys whose token is no longer valid.
    """

    keys: Mapping[str, str] = field(default_factory=lambda: {ACCESS_KEY: SECRET_KEY})
    public: bool = False
    expired: set[str] = field(default_factory=set)
    objects: dict[str, bytes] = field(default_factory=dict)
    "bucket/key -> content."
    tags: dict[str, str] = field(default_factory=dict)
    faults: list[StoreFault] = field(default_factory=list)
    requests: list[Served] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)
    url: str = ''
    before_answer: Callable[[Served], object] = staticmethod(lambda served: None)
    "Called with each request before it is answered, in the thread of its connection."
    forget: Callable[[], None] = staticmethod(lambda: None)
    "For a test: what its process knows of objects is dropped."

    def put(self, name: str, content: bytes) -> None:
        """Store an object as `bucket/key`."""
        self.objects[name], self.tags[name] = content, f'"{hashlib.md5(content).hexdigest()}"'

    def environment(self) -> dict[str, str]:
        """What a client needs to find the server and to sign for it."""
        key, secret = next(iter(self.keys.items()), (ACCESS_KEY, SECRET_KEY))
        return {
            'AWS_ENDPOINT_URL': self.url, 'AWS_ACCESS_KEY_ID': key, 'AWS_SECRET_ACCESS_KEY': secret,
            'AWS_REGION': 'us-east-1', 'AWS_EC2_METADATA_DISABLED': 'true',
        }  # fmt: skip

    def of(self, part: str, method: str = '') -> list[Served]:
        """The requests for paths that have `part` in them."""
        return [each for each in self.requests if part in each.path and method in ('', each.method)]

    def take_fault(self, method: str, path: str) -> StoreFault | None:
        """The fault of a request, counted."""
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.match in path and fault.method in ('', method):
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def serve_s3(**options: Any) -> Iterator[S3Server]:
    """A running server on a free port of 127.0.0.1; arguments as of `S3Server`."""
    store = S3Server(**options)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that went away is no news."""

    server = Server(('127.0.0.1', 0), type('Handler', (_Handler,), {'store': store}))
    store.url = f'http://127.0.0.1:{server.server_address[1]}'
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class S3Process:
    """The server in a process of its own, with the files below a folder in it; also by itself:
    `python -m nemo_vtb.testing.s3_server FOLDER BUCKET`.

    Args:
        folder: Its files become objects.
        bucket: Of all of them.
    """

    def __init__(self, folder: str | Path, bucket: str = 'bucket') -> None:
        words = [sys.executable, '-m', 'nemo_vtb.testing.s3_server', str(folder), bucket]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.environment: dict[str, str] = self._answer()
        self.url = self.environment['AWS_ENDPOINT_URL']

    def requests(self) -> list[Served]:
        """All requests since they were asked for."""
        return [Served(**each) for each in self._ask('requests')]

    def slow(self, every: int, seconds: float) -> None:
        """Let each so-manieth answer take so long; 0: none."""
        self._ask(f'slow {every} {seconds}')

    def close(self) -> None:
        """End it."""
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]

    def __enter__(self) -> 'S3Process':
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _ask(self, line: str) -> Any:
        self._process.stdin.write(f'{line}\n')  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        return self._answer()

    def _answer(self) -> Any:
        return json.loads(self._process.stdout.readline())  # type: ignore[union-attr]


def main(folder: str, bucket: str) -> None:
    """Serve until the input ends; each line of it is answered by one of JSON."""

    def say(value: Any) -> None:
        sys.stdout.write(json.dumps(value) + '\n')
        sys.stdout.flush()

    with serve_s3(public=True) as store:
        for path in sorted(Path(folder).rglob('*')):
            if path.is_file():
                store.put(f'{bucket}/{path.relative_to(folder)}', path.read_bytes())
        say(store.environment())
        for line in sys.stdin:
            word, *rest = line.split()
            if word == 'slow':
                every, seconds, number = int(rest[0]), float(rest[1]), itertools.count(1)
                store.before_answer = lambda _, e=every, s=seconds, n=number: (  # type: ignore[misc]
                    time.sleep(s) if e and next(n) % e == 0 else None
                )
                say(None)
            else:
                with store.lock:
                    found, store.requests = store.requests, []
                say([asdict(each) for each in found])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True
    store: S3Server

    def log_message(self, format: str, *args: Any) -> None:
        """No log: the requests are kept."""

    def do_HEAD(self) -> None:
        self._answer('HEAD')

    def do_GET(self) -> None:
        self._answer('GET')

    def _answer(self, method: str) -> None:
        parts = urlsplit(self.path)
        name = unquote(parts.path).lstrip('/')
        asked = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range') or '')
        start = int(asked[1]) if asked else None
        stop = int(asked[2]) + 1 if asked and asked[2] else None
        served = Served(method, name, start, stop)
        with self.store.lock:
            self.store.requests.append(served)
        fault = self.store.take_fault(method, name)
        self.store.before_answer(served)
        if fault and fault.seconds:
            time.sleep(fault.seconds)
        if wrong := self._unsigned(method, parts):
            self._fail(served, *wrong)
        elif fault and fault.status:
            self._fail(served, fault.status, fault.code, fault.location)
        elif dict(parse_qsl(parts.query, keep_blank_values=True)).get('list-type') == '2':
            self._list(served, name.rstrip('/'), dict(parse_qsl(parts.query, keep_blank_values=True)))
        elif name.rstrip('/') in {key.partition('/')[0] for key in self.store.objects}:
            self._send(served, 200, b'', {})
        elif (content := self.store.objects.get(name)) is None:
            bucket = name.partition('/')[0] in {key.partition('/')[0] for key in self.store.objects}
            self._fail(served, 404, 'NoSuchKey' if bucket else 'NoSuchBucket')
        else:
            self._object(served, content, fault)

    def _object(self, served: Served, content: bytes, fault: StoreFault | None) -> None:
        size, headers = len(content), {'ETag': self.store.tags[served.path], 'Accept-Ranges': 'bytes'}
        headers |= {'Last-Modified': 'Sat, 28 Nov 2026 00:00:00 GMT', 'Content-Type': 'application/octet-stream'}
        if served.start is None:
            self._send(served, 200, content, headers, fault)
        elif served.start >= size:
            self._fail(served, 416, 'InvalidRange', headers={'Content-Range': f'bytes */{size}'})
        else:
            stop = min(size, served.stop or size)
            headers['Content-Range'] = f'bytes {served.start}-{stop - 1}/{size}'
            self._send(served, 206, content[served.start : stop], headers, fault)

    def _list(self, served: Served, bucket: str, query: dict[str, str]) -> None:
        names = [key.partition('/')[2] for key in self.store.objects if key.partition('/')[0] == bucket]
        if not names:
            self._fail(served, 404, 'NoSuchBucket')
            return
        prefix, found = query.get('prefix', ''), ''
        for name in sorted(names):
            if name.startswith(prefix) and not (query.get('delimiter') and '/' in name[len(prefix) :]):
                size = len(self.store.objects[f'{bucket}/{name}'])
                found += (
                    f'<Contents><Key>{escape(name)}</Key><LastModified>2026-11-28T00:00:00.000Z</LastModified>'
                    f'<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>'
                )
        body = (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><IsTruncated>false</IsTruncated>'
            f'<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix>{found}</ListBucketResult>'
        )
        self._send(served, 200, body.encode(), {'Content-Type': 'application/xml'})

    def _fail(self, served: Served, status: int, code: str, location: str = '', headers: Any = None) -> None:
        body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
        extra = {'Location': location} if location else {}
        self._send(served, status, body.encode(), {'Content-Type': 'application/xml', **extra, **(headers or {})})

    def _send(
        self, served: Served, status: int, body: bytes, headers: Mapping[str, str], fault: StoreFault | None = None
    ) -> None:
        served.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        if served.method == 'HEAD':
            return
        end = len(body) if fault is None or fault.cut >= 1 else int(len(body) * fault.cut)
        served.sent = end
        for at in range(0, end, _PIECE):
            self.wfile.write(body[at : min(at + _PIECE, end)])
        if end < len(body):
            self.wfile.flush()
            self.close_connection = True

    def _unsigned(self, method: str, parts: Any) -> tuple[int, str] | None:
        """What is wrong with the signature (AWS Signature Version 4); None where nothing is."""
        if not self.store.keys or (self.store.public and 'Authorization' not in self.headers):
            return None
        found = re.match(
            r'AWS4-HMAC-SHA256 Credential=([^/]+)/([^,]+), ?SignedHeaders=([^,]+), ?Signature=(\w+)',
            self.headers.get('Authorization') or '',
        )
        if found is None:
            return 403, 'AccessDenied'
        key, scope, names, signature = found.groups()
        if key in self.store.expired:
            return 400, 'ExpiredToken'
        if key not in self.store.keys:
            return 403, 'InvalidAccessKeyId'
        query = '&'.join(
            sorted(f'{quote(k, safe="-_.~")}={quote(v, safe="-_.~")}' for k, v in parse_qsl(parts.query, True))
        )
        signed = ''.join(f'{name}:{" ".join((self.headers.get(name) or "").split())}\n' for name in names.split(';'))
        payload = self.headers.get('x-amz-content-sha256') or ''
        request = '\n'.join([method, parts.path, query, signed, names, payload])
        text = '\n'.join(
            [
                'AWS4-HMAC-SHA256',
                self.headers.get('x-amz-date') or '',
                scope,
                hashlib.sha256(request.encode()).hexdigest(),
            ]
        )
        secret = f'AWS4{self.store.keys[key]}'.encode()
        for part in scope.split('/'):
            secret = hmac.new(secret, part.encode(), hashlib.sha256).digest()
        right = hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
        return None if hmac.compare_digest(right, signature) else (403, 'SignatureDoesNotMatch')


if __name__ == '__main__':
    main(*sys.argv[1:])
