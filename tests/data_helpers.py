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
"""Small real files for the tests of the data engine: WAVs, manifests, a frame counter, a synthetic source."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE = 16000
BUDGET = {'text': 0.25, 'asr_ast': 0.25, 'speech_qa': 0.25, 'mixed_modal': 0.25}
WORDS = 'turn on the lamp in kitchen at noon please say which room is it about green blue rain sea'.split()


def count_frames(num_samples: int) -> int:
    """Frames of a made-up encoder: 80 ms each, none for less than 10 ms."""
    return num_samples // 1280 + 1 if num_samples >= 160 else 0


def count_frames_slowly(num_samples: int) -> int:
    """Frames of another made-up encoder: 40 ms each."""
    return num_samples // 640 + 1


def write_wav(path: Path, seconds: float = 0.5, *, level: float = 0.1, rate: int = RATE, channels: int = 1) -> Path:
    """A sine of 220 Hz; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = level * np.sin(2 * np.pi * 220 * np.arange(round(seconds * rate)) / rate)
    soundfile.write(path, np.repeat(tone[:, None], channels, axis=1).astype(np.float32), rate)
    return path


def text(role: str, value: str) -> dict[str, Any]:
    return {'from': role, 'type': 'text', 'value': value}


def spoken(value: str, **keys: Any) -> dict[str, Any]:
    return {'from': 'User', 'type': 'audio', 'value': value, **keys}


def write_jsonl(path: Path, lines: list[Any]) -> Path:
    """Dicts become JSON, strings and bytes are written as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = [
        line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    path.write_bytes(b'\n'.join(raw) + b'\n')
    return path


def sentence(rng: np.random.Generator, low: int, high: int) -> str:
    return ' '.join(rng.choice(WORDS, int(rng.integers(low, high))))


def make_corpus(folder: Path, sizes: dict[str, int] | None = None, seed: int = 0) -> Path:
    """`<kind>.jsonl` of all four kinds with real WAVs of 0.1 to 1 s."""
    rng = np.random.default_rng(seed)
    wavs = [write_wav(folder / 'wav' / f'{n}.wav', float(rng.uniform(0.1, 1.0))) for n in range(20)]
    for kind, size in (sizes or {'text': 60, 'asr_ast': 60, 'speech_qa': 40, 'mixed_modal': 24}).items():
        lines = []
        for number in range(size):
            turns = []
            for _ in range(3 if kind == 'mixed_modal' else 1):
                turns.append(text('User', sentence(rng, 3, 40 if kind == 'text' else 8)))
                if kind != 'text':
                    wav = wavs[int(rng.integers(len(wavs)))]
                    turns.append(spoken(f'wav/{wav.name}', duration=soundfile.info(wav).duration))
                turns.append(text('Assistant', sentence(rng, 2, 10)))
            lines.append({'id': f'{kind}-{number}', 'conversations': turns})
        write_jsonl(folder / f'{kind}.jsonl', lines)
    return folder


def input_cfg(folder: Path, kinds: tuple[str, ...] = tuple(BUDGET)) -> list[dict[str, Any]]:
    return [
        {'type': 'multimodal_conversation', 'kind': kind, 'manifest_filepath': str(folder / f'{kind}.jsonl')}
        for kind in kinds
    ]


def data_cfg(folder: Path, **keys: Any) -> dict[str, Any]:
    """A whole `data` section over `make_corpus(folder)`."""
    return {
        'train_ds': {'input_cfg': input_cfg(folder), 'seed': 7},
        'budget': BUDGET,
        'max_tokens': 256,
        'pool_size': 64,
        'num_workers': 0,
        'index_dir': str(folder / 'index'),
    } | keys


def put_folder(server: Any, folder: Path, bucket: str) -> None:
    """All files below a folder as objects of a store."""
    for path in sorted(folder.rglob('*')):
        if path.is_file():
            server.put(f'{bucket}/{path.relative_to(folder)}', path.read_bytes())


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """An archive of members in this order."""
    with tarfile.open(path, 'w') as tar:
        for name, content in members.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))
    return path


class FakeSource:
    """A source that is only lengths: log-normal, as real conversations are."""

    def __init__(self, name: str, kind: str, size: int, mean: float, seed: int, **keys: Any) -> None:
        rng = np.random.default_rng(seed)
        self.name, self.kind, self.digest = name, kind, f'{name}:{size}:{seed}'
        self.weight, self.max_repeats = keys.get('weight', 1.0), keys.get('max_repeats')
        self.lengths = np.clip(rng.lognormal(np.log(mean), 0.5, size), 8, keys.get('longest', 1000)).astype(np.int32)
        self.supervised = (self.lengths // rng.integers(2, 5, size) + 1).astype(np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def measure(self, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.lengths[entries], self.supervised[entries], self.lengths[entries] * 0.01

    def blocks(self) -> np.ndarray:
        return np.unique([0, *np.random.default_rng(len(self)).integers(0, len(self), len(self) // 50)])


def four_sources(scale: int = 1, **keys: Any) -> list[FakeSource]:
    return [
        FakeSource('chats', 'text', 4000 * scale, 280, 1, **keys),
        FakeSource('asr', 'asr_ast', 6000 * scale, 90, 2, **keys),
        FakeSource('qa', 'speech_qa', 3000 * scale, 180, 3, **keys),
        FakeSource('mixed', 'mixed_modal', 2000 * scale, 400, 4, **keys),
    ]


def consume(data: Any, state: Any, count: int | None = None) -> Iterator[Any]:
    """Train on `count` rows, as Lightning would with the callback `RunState`."""
    loader = data.train_dataloader()
    state.attach(loader, data.dims)
    for row in islice(loader, count):
        yield row
        state.consume(row)


# ---- a published corpus

_LIBRISPEECH = {'train-clean-5': ('ljspeech', '1088', '129236'), 'dev-clean-2': ('librivox', '84', '121123')}


def write_librispeech(folder: Path, assets: Callable[..., dict[str, Path]]) -> Path:
    """LibriSpeech as it is published, `PART/SPEAKER/CHAPTER/*.flac` with transcripts in capitals: 37 recordings."""
    for part, (asset, speaker, chapter) in _LIBRISPEECH.items():
        source = assets(asset)[asset]
        place, lines = folder / part / speaker / chapter, []
        place.mkdir(parents=True)
        for number, row in enumerate(map(json.loads, (source / 'manifest.jsonl').open(encoding='utf-8'))):
            name = f'{speaker}-{chapter}-{number:04d}'
            soundfile.write(place / f'{name}.flac', *soundfile.read(source / row['audio_filepath']))
            lines.append(f'{name} {row["text"].upper()}\n')
        (place / f'{speaker}-{chapter}.trans.txt').write_text(''.join(lines), encoding='utf-8')
    return folder
