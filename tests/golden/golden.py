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
"""Measures what golden.json holds, and compares: to the bit on a machine like the first, else within its rounding."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from golden_corpus import write_corpus
from golden_jobs import FIXTURES, HALF_CHECKPOINT, NEMO_FILE, ROOT, write_configs

GOLDEN = Path(__file__).parent / 'golden.json'
COMMON = {
    'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1', 'TRANSFORMERS_OFFLINE': '1',
    'TOKENIZERS_PARALLELISM': 'false', 'MPLBACKEND': 'Agg', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONHASHSEED': '0',
}  # fmt: skip
PINNED = {
    # kernels that every x86-64 processor runs alike, in place of the fastest ones that this one has
    'ATEN_CPU_CAPABILITY': 'default',
    'MKL_CBWR': 'COMPATIBLE',
    'MKL_ENABLE_INSTRUCTIONS': 'SSE4_2',
    'ONEDNN_MAX_CPU_ISA': 'SSE41',
    'OPENBLAS_CORETYPE': 'Nehalem',
    'NPY_DISABLE_CPU_FEATURES': 'X86_V3 X86_V4 AVX512_ICL AVX512_SPR',
    'GLIBC_TUNABLES': 'glibc.cpu.hwcaps=-FMA,-FMA4,-AVX2,-AVX512F',
}
FIXTURE_FILES = {HALF_CHECKPOINT: 'tiny.ckpt.fixture', NEMO_FILE: 'tiny.nemo.fixture'}
QUESTIONS = 6


def prepare(folder: Path) -> None:
    """Corpus, configurations, fixtures and questions of a new folder."""
    write_corpus(folder / 'corpus')
    write_configs(folder)
    shutil.copytree(FIXTURES, folder / 'fixtures')
    for name, stored in FIXTURE_FILES.items():
        if (folder / 'fixtures' / stored).is_file():
            (folder / 'fixtures' / stored).rename(folder / name)
    questions = []
    for kind in ('text', 'asr_ast', 'speech_qa', 'mixed_modal'):
        for line in (folder / 'corpus' / f'{kind}.validation.jsonl').read_text(encoding='utf-8').splitlines():
            questions.append(json.loads(line))
    for question in questions:
        for entry in question['conversations']:
            if entry['type'] == 'audio':
                entry['value'] = f'corpus/{entry["value"]}'
    lines = [json.dumps(question) for question in questions[: 2 * QUESTIONS : 2]]
    (folder / 'questions.jsonl').write_text('\n'.join(lines) + '\n', encoding='utf-8')


def measure(folder: Path, jobs: Sequence[str], *, pinned: bool = True) -> dict[str, Any]:
    """Run jobs of `golden_jobs` in one process that was started for them; their results and its fingerprint."""
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    env = os.environ | COMMON | (PINNED if pinned else {}) | {'PYTHONPATH': os.pathsep.join(paths)}
    script = Path(__file__).with_name('golden_runs.py')
    done = subprocess.run(
        [sys.executable, str(script), str(folder), *jobs], cwd=folder, env=env, capture_output=True, text=True
    )
    if done.returncode:
        raise AssertionError((done.stdout + done.stderr)[-8000:])
    return json.loads((folder / 'results.json').read_text(encoding='utf-8'))


def number(bits: str) -> float:
    """The value of raw bits, see `golden_runs.bits`."""
    return struct.unpack('>f' if len(bits) == 8 else '>d', bytes.fromhex(bits))[0]


def differences(expected: Any, got: Any, tolerance: float | None, path: str = '') -> Iterator[str]:
    """A line for each place where two results differ.

    Args:
        expected: What was recorded.
        got: What was measured.
        tolerance: None demands equal bits; else the difference, by the larger of 1 and the value, that numbers may
            have. Texts and whole numbers must be equal either way.
        path: Where in the result this is.
    """
    if isinstance(expected, Mapping) and isinstance(got, Mapping) and expected.keys() == got.keys():
        for key in expected:
            yield from differences(expected[key], got[key], tolerance, f'{path}.{key}')
    elif isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        for place, pair in enumerate(zip(expected, got, strict=True)):
            yield from differences(*pair, tolerance, f'{path}[{place}]')
    elif expected != got and not _near(expected, got, tolerance):
        yield f'{path}: {got} instead of {expected}'


def distance(expected: Any, got: Any) -> float:
    """Largest difference between two results with the same keys, by the larger of 1 and the value."""
    if isinstance(expected, Mapping):
        return max((distance(value, got[key]) for key, value in expected.items()), default=0.0)
    if isinstance(expected, list):
        return max((distance(*pair) for pair in zip(expected, got, strict=True)), default=0.0)
    one, two = _value(expected), _value(got)
    return 0.0 if one is None or two is None else abs(one - two) / max(1.0, abs(one))


def _near(expected: Any, got: Any, tolerance: float | None) -> bool:
    if tolerance is None or isinstance(expected, int) or isinstance(got, int):
        return False
    if _value(expected) is None or _value(got) is None:
        return False
    return distance(expected, got) <= tolerance


def _value(item: Any) -> float | None:
    if isinstance(item, str) and re.fullmatch(r'[0-9a-f]{8}|[0-9a-f]{16}', item):
        return number(item)
    return item if isinstance(item, float) else None
