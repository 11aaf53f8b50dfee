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
"""Embedded recordings with transcripts: unpacks registry packages into NeMo ASR folders of 16 kHz mono wav files."""

import gzip
import hashlib
import io
import json
import wave
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_vtb.assets.catalog import Job, register_file
from nemo_vtb.assets.unpack import members
from nemo_vtb.constants import SAMPLE_RATE
from nemo_vtb.errors import VtbAssetError

if TYPE_CHECKING:
    import numpy as np


JFK_TEXT = (
    'And so my fellow Americans, ask not what your country can do for you, ask what you can do for your country.'
)


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording with its transcript.

    Args:
        key: Name of the message; the same key in two languages is the same message.
        text: What is said.
        lang: Two-letter language code.
        audio: Samples at 16 kHz, mono, int16, shape (S,).
    """

    key: str
    text: str
    lang: str
    audio: 'np.ndarray'


def build_asterisk(job: Job) -> None:
    """Decode the Asterisk core sounds of one language and pair them with their texts.

    Args:
        job: Packages ``asterisk-<lang>-text`` and ``asterisk-<lang>-g722``, parameter ``lang``.

    Raises:
        VtbAssetError: A package is broken or not laid out as expected.
    """
    lang, voice = str(job.params['lang']), job.asset.details['voice']
    name = f'asterisk-core-sounds-{lang}'
    raw = _read(job, f'asterisk-{lang}-text', f'usr/share/doc/{name}/core-sounds-{lang}.txt.gz')
    texts = parse_core_sounds(gzip.decompress(next(iter(raw.values()))))
    files = {
        path.partition(f'/{voice}/')[2].removesuffix('.g722'): data
        for path, data in _read(job, f'asterisk-{lang}-g722', f'/{voice}/', '.g722').items()
    }
    pairs = match_keys(texts, files)
    utterances = (Utterance(key, pairs[key], lang, decode_audio(files[key], key, 'g722')) for key in sorted(pairs))
    _write(job, utterances, f'Debian packages {name}-g722 and {name} (Asterisk core sounds 1.6.1)')


def build_jfk(job: Job) -> None:
    """Take the 11 s of John F. Kennedy's inaugural address out of the pywhispercpp source archive.

    Args:
        job: Package ``pywhispercpp-sdist``.

    Raises:
        VtbAssetError: The package is broken or the recording in it is not the expected one.
    """
    (path, data), *_ = _read(job, 'pywhispercpp-sdist', 'whisper.cpp/samples/jfk.wav').items()
    for inner in job.asset.files:
        if inner.path == path and inner.sha256 not in (None, hashlib.sha256(data).hexdigest()):
            raise VtbAssetError('A recording is not the expected one.', field=path, allowed=f'sha256 {inner.sha256}')
    utterance = Utterance('jfk', JFK_TEXT, 'en', decode_audio(data, path))
    _write(job, [utterance], 'PyPI source archive pywhispercpp 1.5.1, whisper.cpp/samples/jfk.wav')


def build_librivox(job: Job) -> None:
    """Take five LibriVox clips with transcripts out of the PocketSphinx test data.

    Args:
        job: Package ``pocketsphinx-testdata`` or ``pocketsphinx-sdist``.

    Raises:
        VtbAssetError: The package is broken or not laid out as expected.
    """
    (package,) = job.packages
    files = {path.rpartition('/')[2]: data for path, data in _read(job, package, '/data/librivox/').items()}
    utterances = []
    for line in files['transcription'].decode('utf-8').splitlines():
        text, _, key = line.rpartition('(')
        key = key.strip(' )')
        text = ' '.join(text.replace('<s>', '').replace('</s>', '').split())
        utterances.append(Utterance(key, text, 'en', decode_audio(files[f'{key}.wav'], key)))
    _write(job, utterances, f'{package}, test/data/librivox')


def build_ljspeech(job: Job) -> None:
    """Take 32 LJSpeech utterances out of the TTS source archive and resample them to 16 kHz.

    Args:
        job: Package ``tts-sdist``.

    Raises:
        VtbAssetError: The package is broken or not laid out as expected.
    """
    files = {path.rpartition('/')[2]: data for path, data in _read(job, 'tts-sdist', 'tests/data/ljspeech/').items()}
    utterances = []
    for line in files['metadata.csv'].decode('utf-8').splitlines():
        key, _, text = line.split('|')
        # the table may list the whole LJSpeech set, of which the archive holds 32 recordings
        if f'{key}.wav' in files:
            utterances.append(Utterance(key, text, 'en', decode_audio(files[f'{key}.wav'], key)))
    _write(job, utterances, 'PyPI source archive TTS 0.0.13.2, tests/data/ljspeech')


def parse_core_sounds(raw: bytes) -> dict[str, str]:
    """Parse a ``core-sounds-XX.txt`` file into texts by key.

    Lines are ``key: text``; ``;`` starts a comment. Texts with ``(``, ``[`` or ``<`` are tones or stage directions
    and are skipped, as are empty ones.

    Args:
        raw: The file's bytes, UTF-8 with or without a byte order mark.

    Returns:
        Text by key, in file order, runs of spaces made one.
    """
    texts: dict[str, str] = {}
    for line in raw.decode('utf-8-sig').splitlines():
        key, colon, text = line.partition(':')
        text = ' '.join(text.split())
        if not colon or line.startswith(';') or not text or set('([<') & set(text):
            continue
        texts[key.strip()] = text
    return texts


def match_keys(texts: Mapping[str, str], files: Mapping[str, object]) -> dict[str, str]:
    """Pair texts with recordings.

    A few keys differ from their file by letter case alone; the file's spelling is the one that all languages share.

    Args:
        texts: Text by key.
        files: Anything by key.

    Returns:
        Text by key of the file, for keys that have both.
    """
    by_lower = {key.lower(): key for key in files}
    pairs = {}
    for key, text in texts.items():
        found = key if key in files else by_lower.get(key.lower())
        if found is not None and (found == key or found not in texts):
            pairs[found] = text
    return pairs


def decode_audio(data: bytes, name: str, form: str | None = None) -> 'np.ndarray':
    """Decode any recording to 16 kHz mono.

    Args:
        data: Contents of a file that FFmpeg reads.
        name: What to call it in an error.
        form: Name of the format where the contents do not tell it (``g722``).

    Returns:
        Samples, int16, shape (S,).

    Raises:
        VtbAssetError: The contents are unreadable or hold no audio.
    """
    import av
    import numpy as np

    try:
        with av.open(io.BytesIO(data), 'r', format=form) as container:
            resampler = av.AudioResampler(format='s16', layout='mono', rate=SAMPLE_RATE)
            blocks = [
                block.to_ndarray()[0]
                for frame in (*container.decode(audio=0), None)  # None flushes the resampler
                for block in resampler.resample(frame)
            ]
    except (av.FFmpegError, IndexError, OSError) as error:
        raise VtbAssetError(
            'A recording cannot be decoded.',
            field=name,
            got=str(error),
            remedy='Delete the cached package and fetch it again.',
        ) from error
    if not blocks:
        raise VtbAssetError('A recording is empty.', field=name, allowed='at least one audio frame')
    return np.concatenate(blocks)


def write_wav(path: Path, audio: 'np.ndarray') -> float:
    """Write a 16 kHz mono 16-bit wav file.

    Args:
        path: Where to write.
        audio: Samples, shape (S,); int16, or float in [-1, 1].

    Returns:
        Duration in seconds.
    """
    import numpy as np

    if audio.dtype != np.int16:
        audio = np.clip(np.round(audio * 32768.0), -32768, 32767).astype(np.int16)
    with wave.open(str(path), 'wb') as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(audio.astype('<i2').tobytes())
    return len(audio) / SAMPLE_RATE


def write_recordings(
    out: Path, name: str, utterances: Iterable[Utterance], *, licence: str, credit: str, source: str
) -> None:
    """Write ``wav/``, ``manifest.jsonl`` (NeMo ASR lines plus key and lang) and ``card.json``.

    Args:
        out: Folder to fill.
        name: Asset name; begins every file name, since NeMo keys recordings by file stem.
        utterances: What to write.
        licence: Licence of the recordings.
        credit: Whom to attribute them to.
        source: Where they came from.

    Raises:
        VtbAssetError: There is nothing to write.
    """
    (out / 'wav').mkdir(parents=True, exist_ok=True)
    lines, words = [], 0
    for item in utterances:
        relative = f'wav/{name}-{item.key.replace("/", "--")}.wav'
        duration = write_wav(out / relative, item.audio)
        words += len(item.text.split())
        row = {'audio_filepath': relative, 'duration': duration, 'text': item.text, 'key': item.key, 'lang': item.lang}
        lines.append(json.dumps(row, ensure_ascii=False))
    if not lines:
        raise VtbAssetError('No recording with a transcript was found.', field=name, got=source)
    (out / 'manifest.jsonl').write_text('\n'.join(lines) + '\n', encoding='utf-8')
    seconds = sum(json.loads(line)['duration'] for line in lines)
    card = {
        'name': name,
        'utterances': len(lines),
        'seconds': round(seconds, 3),
        'hours': round(seconds / 3600, 4),
        'words': words,
        'sample_rate': SAMPLE_RATE,
        'licence': licence,
        'credit': credit,
        'source': source,
    }
    (out / 'card.json').write_text(json.dumps(card, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')


def _write(job: Job, utterances: Iterable[Utterance], source: str) -> None:
    asset = job.asset
    licence = asset.details.get('licence', asset.licence)
    write_recordings(job.into, asset.name, utterances, licence=licence, credit=asset.details['credit'], source=source)


def _read(job: Job, package: str, *parts: str) -> dict[str, bytes]:
    found = {
        name: stream.read() for name, stream in members(job.packages[package]) if all(part in name for part in parts)
    }
    if not found:
        raise VtbAssetError(
            'A package does not hold the files that were expected in it.',
            field=package,
            allowed=' '.join(parts),
            remedy='Delete the downloaded package and fetch it again.',
        )
    return found


register_file(
    Path(__file__).with_suffix('.yaml'),
    {'asterisk': build_asterisk, 'jfk': build_jfk, 'librivox': build_librivox, 'ljspeech': build_ljspeech},
)
