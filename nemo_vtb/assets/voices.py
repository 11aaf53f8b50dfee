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
"""The Pico voices (py-nanotts): synthetic speech in six languages, reproducible to the sample."""

import atexit
import json
import os
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from random import Random
from threading import Lock
from typing import IO, cast

import numpy as np

from nemo_vtb.errors import VtbAssetError

VOICE_LICENCE = 'Apache-2.0 (SVOX Pico voices, package py-nanotts)'
VOICES = {
    'en': ('en-US', 'en-GB'),
    'de': ('de-DE',),
    'es': ('es-ES',),
    'fr': ('fr-FR',),
    'it': ('it-IT',),
}
SPEEDS = (0.2, 5.0)
PITCHES = (0.5, 2.0)

# at the engine's own volume low-pitched voices clip
_VOLUME = 0.5
_WORKER = Path(__file__).with_name('_pico_worker.py')
_REMEDY = 'pip install py-nanotts==0.1.1'


def voices_available() -> bool:
    """Whether the package with the voices is installed."""
    return find_spec('py_nanotts') is not None


def voice_for(lang: str) -> tuple[str, ...]:
    """Voices of a language.

    Args:
        lang: Two-letter code.

    Raises:
        VtbAssetError: There is no voice for this language.
    """
    if lang not in VOICES:
        raise VtbAssetError('There is no Pico voice for this language.', field='lang', got=lang, allowed=list(VOICES))
    return VOICES[lang]


def random_style(rng: Random, lang: str = 'en') -> tuple[str, float, float]:
    """Draw (voice, speed, pitch): many speakers out of few voices, in the intelligible range.

    Never gives exactly speed 1 and pitch 1, which are kept for held-out speech.

    Args:
        rng: Source of randomness.
        lang: Two-letter code.
    """
    voice = rng.choice(voice_for(lang))
    speed, pitch = round(rng.uniform(0.85, 1.2), 3), round(rng.uniform(0.75, 1.3), 3)
    return voice, speed if speed != 1.0 else 1.001, pitch if pitch != 1.0 else 1.001


def speak(text: str, voice: str = 'en-US', speed: float = 1.0, pitch: float = 1.0) -> np.ndarray:
    """Synthesise a text.

    Args:
        text: In the language of the voice.
        voice: One of ``VOICES``.
        speed: 0.2 to 5; 1 is normal.
        pitch: 0.5 to 2; 1 is normal.

    Returns:
        Samples in [-1, 1], float32, shape (S,), 16 kHz, the same for the same arguments.

    Raises:
        VtbAssetError: The package is missing, an argument is out of range, or the engine fails.
    """
    _check(text, voice, speed, pitch)
    raw = _engine().request({'text': text, 'voice': voice, 'speed': speed, 'pitch': pitch, 'volume': _VOLUME})
    audio = np.frombuffer(raw, '<i2').astype(np.float32) / 32768.0
    if not audio.size:
        raise VtbAssetError('The voice gave no sound.', field='text', got=text, allowed='words that can be spoken')
    return audio


def _check(text: str, voice: str, speed: float, pitch: float) -> None:
    known = [name for names in VOICES.values() for name in names]
    if not text.strip():
        raise VtbAssetError('The text is empty.', field='text', got=text, allowed='at least one word')
    if voice not in known:
        raise VtbAssetError('Unknown voice.', field='voice', got=voice, allowed=known)
    for field, value, (low, high) in (('speed', speed, SPEEDS), ('pitch', pitch, PITCHES)):
        if not low <= value <= high:
            raise VtbAssetError('The voice cannot do this.', field=field, got=value, allowed=f'{low} to {high}')


class _Engine:
    """The worker process and the pipe to it."""

    def __init__(self) -> None:
        if not voices_available():
            raise VtbAssetError(
                'The package with the Pico voices is not installed.', field='py_nanotts', remedy=_REMEDY
            )
        # 255 makes fresh memory zero: the voices would otherwise depend on what was in it before
        env = {**os.environ, 'MALLOC_PERTURB_': '255', 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
        self._process = subprocess.Popen(
            [sys.executable, '-P', str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
        )
        self._requests, self._answers = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        self._lock = Lock()
        self.pid = os.getpid()
        atexit.register(self.close)

    @property
    def alive(self) -> bool:
        """Whether the worker runs and belongs to this process (a forked child must start its own)."""
        return self._process.poll() is None and self.pid == os.getpid()

    def request(self, request: dict) -> bytes:
        """Raw samples for one request. Raises VtbAssetError when the engine refuses or dies."""
        with self._lock:
            try:
                self._requests.write(json.dumps(request).encode() + b'\n')
                self._requests.flush()
                length = struct.unpack('<q', self._read(8))[0]
                answer = self._read(abs(length))
            except (OSError, EOFError) as error:
                raise VtbAssetError(
                    'The voice engine stopped.', field='text', got=request['text'],
                    remedy=f'Check the installation: {_REMEDY}',
                ) from error  # fmt: skip
        if length < 0:
            raise VtbAssetError('The voice engine refused.', field='text', got=answer.decode(errors='replace'))
        return answer

    def close(self) -> None:
        """End the worker."""
        if self.pid == os.getpid() and self._process.poll() is None:
            self._requests.close()
            self._process.wait(timeout=5)

    def _read(self, count: int) -> bytes:
        data = self._answers.read(count)
        if len(data) < count:
            raise EOFError
        return data


_current: list[_Engine] = []


def _engine() -> _Engine:
    if not (_current and _current[0].alive):
        _current[:] = [_Engine()]
    return _current[0]
