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
"""Synthesises spans and keeps those that an ASR model transcribes back: variation, noise, checks, retries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from nemo_vtb.assets.recordings import write_wav
from nemo_vtb.constants import SAMPLE_RATE
from nemo_vtb.data.normalizers import get_normalizer, normalizer_for
from nemo_vtb.factory.settings import Noise, Tts, Verify
from nemo_vtb.factory.speech_models import (
    Transcriber,
    Transcript,
    Utterance,
    Voices,
    load_transcriber,
    load_voices,
)
from nemo_vtb.factory.stage import KEPT
from nemo_vtb.io import atomic_replace

_QUIET_DB, _QUIET_S, _FRAME = -40.0, 1.0, 320
_FULL_SCALE = 0.999
_BATCH = 16


@dataclass(frozen=True, slots=True)
class Span:
    """What is to be spoken.

    Args:
        key: Names the file and seeds the variation; unique.
        text: In its spoken form.
        voice: The speaker; None draws one for each try.
        speed: 1 is normal; None draws one.
    """

    key: str
    text: str
    voice: str | None = None
    speed: float | None = None


@dataclass(frozen=True, slots=True)
class SynthesizedSpan:
    """What became of a span.

    Args:
        span: The span.
        reason: `KEPT`, or why it is rejected.
        file: The recording relative to the output folder; None if rejected.
        seconds: Its duration.
        facts: Voice, speed, gain, word error rate, transcript, tries.
    """

    span: Span
    reason: str
    file: str | None
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Synthesizer:
    """Turns spans into verified recordings. What comes out depends on the spans and the settings alone.

    Args:
        lang: Language of the spans.
        seed: Of all draws.
        tts: Engine and variation.
        verify: Checks.
        noise: Noise and room impulse responses.
    """

    lang: str
    seed: int
    tts: Tts
    verify: Verify
    noise: Noise

    @cached_property
    def voices(self) -> Voices:
        """The engine, loaded when it is first needed."""
        return load_voices(self.tts)

    @cached_property
    def transcriber(self) -> Transcriber | None:
        """The model that transcribes back, if any."""
        return load_transcriber(self.verify.asr) if self.verify.asr else None

    @cached_property
    def speakers(self) -> list[str]:
        """The speakers of the corpus."""
        return self.voices.speakers(self.lang, self.tts.speakers, self.seed)

    def voice_of(self, group: str) -> str:
        """The one speaker of a conversation."""
        return self.speakers[Random(f'{self.seed}:voice:{group}').randrange(len(self.speakers))]

    def synthesize(self, spans: Sequence[Span], out: Path) -> list[SynthesizedSpan]:
        """Synthesise all spans; those that fail a check are repeated with another variation.

        Args:
            spans: What to synthesise; their batches decide rounding in the transcriber, so that
                equal calls give equal results.
            out: The output folder; recordings go to `wav/`.
        """
        results: dict[str, SynthesizedSpan] = {}
        waiting = list(spans)
        for attempt in range(self.verify.tries):
            failed = []
            for begin in range(0, len(waiting), _BATCH):
                for spoken in self._attempt(waiting[begin : begin + _BATCH], attempt, out):
                    results[spoken.span.key] = spoken
                    failed += [] if spoken.reason == KEPT else [spoken.span]
            waiting = failed
            if not waiting:
                break
        return [results[span.key] for span in spans]

    def _attempt(self, spans: Sequence[Span], attempt: int, out: Path) -> list[SynthesizedSpan]:
        drawn = [self._draw(span, attempt) for span in spans]
        sounds = self.voices.say([utterance for utterance, _ in drawn])
        clips = [
            None if sound is None else self._vary(sound, gain, f'{span.key}:{attempt}')
            for sound, span, (_, gain) in zip(sounds, spans, drawn, strict=True)
        ]
        reasons = ['no_sound' if clip is None else check_sound(clip, self.verify) for clip in clips]
        heard = self._transcribe(spans, clips, reasons)
        spoken = []
        for number, (span, clip) in enumerate(zip(spans, clips, strict=True)):
            utterance, gain = drawn[number]
            facts: dict[str, Any] = {'voice': utterance.voice, 'speed': utterance.speed, 'gain_db': gain}
            reason = reasons[number]
            if reason is None and self.transcriber is not None:
                wer, one = heard[number]
                facts |= {'wer': round(wer, 4), 'heard': one.text, 'heard_lang': one.lang}
                reason = self._judge(wer, one)
            facts |= {'tries': attempt + 1}
            file = None
            if reason is None and clip is not None:
                file = f'wav/{span.key}.wav'
                with atomic_replace(out / file) as temporary:
                    write_wav(temporary, clip)
            seconds = 0.0 if clip is None else len(clip) / SAMPLE_RATE
            spoken.append(SynthesizedSpan(span, reason or KEPT, file, seconds, facts))
        return spoken

    def _draw(self, span: Span, attempt: int) -> tuple[Utterance, float]:
        rng = Random(f'{self.seed}:{span.key}:{attempt}')
        voice = span.voice or self.speakers[rng.randrange(len(self.speakers))]
        speed = round(rng.uniform(*self.tts.speed), 3)
        if span.speed is not None:
            # a given speed holds for the first try; later ones stay near it
            speed = span.speed if attempt == 0 else round(span.speed * rng.uniform(0.85, 0.95), 3)
        return Utterance(span.text, voice, speed), round(rng.uniform(*self.tts.gain_db), 2)

    def _vary(self, sound: np.ndarray, gain_db: float, key: str) -> np.ndarray:
        """Loudness, then room and noise; stored samples are 16 bit, so the transcriber gets what training will get."""
        sound = sound * np.float32(10 ** (gain_db / 20))
        if self.noise.rir or self.noise.noise:
            sound = _augment(sound, self.noise, Random(f'{self.seed}:{key}:noise'))
        return np.clip(np.round(sound * 32768.0), -32768, 32767).astype(np.int16).astype(np.float32) / 32768.0

    def _transcribe(
        self, spans: Sequence[Span], clips: Sequence[np.ndarray | None], reasons: Sequence[str | None]
    ) -> dict[int, tuple[float, Transcript]]:
        if self.transcriber is None:
            return {}
        numbers = [number for number, reason in enumerate(reasons) if reason is None]
        heard: dict[int, tuple[float, Transcript]] = {}
        for careful in (False, True):
            found = self.transcriber.transcribe([clips[n] for n in numbers], self.lang, careful=careful)  # type: ignore[misc]
            for number, one in zip(numbers, found, strict=True):
                wer = span_wer(spans[number].text, one.text, self.lang)
                if number not in heard or wer < heard[number][0]:
                    heard[number] = (wer, one)
            numbers = [number for number in numbers if self._judge(*heard[number]) is not None]
            if not numbers:
                break
        return heard

    def _judge(self, wer: float, heard: Transcript) -> str | None:
        if self.verify.check_language and heard.lang not in (None, self.lang) and wer > 0:
            return 'wrong_language'
        return 'wer' if wer > self.verify.max_wer else None


def check_sound(clip: np.ndarray, verify: Verify) -> str | None:
    """Why a clip (S,) float32 at 16 kHz is rejected before it is transcribed; None if it is not."""
    seconds = len(clip) / SAMPLE_RATE
    if not np.isfinite(clip).all():
        return 'not_finite'
    if seconds < verify.min_s:
        return 'too_short'
    if seconds > verify.max_s:
        return 'too_long'
    if float((np.abs(clip) >= _FULL_SCALE).mean()) > verify.max_clipping:
        return 'clipped'
    frames = clip[: len(clip) // _FRAME * _FRAME].reshape(-1, _FRAME)
    rms = np.sqrt((frames.astype(np.float64) ** 2).mean(axis=1))
    loudest = float(rms.max(initial=0.0))
    if loudest < 10 ** (-60 / 20):
        return 'silent'
    quiet = float((rms < loudest * 10 ** (_QUIET_DB / 20)).mean())
    # engines leave some tenths of a second around a word; only more than that is a fault
    return 'silent' if quiet > verify.max_silence and quiet * seconds > _QUIET_S else None


def span_wer(text: str, heard: str, lang: str) -> float:
    """Word error rate (1.0 = as many errors as words) after Whisper's normaliser of the language."""
    import jiwer

    normalize = get_normalizer(normalizer_for(lang))
    reference, hypothesis = normalize(text), normalize(heard)
    if not reference.strip():
        return float(bool(hypothesis.strip()))
    if reference.replace(' ', '') == hypothesis.replace(' ', ''):
        return 0.0  # "work day" and "workday" sound the same
    return float(jiwer.wer(reference, hypothesis))


