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
"""What is typed: recordings in a line, commands, errors after which it goes on; a real pipe, a real terminal."""

import contextlib
import io
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from nemo_vtb.data.conversation import Audio, Text
from nemo_vtb.errors import VtbConfigError
from nemo_vtb.serving.chat import ChatSession
from nemo_vtb.serving.engine import Engine, Sampling
from nemo_vtb.serving.terminal import Terminal, record

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def terminal(engine: Engine) -> Terminal:
    session = ChatSession(engine, sampling=Sampling(max_new_tokens=6))
    return Terminal(session, out=io.StringIO(), notes=io.StringIO())


def texts(terminal: Terminal) -> tuple[str, str]:
    return terminal._out.getvalue(), terminal._notes.getvalue()  # type: ignore[attr-defined]


def test_a_path_in_a_line_is_a_recording(terminal: Terminal, wavs: list[str], tmp_path: Path) -> None:
    spaced = tmp_path / "it's a wav.wav"
    shutil.copy(wavs[0], spaced)
    escaped = str(spaced).replace(' ', '\\ ').replace("'", "\\'")
    for line, expected in (
        (f'What is {wavs[0]} about?', ['What is', wavs[0], 'about?']),
        (wavs[0], [wavs[0]]),
        (f'{escaped} and "{spaced}", please', [str(spaced), 'and', str(spaced), ', please']),
        (f'file://{wavs[1]}', [wavs[1]]),
        ("What's in absent.wav? It's /not/there.wav", ["What's in absent.wav? It's /not/there.wav"]),
        ('half a "quote and it\'s fine \\', ['half a "quote and it\'s fine \\']),
    ):
        parts = terminal._parts(line)
        assert [p.path if isinstance(p, Audio) else p.text for p in parts] == expected


def test_a_whole_session(terminal: Terminal, wavs: list[str], tmp_path: Path) -> None:
    out = tmp_path / 'my chat.jsonl'
    lines = [
        '/help', 'Open the door.', f'/audio {wavs[0]} {wavs[1]}', 'Which is longer?', wavs[2], f'/audio {wavs[3]}', '',
        '/base on', '/retry', '/base off', '/undo', '/system Be brief.', '/show', f'/save "{out}"', '/quit', 'never',
    ]  # fmt: skip
    assert terminal.run(iter(lines)) == 0, texts(terminal)
    answers, notes = texts(terminal)
    turns = terminal.session.turns
    assert [t.role for t in turns] == ['user', 'assistant'] * 3
    assert [type(p) for p in turns[2].parts] == [Audio, Audio, Text] and terminal.pending == []
    assert answers.splitlines()[0] == turns[1].text and 'never' not in answers
    for said in (
        '/audio FILE',
        'attached: 0.wav (0.60 s)',
        'the base LLM answers',
        'taken back: 3.mp3',
        'Be brief.',
        'line 1',
    ):
        assert said in notes
    saved = json.loads(out.read_text())
    assert saved['conversations'][0] == {'from': 'System', 'type': 'text', 'value': 'Be brief.'}


def test_errors_are_named_and_the_session_goes_on(terminal: Terminal, wavs: list[str], tmp_path: Path) -> None:
    empty, text = tmp_path / 'empty.wav', tmp_path / 'text.wav'
    empty.touch()
    text.write_text('no sound')
    lines = [
        f'What? {empty}', f'/audio {wavs[0]} {text}', f'/audio {tmp_path}/absent.wav', '/audio', '/undo', '/show',
        '/nonsense', '/base maybe', f'/save {tmp_path}/a.jsonl', '/save', '/record x', '/record 0', 'Open the door.',
    ]  # fmt: skip
    assert terminal.run(iter(lines)) == len(lines) - 1
    answers, notes = texts(terminal)
    assert terminal.session.turns[0].parts == (Text('Open the door.'),) and answers.strip()
    assert len(terminal.session.turns) == 2 and terminal.pending == []
    for said in ('zero bytes', 'cannot be decoded', 'does not exist', 'no such command', 'on, off', 'nothing to undo'):
        assert said in notes
    assert 'Traceback' not in notes


def test_the_limit_is_said(terminal: Terminal) -> None:
    terminal.session.sampling = Sampling(max_new_tokens=1)
    terminal.run(iter(['Open the door.']))
    assert 'ended at 1 tokens' in texts(terminal)[1]


def test_no_microphone_is_said() -> None:
    with pytest.raises(VtbConfigError) as caught:
        record(0.1)
    assert caught.value.field == '/record' and 'sounddevice' in str(caught.value)


