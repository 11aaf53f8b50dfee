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
"""The server by OpenAI's own client over loopback: answers, limits, load, rubbish, clients that go, SIGTERM."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from nemo_vtb.commands.host import read_options
from nemo_vtb.config.schema import ServeConfig
from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn
from nemo_vtb.errors import VtbConfigError
from nemo_vtb.serving.engine import Engine

ROOT = Path(__file__).resolve().parents[2]
KEY = 'a secret'


class Running:
    """A server in a thread of this process, on a port of its own."""

    def __init__(self, engine: Engine, **settings: Any) -> None:
        from nemo_vtb.serving.server import make_app

        self.settings = ServeConfig(**{'model': 'tiny.nemo', 'max_new_tokens': 24, 'timeout_s': 60.0, **settings})
        app = make_app(engine, self.settings)
        self.service = app.state.service
        config = uvicorn.Config(app, host='127.0.0.1', port=0, log_level='error')
        self._server = uvicorn.Server(config)
        listener = config.bind_socket()
        self.port = listener.getsockname()[1]
        self.url = f'http://127.0.0.1:{self.port}'
        self._thread = threading.Thread(target=self._server.run, kwargs={'sockets': [listener]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def client(self, **options: Any) -> openai.OpenAI:
        """OpenAI's own, which would try again by itself."""
        return openai.OpenAI(
            base_url=f'{self.url}/v1', **{'api_key': 'none', 'max_retries': 0, 'timeout': 60, **options}
        )

    def metric(self, name: str) -> float:
        """A value of `/metrics`."""
        lines = httpx.get(f'{self.url}/metrics').text.splitlines()
        return sum(
            float(line.rpartition(' ')[2]) for line in lines if line.partition('{')[0].partition(' ')[0] == name
        )

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that must happen; the test's own timeout ends it."""
        while not condition():
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture(scope='module')
def server(engine: Engine) -> Iterator[Running]:
    running = Running(engine)
    yield running
    running.stop()


def part(path: str) -> dict[str, Any]:
    data = base64.b64encode(Path(path).read_bytes()).decode()
    return {'type': 'input_audio', 'input_audio': {'data': data, 'format': Path(path).suffix[1:]}}


def spoken(*said: str) -> dict[str, Any]:
    return {'role': 'user', 'content': [part(s) if Path(s).is_file() else {'type': 'text', 'text': s} for s in said]}


def expected(engine: Engine, *turns: tuple[str, tuple[str, ...]], tokens: int = 12) -> str:
    made = tuple(Turn(r, tuple(Audio(s) if Path(s).is_file() else Text(s) for s in said)) for r, said in turns)
    return engine.model.answer([Conversation('x', made)], max_new_tokens=tokens)[0]


def ask(server: Running, *messages: dict[str, Any], **options: Any) -> Any:
    options = {'max_tokens': 12, 'model': 'tiny', 'messages': list(messages), **options}
    return server.client().chat.completions.create(**options)


# ---- answers


def test_text_and_recordings_in_any_user_message(server: Running, engine: Engine, wavs: list[str]) -> None:
    said = (('First', wavs[0], 'then', wavs[1]), ('Sea.',), (wavs[3], 'and now?'))
    messages = [
        {'role': 'system', 'content': 'Be brief.'}, spoken(*said[0]), {'role': 'assistant', 'content': said[1][0]},
        spoken(*said[2]),
    ]  # fmt: skip
    done = ask(server, *messages)
    turns = (('system', ('Be brief.',)), ('user', said[0]), ('assistant', said[1]), ('user', said[2]))
    assert done.choices[0].message.content == expected(engine, *turns)
    assert done.choices[0].finish_reason in ('stop', 'length') and done.model == 'tiny'
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens > 20


def test_a_stream_is_the_answer_in_pieces(server: Running, engine: Engine, wavs: list[str]) -> None:
    chunks = list(ask(server, spoken(wavs[0], 'What?'), stream=True, stream_options={'include_usage': True}))
    text = ''.join(c.choices[0].delta.content or '' for c in chunks if c.choices)
    assert text == expected(engine, ('user', (wavs[0], 'What?'))) and len(chunks) > 4
    assert chunks[-1].usage.completion_tokens > 0 and chunks[-2].choices[0].finish_reason in ('stop', 'length')


