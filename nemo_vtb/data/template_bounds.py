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
"""Chat templates are programs of whoever made the LLM: bounds on their size, time, memory and output.

transformers runs them in jinja's sandbox, which keeps them from the machine, but not from looping for ever.
"""

import os
import resource
import signal
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from nemo_vtb.errors import VtbTemplateError

MAX_TEMPLATE_BYTES = 1 << 18
"""Ten times the longest template that is known."""

_CPU_S, _WALL_S, _MEMORY_BYTES = 5, 120, 1 << 29
_MAX_GROWTH, _FREE_CHARACTERS = 16, 1 << 18
_OUT_OF_MEMORY, _TOO_LONG = 3, 4
_EXCHANGE = ({'role': 'user', 'content': 'a b'}, {'role': 'assistant', 'content': 'c d'})
# what a template is tried on: one question, an answer, a system turn, a long talk, a long text
_TRIALS: tuple[list[dict[str, str]], ...] = (
    [_EXCHANGE[0]],
    [*_EXCHANGE],
    [{'role': 'system', 'content': 'e'}, *_EXCHANGE],
    [*_EXCHANGE] * 50,
    [{'role': 'user', 'content': 'a b ' * 5000}, _EXCHANGE[1]],
)


def check_template(tokenizer: Any) -> None:
    """Try the chat template of a tokenizer in a process of its own, with little time and memory.

    Args:
        tokenizer: Of transformers, with a template. Each template is tried once per process.

    Raises:
        VtbTemplateError: It is longer than any template, does not end, fills the memory, or writes without end. What
            else is wrong with it is said when a conversation is rendered.
    """
    text = str(tokenizer.chat_template)
    if len(text.encode('utf-8', 'replace')) > MAX_TEMPLATE_BYTES:
        raise _refused(f'{len(text)} characters')
    if why := _tried(text, _Trial(tokenizer)):
        raise _refused(why)


def check_output(rendered: str, given: int, field: str) -> None:
    """Refuse a rendering that is much longer than what was to be rendered.

    Args:
        rendered: What the template made.
        given: Characters of all messages.
        field: What an error names.

    Raises:
        VtbTemplateError: It is.
    """
    if len(rendered) > given * _MAX_GROWTH + _FREE_CHARACTERS:
        raise _refused(f'{len(rendered)} characters from {given}', field)


class _Trial:
    """Renders the trials; equal to any other, since the text of the template alone decides."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Trial)

    def __hash__(self) -> int:
        return 0

    def __call__(self) -> int:
        for messages in _TRIALS:
            for prompt in (False, True):
                try:
                    text = self.tokenizer.apply_chat_template(
                        messages, tokenize=False, add_generation_prompt=prompt, enable_thinking=False
                    )
                    check_output(text, sum(len(m['content']) for m in messages), '')
                except VtbTemplateError:
                    return _TOO_LONG
                except MemoryError:
                    return _OUT_OF_MEMORY
                except Exception:  # noqa: BLE001  a template may refuse a conversation in any way
                    continue
        return 0


@lru_cache(maxsize=256)
def _tried(_text: str, trial: _Trial) -> str:
    """Why the template is refused, '' if it is not."""
    code = run_bounded(trial)
    if code == 0:
        return ''
    if code in (_OUT_OF_MEMORY, _TOO_LONG):
        return f'more than {_MEMORY_BYTES >> 20} MiB' if code == _OUT_OF_MEMORY else 'a text without end'
    return f'no end within {_CPU_S} s'


def run_bounded(function: Callable[[], int], cpu_s: int = _CPU_S, memory_bytes: int = _MEMORY_BYTES) -> int:
    """Run a function in a forked process with a bound on time and memory.

    Args:
        function: Nothing of what it does is kept; it must start no threads. Returns an exit status.
        cpu_s: Seconds of processor time.
        memory_bytes: Beyond what this process has.

    Returns:
        The exit status, or minus the number of the signal that ended it.
    """
    child = os.fork()
    if child == 0:
        status = _OUT_OF_MEMORY
        try:
            _limit(cpu_s, memory_bytes)
            status = function()
        finally:
            os._exit(status)  # nothing of the parent's may run here: no exit handlers, no flushing
    deadline, pause = time.monotonic() + _WALL_S, 0.001
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -signal.SIGKILL
        time.sleep(pause)
        pause = min(2 * pause, 0.1)


def _limit(cpu_s: int, memory_bytes: int) -> None:
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = Path('/proc/self/statm')
    if pages.exists():  # Linux
        ceiling = int(pages.read_text(encoding='ascii').split()[0]) * resource.getpagesize() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))


def _refused(got: str, field: str = 'chat_template') -> VtbTemplateError:
    return VtbTemplateError(
        'The chat template takes more than a template needs; nothing is rendered with it.',
        reason='template_refused',
        field=field,
        got=got,
        allowed=f'<= {MAX_TEMPLATE_BYTES} bytes, {_CPU_S} s, {_MEMORY_BYTES >> 20} MiB, {_MAX_GROWTH} times the text',
        remedy='do not use the file, or put a template that you know into the folder of the LLM (chat_template.jinja)',
    )
