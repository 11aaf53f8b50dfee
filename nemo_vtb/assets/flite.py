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
"""The Flite voices (Debian's libflite1): three people and a machine in American and Scottish English."""

import atexit
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_vtb.assets.catalog import Job, register_file
from nemo_vtb.assets.unpack import members
from nemo_vtb.errors import VtbAssetError

FLITE_VOICES = {'slt': 180.0, 'rms': 100.0, 'awb': 120.0, 'kal16': 105.0}
"""Voice -> its own mean pitch in Hz: a woman, two men (awb is Scottish), and a diphone voice."""

if TYPE_CHECKING:
    import numpy as np

_WORKER = Path(__file__).with_name('_flite_worker.py')
_LIBRARIES = ('libflite', 'libflite_usenglish', 'libflite_cmulex', *(f'libflite_cmu_us_{v}' for v in FLITE_VOICES))


def build_flite(job: Job) -> None:
    """Take the shared libraries of the voices out of the Debian package; they are loaded from there, not installed.

    Raises:
        VtbAssetError: The package does not hold them.
    """
    wanted = set(_LIBRARIES)
    for name, stream in members(job.packages['libflite1']):
        file = Path(name).name
        if (library := file.partition('.so')[0]) in wanted and '.so.' in file:
            (job.into / file).write_bytes(stream.read())
            wanted.discard(library)
    if wanted:
        raise VtbAssetError('The package does not hold all voices.', field='libflite1', allowed=sorted(wanted))


class Flite:
    """The engine, in a process of its own.

    Args:
        folder: The asset `flite-voices`.
    """

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, '-P', str(_WORKER), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.pid = os.getpid()
        atexit.register(self.close)

    def say(self, text: str, voice: str, stretch: float = 1.0, f0: float | None = None) -> tuple['np.ndarray', int]:
        """Synthesise a text.

        Args:
            text: English.
            voice: One of `FLITE_VOICES`.
            stretch: Duration relative to the voice's own.
            f0: Mean pitch in Hz; None: the voice's own.

        Returns:
            Samples (S,) float32 in [-1, 1], and their rate in Hz; the same for the same arguments.

        Raises:
            VtbAssetError: There is no such voice, or the engine died.
        """
        import numpy as np

        if voice not in FLITE_VOICES:
            raise VtbAssetError('Unknown voice.', field='voice', got=voice, allowed=list(FLITE_VOICES))
        request = {'text': text, 'voice': voice, 'stretch': stretch, 'f0': f0 or FLITE_VOICES[voice]}
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b'\n')
            self._process.stdin.flush()
            rate, size = struct.unpack('<iq', self._process.stdout.read(12))
            raw = self._process.stdout.read(size)
        except (OSError, struct.error) as error:
            raise VtbAssetError('The voice engine stopped.', field='text', got=text) from error
        return np.frombuffer(raw, '<i2').astype(np.float32) / 32768.0, rate

    def close(self) -> None:
        """End the worker."""
        if self.pid == os.getpid() and self._process.poll() is None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait(timeout=5)


register_file(Path(__file__).with_suffix('.yaml'), {'flite': build_flite})
