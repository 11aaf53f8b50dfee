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
"""Requests to a real server: what passes is tried again, what does not is an error that says what to do."""

import asyncio
from types import SimpleNamespace

import pytest
from factory_helpers import openai_server, read_lines

from nemo_vtb.assets.voices import speak
from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.factory.endpoint import Endpoint

BODY = {'input': 'Hello.', 'voice': 'en-US', 'speed': 1.0}


async def ask(endpoint, client, path='audio/speech'):
    response, repeated = await endpoint.post(client, path, BODY)
    return len(response.content) > 1000, repeated


def run(endpoint, count=1):
    async def one(client, _):
        return await ask(endpoint, client)

    return endpoint.map(one, list(range(count)))


@pytest.mark.parametrize('faults, repeated', [('', 0), ('429', 1), ('500', 1), ('cut', 1), ('500 429 cut', 3)])
def test_what_passes_is_tried_again(tmp_path, faults, repeated):
    with openai_server(tmp_path, faults) as url:
        endpoint = Endpoint(url, first_wait_s=0.05, timeout_s=20)
        assert run(endpoint) == [(True, repeated)]
        assert len(read_lines(tmp_path / 'requests.jsonl')) == repeated + 1


def test_a_server_that_hangs_is_asked_again(tmp_path):
    with openai_server(tmp_path, 'hang', 'voice') as url:
        assert run(Endpoint(url, first_wait_s=0.05, timeout_s=5.0)) == [(True, 1)]


def test_refusals_and_lasting_faults_are_errors(tmp_path):
    with openai_server(tmp_path, '400 500 500') as url:
        with pytest.raises(VtbDataError, match='HTTP 400.*as ordered'):
            run(Endpoint(url, first_wait_s=0.01))
        with pytest.raises(VtbDataError, match='HTTP 500 after 2 tries'):
            run(Endpoint(url, first_wait_s=0.01, tries=2))
        assert len(read_lines(tmp_path / 'requests.jsonl')) == 3
    with pytest.raises(VtbDataError, match='does not answer'):
        run(Endpoint(url, first_wait_s=0.01, tries=2))
    with pytest.raises(VtbConfigError, match='address'):
        Endpoint('localhost:8000')


def test_answers_keep_their_order_and_the_key_is_sent(tmp_path, monkeypatch):
    monkeypatch.setenv('SPEECH_KEY', 'secret')
    with openai_server(tmp_path, '500 ok 429') as url:
        endpoint = Endpoint(url, 'SPEECH_KEY', concurrency=3, first_wait_s=0.05)

        async def one(client, number):
            response, _ = await endpoint.post(client, 'audio/speech', {**BODY, 'input': 'a ' * (number + 1)})
            return len(response.content)

        sizes = endpoint.map(one, list(range(5)))
    # 24 kHz, 16 bit, a header of 44 bytes
    expected = [44 + 3 * len(speak('a ' * (number + 1), 'en-US')) for number in range(5)]
    assert all(abs(size - wanted) < 8 for size, wanted in zip(sizes, expected, strict=True))
    assert len(set(sizes)) == 5
    assert {row['auth'] for row in read_lines(tmp_path / 'requests.jsonl')} == {'Bearer secret'}


def test_the_rate_is_limited(tmp_path, monkeypatch):
    """On a clock that stands still but for the moment between the two rounds: each request waits for its slot."""
    clock, waits = [100.0], []

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr('nemo_vtb.factory.endpoint.time', SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr('nemo_vtb.factory.endpoint.asyncio', SimpleNamespace(**{**vars(asyncio), 'sleep': sleep}))
    with openai_server(tmp_path) as url:
        endpoint = Endpoint(url, requests_per_minute=120)
        run(endpoint, 4)
        assert waits == [0.0, 0.5, 1.0, 1.5]
        clock[0] += 1.75
        run(endpoint, 2)
        assert waits[4:] == [0.25, 0.75]
        clock[0] += 60.0
        run(endpoint)
        assert waits[6:] == [0.0]


def test_waits_grow_and_obey_the_server():
    endpoint = Endpoint('http://localhost/v1', first_wait_s=1.0)

    class State:
        def __init__(self, number, after):
            self.attempt_number = number
            self.outcome = asyncio.Future(loop=asyncio.new_event_loop())
            from nemo_vtb.factory.endpoint import _RetryLater

            self.outcome.set_exception(_RetryLater('HTTP 429', after))

    assert endpoint._wait(State(1, '7')) == 7.0
    assert endpoint._wait(State(1, '9999')) == 60.0
    for number in range(1, 5):
        assert (
            2 ** (number - 1) / 2
            <= endpoint._wait(State(number, 'Wed, 21 Oct 2015 07:28:00 GMT'))
            <= 2 ** (number - 1)
        )
