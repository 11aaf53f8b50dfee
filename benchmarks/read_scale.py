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
"""How many hours of audio a loader process reads and decodes each second, from a local disk and from an S3 server.

python benchmarks/read_scale.py --quick     # 2 shards, 1 loader process
python benchmarks/read_scale.py --full      # 8 shards, 2 loader processes

Our loader with `blocks` and `shuffle`, and NeMo's `LazyNeMoTarredIterator`, on the same shards with as many loader
processes, in one run; all only read and decode, but for `rows`, which renders and packs as for training. The server of
`nemo_vtb.testing.s3_server` runs in a process of its own and counts. NeMo's readers of S3 need boto3, which cannot be
installed beside our constraints, so that it reads the same objects by http. `jump_mb` is the mean distance in one
object between a request and the end of the one before; `per_cpu_s` are hours for each second of computing, which
other load changes less, and the ratios to NeMo are of these; both count from the first item on. Then: the longest
wait for a row of a trainer whose step takes 0.3 s, while each 100th answer takes a second longer. Last: seconds to the
first row with a million conversations (ten with --full) in the index, which is verified byte by byte.
"""

import argparse
import io
import json
import logging
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

from nemo_vtb.testing.s3_server import S3Process, Served

CODECS: dict[str, dict[str, str]] = {
    'wav': {},
    'flac': {},
    'mp3': {},
    'opus': {'format': 'OGG', 'subtype': 'OPUS'},
}
SECONDS = 8.0
SLOW_S, SLOW_EVERY, STEP_S, STEPS = 1.0, 100, 0.3, 16
FIRST_ROW_S = 10.0
WAITS = {'wait_s': 0, 'wait_slow_s': SLOW_EVERY}


def main() -> int:
    """Write the shards, read them in each way, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--quick', action='store_true', help='2 shards, 1 loader process (default)')
    size.add_argument('--full', action='store_true', help='8 shards, 2 loader processes')
    args = parser.parse_args()
    shards, members, workers = (8, 200, 2) if args.full else (2, 240, 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ['NEMO_VTB_CACHE'] = str(folder / 'cache')
        for codec in CODECS:
            write_shards(folder / codec, codec, shards if codec == 'wav' else 1, members if codec == 'wav' else 60)
        figures = codecs(folder)
        with S3Process(folder / 'wav') as server:
            os.environ |= server.environment
            figures |= compare(folder, server, shards, workers)
            waits = {name: longest_wait(folder, server, shards, every) for name, every in WAITS.items()}
        first = first_row(folder, 10_000_000 if args.full else 1_000_000)
    ratios = {
        name: round(each['per_cpu_s'] / figures[f'{name.split()[0]} nemo']['per_cpu_s'], 2)
        for name, each in figures.items()
        if not name.endswith('nemo')
    }
    fast = max(ratios['local blocks'], ratios['local shuffle']) >= 1.0 and ratios['s3 blocks cached'] >= 1.0
    ok = fast and first['first_row_s'] < FIRST_ROW_S and waits['wait_slow_s'] < SLOW_S / 2
    show(figures, ratios)
    print(
        json.dumps(
            {'benchmark': 'read_scale', 'ok': ok, 'workers': workers, 'ratios': ratios, **waits, **first, **figures}
        )
    )
    return 0 if ok else 1


def compare(folder: Path, server: S3Process, shards: int, workers: int) -> dict[str, Any]:
    """Each loader on the WAV shards, here and in the store."""
    local, stored, found = str(folder / 'wav'), 's3://bucket', {}
    for place, root in (('local', local), ('s3', stored)):
        for order in ('blocks', 'shuffle'):
            found[f'{place} {order}'] = ours(folder, root, shards, workers, order, server)
    found['local rows'] = ours(folder, local, shards, workers, 'blocks', server, rows=True)
    cached = {'store_cache': str(folder / 'objects')}
    found['s3 blocks cached'] = ours(folder, stored, shards, workers, 'blocks', server, **cached)
    for place, root in (('local', local), ('s3', f'{server.url}/bucket')):
        found[f'{place} nemo'] = nemo(root, shards, workers, server)
    return found


def codecs(folder: Path) -> dict[str, Any]:
    """Decoding of one shard of each codec in one loader process, ours beside NeMo's."""
    found = {}
    for codec in CODECS:
        root = str(folder / codec)
        mine, theirs = ours(folder, root, 1, 1, 'blocks', None), nemo(root, 1, 1, None)
        found[f'{codec} ours'], found[f'{codec} nemo'] = mine, theirs
    return found


