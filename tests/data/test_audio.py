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
"""Recordings: lengths are decided once, every fault has its name."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from data_helpers import write_wav

from nemo_vtb.data.audio import AudioHeader, clip_span, probe, read_audio
from nemo_vtb.data.conversation import Audio
from nemo_vtb.errors import VtbAudioError


def reason(path: Path | str, **keys: object) -> str:
    with pytest.raises(VtbAudioError) as caught:
        read_audio(Audio(str(path), **keys))  # type: ignore[arg-type]
    return caught.value.reason


@pytest.mark.parametrize('rate', [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize('seconds', [0.05, 0.3337, 1.0])
def test_the_loader_returns_as_many_samples_as_were_counted(tmp_path: Path, rate: int, seconds: float) -> None:
    path = write_wav(tmp_path / 'a.wav', seconds, rate=rate)
    audio = Audio(str(path))
    samples = read_audio(audio)
    assert samples.dtype == np.float32
    assert samples.shape == (clip_span(audio, probe(path)).num_samples,)
    assert samples.shape[0] == round(soundfile.info(path).frames * 16000 / rate)


def test_resampling_keeps_the_tone(tmp_path: Path) -> None:
    samples = read_audio(Audio(str(write_wav(tmp_path / 'a.wav', 1.0, rate=44100))))
    loudest = np.abs(np.fft.rfft(samples)).argmax()
    assert loudest * 16000 / len(samples) == pytest.approx(220, abs=2)


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = np.stack([np.full(1600, 0.5), np.full(1600, -0.1)], axis=1).astype(np.float32)
    soundfile.write(tmp_path / 's.wav', stereo, 16000, subtype='FLOAT')
    np.testing.assert_allclose(read_audio(Audio(str(tmp_path / 's.wav'))), 0.2, atol=1e-6)


def test_a_span_is_cut_out_exactly(tmp_path: Path) -> None:
    ramp = np.linspace(-0.9, 0.9, 16000, dtype=np.float32)
    soundfile.write(tmp_path / 'r.wav', ramp, 16000, subtype='FLOAT')
    samples = read_audio(Audio(str(tmp_path / 'r.wav'), duration_s=0.25, offset_s=0.5))
    np.testing.assert_array_equal(samples, ramp[8000:12000])


def test_a_duration_may_exceed_the_file_by_a_tenth_of_a_second(tmp_path: Path) -> None:
    path = write_wav(tmp_path / 'a.wav', 1.0)
    assert len(read_audio(Audio(str(path), duration_s=1.09))) == 16000
    assert reason(path, duration_s=1.2) == 'duration_mismatch'


def test_unscaled_integers_are_legal(tmp_path: Path) -> None:
    loud = np.float32([2.0**31, -(2.0**31)] * 800)
    soundfile.write(tmp_path / 'a.wav', loud, 16000, subtype='FLOAT')
    np.testing.assert_array_equal(read_audio(Audio(str(tmp_path / 'a.wav'))), loud)


def test_silence_is_legal(tmp_path: Path) -> None:
    assert not read_audio(Audio(str(write_wav(tmp_path / 'a.wav', 0.2, level=0.0)))).any()


def test_faults_have_names(tmp_path: Path) -> None:
    good = write_wav(tmp_path / 'good.wav', 1.0).read_bytes()
    (tmp_path / 'empty.wav').write_bytes(b'')
    (tmp_path / 'noise.wav').write_bytes(np.random.default_rng(0).bytes(4000))
    (tmp_path / 'header.wav').write_bytes(good[:44])
    (tmp_path / 'folder.wav').mkdir()
    soundfile.write(tmp_path / 'nan.wav', np.full(1600, np.nan, dtype=np.float32), 16000, subtype='FLOAT')
    assert reason(tmp_path / 'none.wav') == 'audio_missing'
    assert reason(tmp_path / 'empty.wav') == 'audio_empty_file'
    assert reason(tmp_path / 'noise.wav') == 'audio_unreadable'
    assert reason(tmp_path / 'header.wav') == 'audio_no_samples'
    assert reason(tmp_path / 'folder.wav') == 'audio_not_a_file'
    assert reason(tmp_path / 'nan.wav') == 'audio_not_finite'
    soundfile.write(tmp_path / 'loud.wav', np.full(1600, 1e20, dtype=np.float32), 16000, subtype='FLOAT')
    assert reason(tmp_path / 'loud.wav') == 'audio_too_loud'
    assert reason(tmp_path / 'good.wav', offset_s=2.0) == 'bad_span'
    assert reason(tmp_path / 'good.wav', offset_s=-1.0) == 'bad_span'
    assert reason(tmp_path / 'good.wav', duration_s=0.0) == 'audio_no_samples'


def test_a_cut_flac_is_unreadable_and_a_cut_wav_is_shorter_than_its_duration(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / 'a.flac', rng.standard_normal(16000) * 0.1, 16000)
    (tmp_path / 'a.flac').write_bytes((tmp_path / 'a.flac').read_bytes()[:9000])
    assert reason(tmp_path / 'a.flac') in ('audio_unreadable', 'audio_truncated')
    wav = write_wav(tmp_path / 'a.wav', 1.0)
    wav.write_bytes(wav.read_bytes()[:20000])
    assert reason(wav, duration_s=1.0) == 'duration_mismatch'


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_no_permission(tmp_path: Path) -> None:
    path = write_wav(tmp_path / 'a.wav')
    path.chmod(0)
    assert reason(path) == 'audio_no_permission'


def test_another_rate_can_be_refused(tmp_path: Path) -> None:
    path = write_wav(tmp_path / 'a.wav', rate=8000)
    with pytest.raises(VtbAudioError, match='8000 Hz') as caught:
        read_audio(Audio(str(path)), resample=False)
    assert caught.value.reason == 'audio_wrong_rate'


def make_tar(path: Path, wavs: dict[str, bytes]) -> Path:
    with tarfile.open(path, 'w') as tar:
        for name, data in wavs.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_members_of_an_archive_are_read_in_any_order(tmp_path: Path) -> None:
    wavs = {f'{n}.wav': write_wav(tmp_path / f'{n}.wav', 0.1 * (n + 1)).read_bytes() for n in range(3)}
    tar = make_tar(tmp_path / 'shard.tar', wavs)
    for n in (2, 0, 1):
        expected = read_audio(Audio(str(tmp_path / f'{n}.wav')))
        np.testing.assert_array_equal(read_audio(Audio(f'{tar}!/{n}.wav')), expected)
    assert reason(f'{tar}!/3.wav') == 'audio_not_in_tar'


def test_a_cut_archive_loses_its_last_members_by_name(tmp_path: Path) -> None:
    wavs = {f'{n}.wav': write_wav(tmp_path / f'{n}.wav', 0.5).read_bytes() for n in range(3)}
    tar = make_tar(tmp_path / 'shard.tar', wavs)
    tar.write_bytes(tar.read_bytes()[:20000])
    assert len(read_audio(Audio(f'{tar}!/0.wav'))) == 8000
    assert reason(f'{tar}!/1.wav') == 'audio_not_in_tar'
    assert reason(tmp_path / 'gone.tar!' / '0.wav') == 'audio_missing'


def streamed(path: Path, samples: np.ndarray) -> Path:
    """A FLAC as an encoder writes it into a pipe: the header holds 0 for the number of samples."""
    soundfile.write(path, samples, 16000, format='FLAC')
    raw = bytearray(path.read_bytes())
    raw[21] &= 0xF0
    raw[22:26] = bytes(4)
    path.write_bytes(bytes(raw))
    return path


def test_a_flac_of_unknown_length_is_decoded_from_its_start(tmp_path: Path) -> None:
    tone = np.sin(np.arange(24000) / 7).astype(np.float32) * 0.3
    soundfile.write(tmp_path / 'ok.flac', tone, 16000, format='FLAC')
    path = streamed(tmp_path / 's.flac', tone)
    assert probe(path) == AudioHeader(24000, 16000, 1, seekable=False)
    for span in ({}, {'offset_s': 0.5, 'duration_s': 0.25}, {'offset_s': 1.4}):
        known = read_audio(Audio(str(tmp_path / 'ok.flac'), **span))
        assert known.size and np.array_equal(read_audio(Audio(str(path), **span)), known)
    assert reason(path, offset_s=2.0) == 'bad_span'


def test_a_flac_of_unknown_length_that_is_cut_is_unreadable(tmp_path: Path) -> None:
    path = streamed(tmp_path / 's.flac', np.random.default_rng(0).standard_normal(24000) * 0.1)
    path.write_bytes(path.read_bytes()[:9000])
    assert reason(path) == 'audio_unreadable'


def test_a_name_does_not_decide_how_a_recording_is_read(tmp_path: Path) -> None:
    write_wav(tmp_path / 'a.wav', 0.5).rename(tmp_path / 'a.RAW')
    assert read_audio(Audio(str(tmp_path / 'a.RAW'))).shape == (8000,)
    (tmp_path / 'pcm.raw').write_bytes(bytes(3200))
    with pytest.raises(VtbAudioError) as caught:
        probe(tmp_path / 'pcm.raw')
    assert caught.value.reason == 'audio_unreadable'
    assert 'ffmpeg' in str(caught.value.remedy)


@pytest.mark.parametrize(
    'raised', [TypeError('a'), OverflowError('b'), ZeroDivisionError(), AssertionError(), KeyError(3)]
)
@pytest.mark.parametrize('function', ['info', 'read'])
def test_whatever_a_decoder_raises_is_a_reason_with_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, raised: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(soundfile, function, fail)
    with pytest.raises(VtbAudioError) as caught:
        read_audio(Audio(str(write_wav(tmp_path / 'a.wav', 0.5))))
    assert caught.value.reason == 'audio_unreadable'
    assert type(raised).__name__ in str(caught.value.got)


@pytest.mark.parametrize('raised', [MemoryError, KeyboardInterrupt, SystemExit])
def test_what_no_recording_is_to_blame_for_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: type[BaseException]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(soundfile, 'info', fail)
    with pytest.raises(raised):
        probe(write_wav(tmp_path / 'a.wav', 0.5))


@pytest.mark.parametrize(('span', 'expected'), [
    ({'offset_s': 1e308}, 'bad_span'),
    ({'duration_s': 1e308}, 'duration_mismatch'),
    ({'offset_s': 1e308, 'duration_s': 1e308}, 'bad_span'),
])  # fmt: skip
def test_a_span_that_no_file_can_hold_is_no_overflow(tmp_path: Path, span: dict[str, float], expected: str) -> None:
    assert reason(write_wav(tmp_path / 'a.wav', 0.5), **span) == expected


@pytest.mark.parametrize('path', ['a' * 5000, 'a/' * 3000, 'x\0y', '\ud800.wav', ''])
def test_a_path_that_no_file_system_takes_is_a_reason(path: str) -> None:
    assert reason(path) in ('audio_missing', 'audio_unreadable', 'audio_not_a_file')