@pytest.mark.parametrize('form', ['json', 'text', 'verbose_json'])
def test_transcriptions(server: Running, engine: Engine, wavs: list[str], form: str) -> None:
    with open(wavs[1], 'rb') as file:
        done = server.client().audio.transcriptions.create(model='tiny', file=file, response_format=form)
    text = expected(engine, ('user', ('Transcribe the speech.', wavs[1])), tokens=24)
    assert (done.strip() if form == 'text' else done.text) == text
    if form == 'verbose_json':
        assert float(done.duration) == pytest.approx(0.9, abs=1e-3)
    with open(wavs[1], 'rb') as file:
        other = server.client().audio.transcriptions.create(
            model='tiny', file=file, language='Spanish', prompt='Which room?'
        )
    assert other.text == expected(engine, ('user', ('Which room?', wavs[1])), tokens=24)


def test_seeds_stop_texts_and_limits_of_tokens(server: Running) -> None:
    def text(**options: Any) -> Any:
        return ask(server, {'role': 'user', 'content': 'Open the door.'}, **options).choices[0]

    drawn = [text(temperature=2.0, seed=seed).message.content for seed in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]
    assert text(max_tokens=1).finish_reason == 'length'
    whole = text().message.content
    stop = whole[len(whole) // 2]
    cut = text(stop=[stop, 'never'])
    assert cut.message.content == whole.partition(stop)[0].rstrip() and cut.finish_reason == 'stop'


def test_models_health_and_metrics(server: Running) -> None:
    assert [m.id for m in server.client().models.list()] == ['tiny']
    assert server.client().models.retrieve('tiny').id == 'tiny'
    assert httpx.get(f'{server.url}/health').json()['status'] == 'ok'
    before = server.metric('vtb_new_tokens_total')
    count = ask(server, {'role': 'user', 'content': 'Open'}, max_tokens=3).usage.completion_tokens
    assert server.metric('vtb_new_tokens_total') - before in (count, count + 1)  # the end of the turn is a token
    for name in (
        'vtb_prompt_tokens_total',
        'vtb_audio_seconds_total',
        'vtb_request_seconds_count',
        'vtb_batch_size_count',
    ):
        assert server.metric(name) > 0, name


# ---- what is refused


def status_and_code(action: Callable[[], Any]) -> tuple[int, str | None]:
    with pytest.raises(openai.APIStatusError) as caught:
        action()
    return caught.value.status_code, caught.value.code


USER = {'role': 'user', 'content': 'Open the door.'}


@pytest.mark.parametrize(
    ('options', 'status', 'code'),
    [
        ({'model': 'other'}, 404, 'model'),
        ({'model': '/etc/passwd'}, 404, 'model'),
        ({'messages': []}, 400, 'messages'),
        ({'messages': [USER, {'role': 'assistant', 'content': 'Yes.'}]}, 400, 'messages'),
        ({'messages': [USER, {'role': 'system', 'content': 'late'}, USER]}, 400, 'messages'),
        ({'messages': [{'role': 'tool', 'content': 'x', 'tool_call_id': '1'}]}, 400, 'messages.0.role'),
        ({'messages': [{'role': 'user', 'content': []}]}, 400, 'messages.0.content'),
        ({'temperature': 11}, 400, 'temperature'),
        ({'top_p': 0}, 400, 'top_p'),
        ({'n': 2}, 400, 'n'),
        ({'stop': ['']}, 400, 'stop'),
        ({'max_tokens': 25}, 400, 'max_new_tokens'),
        ({'max_tokens': 0}, 400, 'max_tokens'),
        ({'seed': 2**70}, 400, 'seed'),
        ({'logit_bias': {'1': 5}}, 400, 'logit_bias'),
        ({'extra_body': {'_target_': 'os.system'}}, 400, '_target_'),
        ({'messages': [{'role': 'user', 'content': 'word ' * 5000}]}, 400, 'max_prompt_tokens'),
    ],
)
def test_a_request_that_asks_too_much_is_refused_by_name(
    server: Running, options: dict[str, Any], status: int, code: str
) -> None:
    messages = options.pop('messages', [USER])
    assert status_and_code(lambda: ask(server, messages=messages, **options)) == (status, code)


def audio_message(data: str, form: str = 'wav') -> dict[str, Any]:
    return {'role': 'user', 'content': [{'type': 'input_audio', 'input_audio': {'data': data, 'format': form}}]}


def test_recordings_that_are_none(server: Running, wavs: list[str], tmp_path: Path) -> None:
    where = 'messages.0.content.0'
    whole = Path(wavs[0]).read_bytes()
    nothing, truncated = (base64.b64encode(data).decode() for data in (b'no sound', whole[:30]))
    for message, code in (
        (audio_message(nothing), where),
        (audio_message(truncated), where),
        (audio_message(''), where),
        (audio_message('/etc/passwd'), f'{where}.input_audio.data'),
        (audio_message('file:///etc/passwd'), f'{where}.input_audio.data'),
        ({'role': 'user', 'content': [{'type': 'image_url', 'image_url': {'url': 'http://127.0.0.1/'}}]}, where),
        ({'role': 'user', 'content': [{'type': 'audio_url', 'audio_url': {'url': 'http://127.0.0.1/'}}]}, where),
        ({'role': 'assistant', 'content': [part(wavs[0])]}, where),
    ):
        assert status_and_code(lambda message=message: ask(server, message, USER))[0] == 400
        assert status_and_code(lambda message=message: ask(server, message, USER))[1] == code, message
    reply = httpx.post(f'{server.url}/v1/audio/transcriptions', data={'model': 'tiny', 'file': '/etc/passwd'})
    assert (reply.status_code, reply.json()['error']['code']) == (400, 'file')


def test_limits_of_recordings_and_bytes(engine: Engine, wavs: list[str]) -> None:
    server = Running(engine, max_recordings=2, max_audio_s=2.0, max_body_mb=0.2)
    try:
        assert ask(server, spoken(wavs[0], wavs[1])).choices
        assert status_and_code(lambda: ask(server, spoken(wavs[0], wavs[0], wavs[0]))) == (400, 'max_recordings')
        assert status_and_code(lambda: ask(server, spoken(wavs[1], wavs[3]))) == (400, 'max_audio_s')
        big = {'role': 'user', 'content': 'x' * 300_000}
        assert status_and_code(lambda: ask(server, big)) == (413, 'max_body_mb')
        # without a length in the head the bytes themselves are counted
        reply = httpx.post(f'{server.url}/v1/chat/completions', content=(b'x' * 50_000 for _ in range(6)))
        assert (reply.status_code, reply.json()['error']['code']) == (413, 'max_body_mb')
    finally:
        server.stop()


def test_a_key_from_the_environment(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('VTB_API_KEY', KEY)
    server = Running(engine)
    try:
        assert [m.id for m in server.client(api_key=KEY).models.list()] == ['tiny']
        for wrong in ('none', KEY + 'x', KEY[:-1]):
            client = server.client(api_key=wrong)
            assert status_and_code(lambda client=client: client.models.list()) == (401, 'invalid_api_key')
        assert httpx.get(f'{server.url}/metrics').status_code == 401
        assert httpx.get(f'{server.url}/health').status_code == 200
    finally:
        server.stop()


def test_rubbish_ends_no_server(server: Running) -> None:
    for body in (b'', b'\xff\xfe', b'[' * 100_000, b'{"model": 1}', b'null', b'{"messages": [{}]}'):
        reply = httpx.post(f'{server.url}/v1/chat/completions', content=body)
        assert reply.status_code == 400 and reply.json()['error']['message']
    for raw in (b'\x16\x03\x01\x00rubbish\r\n\r\n', b'GET /' + b'a' * 100_000 + b' HTTP/1.1\r\n\r\n'):
        with socket.create_connection(('127.0.0.1', server.port), timeout=30) as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(100)
    assert httpx.get(f'{server.url}/nothing').status_code == 404
    assert httpx.get(f'{server.url}/v1/chat/completions').status_code == 405
    assert ask(server, USER).choices[0].message.content


# ---- load


def test_many_clients_at_once(engine: Engine, wavs: list[str]) -> None:
    """Each sends its own recording and gets the answer to it, or is refused by name; none is lost or mixed up."""
    server = Running(engine, max_batch=4, max_queue=6)
    answers = {wav: expected(engine, ('user', (wav, 'What?'))) for wav in wavs}
    assert len(set(answers.values())) == len(wavs)

    def client(number: int) -> str:
        wav = wavs[number % len(wavs)]
        try:
            if number % 2:
                chunks = ask(server, spoken(wav, 'What?'), stream=True)
                text = ''.join(chunk.choices[0].delta.content or '' for chunk in chunks)
            else:
                text = ask(server, spoken(wav, 'What?')).choices[0].message.content
        except openai.RateLimitError as error:
            return str(error.code)
        return 'right' if text == answers[wav] else f'mixed up: {text}'

    try:
        with ThreadPoolExecutor(24) as pool:
            results = list(pool.map(client, range(24)))
        assert set(results) <= {'right', 'max_queue'} and results.count('right') >= 10, results
        assert server.metric('vtb_batch_size_count') < server.metric('vtb_new_tokens_total')  # they shared passes
        assert server.service.batcher.load == (0, 0)
    finally:
        server.stop()


def test_a_client_that_goes_is_cancelled_and_others_go_on(
    engine: Engine, wavs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = engine._stop_ids
    monkeypatch.setattr(engine, '_stop_ids', frozenset())  # an answer without end
    server = Running(engine, max_new_tokens=2000, max_prompt_tokens=1000, max_batch=2)
    body = {
        'model': 'tiny',
        'messages': [spoken(wavs[0])],
        'max_tokens': 2000,
        'stop': None,
        'temperature': 9.0,
        'seed': 3,
    }
    try:
        for stream in (True, False):
            before = server.metric('vtb_cancelled_requests_total')
            raw = json.dumps(body | {'stream': stream}).encode()
            connection = socket.create_connection(('127.0.0.1', server.port))
            head = f'POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n\r\n'
            connection.sendall(head.encode() + raw)
            server.until(lambda: server.service.batcher.load[0] == 1)
            connection.close()
            server.until(lambda before=before: server.metric('vtb_cancelled_requests_total') == before + 1)
            assert server.service.batcher.load == (0, 0)
        monkeypatch.setattr(engine, '_stop_ids', stops)
        assert ask(server, USER).choices[0].message.content == expected(engine, ('user', (USER['content'],)))
    finally:
        server.stop()


def test_an_answer_and_a_request_that_take_too_long(
    engine: Engine, wavs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, '_stop_ids', frozenset())
    server = Running(engine, max_new_tokens=3000, max_prompt_tokens=1000, timeout_s=0.5)
    options = {'max_tokens': 3000, 'temperature': 9.0, 'seed': 3}
    try:
        assert status_and_code(lambda: ask(server, spoken(wavs[0]), **options)) == (408, 'timeout_s')
        with pytest.raises(openai.APIError, match='timeout_s'):
            list(ask(server, spoken(wavs[0]), stream=True, **options))
        with socket.create_connection(('127.0.0.1', server.port), timeout=60) as connection:  # it hangs in its body
            connection.sendall(b'POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{')
            assert b' 408 ' in connection.recv(100)
        server.until(lambda: server.service.batcher.load == (0, 0))
    finally:
        server.stop()


def test_a_pass_that_fails_ends_its_requests_alone(
    engine: Engine, wavs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Running(engine)
    step, fails = engine.step, [True]

    def sometimes(generations: Any) -> None:
        if fails.pop() if fails else False:
            raise MemoryError('no memory is left')
        step(generations)

    monkeypatch.setattr(engine, 'step', sometimes)
    try:
        assert status_and_code(lambda: ask(server, spoken(wavs[0]))) == (500, 'internal')
        assert ask(server, USER).choices[0].message.content and server.metric('vtb_failures_total') == 1
    finally:
        server.stop()


# ---- the command


def test_options_become_settings() -> None:
    made = read_options(
        ['my.nemo', '--port', '0', '--max-audio-s', '7.5', 'max_batch=3', '--name', 'a, b'], 'serve', ServeConfig
    )
    assert (made.model, made.port, made.max_audio_s, made.max_batch, made.name) == ('my.nemo', 0, 7.5, 3, 'a, b')
    for words, field in ((['--prt', '1'], '--prt'), (['--port', '99999'], 'port'), (['max_batch=x'], 'max_batch')):
        with pytest.raises(VtbConfigError) as caught:
            read_options(['my.nemo', *words], 'serve', ServeConfig)
        assert caught.value.field == field


@pytest.mark.integration
def test_sigterm_lets_running_answers_finish(spoken_model: Any, tmp_path: Path, wavs: list[str]) -> None:
    spoken_model.save_to(str(tmp_path / 'tiny.nemo'))
    with socket.create_server(('127.0.0.1', 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, '-m', 'nemo_vtb.cli', 'serve', str(tmp_path / 'tiny.nemo'), '--port', str(port)]
    process = subprocess.Popen(
        command, env=os.environ | {'PYTHONPATH': str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        client = openai.OpenAI(base_url=f'http://127.0.0.1:{port}/v1', api_key='none', max_retries=0, timeout=120)
        while process.poll() is None:
            try:
                client.models.list()
                break
            except openai.APIConnectionError:
                time.sleep(0.2)
        options = {'model': 'tiny', 'max_tokens': 400, 'temperature': 9.0, 'seed': 3, 'stream': True}
        chunks = iter(client.chat.completions.create(messages=[spoken(wavs[0])], **options))
        next(chunks)
        next(chunks)
        process.send_signal(signal.SIGTERM)
        rest = list(chunks)
        assert rest[-1].choices[0].finish_reason in ('stop', 'length') and len(rest) > 10
        assert process.wait(timeout=60) == 0, process.stderr.read()
        with pytest.raises(openai.APIConnectionError):
            client.models.list()
    finally:
        process.kill()
        process.communicate()
