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
"""Clients at once against `vtb serve` on loopback, with and without batching, in one run.

python benchmarks/serve_load.py --quick    # 64 clients, a tiny model
python benchmarks/serve_load.py --full     # 64 clients, four requests each, the embedded LLM and encoder
Each client sends its own recording and compares the answer with that of the model itself; one sends rubbish, one
hangs, one goes in the middle of its answer. `ok`: none lost, refused or mixed up, and batching no slower.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault('OMP_NUM_THREADS', '1')

from nemo_vtb.scripts import quiet_logs, start_script

start_script()

import numpy as np
import openai
import soundfile
import torch
import uvicorn
from rich.console import Console
from rich.table import Table

from nemo_vtb.config.schema import ServeConfig
from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.serving.engine import Engine
from nemo_vtb.serving.server import make_app
from nemo_vtb.testing import tiny_model_cfg

CLIENTS, NEW_TOKENS, RECORDINGS = 64, 16, 8
QUESTION = 'What is it about?'


def make_model(folder: Path, full: bool) -> VoiceTextBlender:
    """A tiny random model, or the model of the quickstart before training."""
    torch.manual_seed(0)
    if full:
        from chat_latency import make_model as embedded

        return embedded()
    return VoiceTextBlender(tiny_model_cfg(folder)).eval()


def make_recordings(folder: Path) -> list[tuple[Path, str]]:
    """File and base64 of recordings of unlike length and pitch."""
    made = []
    for number in range(RECORDINGS):
        seconds = np.arange(int((0.5 + 0.4 * number) * 16000)) / 16000
        buffer = io.BytesIO()
        tone = 0.2 * np.sin(2 * np.pi * 150 * 2 ** (number / 3) * seconds) * np.sin(2 * np.pi * 3 * seconds)
        soundfile.write(buffer, tone, 16000, format='WAV')
        path = folder / f'{number}.wav'
        path.write_bytes(buffer.getvalue())
        made.append((path, base64.b64encode(buffer.getvalue()).decode()))
    return made


class Server:
    """The server in a thread."""

    def __init__(self, engine: Engine, max_batch: int) -> None:
        settings = ServeConfig(model='load.nemo', max_batch=max_batch, max_queue=2 * CLIENTS, max_new_tokens=512)
        config = uvicorn.Config(make_app(engine, settings), host='127.0.0.1', port=0, log_level='error')
        self._server, listener = uvicorn.Server(config), config.bind_socket()
        self.port = listener.getsockname()[1]
        self._thread = threading.Thread(target=self._server.run, kwargs={'sockets': [listener]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        """End it; all answers are there."""
        self._server.should_exit = True
        self._thread.join()


async def client(port: int, data: str, expected: str, requests: int) -> list[tuple[str, float]]:
    """What became of each request, and its seconds."""
    results = []
    content = [
        {'type': 'input_audio', 'input_audio': {'data': data, 'format': 'wav'}},
        {'type': 'text', 'text': QUESTION},
    ]
    async with openai.AsyncOpenAI(
        base_url=f'http://127.0.0.1:{port}/v1', api_key='none', max_retries=0, timeout=600
    ) as api:
        for _ in range(requests):
            began = time.perf_counter()
            options: dict[str, Any] = {'model': 'load', 'max_tokens': NEW_TOKENS}
            options['messages'] = [{'role': 'user', 'content': content}]
            try:
                done = await api.chat.completions.create(**options)
                what = 'right' if done.choices[0].message.content == expected else 'mixed_up'
            except openai.APIStatusError as error:
                what = 'refused' if error.code else 'lost'
            except openai.APIError:
                what = 'lost'
            results.append((what, time.perf_counter() - began))
    return results


async def disturb(port: int, data: str) -> None:
    """One client sends rubbish, one hangs, one goes in the middle of its answer."""
    for raw, wait_s in (
        (b'rubbish\r\n\r\n', 0.0),
        (b'POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 9\r\n\r\n', 3.0),
    ):
        _, writer = await asyncio.open_connection('127.0.0.1', port)
        writer.write(raw)
        await asyncio.sleep(wait_s)
        writer.close()
    body = {'model': 'load', 'stream': True, 'max_tokens': 400, 'temperature': 5.0}
    audio = {'type': 'input_audio', 'input_audio': {'data': data, 'format': 'wav'}}
    raw = json.dumps(body | {'messages': [{'role': 'user', 'content': [audio]}]}).encode()
    reader, writer = await asyncio.open_connection('127.0.0.1', port)
    writer.write(f'POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n\r\n'.encode() + raw)
    await reader.read(100)
    writer.close()


async def load(port: int, recordings: list[tuple[Path, str]], answers: list[str], requests: int) -> dict[str, Any]:
    """All clients at once, and the three that disturb; figures of the former."""
    began = time.perf_counter()
    clients = [client(port, recordings[n % RECORDINGS][1], answers[n % RECORDINGS], requests) for n in range(CLIENTS)]
    trouble = asyncio.create_task(disturb(port, recordings[0][1]))
    results = [result for rows in await asyncio.gather(*clients) for result in rows]
    took = time.perf_counter() - began
    await trouble
    seconds = sorted(s for what, s in results if what == 'right')
    counts = {what: sum(w == what for w, _ in results) for what in ('right', 'refused', 'lost', 'mixed_up')}
    cuts = statistics.quantiles(seconds, n=20) if len(seconds) > 1 else [float('nan')] * 19
    return counts | {'requests_per_s': len(seconds) / took, 'p50_s': cuts[9], 'p95_s': cuts[18]}


def main() -> int:
    """Measure, print a table and one JSON line; returns the exit status."""
    parser = argparse.ArgumentParser(description='Clients at once against the server, with and without batching.')
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--quick', action='store_true', help='a tiny model, one request of each client')
    size.add_argument('--full', action='store_true', help='the embedded LLM, four requests of each client')
    full = parser.parse_args().full
    quiet_logs()
    figures: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(make_model(Path(folder), full))
        recordings = make_recordings(Path(folder))
        asked = [Conversation('x', (Turn('user', (Audio(str(path)), Text(QUESTION))),)) for path, _ in recordings]
        answers = [engine.model.answer([one], max_new_tokens=NEW_TOKENS)[0] for one in asked]
        for max_batch in (1, 16):
            server = Server(engine, max_batch)
            figures[max_batch] = asyncio.run(load(server.port, recordings, answers, 4 if full else 1))
            server.stop()
    table = Table('answers at once', *figures[1])
    for max_batch, row in figures.items():
        table.add_row(str(max_batch), *(f'{v:.3g}' if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)
    alone, batched = figures[1], figures[16]
    bad = {what: alone[what] + batched[what] for what in ('lost', 'mixed_up', 'refused')}
    speedup = batched['requests_per_s'] / alone['requests_per_s']
    ok = not any(bad.values()) and len(set(answers)) == RECORDINGS and speedup >= 1.0
    named = {f'{name}_unbatched': round(alone[name], 3) for name in ('requests_per_s', 'p50_s', 'p95_s')}
    named |= {name: round(batched[name], 3) for name in ('requests_per_s', 'p50_s', 'p95_s')}
    print(
        json.dumps(
            {'benchmark': 'serve_load', 'ok': ok, 'clients': CLIENTS, **bad, **named, 'speedup': round(speedup, 2)}
        )
    )
    return int(not ok)


if __name__ == '__main__':
    raise SystemExit(main())
