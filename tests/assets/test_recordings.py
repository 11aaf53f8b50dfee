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
"""Recordings: texts and sounds are paired by key, decoded to 16 kHz, and written as NeMo lines."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from nemo_vtb.assets.catalog import Job, get_asset
from nemo_vtb.assets.recordings import (
    Utterance,
    build_asterisk,
    build_ljspeech,
    decode_audio,
    match_keys,
    parse_core_sounds,
    write_recordings,
    write_wav,
)
from nemo_vtb.constants import SAMPLE_RATE
from nemo_vtb.errors import VtbAssetError


def tone(seconds: float, rate: int = SAMPLE_RATE) -> np.ndarray:
    return (8000 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.int16)


def encode(samples: np.ndarray, rate: int, form: str, codec: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, 'w', format=form) as container:
        stream = container.add_stream(codec, rate=rate, layout='mono')
        frame = av.AudioFrame.from_ndarray(samples[None], format='s16', layout='mono')
        frame.sample_rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return buffer.getvalue()


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, 'w:gz') as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def job(asset: str, packages: dict[str, Path], tmp_path: Path) -> Job:
    into = tmp_path / 'into'
    into.mkdir()
    return Job(get_asset(asset), packages, {}, {}, into, tmp_path, into, lambda text: None)


def asterisk_packages(tmp_path: Path, sound: bytes) -> dict[str, Path]:
    text = '; comment\nhello: Ciao  a tutti.\ndigits/1: uno\nletters/O: o\nbeep: [tono]\nghost: non esiste\n'
    doc = 'usr/share/doc/asterisk-core-sounds-it/core-sounds-it.txt.gz'
    voice = './usr/share/asterisk/sounds/it_IT_m_Carlo'
    sounds = {f'{voice}/{key}.g722': sound for key in ('hello', 'digits/1', 'letters/o', 'beep')}
    return {
        'asterisk-it-text': archive(tmp_path / 'text.tar.gz', {doc: gzip.compress(text.encode('utf-8-sig'))}),
        'asterisk-it-g722': archive(tmp_path / 'g722.tar.gz', sounds),
    }


def test_texts_are_parsed_without_mark_comments_and_stage_directions():
    raw = '; head\n\na: One.\nb/c: Two  words: here \nd: [tone]\ne: say (beep)\nf:\ng: <beep>\nno colon\n'
    assert parse_core_sounds(raw.encode('utf-8-sig')) == {'a': 'One.', 'b/c': 'Two words: here'}


def test_keys_that_differ_by_case_take_the_spelling_of_the_file():
    texts = {'letters/O': 'o', 'a': 'A', 'x': 'X', 'vm-Urgent': 'u'}
    assert match_keys(texts, {'letters/o': 1, 'a': 1, 'vm-Urgent': 1}) == {
        'letters/o': 'o',
        'a': 'A',
        'vm-Urgent': 'u',
    }


def test_a_text_of_its_own_is_not_replaced_by_one_of_another_case():
    assert match_keys({'A': 'large', 'a': 'small'}, {'a': 1}) == {'a': 'small'}


def test_g722_lasts_as_long_as_its_bytes_say():
    data = encode(tone(1.0), SAMPLE_RATE, 'g722', 'g722')
    audio = decode_audio(data, 'tone', 'g722')
    assert audio.dtype == np.int16
    assert len(audio) / SAMPLE_RATE == pytest.approx(len(data) / 8000)
    assert np.abs(audio).max() > 4000


def test_other_rates_are_resampled():
    audio = decode_audio(encode(tone(0.5, 22050), 22050, 'wav', 'pcm_s16le'), 'tone.wav')
    assert len(audio) == pytest.approx(0.5 * SAMPLE_RATE, abs=64)


@pytest.mark.parametrize('data', [b'', b'not a sound at all'])
def test_what_is_no_sound_is_named(data):
    with pytest.raises(VtbAssetError, match='broken.wav'):
        decode_audio(data, 'broken.wav')


def test_asterisk_packages_become_a_nemo_folder(tmp_path):
    packages = asterisk_packages(tmp_path, encode(tone(0.6), SAMPLE_RATE, 'g722', 'g722'))
    task = job('asterisk-it', packages, tmp_path)
    build_asterisk(task)
    rows = [json.loads(line) for line in (task.into / 'manifest.jsonl').read_text(encoding='utf-8').splitlines()]
    assert [(row['key'], row['text'], row['lang']) for row in rows] == [
        ('digits/1', 'uno', 'it'),
        ('hello', 'Ciao a tutti.', 'it'),
        ('letters/o', 'o', 'it'),
    ]
    for row in rows:
        assert not Path(row['audio_filepath']).is_absolute()
        assert soundfile.info(task.into / row['audio_filepath']).duration == row['duration']
    card = json.loads((task.into / 'card.json').read_text(encoding='utf-8'))
    assert card['utterances'] == 3 and card['licence'] == 'CC-BY-3.0' and 'Carlo Flora' in card['credit']


def test_a_package_of_another_layout_is_named(tmp_path):
    packages = asterisk_packages(tmp_path, b'')
    packages['asterisk-it-g722'] = archive(tmp_path / 'odd.tar.gz', {'readme': b'nothing'})
    with pytest.raises(VtbAssetError, match='asterisk-it-g722'):
        build_asterisk(job('asterisk-it', packages, tmp_path))


def test_ljspeech_takes_the_normalised_text_of_the_recordings_that_are_there(tmp_path):
    root = 'TTS-0.0.13.2/tests/data/ljspeech'
    files = {
        f'{root}/metadata.csv': b'LJ-1|in 1900|in nineteen hundred\nLJ-2|absent|absent\n',
        f'{root}/wavs/LJ-1.wav': encode(tone(0.5, 22050), 22050, 'wav', 'pcm_s16le'),
    }
    task = job('ljspeech', {'tts-sdist': archive(tmp_path / 'tts.tar.gz', files)}, tmp_path)
    build_ljspeech(task)
    (row,) = [json.loads(line) for line in (task.into / 'manifest.jsonl').read_text().splitlines()]
    assert row['text'] == 'in nineteen hundred' and row['audio_filepath'] == 'wav/ljspeech-LJ-1.wav'


def test_floats_and_integers_are_written_alike(tmp_path):
    samples = tone(0.1)
    write_wav(tmp_path / 'a.wav', samples)
    write_wav(tmp_path / 'b.wav', (samples / 32768).astype(np.float32))
    for name in ('a.wav', 'b.wav'):
        written, rate = soundfile.read(tmp_path / name, dtype='int16')
        assert np.array_equal(written, samples) and rate == SAMPLE_RATE


def test_file_names_begin_with_the_asset_so_that_stems_stay_distinct(tmp_path):
    items = [Utterance('a/b', 'x', 'en', tone(0.1)), Utterance('a', 'y', 'en', tone(0.1))]
    write_recordings(tmp_path, 'mine', items, licence='l', credit='c', source='s')
    assert sorted(path.stem for path in (tmp_path / 'wav').iterdir()) == ['mine-a', 'mine-a--b']


def test_nothing_to_write_is_an_error(tmp_path):
    with pytest.raises(VtbAssetError, match='mine'):
        write_recordings(tmp_path, 'mine', [], licence='l', credit='c', source='s')


@pytest.mark.real_weights
@pytest.mark.parametrize(('lang', 'count', 'minutes'), [('en', 540, 24.0), ('it', 559, 20.9)])
def test_real_prompts(assets, lang, count, minutes):
    name = f'asterisk-{lang}'
    folder = assets(name)[name]
    rows = [json.loads(line) for line in (folder / 'manifest.jsonl').read_text(encoding='utf-8').splitlines()]
    assert len(rows) == count
    assert sum(row['duration'] for row in rows) / 60 == pytest.approx(minutes, abs=0.1)
    assert not any(mark in row['text'] for row in rows for mark in '([<\ufeff')
    for row in rows[::50]:
        assert soundfile.info(folder / row['audio_filepath']).duration == row['duration']


@pytest.mark.real_weights
@pytest.mark.parametrize(
    ('name', 'count', 'seconds'), [('jfk', 1, 11.0), ('librivox', 5, 24.7), ('ljspeech', 32, 221.7)]
)
def test_real_clips(assets, name, count, seconds):
    folder = assets(name)[name]
    rows = [json.loads(line) for line in (folder / 'manifest.jsonl').read_text(encoding='utf-8').splitlines()]
    assert len(rows) == count
    assert sum(row['duration'] for row in rows) == pytest.approx(seconds, abs=0.1)
