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
"""Keeps evaluation sets out of training data: overlap of word n-grams, and fingerprints of recordings.

The fingerprint is that of Haitsma and Kalker (2002): the signs of energy differences between neighbouring bands and
frames, 32 bits every 12 ms. It survives changes of loudness, codecs, moderate noise and cuts.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nemo_vtb.constants import SAMPLE_RATE
from nemo_vtb.data.audio import read_audio
from nemo_vtb.data.conversation import Audio, read_jsonl
from nemo_vtb.errors import VtbAudioError, VtbConfigError
from nemo_vtb.factory.settings import Avoid

_FRAME, _HOP = 5936, 186  # 0.371 s and 11.6 ms: frames overlap so much that a shift of half a hop hardly matters
_BANDS = np.geomspace(300.0, 2000.0, 34)
_MIN_FRAMES = 48
_TEXT_KEYS = ('text', 'answer', 'question', 'target_text', 'translation', 'instruction', 'output', 'response', 'input')
Span = tuple[str, float, float | None]


@dataclass
class AvoidList:
    """What evaluation sets hold.

    Args:
        n: Words of an n-gram.
        grams: Hashes of the n-grams of longer texts, and of shorter texts as a whole.
        prints: Fingerprints of the recordings, None if they are not compared.
    """

    n: int
    grams: frozenset[int] = frozenset()
    prints: 'Fingerprints | None' = None

    def reason(self, texts: Iterable[str], spans: Iterable[Span] = ()) -> str | None:
        """Why something made of these texts and recordings must not be trained on; None if it may."""
        if self.grams and any(gram in self.grams for text in texts for gram in ngrams(text, self.n)):
            return 'contaminated_text'
        if self.prints is not None and self.prints and any(self._is_known(span) for span in spans):
            return 'contaminated_audio'
        return None

    def _is_known(self, span: Span) -> bool:
        assert self.prints is not None
        path, offset, duration = span
        try:
            samples = read_audio(Audio(path, duration, offset), SAMPLE_RATE)
        except VtbAudioError:
            return False  # training's loader reports broken recordings itself
        return self.prints.find(samples) is not None


@cache
def load_avoid_list(settings: Avoid) -> AvoidList:
    """Read evaluation sets: NeMo manifests, conversations and chats (`.jsonl`), texts (`.txt`), recordings.

    Raises:
        VtbConfigError: A file does not exist.
    """
    grams: set[int] = set()
    prints = Fingerprints(settings.max_bit_errors) if settings.audio else None
    for file in map(Path, settings.files):
        if not file.is_file():
            raise VtbConfigError('The evaluation set does not exist.', field='avoid.files', got=str(file))
        if file.suffix in ('.jsonl', '.json'):
            for _, _, row in read_jsonl(file):
                for text in texts_of(row):
                    grams.update(ngrams(text, settings.ngram))
                for span in spans_of(row, file.parent) if prints is not None else ():
                    prints.add(str(span[0]), read_audio(Audio(span[0], span[2], span[1]), SAMPLE_RATE))  # type: ignore[union-attr]
        elif file.suffix == '.txt':
            for line in file.read_text(encoding='utf-8').split('\n'):
                grams.update(ngrams(line, settings.ngram))
        elif prints is not None:
            prints.add(str(file), read_audio(Audio(str(file)), SAMPLE_RATE))
    return AvoidList(settings.ngram, frozenset(grams), prints)


def ngrams(text: str, n: int) -> Iterator[int]:
    """Hashes of the n-grams of a text's words; of the whole text where it has fewer, but at least four words."""
    import xxhash

    words = re.findall(r'\w+', text.lower())
    if len(words) < 4:
        return  # "thank you" is in every set
    for begin in range(max(1, len(words) - n + 1)):
        yield xxhash.xxh64_intdigest(' '.join(words[begin : begin + n]).encode())