def _augment(sound: np.ndarray, noise: Noise, rng: Random) -> np.ndarray:
    """A room and a noise, drawn, by lhotse: (S,) -> (S,)."""
    if noise.rir and rng.random() < noise.rir_share:
        rir = _recording(noise.rir[rng.randrange(len(noise.rir))])
        cut = _in_memory(sound).reverb_rir(rir, affix_id=False)
        sound = cut.load_audio()[0][: len(sound)]
    if noise.noise and rng.random() < noise.noise_share:
        recording = _recording(noise.noise[rng.randrange(len(noise.noise))])
        cut = _in_memory(sound)
        other = recording.to_cut()
        length = len(sound) / SAMPLE_RATE
        if other.duration > length:
            other = other.truncate(offset=rng.uniform(0, other.duration - length), duration=length)
        snr = rng.uniform(*noise.snr_db)
        mixed = cut.mix(other.pad(duration=length) if other.duration < length else other, snr=snr)
        sound = mixed.load_audio()[0][: len(sound)]
    peak = float(np.abs(sound).max(initial=0.0))
    return (sound / peak * 0.99 if peak > 0.99 else sound).astype(np.float32)


def _in_memory(sound: np.ndarray) -> Any:
    import io

    import soundfile
    from lhotse import Recording

    stream = io.BytesIO()
    soundfile.write(stream, sound, SAMPLE_RATE, format='WAV', subtype='FLOAT')
    return Recording.from_bytes(stream.getvalue(), recording_id='span').to_cut()


@cache
def _recording(path: str) -> Any:
    from lhotse import Recording

    recording = Recording.from_file(path)
    return recording if recording.sampling_rate == SAMPLE_RATE else recording.resample(SAMPLE_RATE)
