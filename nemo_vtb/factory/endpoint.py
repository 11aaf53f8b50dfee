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
"""An OpenAI-compatible server: concurrent requests, retries with back-off, and a rate limit."""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from nemo_vtb.errors import VtbConfigError, VtbDataError

A = TypeVar('A')
B = TypeVar('B')
_RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
_MAX_WAIT_S = 60.0


@dataclass
class Endpoint:
    """A server and the limits of its requests.

    Args:
        url: Its base, as in http://localhost:8000/v1.
        api_key_env: Environment variable that holds the key; none is sent if it is not set.
        concurrency: Requests in flight at once.
        timeout_s: Seconds to wait for an answer.
        tries: How often a request is sent before it counts as failed.
        requests_per_minute: Limit of the rate; None has none.
        first_wait_s: Wait before the first repetition; doubled each time, with jitter.
    """

    url: str
    api_key_env: str = 'OPENAI_API_KEY'
    concurrency: int = 8
    timeout_s: float = 60.0
    tries: int = 6
    requests_per_minute: int | None = None
    first_wait_s: float = 1.0
    _next_slot: float = 0.0

    def __post_init__(self) -> None:
        """Check the address."""
        if not self.url.startswith(('http://', 'https://')):
            raise VtbConfigError(
                'Not the address of a server.', field='url', got=self.url, allowed='http://HOST:PORT/v1'
            )

    def map(self, function: Callable[[Any, A], Awaitable[B]], requests: Sequence[A]) -> list[B]:
        """Run `function(client, request)` for all requests at once and return the answers in their order.

        Args:
            function: Uses `post` for its requests.
            requests: Passed to `function` one by one.
        """
        return asyncio.run(self._map(function, requests))

    async def _map(self, function: Callable[[Any, A], Awaitable[B]], requests: Sequence[A]) -> list[B]:
        import httpx

        key = os.environ.get(self.api_key_env)
        headers = {'Authorization': f'Bearer {key}'} if key else {}
        limits = httpx.Limits(max_connections=self.concurrency)
        slots = asyncio.Semaphore(self.concurrency)
        timeout = httpx.Timeout(self.timeout_s)
        async with httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits) as client:

            async def one(request: A) -> B:
                async with slots:
                    return await function(client, request)

            return list(await asyncio.gather(*(one(request) for request in requests)))

    async def post(self, client: Any, path: str, body: Mapping[str, Any]) -> tuple[Any, int]:
        """Send one request, again after a moment where that may help.

        Args:
            client: Of `map`.
            path: After the base address.
            body: JSON.

        Returns:
            httpx's response, status 200, and how often the request was repeated.

        Raises:
            VtbDataError: The server refuses, or does not answer after all tries.
        """
        import httpx
        from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_attempt

        try:
            async for attempt in AsyncRetrying(
                stop=stop_after_attempt(self.tries), wait=self._wait, retry=retry_if_exception_type(_RetryLater)
            ):
                with attempt:
                    await self._wait_for_slot()
                    try:
                        response = await client.post(f'{self.url.rstrip("/")}/{path}', json=dict(body))
                    except (httpx.TimeoutException, httpx.TransportError) as error:
                        raise _RetryLater(f'{type(error).__name__} {error}'.strip()) from error
                    if response.status_code in _RETRIED:
                        raise _RetryLater(f'HTTP {response.status_code}', response.headers.get('retry-after'))
                    if response.status_code != 200:
                        raise VtbDataError(
                            'The server refuses a request.', field=f'{self.url}/{path}',
                            got=f'HTTP {response.status_code}: {response.text[:300]}',
                            remedy=f'check the name of the model, and the key in ${self.api_key_env}',
                        )  # fmt: skip
                    return response, attempt.retry_state.attempt_number - 1
        except RetryError as error:
            last = error.last_attempt.exception()
            raise VtbDataError(
                'The server does not answer.', field=f'{self.url}/{path}', got=f'{last} after {self.tries} tries',
                remedy='check that it runs; start again later: finished chunks are kept',
            ) from error  # fmt: skip
        raise AssertionError('a request ends with an answer or an error')

    def _wait(self, state: Any) -> float:
        """Seconds until the next try: the server's Retry-After, else exponential back-off with jitter."""
        error = state.outcome.exception()
        if error.after_s is not None:
            return min(error.after_s, _MAX_WAIT_S)
        longest = min(self.first_wait_s * 2 ** (state.attempt_number - 1), _MAX_WAIT_S)
        return longest / 2 * (1 + random.random())

    async def _wait_for_slot(self) -> None:
        if self.requests_per_minute is None:
            return
        now = time.monotonic()
        slot = max(now, self._next_slot)
        self._next_slot = slot + 60.0 / self.requests_per_minute
        await asyncio.sleep(slot - now)


class _RetryLater(Exception):
    """A failure that may pass."""

    def __init__(self, text: str, after: str | None = None) -> None:
        super().__init__(text)
        # a date instead of seconds is rare: then the back-off applies
        self.after_s = float(after) if after and after.replace('.', '', 1).isdigit() else None
