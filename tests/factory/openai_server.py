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
"""An OpenAI-compatible server for the tests: a real small language model and real voices, with faults on order.

    python openai_server.py STATE_FOLDER [FAULTS [READY]]

FAULTS is a list of words; request number n gets FAULTS[n], later ones are answered well: `ok`, `429`, `500`, `hang`
(no answer for as long as the client may wait), `cut` (the connection ends), `junk` (an answer that is no JSON),
`range` (a verdict out of range), `400`, `401`.
READY is a list of what is loaded before the first request, so that no client waits for it: `model`, `voice`.
It writes its port to STATE_FOLDER/port and every request with what it got to STATE_FOLDER/requests.jsonl.
"""

import io
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HANG_S = 60.0


class Model:
    """MiniMind2-Small, held to the schema of the request, as a serving engine holds its models; a question is one."""

    def __init__(self) -> None:
        from nemo_vtb.factory.settings import Llm
        from nemo_vtb.factory.text_generation import LocalGenerator

        self._generator = LocalGenerator(Llm(model='asset:minimind2-small', max_tokens=24, temperature=0))
        self._lock = threading.Lock()

    def answer(self, body: dict[str, Any]) -> tuple[str, int, int]:
        # a model of this size loses its way in long instructions
        transcript = body['messages'][-1]['content'].partition('recording: ')[2].partition('\n')[0]
        turns = [{'role': 'user', 'content': f'Write a question and its answer about: {transcript}'}]
        text = self._generator._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) + '{'
        values, read, written = {}, 0, 0
        with self._lock:
            for name in body['response_format']['json_schema']['schema']['required']:
                begin, end = ('What ', '?') if name == 'question' else ('', '')
                text += f'"{name}": "{begin}'
                (value,), (count_in,), (count_out,) = self._generator._complete([text], body['seed'])
                values[name] = begin + value.rstrip('?.!,') + end
                read, written = read or count_in, written + count_out
                text += f'{values[name][len(begin) :]}", '
        return json.dumps(values), read, written


class Server:
    """Counts requests and knows the faults that were ordered."""

    def __init__(self, folder: Path, faults: list[str]) -> None:
        self.folder, self.faults, self.count = folder, faults, 0
        self.lock = threading.Lock()
        self.log = (folder / 'requests.jsonl').open('a', encoding='utf-8')
        self._model: Model | None = None

    def next_fault(self) -> str:
        with self.lock:
            self.count += 1
            return self.faults[self.count - 1] if self.count <= len(self.faults) else 'ok'

    def note(self, **facts: Any) -> None:
        with self.lock:
            self.log.write(json.dumps(facts) + '\n')
            self.log.flush()

    def model(self) -> Model:
        with self.lock:
            if self._model is None:
                self._model = Model()
            return self._model


def handler_of(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'

        def log_message(self, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
            fault = server.next_fault()
            key = body.get('input') or body['messages'][-1]['content']
            server.note(path=self.path, got=fault, key=key, auth=self.headers.get('Authorization'))
            if fault == 'hang':
                time.sleep(HANG_S)
            elif fault == 'cut':
                self.close_connection = True
            elif fault in ('429', '500', '400', '401'):
                self._send(int(fault), b'{"error": "as ordered"}', {'Retry-After': '0.1'} if fault == '429' else {})
            elif self.path.endswith('/audio/speech'):
                self._send(200, speech(body))
            elif fault == 'junk':
                self._send(200, chat('I would rather talk about bees.', 3, 7))
            elif fault == 'range':
                self._send(200, chat(json.dumps({**verdict(key), 'redundancy': 11}), 3, 7))
            elif wanted(body) == 'verdict':
                self._send(200, chat(f'```json\n{json.dumps(verdict(key))}\n```', 300, 40))
            else:
                self._send(200, chat(*server.model().answer(body)))
                server.note(path=self.path, got='answered', key=key)

        def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {'Content-Length': str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    return Handler


def chat(text: str, read: int, written: int) -> bytes:
    usage = {'prompt_tokens': read, 'completion_tokens': written}
    return json.dumps({'choices': [{'message': {'content': text}}], 'usage': usage}).encode()


def wanted(body: dict[str, Any]) -> str:
    """Name of the schema that the request asks for."""
    return ((body.get('response_format') or {}).get('json_schema') or {}).get('name', '')


def verdict(asked: str) -> dict[str, Any]:
    """A judge by rule: right if the words of the reference are there and the recording is not merely repeated."""
    material = json.loads(asked)
    reference, answer, said = (
        [''.join(c for c in word.lower() if c.isalnum()) for word in text.split()]
        for text in (material['reference'], material['answer'], ' '.join(material['recordings'].values()))
    )
    repeats = bool(said) and answer == said != reference
    right = ' '.join(reference) in ' '.join(answer) and not repeats
    share = sum(word in said and word not in reference for word in answer) / max(1, len(answer))
    return {
        'correctness_explanation': 'It repeats the recording.'
        if repeats
        else f'It should be: {material["reference"]}',
        'correctness': int(right),
        'redundancy_explanation': f'{share:.0%} is copied.',
        'redundancy': 10 if repeats else 1 + round(9 * share),
    }


def speech(body: dict[str, Any]) -> bytes:
    """A Pico voice at 24 kHz, as servers send it."""
    import soundfile
    import soxr

    from nemo_vtb.assets.voices import speak

    samples = soxr.resample(speak(body['input'], body['voice'], body['speed']), 16000, 24000)
    stream = io.BytesIO()
    soundfile.write(stream, samples, 24000, format='WAV')
    return stream.getvalue()


def main() -> None:
    folder, faults = Path(sys.argv[1]), sys.argv[2].split() if len(sys.argv) > 2 else []
    server = Server(folder, faults)
    ready = sys.argv[3].split() if len(sys.argv) > 3 else []
    if 'model' in ready:
        server.model()
    if 'voice' in ready:
        speech({'input': 'Ready.', 'voice': 'en-US', 'speed': 1.0})
    http = ThreadingHTTPServer(('127.0.0.1', 0), handler_of(server))
    http.daemon_threads = True
    (folder / 'port.part').write_text(str(http.server_port))
    (folder / 'port.part').rename(folder / 'port')
    http.serve_forever()


if __name__ == '__main__':
    main()