class Device:
    """What `sounddevice` is to us: blocks of (n, 1) samples while a stream is open."""

    def __init__(self, blocks: list[np.ndarray], error: Exception | None = None) -> None:
        self.blocks, self.error, self.options, self.slept = blocks, error, {}, []  # type: ignore[var-annotated]

    def InputStream(self, callback: Any, **options: Any) -> Any:
        if self.error is not None:
            raise self.error
        self.options = options
        for block in self.blocks:
            callback(block, len(block), None, None)
            block[:] = 0  # the device uses its memory again
        return contextlib.nullcontext()

    def sleep(self, milliseconds: int) -> None:
        self.slept.append(milliseconds)


def test_a_microphone_is_recorded(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    tone = (0.3 * np.sin(np.arange(16000) / 5)).astype(np.float32)[:, None]
    device = Device([tone[:9000].copy(), tone[9000:].copy()])
    monkeypatch.setitem(sys.modules, 'sounddevice', device)
    assert terminal.run(iter(['/record 1', 'What do you hear?'])) == 0, texts(terminal)
    assert device.options == {'samplerate': 16000, 'channels': 1, 'dtype': 'float32'} and device.slept == [1000]
    [heard] = tmp_path.glob('recorded-*.wav')
    samples, rate = soundfile.read(heard, dtype='float32')
    assert rate == 16000 and np.abs(samples - tone[:, 0]).max() < 1e-3
    assert [type(part) for part in terminal.session.turns[0].parts] == [Audio, Text]
    typed: list[str] = []
    monkeypatch.setattr(sys.stdin, 'isatty', lambda: True, raising=False)
    monkeypatch.setattr('builtins.input', lambda text: typed.append(text) or '')
    monkeypatch.setitem(sys.modules, 'sounddevice', Device([tone]))
    assert record(None).is_file() and 'Enter' in typed[0]


def test_a_microphone_that_fails_is_said(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, (device, said) in enumerate(
        (
            (Device([], OSError('PortAudio library not found')), 'PortAudio library not found'),
            (Device([]), 'gave nothing'),
            (None, 'sounddevice'),
        ),
        start=1,
    ):
        monkeypatch.setitem(sys.modules, 'sounddevice', device)
        assert terminal.run(iter(['/record 0.1'])) == number
        assert said in texts(terminal)[1] and terminal.pending == []
    assert 'nemo_vtb[microphone]' in texts(terminal)[1]


@pytest.fixture(scope='module')
def nemo_file(spoken_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the folder of a run."""
    path = tmp_path_factory.mktemp('run') / 'checkpoints' / 'tiny.nemo'
    path.parent.mkdir()
    spoken_model.save_to(str(path))
    return path


@pytest.mark.slow
@pytest.mark.integration
def test_through_a_pipe(nemo_file: Path, wavs: list[str], tmp_path: Path) -> None:
    """Answers alone on standard output; a line that fails says so, and the exit status too."""
    (tmp_path / 'empty.wav').touch()
    typed = f'Open the door.\n{tmp_path}/empty.wav\n{wavs[0]} What?\n'
    command = [sys.executable, '-m', 'nemo_vtb.cli', 'chat', str(nemo_file.parents[1]), '--max-new-tokens', '8']
    done = subprocess.run(
        command, input=typed, capture_output=True, text=True, timeout=300, env=os.environ | {'PYTHONPATH': str(ROOT)}
    )
    assert done.returncode == 1 and 'zero bytes' in done.stderr and 'Traceback' not in done.stderr
    assert len(done.stdout.strip().splitlines()) == 2, done.stdout


def test_lines_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """prompt_toolkit on a real pseudo-terminal: completion, history, Ctrl-D."""
    code = (
        'import sys\nfrom nemo_vtb.serving.terminal import lines_of\n'
        'for line in lines_of(sys.stdin): print("got:", line, flush=True)\nprint("end", flush=True)'
    )
    main, side = pty.openpty()
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'TERM': 'xterm', 'PROMPT_TOOLKIT_NO_CPR': '1'}
    process = subprocess.Popen([sys.executable, '-c', code], stdin=side, stdout=side, stderr=side, env=environment)
    os.close(side)
    ready = select.poll()  # select() refuses descriptors above 1023
    ready.register(main, select.POLLIN)

    seen = b''

    def until(word: bytes) -> None:
        nonlocal seen
        while word not in seen:
            assert ready.poll(120_000), seen
            seen += os.read(main, 4096)
        seen = seen.partition(word)[2]

    # a prompt must be there before the next key: between two of them the terminal is not prompt_toolkit's
    until(b'>')
    for typed, answers in (
        (b'hello\r', (b'got: hello', b'>')),
        (b'/und\t', (b'/undo',)),  # completed
        (b'\r', (b'got: /undo', b'>')),
        (b'\x1b[A\x1b[A\r', (b'got: hello', b'>')),  # the line before the last one
        (b'\x04', (b'end',)),
    ):
        os.write(main, typed)
        for answer in answers:
            until(answer)
    assert process.wait(timeout=60) == 0
    os.close(main)
