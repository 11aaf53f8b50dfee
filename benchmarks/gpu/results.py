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
"""What all steps share: where they run, one JSON line for each figure at once, times and errors.

`REHEARSE=1` runs every line on a CPU with the smallest sizes: it proves the script, and nothing about speed.
"""

import gc
import json
import os
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

BEGAN = time.time()
REHEARSE = os.environ.get('REHEARSE') == '1'
OUT = Path(os.environ.get('OUT', 'gpu_out'))
WORK = Path(os.environ.get('GPU_WORK', '/tmp/nemo_vtb_gpu'))
os.environ |= {'HF_HUB_OFFLINE': '1', 'TRANSFORMERS_OFFLINE': '1', 'TOKENIZERS_PARALLELISM': 'false'}
warnings.filterwarnings('ignore')

import torch
from torch import Tensor

GPU = torch.cuda.is_available() and not REHEARSE
DEVICE = torch.device('cuda', 0) if GPU else torch.device('cpu')
HALF = torch.bfloat16


def note(step: str, **fields: Any) -> None:
    """Append one line to results.jsonl and print it: a step that is cut off loses nothing."""
    line = json.dumps({'step': step, 't': round(time.time() - BEGAN, 1), **fields}, default=str)
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / 'results.jsonl').open('a', encoding='utf-8') as stream:
        stream.write(line + '\n')
        stream.flush()
        os.fsync(stream.fileno())
    print(line[:600], flush=True)


@contextmanager
def attempt(step: str, **fields: Any) -> Iterator[dict[str, Any]]:
    """Note what is put into the dictionary, or the error and where it came from; go on either way."""
    found: dict[str, Any] = {}
    begin = time.time()
    try:
        yield found
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001  # whatever a kernel raises
        places = [
            f'{Path(f.filename).name}:{f.lineno} {f.name}' for f in traceback.extract_tb(error.__traceback__)[-7:]
        ]
        found |= {'error': f'{type(error).__name__}: {str(error)[:900]}', 'at': places}
        traceback.print_exc()
    note(step, **fields, s=round(time.time() - begin, 2), **found)
    free()


def free() -> None:
    """Give memory back before the next figure."""
    gc.collect()
    if GPU:
        with suppress(RuntimeError):  # a kernel that failed leaves nothing usable behind: each figure then says so
            torch.cuda.empty_cache()


def synchronize() -> None:
    """Wait for the device."""
    if GPU:
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any]) -> float:
    """Wall time of one call until the device is done."""
    synchronize()
    begin = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - begin


def timed(work: Callable[[], Any], repeat: int = 10, warm: int = 2) -> float:
    """Median seconds; once in a rehearsal."""
    for _ in range(warm if GPU else 0):
        work()
    return statistics.median(seconds_of(work) for _ in range(repeat if GPU else 1))


def error_of(found: Tensor, expected: Tensor) -> float:
    """Relative error, by norms in float64."""
    a, b = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


def matmul_tflops(n: int | None = None) -> float:
    """Rate of bfloat16 products of random matrices, the median of ten."""
    n = n or (8192 if GPU else 256)
    a, b = (torch.randn(n, n, dtype=HALF, device=DEVICE) for _ in range(2))
    return 2 * n**3 / timed(lambda: a @ b) / 1e12
