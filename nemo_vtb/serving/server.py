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
"""An OpenAI-compatible server on FastAPI and uvicorn: chat completions and transcriptions, limits, metrics."""

import asyncio
import hmac
import json
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nemo_vtb.config.schema import ServeConfig
from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn
from nemo_vtb.errors import VtbError
from nemo_vtb.serving.batcher import Batcher, Job, Piece, Refusal
from nemo_vtb.serving.engine import Engine, Sampling
from nemo_vtb.serving.listen import bind, run
from nemo_vtb.serving.metrics import Metrics
from nemo_vtb.serving.requests import (
    ChatRequest,
    Heard,
    hear,
    parse_chat,
    read_clip,
    transcription_prompt,
    verbose,
)

_OPEN_PATHS = ('/health',)
_POLL_S = 0.25


class Service:
    """The model behind the endpoints: limits, queue, metrics.

    Args:
        engine: The model.
        settings: Of `vtb serve`.
    """

    def __init__(self, engine: Engine, settings: ServeConfig) -> None:
        self.engine, self.settings = engine, settings
        self.name = settings.shown_name
        self.created = int(time.time())
        self.metrics = Metrics()
        options = {'max_batch': settings.max_batch, 'max_queue': settings.max_queue}
        self.batcher = Batcher(engine, self.metrics, **options)
        # read once: a key that comes or goes while the server runs would surprise both sides
        self.api_key = os.environ.get(settings.api_key_env) or None

    def check_model(self, name: str) -> None:
        """Raises Refusal (404) for the name of another model."""
        if name != self.name:
            raise Refusal(404, 'model', f'model: there is no {name[:100]!r}; this server has {self.name!r}')

    def submit(self, heard: Heard, sampling: Sampling) -> 'Answer':
        """Queue a conversation.

        Raises:
            Refusal: A limit is exceeded, the queue is full, or the template refuses the conversation.
        """
        try:
            ids = self.engine.model.renderer.render_prompt(heard.conversation).ids
        except VtbError as error:
            raise Refusal(400, 'messages', str(error).splitlines()[0]) from error
        count = len(ids) + sum(self.engine.model.frames(len(clip)) - 1 for clip in heard.clips)
        allowed = min(self.settings.max_prompt_tokens, self.engine.context - sampling.max_new_tokens)
        if count > allowed:
            raise Refusal(
                400, 'max_prompt_tokens', f'The prompt has {count} tokens, audio included; allowed are {allowed}.'
            )
        answer = Answer(count)
        deadline = time.monotonic() + self.settings.timeout_s
        answer.job = Job(ids, heard.clips, sampling, answer.take, deadline)
        self.batcher.submit(answer.job)
        self.metrics.audio_seconds.inc(heard.seconds)
        return answer

    def sampling(self, request: ChatRequest) -> Sampling:
        """The settings of a request; without `temperature` the most likely tokens.

        Raises:
            Refusal: A value is out of range.
        """
        wanted = request.max_completion_tokens or request.max_tokens
        if wanted is not None and wanted > self.settings.max_new_tokens:
            raise Refusal(400, 'max_new_tokens', f'max_tokens: {wanted}; allowed are {self.settings.max_new_tokens}')
        stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
        if len(stop) > 16 or not all(0 < len(text) <= 200 for text in stop):
            raise Refusal(400, 'stop', 'stop: at most 16 texts of 1 to 200 characters')
        return Sampling(
            max_new_tokens=wanted or self.settings.max_new_tokens,
            temperature=request.temperature or 0.0,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=request.seed,
            stop=stop,
        )


class Answer:
    """An answer on its way from the thread of the batcher to the event loop that sends it.

    Args:
        prompt_tokens: Length of the prompt.
    """

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens, self.new_tokens = prompt_tokens, 0
        self.finish_reason: str | None = None
        self.job: Job | None = None
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece | Refusal] = asyncio.Queue()

    def take(self, piece: Piece | Refusal) -> None:
        """Called by the batcher."""
        with suppress(RuntimeError):  # the loop is gone: nobody waits
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    async def pieces(self, is_gone: Callable[[], Awaitable[bool]]) -> AsyncIterator[str]:
        """Pieces of text until the end; the job is cancelled when the client has gone or nobody takes any more.

        Raises:
            Refusal: The answer was broken off.
        """
        assert self.job is not None
        looked = time.monotonic()
        try:
            while self.finish_reason is None:
                # also while pieces come: nothing else says that nobody reads them
                if time.monotonic() - looked > _POLL_S:
                    if await is_gone():
                        return
                    looked = time.monotonic()
                try:
                    piece = await asyncio.wait_for(self._pieces.get(), _POLL_S)
                except TimeoutError:
                    continue
                if isinstance(piece, Refusal):
                    raise piece
                self.finish_reason, self.new_tokens = piece.finish_reason, piece.new_tokens
                if piece.text:
                    yield piece.text
        finally:
            if self.finish_reason is None:
                self.job.cancel()

    async def whole(self, request: Request) -> str:
        """All of the text.

        Raises:
            Refusal: The answer was broken off, or the client has gone (499).
        """
        text = ''.join([piece async for piece in self.pieces(request.is_disconnected)])
        if self.finish_reason is None:
            raise Refusal(499, 'client', 'The client has gone.')
        return text

    @property
    def usage(self) -> dict[str, int]:
        """Tokens, as OpenAI counts them."""
        total = self.prompt_tokens + self.new_tokens
        return {'prompt_tokens': self.prompt_tokens, 'completion_tokens': self.new_tokens, 'total_tokens': total}


