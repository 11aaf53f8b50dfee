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
"""Open-vocabulary speech: tens of thousands of different sentences of a dictionary, read by six synthetic voices.

An adapter that is aligned on it (docs/hearing.md) hears people it has never met. What a clip is depends on the seed
and its number alone, so that any number of processes make the same corpus.
"""

import gzip
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import scipy.signal
import soundfile

from nemo_vtb.assets.catalog import Job
from nemo_vtb.assets.flite import FLITE_VOICES, Flite
from nemo_vtb.assets.unpack import members
from nemo_vtb.assets.voices import speak
from nemo_vtb.constants import SAMPLE_RATE

_WORDS = (3, 24)
_LONGEST_WORD = 16
_SENTENCE = re.compile(r"[A-Za-z][A-Za-z ,.;:'?!-]+")
_PICO = ('en-US', 'en-GB')
# kal16 is a machine's voice: a little of it
_VOICES = {'en-US': 22, 'en-GB': 22, 'slt': 17, 'rms': 17, 'awb': 17, 'kal16': 5}
_JOINED = (0.7, 0.15, 0.1, 0.05)
"""Shares of clips of one to four sentences: a model that has heard short clips alone loops on long ones."""
LONGEST_S = 18.0
_HELD_OUT = 200
_CHUNK = 200


def build_open_speech(job: Job) -> None:
    """Make the corpus: `train.jsonl`, `validation.jsonl` (NeMo ASR manifests), `flac/`, `card.json`.

    Args:
        job: Packages `wordnet-base` and `dict-gcide`, asset `flite-voices`, parameters `hours` and `seed`.
    """
    sentences = read_sentences(job.packages['wordnet-base'], job.packages['dict-gcide'])
    seed, hours = int(str(job.params['seed'])), float(str(job.params['hours']))
    Random(seed).shuffle(sentences)
    (job.into / 'flac').mkdir()
    held_out, rest = sentences[:_HELD_OUT], sentences[_HELD_OUT:]
    made: dict[str, list[dict]] = {'validation': [], 'train': []}
    plans = {'validation': ([[text] for text in held_out], 1e9), 'train': (groups_of(rest, seed), hours)}
    for split, (groups, limit) in plans.items():
        seconds = 0.0
        chunks = [groups[begin : begin + _CHUNK] for begin in range(0, len(groups), _CHUNK)]
        with ProcessPoolExecutor(
            os.cpu_count(), initializer=start_engine, initargs=(job.assets['flite-voices'],)
        ) as pool:
            ahead = [pool.submit(_make, chunk, f'{split}-{n:04d}', job.into, seed) for n, chunk in enumerate(chunks)]
            for future in ahead:
                lines = future.result()
                made[split] += lines
                seconds += sum(line['duration'] for line in lines)
                job.say(f'{split}: {seconds / 3600:.2f} of {min(limit, 99):.0f} h')
                if seconds >= limit * 3600:
                    for other in ahead:
                        other.cancel()
                    break
    for split, lines in made.items():
        text = ''.join(json.dumps(line) + '\n' for line in lines)
        (job.into / f'{split}.jsonl').write_text(text, encoding='utf-8')
    parts = {split: {'clips': len(lines), 'hours': _hours(lines)} for split, lines in made.items()}
    spoken = {text for lines in made.values() for line in lines for text in line['sentences']}
    card = parts | {'sentences': len(spoken)}
    (job.into / 'card.json').write_text(json.dumps(card, indent=2) + '\n', encoding='utf-8')


def _hours(lines: list[dict]) -> float:
    return round(sum(line['duration'] for line in lines) / 3600, 3)


# ---- sentences


def read_sentences(wordnet: Path, gcide: Path) -> list[str]:
    """Different sentences of WordNet (examples and definitions) and of quotations in Webster's dictionary, sorted.

    Args:
        wordnet: The package `wordnet-base`.
        gcide: The package `dict-gcide`.
    """
    found: set[str] = set()
    for name, stream in members(wordnet):
        if '/wordnet/data.' in name:
            for line in stream.read().decode('latin-1').splitlines():
                found.update(_of_gloss(line.partition('|')[2]))
    for name, stream in members(gcide):
        if name.endswith('gcide.dict.dz'):
            found.update(_of_quotations(gzip.decompress(stream.read()).decode('utf-8', 'ignore')))
    return sorted(found)


def _of_gloss(gloss: str) -> Iterator[str]:
    """Examples stand in double quotes; what is left up to the first semicolon is the definition."""
    pieces = gloss.split('"')
    definition = re.sub(r'\([^)]*\)', '', pieces[0]).partition(';')[0]
    for text in (*pieces[1::2], definition if len(definition.split()) > 4 else ''):
        yield from filter(None, [_speakable(text)])


def _of_quotations(text: str) -> Iterator[str]:
    """A quotation is a paragraph that ends with `--` and its author."""
    for paragraph in re.split(r'\n\s*\n', text):
        quotation, dash, author = ' '.join(paragraph.split()).rpartition('--')
        if dash and author[:1].isupper() and len(author) < 40:
            last = re.split(r'(?<=[.!?;\]])\s+', quotation.strip())[-1]
            yield from filter(None, [_speakable(last.rstrip(';'))])


