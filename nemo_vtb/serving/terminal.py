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
"""`vtb chat` at the terminal or through a pipe: what is typed becomes turns and commands of a `ChatSession`."""

import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from nemo_vtb.data.conversation import Audio, Text
from nemo_vtb.errors import VtbConfigError, VtbDataError, VtbError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

    from nemo_vtb.serving.chat import ChatSession

AUDIO_SUFFIXES = ('.wav', '.flac', '.mp3', '.ogg', '.opus', '.aiff', '.aif', '.au')
HELP = """\
Type a question; a path of a recording in it (or dragged in) stands for the recording.
  /audio FILE ...   recordings in front of the next question; an empty line sends them alone
  /record [SECONDS] the microphone, until Enter or so long (needs sounddevice)
  /base on|off      on: the base LLM answers, without LoRA
  /system [TEXT]    another system turn; none without TEXT
  /retry            answer the last question again
  /undo             take the last question and its answer back
  /show             the conversation as the LLM reads it
  /save FILE        append the conversation to a JSON-lines file of NeMo's format
  /reset            begin a new conversation
  /help, /quit"""
_WORD = re.compile(r"""'([^']*)'|"([^"]*)"|((?:\\.|[^\s\\'"])(?:\\.|[^\s\\])*)""")


class Terminal:
    """Reads lines, answers them, and goes on after an error.

    Args:
        session: The conversation.
        out: Where answers go, and nothing else.
        notes: Where everything else goes.
    """

    def __init__(self, session: 'ChatSession', *, out: TextIO, notes: TextIO) -> None:
        self.session, self._out, self._notes = session, out, notes
        self.pending: list[Audio] = []
        self.errors = 0
        self._commands: dict[str, Callable[[str], bool | None]] = {
            'audio': self._audio,
            'base': self._base,
            'help': lambda _: self._note(HELP),
            'quit': lambda _: False,
            'record': self._record,
            'reset': self._reset,
            'retry': lambda _: self._stream(self.session.retry()),
            'save': self._save,
            'show': lambda _: self._note(self.session.show()),
            'system': self._system,
            'undo': self._undo,
        }

    def run(self, lines: Iterator[str]) -> int:
        """Take lines until they end or `/quit`; returns how many of them failed."""
        for line in lines:
            try:
                if self.take(line) is False:
                    break
            except VtbError as error:
                self.errors += 1
                self._note(f'{type(error).__name__}: {error}')
            except KeyboardInterrupt:
                self._note('\ninterrupted: the question was taken back')
        return self.errors

    def take(self, line: str) -> bool | None:
        """Do what a line says; False for `/quit`.

        Raises:
            VtbError: It cannot be done; the conversation is as it was.
        """
        line = line.strip()
        name, _, rest = line.removeprefix('/').partition(' ')
        # a path begins with a slash, too
        if line.startswith('/') and not _recording(line.split()[0]) and '/' not in name:
            if name not in self._commands:
                raise VtbConfigError(
                    'There is no such command.', field=f'/{name}', allowed=', '.join(f'/{n}' for n in self._commands)
                )
            return self._commands[name](rest.strip())
        parts = [*self.pending, *self._parts(line)]
        if parts:
            self._stream(self.session.ask(parts))
            self.pending = []
        return None

    def _parts(self, line: str) -> list[Text | Audio]:
        """Text and recordings of a line: a word that is the path of an existing recording is that recording."""
        parts, begin = list[Text | Audio](), 0
        for match in _WORD.finditer(line):
            if path := _recording(match.group()):
                parts += [Text(line[begin : match.start()].strip()), self.session.recording(path)]
                begin = match.end()
        parts.append(Text(line[begin:].strip()))
        return [part for part in parts if isinstance(part, Audio) or part.text]

    def _stream(self, pieces: Iterator[str]) -> None:
        try:
            for piece in pieces:
                self._out.write(piece)
                self._out.flush()
        finally:
            self._out.write('\n')
            self._out.flush()
        last = self.session.last
        if last is not None and last.finish_reason == 'length':
            self._note(f'(ended at {last.new_tokens} tokens: --max-new-tokens allows more)')

    def _note(self, text: str) -> None:
        self._notes.write(f'{text}\n')
        self._notes.flush()

    # ---- commands

    def _audio(self, rest: str) -> None:
        words = [_unquoted(match) for match in _WORD.finditer(rest)]
        if not words:
            raise VtbConfigError('Which recording?', field='/audio', allowed='/audio FILE ...')
        added = [self.session.recording(word) for word in words]  # all of them, or none
        self.pending += added
        for audio in added:
            self._note(f'attached: {Path(audio.path).name} ({audio.duration_s:.2f} s)')

    def _record(self, rest: str) -> None:
        try:
            seconds = float(rest) if rest else None
        except ValueError:
            raise VtbConfigError('No number of seconds.', field='/record', got=rest, allowed='/record 5') from None
        path = record(seconds)
        self.pending.append(self.session.recording(str(path)))
        self._note(f'attached: {path} ({self.pending[-1].duration_s:.2f} s)')

    def _base(self, rest: str) -> None:
        if rest not in ('on', 'off'):
            raise VtbConfigError('On or off?', field='/base', got=rest, allowed='on, off')
        self.session.use_lora = rest == 'off'
        self._note('the base LLM answers' if rest == 'on' else 'the trained model answers')

    def _system(self, rest: str) -> None:
        self.session.system = rest or None
        self._note(f'system turn: {rest or "none"}')

    def _undo(self, rest: str) -> None:
        question = self.session.undo()
        names = [part.text if isinstance(part, Text) else Path(part.path).name for part in question.parts]
        self._note(f'taken back: {" ".join(names)}')

    def _reset(self, rest: str) -> None:
        self.session.turns, self.pending = [], []
        self._note('a new conversation')

    def _save(self, rest: str) -> None:
        words = [_unquoted(match) for match in _WORD.finditer(rest)]
        if len(words) != 1:
            raise VtbConfigError('Which file?', field='/save', got=rest, allowed='/save FILE')
        self._note(f'saved: {words[0]}, line {self.session.save(words[0])}')