def texts_of(row: Mapping[str, Any]) -> Iterator[str]:
    """All texts of a line of a manifest, conversation or chat."""
    for key in _TEXT_KEYS:
        if isinstance(row.get(key), str):
            yield row[key]
    for entry in row.get('conversations') or row.get('messages') or ():
        for key in ('value', 'content', 'text'):
            if isinstance(entry.get(key), str) and not (key == 'value' and entry.get('type') == 'audio'):
                yield entry[key]


def spans_of(row: Mapping[str, Any], folder: Path) -> Iterator[Span]:
    """Path, offset and duration of all recordings of a line."""
    if isinstance(row.get('audio_filepath'), str):
        yield str(folder / row['audio_filepath']), row.get('offset') or 0.0, row.get('duration')
    for entry in row.get('conversations') or ():
        if entry.get('type') == 'audio':
            yield str(folder / entry['value']), entry.get('offset') or 0.0, entry.get('duration')


def fingerprint(samples: np.ndarray) -> np.ndarray:
    """32 bits for each frame.

    Args:
        samples: (S,) at 16 kHz.

    Returns:
        (T,) uint32; empty for less than half a second.
    """
    if len(samples) < _FRAME + 2 * _HOP:
        return np.zeros(0, np.uint32)
    window = np.hanning(_FRAME).astype(np.float32)
    edges = np.searchsorted(np.fft.rfftfreq(_FRAME, 1 / SAMPLE_RATE), _BANDS)
    starts = np.arange(0, len(samples) - _FRAME + 1, _HOP)
    energies = np.empty((len(starts), len(edges) - 1), np.float64)
    for begin in range(0, len(starts), 256):  # a block at a time: frames overlap 32 times
        frames = np.stack([samples[s : s + _FRAME] for s in starts[begin : begin + 256]]) * window
        power = np.abs(np.fft.rfft(frames, axis=1)) ** 2  # (T, F)
        energies[begin : begin + 256] = np.add.reduceat(power, edges, axis=1)[:, :-1]
    bands = energies[:, :-1] - energies[:, 1:]  # (T, 32)
    bits = (bands[1:] - bands[:-1]) > 0
    return (bits @ (1 << np.arange(32, dtype=np.uint64))).astype(np.uint32)


@dataclass
class Fingerprints:
    """Recordings that can be found again.

    Args:
        max_bit_errors: Share of bits that may differ at the best alignment.
    """

    max_bit_errors: float = 0.35
    _known: list[tuple[str, np.ndarray]] = field(default_factory=list)
    _places: dict[int, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))

    def __len__(self) -> int:
        """Number of recordings."""
        return len(self._known)

    def add(self, name: str, samples: np.ndarray) -> None:
        """Remember a recording (S,) at 16 kHz."""
        prints = fingerprint(samples)
        for place, value in enumerate(prints.tolist()):
            self._places[value].append((len(self._known), place))
        self._known.append((name, prints))

    def find(self, samples: np.ndarray) -> str | None:
        """The name of a known recording that these samples (S,) hold or are held by; None if there is none."""
        prints = fingerprint(samples)
        tried: set[tuple[int, int]] = set()
        for place, value in enumerate(prints.tolist()):
            for number, at in self._places.get(value, ()):
                shift = at - place
                # neighbours give the same answer
                if (number, shift // 2) in tried:
                    continue
                tried.add((number, shift // 2))
                if self._alike(prints, self._known[number][1], shift):
                    return self._known[number][0]
        return None

    def _alike(self, prints: np.ndarray, known: np.ndarray, shift: int) -> bool:
        begin, end = max(0, -shift), min(len(prints), len(known) - shift)
        if end - begin < min(_MIN_FRAMES, len(prints), len(known)):
            return False
        differing = np.bitwise_count(prints[begin:end] ^ known[begin + shift : end + shift]).sum()
        return float(differing) / (32 * (end - begin)) <= self.max_bit_errors
