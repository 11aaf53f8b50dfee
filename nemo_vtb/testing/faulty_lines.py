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
"""What the kinds of broken input are made of: the description of a kind, parts of lines, small recordings."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE = 16000
TAKEN = 'taken'
"""Outcome of a line that is legal, or repaired."""

Line = dict[str, Any] | bytes
Make = Callable[[Path, int], Line]


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Args:
        group: audio, tar, line, conversation, or the type of NeMo's `input_cfg` whose line is changed.
        name: What is wrong.
        outcome: `taken`, or the reason for which it is skipped.
        remark: What the documentation says of it.
        make: (folder, number) -> the line of the manifest; it writes the recording itself.
        lost: Share of them that are skipped.
        type: NeMo's name of the format.
    """

    group: str
    name: str
    outcome: str
    remark: str
    make: Make
    lost: float = 1.0
    type: str = 'multimodal_conversation'

    @property
    def stem(self) -> str:
        """Name of its manifest."""
        return ''.join(c if c.isalnum() else '_' for c in self.name)

    def skips(self, per_kind: int) -> int:
        """How many of so many are skipped."""
        return 0 if self.outcome == TAKEN else round(self.lost * per_kind + 0.001)

    def id_of(self, number: int) -> str:
        """Id of its conversation of that number."""
        return f'{self.stem}-{number}'


def text(role: str, value: Any) -> dict[str, Any]:
    """A text of a conversation."""
    return {'from': role, 'type': 'text', 'value': value}


def spoken(value: str, **keys: Any) -> dict[str, Any]:
    """A recording of a conversation."""
    return {'from': 'User', 'type': 'audio', 'value': value, **keys}


def chat(id_: str, *extra: dict[str, Any], question: Any = 'which room is it about') -> dict[str, Any]:
    """A conversation of one question and one answer."""
    return {'id': id_, 'conversations': [text('User', question), *extra, text('Assistant', 'the green one')]}


def write_wav(path: Path, seconds: float = 0.5, *, level: float = 0.1, rate: int = RATE, channels: int = 1) -> Path:
    """A sine of 220 Hz; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = level * np.sin(2 * np.pi * 220 * np.arange(round(seconds * rate)) / rate)
    soundfile.write(path, np.repeat(tone[:, None], channels, axis=1).astype(np.float32), rate)
    return path


def write_lines(path: Path, lines: list[Line]) -> None:
    """Objects become JSON, bytes are written as they are."""
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b'\n'.join(raw) + b'\n')