def make_app(engine: Engine, settings: ServeConfig) -> FastAPI:
    """The application; its batcher runs as long as it does.

    Args:
        engine: The model.
        settings: Of `vtb serve`.
    """
    service = Service(engine, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        yield
        await asyncio.to_thread(service.batcher.close, settings.drain_s)

    app = FastAPI(title='nemo_vtb', lifespan=lifespan, openapi_url=None)
    app.state.service = service
    app.add_middleware(_Gate, service=service)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)

    @app.get('/health')
    async def health() -> dict[str, Any]:
        running, waiting = service.batcher.load
        return {'status': 'ok', 'model': service.name, 'running': running, 'waiting': waiting}

    @app.get('/metrics')
    async def metrics() -> Response:
        return PlainTextResponse(service.metrics.text(), media_type='text/plain; version=0.0.4')

    @app.get('/v1/models')
    async def models() -> dict[str, Any]:
        entry = {'id': service.name, 'object': 'model', 'created': service.created, 'owned_by': 'nemo_vtb'}
        return {'object': 'list', 'data': [entry]}

    @app.get('/v1/models/{name}')
    async def model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return {'id': service.name, 'object': 'model', 'created': service.created, 'owned_by': 'nemo_vtb'}

    _add_chat(app, service)
    _add_transcriptions(app, service)
    return app


def _add_chat(app: FastAPI, service: Service) -> None:
    @app.post('/v1/chat/completions')
    async def chat(request: Request) -> Response:
        body = await _within(request.body(), service.settings.timeout_s)
        asked = parse_chat(body)
        service.check_model(asked.model)
        sampling = service.sampling(asked)
        rate = service.engine.model.sampling_rate
        heard = await asyncio.to_thread(hear, asked, service.settings, rate)
        answer = service.submit(heard, sampling)
        frame = {'id': f'chatcmpl-{uuid.uuid4().hex}', 'created': int(time.time()), 'model': service.name}
        if asked.stream:
            with_usage = asked.stream_options is not None and asked.stream_options.include_usage
            events = _events(request, answer, frame, with_usage)
            return StreamingResponse(events, media_type='text/event-stream', headers={'cache-control': 'no-cache'})
        text = await answer.whole(request)
        choice = {'index': 0, 'message': {'role': 'assistant', 'content': text}, 'finish_reason': answer.finish_reason}
        return JSONResponse(frame | {'object': 'chat.completion', 'choices': [choice], 'usage': answer.usage})