def _speakable(text: str) -> str | None:
    text = ' '.join(text.replace('--', ', ').split()).replace(' ,', ',').strip(' ;,:')
    words = text.split()
    if not _WORDS[0] <= len(words) <= _WORDS[1] or not _SENTENCE.fullmatch(text):
        return None
    odd = any(len(word) > _LONGEST_WORD or re.fullmatch(r'[A-Z]{2,}\W*|[\W_]+', word) for word in words)
    # a lone quotation mark or hyphen says that something was cut off
    return None if odd or re.search(r"(^|\s)['-]|['-](\s|$)", text) else text


def groups_of(sentences: Sequence[str], seed: int) -> list[list[str]]:
    """Sentences of each clip: all of them once, then again in another order and other groups."""
    rng, groups = Random(f'{seed}:groups'), []
    for _ in range(4):
        order = list(sentences)
        rng.shuffle(order)
        while order:
            count = rng.choices(range(1, len(_JOINED) + 1), _JOINED)[0]
            groups.append([order.pop() for _ in range(min(count, len(order)))])
    return groups


# ---- clips

_engine: list[Flite] = []


def start_engine(flite: Path) -> None:
    """Start the Flite engine of this process, once; `flite` is the asset `flite-voices`."""
    _engine[:] = [Flite(flite)]


def _make(groups: list[list[str]], name: str, into: Path, seed: int) -> list[dict]:
    """Speak some clips into a folder of their own; returns their manifest lines."""
    folder = into / 'flac' / name
    folder.mkdir()
    lines = []
    for number, sentences in enumerate(groups):
        rng = Random(f'{seed}:{name}:{number}')
        clip, voice = speak_clip(sentences, rng)
        seconds = len(clip) / SAMPLE_RATE
        if not 0.3 <= seconds <= LONGEST_S:
            continue
        path = folder / f'{name}-{number:03d}.flac'
        soundfile.write(path, clip, SAMPLE_RATE, subtype='PCM_16')
        line = {'audio_filepath': str(path.relative_to(into)), 'duration': seconds, 'text': ' '.join(sentences)}
        lines.append(line | {'lang': 'en', 'voice': voice, 'sentences': sentences})
    return lines


def speak_clip(sentences: list[str], rng: Random) -> tuple[np.ndarray, str]:
    """One speaker says the sentences somewhere: (S,) float32 at 16 kHz, and the voice; after `start_engine`."""
    voice = rng.choices(list(_VOICES), list(_VOICES.values()))[0]
    speed, pitch = rng.uniform(0.85, 1.25), rng.uniform(0.75, 1.3)
    pieces: list[np.ndarray] = []
    rate = SAMPLE_RATE
    for text in sentences:
        if voice in _PICO:
            sound = speak(text, voice, round(speed, 3), round(pitch, 3))
        else:
            sound, rate = _engine[0].say(text, voice, 1 / speed, FLITE_VOICES[voice] * pitch)
        pieces += [_trimmed(sound, rate), np.zeros(int(rng.uniform(0.1, 0.5) * rate), np.float32)]
    return _varied(np.concatenate(pieces[:-1]), rate, rng), voice


def _trimmed(sound: np.ndarray, rate: int) -> np.ndarray:
    """Without the engine's silence around it: 50 ms of it stay."""
    loud = np.flatnonzero(np.abs(sound) > 0.01 * np.abs(sound).max(initial=1e-6))
    margin = rate // 20
    return sound[max(0, loud[0] - margin) : loud[-1] + margin] if loud.size else sound


def _varied(sound: np.ndarray, rate: int, rng: Random) -> np.ndarray:
    """Another speaker (resampling moves formants), a room, a channel, a level, noise, silence around it."""
    noise = np.random.default_rng(rng.randrange(2**32))
    stretch = rng.randint(86, 116) if rng.random() < 0.8 else 100
    sound = scipy.signal.resample_poly(sound, SAMPLE_RATE // 100 * stretch, rate)
    if rng.random() < 0.3:
        tail = noise.standard_normal(int(SAMPLE_RATE * rng.uniform(0.05, 0.35)))
        tail *= np.exp(-np.linspace(0, 6, len(tail)))
        tail *= rng.uniform(0.1, 0.6) / np.linalg.norm(tail)
        tail[0] = 1.0
        sound = scipy.signal.fftconvolve(sound, tail)
    if rng.random() < 0.25:
        band = scipy.signal.butter(6, rng.uniform(3200, 6500), fs=SAMPLE_RATE, output='sos')
        sound = scipy.signal.sosfilt(band, sound)
    if rng.random() < 0.35:
        sound = scipy.signal.lfilter([1.0, rng.uniform(-0.5, 0.5)], [1.0], sound)
    before, after = (int(SAMPLE_RATE * rng.uniform(*span)) for span in ((0.05, 0.5), (0.1, 0.6)))
    sound = np.pad(sound, (before, after))
    sound = sound / max(np.abs(sound).max(), 1e-6) * 10 ** (-rng.uniform(1, 20) / 20)
    if rng.random() < 0.6:
        hiss = noise.standard_normal(len(sound))
        if rng.random() < 0.5:  # brown: most of it low
            hiss = scipy.signal.lfilter([1.0], [1.0, -0.9], hiss)
        level = np.sqrt((sound**2).mean() / (hiss**2).mean()) * 10 ** (-rng.uniform(8, 40) / 20)
        sound = sound + level * hiss
    return np.clip(sound, -1.0, 1.0).astype(np.float32)