# ---- the loaders


def ours(
    folder: Path, root: str, shards: int, workers: int, order: str, server: S3Process | None, *, rows: bool = False,
    **settings: Any,
) -> dict[str, float]:  # fmt: skip
    """One epoch through our data module; the index is built before, with durations trusted."""
    data = data_module(folder, root, shards, order, num_workers=workers, **settings)
    if server:
        server.requests()
    loader = data.train_dataloader()
    loader.dataset = Clocked(loader.dataset, workers, rows)
    return rates(loader, loader.dataset, workers, server)


def data_module(folder: Path, root: str, shards: int, order: str, **settings: Any) -> Any:
    """Our data module over the shards, as a process knows it that has read nothing yet."""
    from nemo_vtb.data import audio, object_files, stores
    from nemo_vtb.data.datamodule import VtbDataModule

    stores.forget_facts()
    object_files.forget_ranges()
    audio._members.cache_clear()
    entry = {
        'type': 'nemo_tarred', 'kind': 'asr_ast', 'max_repeats': 1,
        'manifest_filepath': f'{root}/manifest__OP_0..{shards - 1}_CL_.json',
        'tarred_audio_filepaths': f'{root}/audio__OP_0..{shards - 1}_CL_.tar',
    }  # fmt: skip
    data = VtbDataModule(
        {
            'train_ds': {'input_cfg': [entry], 'seed': 1}, 'durations': 'trust', 'order': order, 'max_tokens': 1024,
            'shuffle_window': 64, 'index_dir': str(folder / 'index'), **settings,
        },
        renderer(folder), frames, num_batches=1 << 30,
    )  # fmt: skip
    data.setup('fit')
    return data


def longest_wait(folder: Path, server: S3Process, shards: int, slow_every: int) -> float:
    """Longest wait for a row, in seconds, of a trainer that takes `STEP_S` for each; after the first ones."""
    rows = iter(data_module(folder, 's3://bucket', shards, 'blocks', num_workers=1).train_dataloader())
    server.slow(slow_every, SLOW_S)
    waits = []
    for _ in range(STEPS):
        begin = time.monotonic()
        next(rows)
        waits.append(time.monotonic() - begin)
        time.sleep(STEP_S)
    server.slow(0, 0.0)
    return round(max(waits[4:]), 2)


