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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_vtb.assets.catalog import Asset, Inner, Job, Package, register
from nemo_vtb.assets.unpack import members
from nemo_vtb.constants import SAMPLE_RATE
from nemo_vtb.errors import VtbAssetError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class _Asterisk:
    """The Asterisk core sounds of one language, two Debian packages.

    Args:
        language: Its English name.
        voice: Folder of the recordings.
        licence: Of recordings and texts.
        authors: Who is named in the catalog.
        credit: Who is named in the card.
        audio_mb: Size of the package with the recordings.
        audio_sha256: Its checksum.
        text_sha256: Checksum of the package with the texts.
    """

    language: str
    voice: str
    licence: str
    authors: str
    credit: str
    audio_mb: float
    audio_sha256: str
    text_sha256: str


_ASTERISK = {
    'en': _Asterisk(
        'English',
        'en_US_f_Allison',
        'CC-BY-SA-3.0',
        'Allison Smith (recording), Digium, Inc.',
        'Allison Smith (theivrvoice.com); contributions by Digium, Inc.',
        10.6,
        '38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806',
        '973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50',
    ),
    'es': _Asterisk(
        'Spanish',
        'es_MX_f_Allison',
        'CC-BY-SA-3.0',
        'Allison Smith (recording), Digium, Inc.',
        'Allison Smith (theivrvoice.com); contributions by Digium, Inc.',
        13.0,
        'e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8',
        '9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74',
    ),
    'fr': _Asterisk(
        'French',
        'fr_CA_f_June',
        'CC-BY-SA-3.0',
        'June Wallack (recording, translation), Clod Patry, Kristopher Lalletti (translation), Digium, Inc.',
        'June Wallack (junewallack.com); contributions by Digium, Inc., Unlimitel, BGM Informatique',
        10.8,
        '7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0',
        '04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056',
    ),
    'it': _Asterisk(
        'Italian',
        'it_IT_m_Carlo',
        'CC-BY-3.0',
        'Carlo Flora (recording), Silvia Petrin (translation)',
        'Carlo Flora (voice), Silvia Petrin (translation)',
        10.1,
        '46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016',
        '3884d9457e12f21caa018c18f0d587df5d53ebea14b673d8453a134c5941ab3b',
    ),
    'ru': _Asterisk(
        'Russian',
        'ru_RU_f_IvrvoiceRU',
        'CC-BY-3.0',
        'Maxim Topal, IVRvoice.ru',
        'Maxim Topal (ivrvoice.ru)',
        10.6,
        '673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b',
        '28a61616bb0cd3345a7ea532dec4df9f071e5d0fa9f8c1a563ea9669002f39ab',
    ),
}

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
    lang = str(job.params['lang'])
    entry = _ASTERISK[lang]
    name = f'asterisk-core-sounds-{lang}'
    raw = _read(job, f'asterisk-{lang}-text', f'usr/share/doc/{name}/core-sounds-{lang}.txt.gz')
    texts = parse_core_sounds(gzip.decompress(next(iter(raw.values()))))
    files = {
        path.partition(f'/{entry.voice}/')[2].removesuffix('.g722'): data
        for path, data in _read(job, f'asterisk-{lang}-g722', f'/{entry.voice}/', '.g722').items()
    }
    pairs = match_keys(texts, files)
    utterances = (Utterance(key, pairs[key], lang, decode_audio(files[key], key, 'g722')) for key in sorted(pairs))
    source = f'Debian packages {name}-g722 and {name} (Asterisk core sounds 1.6.1)'
    write_recordings(
        job.into, f'asterisk-{lang}', utterances, licence=entry.licence, credit=entry.credit, source=source
    )


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
    source = 'PyPI source archive pywhispercpp 1.5.1, whisper.cpp/samples/jfk.wav'
    write_recordings(job.into, 'jfk', [utterance], licence='public domain', credit='John F. Kennedy', source=source)


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
    credit = 'LibriVox readers (Sense and Sensibility), Carnegie Mellon University'
    licence, source = 'BSD-2-Clause; recordings public domain', f'{package}, test/data/librivox'
    write_recordings(job.into, 'librivox', utterances, licence=licence, credit=credit, source=source)


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
    source = 'PyPI source archive TTS 0.0.13.2, tests/data/ljspeech'
    credit = 'Linda Johnson (LibriVox), Keith Ito'
    write_recordings(job.into, 'ljspeech', utterances, licence='public domain', credit=credit, source=source)


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