async def _events(request: Request, answer: Answer, frame: dict[str, Any], with_usage: bool) -> AsyncIterator[str]:
    """Server-sent events; an answer that is broken off ends with an event of its own."""

    def event(delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {'index': 0, 'delta': delta, 'finish_reason': reason}
        value = frame | {'object': 'chat.completion.chunk', 'choices': [choice]}
        return f'data: {json.dumps(value | ({"usage": None} if with_usage else {}))}\n\n'

    try:
        yield event({'role': 'assistant', 'content': ''})
        async for piece in answer.pieces(request.is_disconnected):
            yield event({'content': piece})
    except Refusal as refusal:
        yield f'data: {json.dumps(_error(refusal.code, refusal.message, refusal.status))}\n\n'
        return
    finally:
        if answer.finish_reason is None and answer.job is not None:
            answer.job.cancel()
    if answer.finish_reason is None:
        return
    yield event({}, answer.finish_reason)
    if with_usage:
        value = frame | {'object': 'chat.completion.chunk', 'choices': [], 'usage': answer.usage}
        yield f'data: {json.dumps(value)}\n\n'
    yield 'data: [DONE]\n\n'


def _add_transcriptions(app: FastAPI, service: Service) -> None:
    settings = service.settings

    @app.post('/v1/audio/transcriptions')
    async def transcribe(
        request: Request,
        file: UploadFile,
        model: str = Form(),
        language: str | None = Form(None, max_length=40),
        prompt: str | None = Form(None, max_length=4000),
        response_format: str = Form('json'),
        temperature: float = Form(0.0, ge=0, le=10),
        seed: int | None = Form(None),
    ) -> Response:
        service.check_model(model)
        if response_format not in ('json', 'text', 'verbose_json'):
            raise Refusal(400, 'response_format', 'response_format: json, text or verbose_json')
        data, rate = await file.read(), service.engine.model.sampling_rate
        clip = await asyncio.to_thread(read_clip, data, rate, settings.max_audio_s, 'file')
        parts = (Text(transcription_prompt(language, prompt)), Audio('file'))
        conversation = Conversation('transcription', (Turn('user', parts),), 'asr_ast')
        heard = Heard(conversation, (clip,), len(clip) / rate)
        sampling = Sampling(max_new_tokens=settings.max_new_tokens, temperature=temperature, seed=seed)
        answer = service.submit(heard, sampling)
        text = await answer.whole(request)
        if response_format == 'text':
            return PlainTextResponse(f'{text}\n')
        return JSONResponse({'text': text} if response_format == 'json' else verbose(text, heard.seconds, language))


class _Gate:
    """Key, size and metrics of every request, before anything of it is read."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        self._limit = int(service.settings.max_body_mb * 1e6)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            await self._app(scope, receive, send)
            return
        headers = {name: value for name, value in scope['headers'] if name in (b'authorization', b'content-length')}
        path, began, status, read = scope['path'], time.monotonic(), 500, 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get('body', b''))
            if read > self._limit:
                raise self._too_large()
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            if message['type'] == 'http.response.start':
                status = message['status']
            await send(message)

        try:
            self._check(path, headers)
            await self._app(scope, counted, noted)
        except Refusal as refusal:
            await _response(refusal)(scope, receive, noted)
        finally:
            endpoint = path if path in _ENDPOINTS else 'other'
            self._service.metrics.requests.labels(endpoint, str(status)).inc()
            self._service.metrics.seconds.labels(endpoint).observe(time.monotonic() - began)

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        key = self._service.api_key
        given = headers.get(b'authorization', b'').removeprefix(b'Bearer ')
        if key is not None and path not in _OPEN_PATHS and not hmac.compare_digest(given, key.encode()):
            raise Refusal(401, 'invalid_api_key', 'The API key is missing or wrong (Authorization: Bearer ...).')
        length = headers.get(b'content-length', b'0')
        if length.isdigit() and int(length) > self._limit:
            raise self._too_large()

    def _too_large(self) -> Refusal:
        limit = self._service.settings.max_body_mb
        return Refusal(413, 'max_body_mb', f'The request is larger than {limit:g} MB (max_body_mb).')


_ENDPOINTS = ('/health', '/metrics', '/v1/models', '/v1/chat/completions', '/v1/audio/transcriptions')


async def _within(action: Awaitable[bytes], timeout_s: float) -> bytes:
    try:
        return await asyncio.wait_for(action, timeout_s)
    except TimeoutError as error:
        raise Refusal(408, 'timeout_s', 'The request did not arrive in time (timeout_s).') from error


def _error(code: str, message: str, status: int) -> dict[str, Any]:
    kind = 'server_error' if status >= 500 else 'rate_limit_error' if status == 429 else 'invalid_request_error'
    return {'error': {'message': message, 'type': kind, 'param': code, 'code': code}}


def _response(refusal: Refusal) -> JSONResponse:
    headers = {'retry-after': '1'} if refusal.status in (429, 503) else {}
    return JSONResponse(_error(refusal.code, refusal.message, refusal.status), refusal.status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _response(Refusal(error.status_code, 'request', str(error.detail)))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = '.'.join(str(part) for part in first['loc'][1:]) or 'body'
    return _response(Refusal(400, field, f'{field}: {first["msg"]}'))


def serve(engine: Engine, settings: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C: running answers finish, new connections are refused.

    Args:
        engine: The model.
        settings: Where and how.

    Raises:
        VtbConfigError: The address cannot be listened at.
    """
    server, listener = bind(make_app(engine, settings), settings, settings.drain_s)
    sys.stderr.write(f'listening at http://{settings.host}:{listener.getsockname()[1]}/v1\n')
    run(server, listener)