def lines_of(stream: TextIO) -> Iterator[str]:
    """Lines typed at a terminal, with history and completion; or those of a pipe."""
    if not stream.isatty():
        yield from stream
        return
    typed = _prompt_session()
    while True:
        try:
            yield typed.prompt('> ')
        except EOFError:
            return
        except KeyboardInterrupt:  # as in a shell: the line is given up, not the program
            continue


def _prompt_session() -> 'PromptSession[str]':
    try:
        from prompt_toolkit import PromptSession
    except ImportError as error:
        raise VtbConfigError(
            'The terminal needs prompt_toolkit.', field='vtb chat', got=str(error), allowed='a pipe, or that package',
            remedy="pip install 'nemo_vtb[serve]'",
        ) from error  # fmt: skip
    from prompt_toolkit.completion import Completion, PathCompleter, WordCompleter, merge_completers
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import InMemoryHistory

    commands = [f'/{line.split()[0].removeprefix("/").rstrip(",")}' for line in HELP.splitlines() if '  /' in line]

    class Paths(PathCompleter):
        """Completes the last word of a line as a path."""

        def get_completions(self, document: Document, complete_event: Any) -> 'Iterator[Completion]':
            word = document.text_before_cursor.rpartition(' ')[2]
            yield from super().get_completions(Document(word), complete_event) if word else ()

    completer = merge_completers([WordCompleter(commands, sentence=True), Paths(expanduser=True)])
    return PromptSession(history=InMemoryHistory(), completer=completer, complete_while_typing=False)


def record(seconds: float | None) -> Path:
    """Record the microphone into a WAV file at 16 kHz.

    Args:
        seconds: How long; None until Enter is pressed.

    Raises:
        VtbConfigError: There is no microphone, no `sounddevice`, or a length out of range.
    """
    if seconds is None and not sys.stdin.isatty() or seconds is not None and not 0 < seconds <= 600:
        raise VtbConfigError('How long?', field='/record', got=seconds, allowed='more than 0, at most 600 seconds')
    import numpy as np
    import soundfile

    try:
        import sounddevice

        heard: list[Any] = []
        options = {'samplerate': 16000, 'channels': 1, 'dtype': 'float32'}
        with sounddevice.InputStream(callback=lambda data, *_: heard.append(data.copy()), **options):
            input('recording; Enter ends it') if seconds is None else sounddevice.sleep(int(1000 * seconds))
    except Exception as error:  # PortAudio and its binding raise types of their own
        raise VtbConfigError(
            'The microphone cannot be recorded.',
            field='/record',
            got=f'{type(error).__name__}: {error}',
            remedy="pip install 'nemo_vtb[microphone]' and the library PortAudio; or /audio FILE",
        ) from error
    if not heard:
        raise VtbDataError('The microphone gave nothing.', field='/record', got='0 samples')
    with tempfile.NamedTemporaryFile(prefix='recorded-', suffix='.wav', delete=False) as file:
        soundfile.write(file, np.concatenate(heard), 16000, format='WAV')
    return Path(file.name)


def _recording(word: str) -> str | None:
    """The path that a word stands for, if it is an existing recording."""
    match = _WORD.fullmatch(word)
    path = _unquoted(match).removeprefix('file://') if match else word
    if not path.lower().endswith(AUDIO_SUFFIXES):
        return None
    return path if path.startswith('asset:') or Path(path).expanduser().is_file() else None


def _unquoted(match: re.Match[str]) -> str:
    """A word without its quotes, or without the backslashes that a terminal puts before blanks."""
    single, double, bare = match.groups()
    return single or double or re.sub(r'\\(.)', r'\1', bare or '')