def first_row(folder: Path, conversations: int) -> dict[str, float]:
    """Seconds from the configuration to the first row, with an index whose lines are repeated to that many."""
    from nemo_vtb.data.datamodule import VtbDataModule
    from nemo_vtb.data.index_integrity import META, write_meta

    def start() -> tuple[Any, float]:
        begin = time.monotonic()
        wav, entry = folder / 'wav', {'type': 'nemo_tarred', 'kind': 'asr_ast'}
        entry |= {'manifest_filepath': f'{wav}/manifest_0.json', 'tarred_audio_filepaths': f'{wav}/audio_0.tar'}
        cfg = {'train_ds': {'input_cfg': [entry], 'seed': 1}, 'durations': 'trust', 'num_workers': 1}
        cfg |= {'order': 'blocks', 'index_dir': str(folder / 'large')}
        data = VtbDataModule(cfg, renderer(folder), frames, num_batches=4)
        data.setup('fit')
        next(iter(data.train_dataloader()))
        return data.sources[0].index, time.monotonic() - begin

    index, _ = start()
    times = -(-conversations // len(index))
    for path in index.folder.glob('*.npy'):
        np.save(path, np.tile(np.load(path), times))
    meta = json.loads((index.folder / META).read_text(encoding='utf-8'))
    rest = {key: value for key, value in meta.items() if key not in ('sha256', 'own_sha256')}
    (index.folder / META).unlink()
    write_meta(index.folder, rest | {'entries': times * len(index)})
    index, seconds = start()
    return {'first_row_s': round(seconds, 1), 'first_row_conversations': len(index)}


def nemo(root: str, shards: int, workers: int, server: S3Process | None) -> dict[str, float]:
    """One epoch through NeMo's iterator in torch's loader, its shards dealt to the loader processes."""
    import torch
    from nemo.collections.common.data.lhotse import nemo_adapters  # noqa: F401 - loaded before the time is taken

    dataset = shards_of_nemo(root, shards, clock := Clock(workers))
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers)
    if server:
        server.requests()
    return rates(loader, clock, workers, server)


def shards_of_nemo(root: str, shards: int, clock: 'Clock') -> Any:
    """A dataset of NeMo's iterator, whose base loads torch."""
    import torch

    class Shards(torch.utils.data.IterableDataset):
        """The decoded clips of those shards that are this loader process's."""

        def __init__(self, root: str, shards: int) -> None:
            self.root, self.shards = root, shards

        def __iter__(self) -> Iterator[Any]:
            from nemo.collections.common.data.lhotse.nemo_adapters import LazyNeMoTarredIterator

            info = torch.utils.data.get_worker_info()
            mine = range(info.id, self.shards, info.num_workers)
            logging.disable()
            iterator = LazyNeMoTarredIterator(
                [f'{self.root}/manifest_{n}.json' for n in mine], [f'{self.root}/audio_{n}.tar' for n in mine]
            )
            for cut in iterator:
                yield torch.from_numpy(cut.load_audio()[0])
                clock.tick()

    return Shards(root, shards)


class Clock:
    """Seconds of computing of each loader process, from its first item to its last, in shared memory."""

    def __init__(self, workers: int) -> None:
        import torch

        self._times = torch.zeros(workers, 2, dtype=torch.float64).share_memory_()

    def tick(self) -> None:
        """Called in a loader process behind each item."""
        import torch

        mine = self._times[torch.utils.data.get_worker_info().id]
        mine[1] = time.process_time()
        if not mine[0]:
            mine[0] = mine[1]

    @property
    def seconds(self) -> float:
        """Of all processes."""
        return float((self._times[:, 1] - self._times[:, 0]).sum())


class Clocked(Clock):
    """A dataset of rows that ticks; without `rows`, of the decoded clips of each row."""

    def __init__(self, dataset: Any, workers: int, rows: bool) -> None:
        super().__init__(workers)
        self.dataset, self.rows = dataset, rows

    @property
    def reading(self) -> Any:
        """What each process reads: the loader sets it."""
        return self.dataset.reading

    @reading.setter
    def reading(self, value: Any) -> None:
        self.dataset.reading = value

    def __getitem__(self, row: Any) -> Any:
        found = self.dataset[row] if self.rows else self._clips(row)
        self.tick()
        return found

    def _clips(self, row: Any) -> list[Any]:
        import torch

        from nemo_vtb.data.audio import read_audio

        self.dataset._fetch_ahead(row)
        conversations = [self.dataset.sources[source].read_checked(entry)[0] for source, entry in row.items]
        return [torch.from_numpy(read_audio(audio)) for each in conversations for audio in each.audios]