def read_wav(path: Path) -> 'np.ndarray':
    """Read a 16 kHz mono 16-bit wav file.

    Args:
        path: The file.

    Returns:
        Samples, int16, shape (S,).

    Raises:
        VtbAssetError: Another rate, width or number of channels, or not a wav file.
    """
    import numpy as np

    try:
        with wave.open(str(path), 'rb') as file:
            got = (file.getframerate(), file.getnchannels(), file.getsampwidth())
            raw = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise VtbAssetError('A wav file cannot be read.', field=path.name, got=str(error)) from error
    if got != (SAMPLE_RATE, 1, 2):
        raise VtbAssetError(
            'A wav file has the wrong form.', field=path.name, got=got, allowed='(16000 Hz, 1 channel, 2 bytes)'
        )
    return np.frombuffer(raw, '<i2')


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


def _asterisk_packages() -> Iterator[Package]:
    for lang, entry in _ASTERISK.items():
        stem = f'asterisk-core-sounds-{lang}'
        for key, name, sha256, size in (
            (f'asterisk-{lang}-g722', f'{stem}-g722', entry.audio_sha256, entry.audio_mb),
            (f'asterisk-{lang}-text', stem, entry.text_sha256, 0.03),
        ):
            yield Package(key, 'apt', name, '1.6.1-1', f'{name}_1.6.1-1_all.deb', sha256, size, entry.licence)


_PACKAGES = (
    Package(
        'pywhispercpp-sdist',
        'pypi-sdist',
        'pywhispercpp',
        '1.5.1',
        'pywhispercpp-1.5.1.tar.gz',
        '5df897e5dd9d9f16804fc937bd85b9f5880a0b29a55f8843585e0e03d76195e5',
        9.8,
        'MIT',
    ),
    Package(
        'pocketsphinx-testdata',
        'apt',
        'pocketsphinx-testdata',
        '0.8+5prealpha+1-15',
        'pocketsphinx-testdata_0.8+5prealpha+1-15_all.deb',
        'eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0',
        1.8,
        'BSD-2-Clause',
    ),
    Package(
        'pocketsphinx-sdist',
        'pypi-sdist',
        'pocketsphinx',
        '5.1.1',
        'pocketsphinx-5.1.1.tar.gz',
        '675778b309a22dfc9b7d37f7621976bba491d2a5f8c59696bd77fd6d07271355',
        34.2,
        'BSD-2-Clause',
    ),
    Package(
        'tts-sdist',
        'pypi-sdist',
        'TTS',
        '0.0.13.2',
        'TTS-0.0.13.2.tar.gz',
        '78861c4f9ec13fea74c36acc01fecb3bec2e657a286ec42d273ed66da88e63a8',
        12.1,
        'MPL-2.0',
    ),
    Package(
        'py-nanotts',
        'pypi-wheel',
        'py-nanotts',
        '0.1.1',
        'py_nanotts-0.1.1-cp39-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.manylinux_2_28_x86_64.whl',
        '669dad8790893731ee17d24fa5f291852cefee7a016ec8783f69dc6ab4ccb52f',
        5.3,
        'Apache-2.0',
    ),
)

_MANIFEST = ('manifest.jsonl',)

_RECORDINGS = (
    *(
        Asset(
            f'asterisk-{lang}',
            'recordings',
            f'Asterisk prompts, {entry.language}: one professional speaker, 16 kHz, with transcripts',
            entry.authors,
            entry.licence,
            (f'asterisk-{lang}-g722', f'asterisk-{lang}-text'),
            build_asterisk,
            outputs=_MANIFEST,
            params={'lang': lang},
            size_mb=50,
            build_s=5,
            revision=2,
        )
        for lang, entry in _ASTERISK.items()
    ),
    Asset(
        'jfk',
        'recordings',
        'John F. Kennedy, inaugural address: one clip of 11 s',
        'United States government',
        'public domain',
        ('pywhispercpp-sdist',),
        build_jfk,
        files=(
            Inner(
                'pywhispercpp-sdist',
                'pywhispercpp-1.5.1/whisper.cpp/samples/jfk.wav',
                '59dfb9a4acb36fe2a2affc14bacbee2920ff435cb13cc314a08c13f66ba7860e',
            ),
        ),
        outputs=_MANIFEST,
        size_mb=0.4,
        build_s=1,
    ),
    Asset(
        'librivox',
        'recordings',
        'LibriVox: five read clips of "Sense and Sensibility", 25 s in all',
        'LibriVox volunteers; test data of the CMU Sphinx project',
        'public domain',
        ('pocketsphinx-testdata|pocketsphinx-sdist',),
        build_librivox,
        outputs=_MANIFEST,
        size_mb=0.8,
        build_s=1,
    ),
    Asset(
        'ljspeech',
        'recordings',
        'LJSpeech-32: 32 read sentences of one speaker, 3.7 min',
        'Linda Johnson (LibriVox), Keith Ito; test data of the Coqui TTS project',
        'public domain',
        ('tts-sdist',),
        build_ljspeech,
        outputs=_MANIFEST,
        size_mb=7.2,
        build_s=3,
    ),
)

register(_RECORDINGS, (*_PACKAGES, *_asterisk_packages()))
