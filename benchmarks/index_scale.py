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
"""How many conversations an index counts each second on one core, with durations trusted and with headers read.

python benchmarks/index_scale.py --quick     # 40,000 lines
python benchmarks/index_scale.py --full      # a million lines

Lines of a NeMo ASR manifest over real recordings and the transcripts of a demonstration corpus. Both ways are measured
in one run, each in a process of its own, in seconds of computing; ten million are extrapolated from the larger of two
sizes. Figures of memory are the growth of resident memory over that before the build. The time to the first batch is
that of opening an index of ten million entries, checking it, planning and loading one row, without building anything:
the entries of the largest index over and over.
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

GOALS = {'trust_per_s': 10_000, 'ten_million_minutes': 20.0, 'ten_million_mb': 1024.0, 'first_batch_s': 10.0}
TEN_MILLION = 10_000_000
RECORDINGS = 2000


def main() -> int:
    """Write the manifests, build indexes, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--quick', action='store_true', help='40,000 lines (default)')
    size.add_argument('--full', action='store_true', help='a million lines')
    args = parser.parse_args()
    lines, probed = (1_000_000, 40_000) if args.full else (40_000, 8_000)
    with tempfile.TemporaryDirectory() as folder:
        make_recordings(Path(folder))
        found = {
            'probe': measure(Path(folder), probed, 'probe'),
            'small': measure(Path(folder), lines // 4, 'trust'),
            'trust': measure(Path(folder), lines, 'trust'),
        }
        first = in_own_process(first_batch, str(Path(folder) / f'trust-{lines}.jsonl'))
    figures = summarise(found) | first
    ok = (
        figures['trust_per_s'] >= GOALS['trust_per_s']
        and figures['ten_million_minutes'] <= GOALS['ten_million_minutes']
        and figures['ten_million_mb'] <= GOALS['ten_million_mb']
        and figures['first_batch_s'] <= GOALS['first_batch_s']
    )
    show(figures)
    print(json.dumps({'benchmark': 'index_scale', 'ok': ok, 'goals': GOALS, **figures}))
    return 0 if ok else 1


def summarise(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """Rates, their ratio, and what ten million lines take."""
    probe, small, trust = found['probe'], found['small'], found['trust']
    per_line = (trust['mb'] - small['mb']) / (trust['lines'] - small['lines'])
    return {
        'lines': trust['lines'],
        'probe_per_s': round(probe['lines'] / probe['cpu_s']),
        'trust_per_s': round(trust['lines'] / trust['cpu_s']),
        'ratio': round(trust['lines'] / trust['cpu_s'] / (probe['lines'] / probe['cpu_s']), 2),
        'mb': round(trust['mb'], 1),
        'ten_million_minutes': round(1e7 * trust['cpu_s'] / trust['lines'] / 60, 1),
        'ten_million_mb': round(trust['mb'] + per_line * (1e7 - trust['lines']), 1),
    }


def make_recordings(folder: Path) -> None:
    """Short WAV files, as many as make the file system look each up anew."""
    for number in range(RECORDINGS):
        tone = np.zeros(8000 + number, dtype=np.float32)
        soundfile.write(folder / f'{number}.wav', tone, 16000, subtype='PCM_16')


def measure(folder: Path, lines: int, durations: str) -> dict[str, float]:
    """Seconds of computing and growth of memory of one build, in a process of its own."""
    manifest = folder / f'{durations}-{lines}.jsonl'
    rng = random.Random(lines)
    with manifest.open('w', encoding='utf-8') as stream:
        for text in transcripts(lines, rng):
            number = rng.randrange(RECORDINGS)
            line = {'audio_filepath': f'{number}.wav', 'duration': (8000 + number) / 16000, 'text': text, 'lang': 'en'}
            stream.write(json.dumps(line) + '\n')
    return in_own_process(build, str(manifest), durations)


def in_own_process(function: Any, *args: str) -> dict[str, float]:
    """What a function puts into the queue that it gets last."""
    context = multiprocessing.get_context('spawn')
    queue = context.Queue()
    process = context.Process(target=function, args=(*args, queue))
    process.start()
    found = queue.get()
    process.join()
    return found


def transcripts(count: int, rng: random.Random) -> Any:
    """Sentences of a demonstration corpus, put together to lengths as real manifests have them."""
    from nemo_vtb.assets import ensure

    corpus = ensure('demo-corpus', quiet=True)['demo-corpus']
    words = []
    for path in sorted(corpus.glob('text*.jsonl')):
        for raw in path.read_text(encoding='utf-8').splitlines()[:4000]:
            words += [
                w for turn in json.loads(raw)['conversations'] for w in str(turn['value']).split() if '<' not in w
            ]
    for _ in range(count):
        begin = rng.randrange(len(words) - 60)
        yield ' '.join(words[begin : begin + max(3, round(rng.lognormvariate(2.6, 0.6)))])


def make_renderer() -> Any:
    """Of a small LLM that is at hand."""
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'
    from transformers import AutoTokenizer

    from nemo_vtb.assets import ensure
    from nemo_vtb.data.template import ChatRenderer

    return ChatRenderer(AutoTokenizer.from_pretrained(ensure('minimind2-small', quiet=True)['minimind2-small']))


def first_batch(manifest: str, queue: Any) -> None:
    """Make ten million entries of an index, and tell how long a training then waits for its first row."""
    from nemo_vtb.data.datamodule import VtbDataModule
    from nemo_vtb.data.index_integrity import META, write_meta

    (folder,) = (path for path in (Path(manifest).parent / 'index').glob(f'{Path(manifest).stem}-*') if path.is_dir())
    meta = json.loads((folder / META).read_text(encoding='utf-8'))
    times = -(-TEN_MILLION // meta['entries'])
    for column in folder.glob('*.npy'):
        np.save(column, np.tile(np.load(column), times))
    (folder / META).unlink()
    write_meta(folder, meta | {'entries': meta['entries'] * times, 'lines': meta['lines'] * times})
    cfg = {
        'train_ds': {'input_cfg': [{'type': 'nemo', 'manifest_filepath': manifest, 'durations': 'trust'}]},
        'max_tokens': 4096, 'num_workers': 2, 'build_index': False, 'index_dir': str(folder.parent),
    }  # fmt: skip
    renderer = make_renderer()
    wall, cpu = time.perf_counter(), time.process_time()
    data = VtbDataModule(cfg, renderer, frames, num_batches=4)
    data.prepare_data()
    data.setup('fit')
    row = next(iter(data.train_dataloader()))
    assert len(row.ids) > 1 and not row.faults
    queue.put({
        'first_batch_s': round(time.perf_counter() - wall, 2),
        'first_batch_cpu_s': round(time.process_time() - cpu, 2),
    })  # fmt: skip


def build(manifest: str, durations: str, queue: Any) -> None:
    """Build one index on one core and tell what it took."""
    from nemo_vtb.data.counting import Meter
    from nemo_vtb.data.index import open_index
    from nemo_vtb.data.sources import parse_input_cfg

    meter = Meter(make_renderer(), frames)
    spec = parse_input_cfg([{'type': 'nemo', 'manifest_filepath': manifest, 'durations': durations}])[0]
    before, cpu = resident_mb(), time.process_time()
    index = open_index(spec, meter, Path(manifest).parent / 'index', workers=1, quiet=True)
    queue.put({'cpu_s': time.process_time() - cpu, 'mb': peak_mb() - before, 'lines': len(index)})


def frames(samples: int) -> int:
    """Frames of 80 ms."""
    return samples // 1280 + 1


def resident_mb() -> float:
    """Resident memory of this process."""
    return _status('VmRSS')


def peak_mb() -> float:
    """Most resident memory that this process had."""
    return _status('VmHWM')


def _status(name: str) -> float:
    lines = Path('/proc/self/status').read_text(encoding='utf-8').splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f'{name}:'))


def show(figures: dict[str, float]) -> None:
    """A table for people."""
    table = Table(title='building an index')
    for column in ('figure', 'measured', 'goal'):
        table.add_column(column, justify='left' if column == 'figure' else 'right')
    for name, value in figures.items():
        goal = GOALS.get(name)
        sign = '' if goal is None else ('>= ' if name == 'trust_per_s' else '<= ')
        table.add_row(name, f'{value:,}', f'{sign}{goal:,}' if goal is not None else '')
    Console().print(table)


if __name__ == '__main__':
    sys.exit(main())