def rates(loader: Any, clock: Clock, workers: int, server: S3Process | None) -> dict[str, float]:
    """Hours a second and loader process behind the first item; of a store, what each conversation took of it."""
    first, begin, samples, clips = 0, 0.0, 0, 0
    for item in loader:
        assert not getattr(item, 'faults', None), item.faults
        lengths = list(map(len, item)) if isinstance(item, list) else getattr(item, 'audio_lens', None)
        lengths = [len(item)] if lengths is None else lengths
        samples += int(sum(lengths))
        clips += len(lengths)
        if not first:
            first, begin = samples, time.monotonic()
    hours = (samples - first) / 16000 / 3600
    found = {'hours_per_s': round(hours / (time.monotonic() - begin) / workers, 3)}
    found |= {'per_cpu_s': round(hours / clock.seconds, 3), 'conversations': clips}
    if server and (requests := server.requests()):
        found |= {name: round(value / clips, 2) for name, value in counted(requests).items()}
    return found


_renderers: dict[str, Any] = {}


def renderer(folder: Path) -> Any:
    """The chat renderer of a tiny LLM."""
    if not _renderers:
        from transformers import AutoTokenizer

        from nemo_vtb.data.template import ChatRenderer
        from nemo_vtb.testing.tiny import tiny_llm

        _renderers['tiny'] = ChatRenderer(AutoTokenizer.from_pretrained(tiny_llm(folder / 'llm')))
    return _renderers['tiny']


def frames(samples: int) -> int:
    """Frames of 80 ms."""
    return samples // 1280 + 1


# ---- shards, and what a server was asked


def write_shards(folder: Path, codec: str, shards: int, members: int) -> None:
    """NeMo's tarred manifests; clips of about 8 s whose level changes as speech does."""
    folder.mkdir()
    rng = np.random.default_rng(len(codec))
    for shard in range(shards):
        lines = []
        with tarfile.open(folder / f'audio_{shard}.tar', 'w') as tar:
            for number in range(members):
                count = int(rng.uniform(0.5, 1.5) * SECONDS * 16000)
                clip = rng.standard_normal(count) * np.abs(np.sin(np.arange(count) / 3000)) * 0.1
                packed = io.BytesIO()
                soundfile.write(packed, clip, 16000, **{'format': codec.upper(), **CODECS[codec]})
                item = tarfile.TarInfo(f'{shard}-{number}.{codec}')
                item.size = len(packed.getvalue())
                tar.addfile(item, io.BytesIO(packed.getvalue()))
                line = {'audio_filepath': item.name, 'duration': count / 16000, 'text': f'clip {number}', 'lang': 'en'}
                lines.append(json.dumps(line | {'shard_id': shard}))
        (folder / f'manifest_{shard}.json').write_text('\n'.join(lines) + '\n', encoding='utf-8')


def counted(requests: list[Served]) -> dict[str, float]:
    """Requests, megabytes, requests that do not begin where the one before ended, and megabytes jumped over."""
    ends: dict[str, int] = {}
    seeks = jumped = 0
    ranges = [each for each in requests if each.method == 'GET' and each.status in (200, 206)]
    for each in ranges:
        start = each.start or 0
        jump = abs(start - ends.get(each.path, 0))
        seeks, jumped = seeks + (jump > 0), jumped + jump
        ends[each.path] = start + each.sent
    sent = sum(each.sent for each in ranges)
    return {'requests': len(requests), 'mb': sent / 1e6, 'seeks': seeks, 'jump_mb': jumped / 1e6}


def show(figures: dict[str, Any], ratios: dict[str, float]) -> None:
    """A table for people."""
    table = Table(title='reading and decoding, per loader process')
    columns = ('hours_per_s', 'per_cpu_s', 'conversations', 'requests', 'mb', 'seeks', 'jump_mb')
    for column in ('loader', *columns, 'of NeMo'):
        table.add_column(column, justify='left' if column == 'loader' else 'right')
    for name, each in figures.items():
        table.add_row(name, *(f'{each[c]:,}' if c in each else '' for c in columns), str(ratios.get(name, '')))
    Console(width=110).print(table)


if __name__ == '__main__':
    sys.exit(main())
