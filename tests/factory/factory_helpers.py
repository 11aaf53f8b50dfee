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
"""Pieces of the factory's tests: chats, manifests, and a digest of all that a production wrote."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from nemo_vtb.assets.recordings import write_wav
from nemo_vtb.factory.demo.text_only import reference_chats


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows), encoding='utf-8')
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]


def write_chats(path: Path, count: int = 24) -> Path:
    """Chats that a person wrote, as ShareGPT."""
    rows = []
    for number, chat in enumerate(reference_chats()[:count]):
        turns = [('human', 'gpt')[i % 2] for i in range(2 * len(chat.prompts))]
        texts = [text for pair in zip(chat.prompts, chat.answers, strict=True) for text in pair]
        conversations = [{'from': role, 'value': text} for role, text in zip(turns, texts, strict=True)]
        rows.append({'id': f'{number:03d}', 'conversations': conversations})
    return write_jsonl(path, rows)


def write_manifest(folder: Path, texts: list[str], **more: Any) -> Path:
    """A NeMo manifest with short noises as recordings."""
    rng, rows = np.random.default_rng(0), []
    for number, text in enumerate(texts):
        audio = rng.normal(0, 0.05, 16000 + 1600 * number).astype(np.float32)
        seconds = write_wav(folder / f'rec-{number}.wav', audio)
        rows.append({'audio_filepath': f'rec-{number}.wav', 'duration': seconds, 'text': text, 'lang': 'en', **more})
    return write_jsonl(folder / 'manifest.jsonl', rows)


def read_wav(path: Path) -> np.ndarray:
    """Samples (S,) int16 of a recording."""
    return soundfile.read(path, dtype='int16')[0]


def digest(out: Path) -> dict[str, str]:
    """SHA-256 of every file that a production hands over, its own working folder left out."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob('*'))
        if path.is_file() and '.work' not in path.parts
    }


@contextmanager
def openai_server(folder: Path, faults: str = '', ready: str = '') -> Iterator[str]:
    """A server of `openai_server.py` in a process of its own, with `ready` loaded; gives its base address."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(Path(__file__).with_name('openai_server.py')), str(folder), faults, ready]
    process = subprocess.Popen(command)
    try:
        while not (folder / 'port').exists():
            assert process.poll() is None, 'the server did not start'
            time.sleep(0.05)
        yield f'http://127.0.0.1:{(folder / "port").read_text()}/v1'
    finally:
        process.kill()
        process.wait()
