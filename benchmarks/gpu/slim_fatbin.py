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
"""Zero the code of a shared library for other GPUs, so that it compresses well.

python slim_fatbin.py IN.so OUT.so 90     keeps sm_90 alone; needs readelf
"""

import collections
import mmap
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

_MAGIC = 0xBA55ED50


def sections(library: str) -> Iterator[tuple[int, int]]:
    """Begin and end of the sections that hold GPU code."""
    listed = subprocess.check_output(['readelf', '-S', '-W', library], text=True).splitlines()
    for words in (line.split() for line in listed if '.nv_fatbin' in line):
        place = words.index('PROGBITS')
        begin, size = int(words[place + 2], 16), int(words[place + 3], 16)
        yield begin, begin + size


def entries(memory: Any, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Kind (1 PTX, 2 machine code), architecture, place and size of each piece of code."""
    at = begin
    while at < end - 16:
        magic, _, header, total = struct.unpack_from('<IHHQ', memory, at)
        if magic != _MAGIC:
            at += 8
            continue
        place, last = at + header, at + header + total
        while place < last:
            kind, _, own_header, size = struct.unpack_from('<HHIQ', memory, place)
            (architecture,) = struct.unpack_from('<I', memory, place + 28)
            yield kind, architecture, place + own_header, size
            place += own_header + size
        at = last


def main(source: str, target: str, keep: str) -> None:
    """Copy, zero, and print what was there."""
    wanted = {int(number) for number in keep.split(',')}
    sizes: collections.Counter[tuple[str, int]] = collections.Counter()
    shutil.copyfile(source, target)
    with open(target, 'r+b') as stream:
        memory = mmap.mmap(stream.fileno(), 0)
        for begin, end in sections(source):
            for kind, architecture, place, size in entries(memory, begin, end):
                sizes[{1: 'ptx', 2: 'elf'}.get(kind, str(kind)), architecture] += size
                if architecture not in wanted:
                    memory[place : place + size] = bytes(size)
        memory.flush()
    for (kind, architecture), size in sorted(sizes.items()):
        kept = 'kept' if architecture in wanted else 'zeroed'
        print(f'{kind} sm_{architecture}: {size / 2**20:.1f} MiB, {kept}')


if __name__ == '__main__':
    main(*sys.argv[1:])
