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
"""Worker process of voices.py: one JSON request per line in, a length and 16-bit samples out.

It is a process of its own because the voices read memory that they have not written: only with the allocator's fill
byte set before the start do equal texts give equal sound (measured: 0.38 s of difference in one sentence of 1.58 s).
"""

import json
import struct
import sys


def main() -> int:
    """Serve requests until standard input closes; an error is answered with a negative length and its text."""
    import py_nanotts

    engine = py_nanotts.NanoTTS()
    out = sys.stdout.buffer
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            answer, sign = engine.speak(**request), 1
        except (ValueError, RuntimeError, OSError) as error:
            answer, sign = str(error).encode() or b'unknown error', -1
        out.write(struct.pack('<q', sign * len(answer)))
        out.write(answer)
        out.flush()
    return 0


if __name__ == '__main__':
    sys.exit(main())
