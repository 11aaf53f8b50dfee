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
"""Speaking spans: checks of the sound, second tries, noise; and real ears on real voices."""

import numpy as np
import pytest
import soundfile
from factory_helpers import read_wav

from nemo_vtb.assets.voices import speak
from nemo_vtb.errors import VtbConfigError
from nemo_vtb.factory.settings import Noise, Tts, Verify
from nemo_vtb.factory.speech_models import load_transcriber
from nemo_vtb.factory.synthesis import Span, Synthesizer, check_sound, span_wer

NO_ASR = Verify(asr=None)
SPANS = [Span(f'span-{n}', text) for n, text in enumerate(
    ('Turn on the lamp in the kitchen.', 'What do bees make?', 'The river runs slowly past the old mill.')
)]  # fmt: skip


def tone(seconds, level=0.3):
    return (level * np.sin(np.arange(int(16000 * seconds)) / 5)).astype(np.float32)


@pytest.mark.parametrize(
    'clip, reason',
    [
        (tone(1), None),
        (tone(0.1), 'too_short'),
        (tone(31), 'too_long'),
        (np.zeros(16000, np.float32), 'silent'),
        (np.concatenate([tone(0.5), np.zeros(32000, np.float32)]), 'silent'),
        (np.concatenate([tone(0.3), np.zeros(8000, np.float32)]), None),
        (np.clip(tone(1, 3.0), -1, 1), 'clipped'),
        (np.full(16000, np.nan, np.float32), 'not_finite'),
    ],
)
def test_check_of_the_sound(clip, reason):
    assert check_sound(clip, Verify()) == reason


@pytest.mark.parametrize(
    'text, heard, lang, wer',
    [
        ('Turn on the lamp.', 'turn on the lamp', 'en', 0.0),
        ('Ten minutes, please!', '10 minutes please', 'en', 0.0),
        ('It is a work day.', 'It is a workday.', 'en', 0.0),
        ('Turn on the lamp.', 'Turn on the lamb.', 'en', 0.25),
        ('Guten Tag, Anna.', 'guten tag anna', 'de', 0.0),
        ('Hello.', '', 'en', 1.0),
        ('...', 'noise', 'en', 1.0),
    ],
)
def test_error_rate(text, heard, lang, wer):
    assert span_wer(text, heard, lang) == wer


def test_equal_calls_give_equal_files(tmp_path):
    for name in ('a', 'b'):
        done = Synthesizer('en', 3, Tts(), NO_ASR, Noise()).synthesize(SPANS, tmp_path / name)
        assert [one.reason for one in done] == ['kept'] * 3
    for one in done:
        first, second = ((tmp_path / name / one.file).read_bytes() for name in ('a', 'b'))
        assert first == second
        assert len(read_wav(tmp_path / 'a' / one.file)) / 16000 == one.seconds
    assert not list((tmp_path / 'a').rglob('*.part'))


def test_a_failed_span_is_tried_in_another_way(tmp_path):
    strict = Verify(asr=None, max_s=0.5, tries=3)
    (done,) = Synthesizer('en', 0, Tts(), strict, Noise()).synthesize(SPANS[:1], tmp_path)
    assert (done.reason, done.file, done.facts['tries']) == ('too_long', None, 3)
    assert not list(tmp_path.rglob('*.wav'))


def test_speed_and_loudness_vary_inside_their_ranges(tmp_path):
    speaker = Synthesizer('en', 0, Tts(speed=(0.8, 1.2), gain_db=(-12.0, -6.0)), NO_ASR, Noise())
    spans = [Span(f's-{n}', 'Open the window.') for n in range(12)]
    facts = [one.facts for one in speaker.synthesize(spans, tmp_path)]
    assert len({fact['speed'] for fact in facts}) > 8 and len({fact['voice'] for fact in facts}) > 4
    assert all(0.8 <= fact['speed'] <= 1.2 and -12 <= fact['gain_db'] <= -6 for fact in facts)
    given = speaker.synthesize([Span('given', 'Open the window.', 'en-GB@1.0', 1.05)], tmp_path)[0].facts
    assert (given['voice'], given['speed']) == ('en-GB@1.0', 1.05)


def test_noise_and_rooms_are_mixed_in_by_lhotse(tmp_path):
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / 'noise.wav', rng.normal(0, 0.1, 8000 * 20), 8000)
    room = np.exp(-np.arange(4000) / 800) * rng.normal(0, 1, 4000)
    soundfile.write(tmp_path / 'room.wav', room / np.abs(room).max(), 16000)
    noisy = Noise(noise=(str(tmp_path / 'noise.wav'),), noise_share=1.0, snr_db=(10.0, 10.0))
    reverberant = Noise(rir=(str(tmp_path / 'room.wav'),), rir_share=1.0)
    spans = [Span('s', 'Open the window.', 'en-US@1.0', 1.0)]
    sounds = {}
    for name, noise in (('clean', Noise()), ('noisy', noisy), ('room', reverberant)):
        speaker = Synthesizer('en', 0, Tts(gain_db=(0.0, 0.0)), NO_ASR, noise)
        (done,) = speaker.synthesize(spans, tmp_path / name)
        sounds[name] = read_wav(tmp_path / name / done.file).astype(float) / 32768
    clean = sounds['clean']
    assert len(clean) == len(sounds['noisy']) == len(sounds['room'])
    noise = sounds['noisy'] - clean
    assert abs(10 * np.log10((clean**2).mean() / (noise**2).mean()) - 10) < 1.0
    end = slice(-3000, None)
    assert np.abs(sounds['room'][end]).mean() > 1.4 * np.abs(clean[end]).mean()
    assert np.abs(sounds['room'] - clean).max() > 0.01


@pytest.mark.real_weights
def test_a_real_asr_model_keeps_what_it_transcribes(tmp_path, assets):
    assets('whisper-tiny.en')
    speaker = Synthesizer('en', 0, Tts(), Verify(), Noise())
    done = speaker.synthesize([*SPANS, Span('nonsense', 'Brx tlk vnd grpf shtzn krrt.')], tmp_path)
    assert [one.reason for one in done] == ['kept'] * 3 + ['wer']
    assert all(one.facts['wer'] == 0.0 for one in done[:3]) and done[3].facts['wer'] > 0.3
    assert (tmp_path / done[0].file).exists() and done[3].file is None


@pytest.mark.real_weights
def test_a_real_asr_model_transcribes_in_both_windows(assets):
    import json

    folder = assets('whisper-tiny.en', 'asterisk-en')['asterisk-en']
    rows = [json.loads(row) for row in (folder / 'manifest.jsonl').read_text().splitlines()]
    rows = [row for row in rows if 6 <= len(row['text'].split()) <= 12 and row['duration'] < 8][:8]
    clips = [read_wav(folder / row['audio_filepath']).astype(np.float32) / 32768 for row in rows]
    transcriber = load_transcriber('asset:whisper-tiny.en')
    for careful in (False, True):
        heard = transcriber.transcribe(clips, 'en', careful=careful)
        wers = [span_wer(row['text'], one.text, 'en') for row, one in zip(rows, heard, strict=True)]
        assert np.mean(wers) < 0.15 and all(one.lang is None for one in heard)
    assert transcriber.transcribe([], 'en') == []
    long = np.concatenate(clips)[: 40 * 16000]
    assert len(transcriber.transcribe([long], 'en')[0].text) > 50
    with pytest.raises(VtbConfigError, match='English only'):
        transcriber.transcribe([speak('Hallo.', 'de-DE')], 'de')
