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
"""Worker process of flite.py: one JSON request per line in; rate, length and 16-bit samples out.

It is a process of its own because a shared library of another project is loaded in it.
"""

import ctypes
import json
import struct
import sys
from pathlib import Path


class _Wave(ctypes.Structure):
    # cst_wave of Flite 2.2
    _fields_ = (
        ('type', ctypes.c_char_p),
        ('sample_rate', ctypes.c_int),
        ('num_samples', ctypes.c_int),
        ('num_channels', ctypes.c_int),
        ('samples', ctypes.POINTER(ctypes.c_short)),
    )


class _Voice(ctypes.Structure):
    # the beginning of cst_voice of Flite 2.2
    _fields_ = (('name', ctypes.c_char_p), ('features', ctypes.c_void_p))


def main(folder: str) -> int:
    """Serve requests `{text, voice, stretch, f0}` until standard input closes; no sound is length 0."""
    # later libraries find the earlier ones by their names
    flite, *_ = [
        ctypes.CDLL(str(next(Path(folder).glob(f'{name}.so.*'))), mode=ctypes.RTLD_GLOBAL)
        for name in ('libflite', 'libflite_usenglish', 'libflite_cmulex')
    ]
    flite.flite_init()
    flite.flite_text_to_wave.restype = ctypes.POINTER(_Wave)
    flite.flite_text_to_wave.argtypes = [ctypes.c_char_p, ctypes.POINTER(_Voice)]
    flite.flite_feat_set_float.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float]
    flite.delete_wave.argtypes = [ctypes.POINTER(_Wave)]
    voices: dict[str, ctypes._Pointer] = {}
    out = sys.stdout.buffer
    for line in sys.stdin.buffer:
        request = json.loads(line)
        name = request['voice']
        if name not in voices:
            library = ctypes.CDLL(str(next(Path(folder).glob(f'libflite_cmu_us_{name}.so.*'))))
            make = getattr(library, f'register_cmu_us_{name}')
            make.restype, make.argtypes = ctypes.POINTER(_Voice), [ctypes.c_char_p]
            voices[name] = make(None)
        features = voices[name].contents.features
        flite.flite_feat_set_float(features, b'duration_stretch', request['stretch'])
        flite.flite_feat_set_float(features, b'int_f0_target_mean', request['f0'])
        wave = flite.flite_text_to_wave(request['text'].encode('ascii', 'ignore'), voices[name])
        count, rate = wave.contents.num_samples, wave.contents.sample_rate
        out.write(struct.pack('<iq', rate, 2 * count))
        out.write(ctypes.string_at(wave.contents.samples, 2 * count) if count else b'')
        out.flush()
        flite.delete_wave(wave)
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1]))
