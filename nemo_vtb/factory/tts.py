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
"""Voices behind one protocol: the embedded Pico, an OpenAI-compatible speech server, NeMo's FastPitch and HiFi-GAN."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

import numpy as np

from nemo_vtb.assets.voices import speak, voice_for
from nemo_vtb.constants import SAMPLE_RATE
from nemo_vtb.errors import VtbAssetError, VtbConfigError, VtbDataError, VtbModelError
from nemo_vtb.factory.endpoint import Endpoint
from nemo_vtb.factory.settings import Tts


@dataclass(frozen=True, slots=True)
class Utterance:
    """What to synthesise.

    Args:
        text: In its spoken form.
        voice: One that `Voices.speakers` gave.
        speed: 1 is normal.
    """

    text: str
    voice: str
    speed: float = 1.0


class Voices(Protocol):
    """An engine that speaks."""

    def speakers(self, lang: str, count: int, seed: int) -> list[str]:
        """Names of at most `count` different speakers of a language."""
        ...

    def say(self, utterances: Sequence[Utterance]) -> list[np.ndarray | None]:
        """Samples (S,) float32 at 16 kHz for each; None for what the engine refuses."""
        ...


class PicoVoices:
    """The embedded voices; a speaker is a voice at a pitch, written `en-US@0.93`."""

    def speakers(self, lang: str, count: int, seed: int) -> list[str]:
        """Voices in turn, pitches spread over the range that stays intelligible."""
        voices, rng = voice_for(lang), Random(f'{seed}:speakers:{lang}')
        pitches = [round(0.75 + 0.55 * (i + 0.5) / count, 3) for i in range(count)]
        rng.shuffle(pitches)
        return [f'{voices[i % len(voices)]}@{pitch}' for i, pitch in enumerate(pitches)]

    def say(self, utterances: Sequence[Utterance]) -> list[np.ndarray | None]:
        """Speak one after the other."""
        return [self._say(utterance) for utterance in utterances]

    def _say(self, utterance: Utterance) -> np.ndarray | None:
        voice, _, pitch = utterance.voice.partition('@')
        try:
            return speak(utterance.text, voice, utterance.speed, float(pitch or 1.0))
        except VtbAssetError as error:
            if error.field in ('text',):
                return None
            raise


class EndpointVoices:
    """A server with OpenAI's `/audio/speech`.

    Args:
        settings: Address, model, voices.
    """

    def __init__(self, settings: Tts) -> None:
        if not settings.url or not settings.voices:
            raise VtbConfigError(
                'A speech server needs an address and voices.', field='tts.url, tts.voices',
                got=(settings.url, settings.voices), allowed='url: http://HOST:PORT/v1 and voices: [...]',
            )  # fmt: skip
        self._settings = settings
        self.endpoint = Endpoint(settings.url, settings.api_key_env, settings.concurrency, settings.timeout_s)

    def speakers(self, lang: str, count: int, seed: int) -> list[str]:
        """The voices of the settings."""
        return list(self._settings.voices[:count])

    def say(self, utterances: Sequence[Utterance]) -> list[np.ndarray | None]:
        """Send all requests at once."""
        return self.endpoint.map(self._say, utterances)

    async def _say(self, client: Any, utterance: Utterance) -> np.ndarray | None:
        body = {'model': self._settings.model or 'tts', 'input': utterance.text, 'voice': utterance.voice}
        body |= {'speed': round(utterance.speed, 3), 'response_format': 'wav'}  # type: ignore[dict-item]
        response, _ = await self.endpoint.post(client, 'audio/speech', body)
        return _decode(response.content)


class NemoVoices:
    """NeMo's FastPitch (one or many speakers) and a vocoder, from `.nemo` files.

    Args:
        settings: `model` and `vocoder`; `voices` are speaker numbers, all if none are named.
    """

    def __init__(self, settings: Tts) -> None:
        if not settings.model or not settings.vocoder:
            raise VtbConfigError(
                'NeMo TTS needs a spectrogram generator and a vocoder.', field='tts.model, tts.vocoder',
                got=(settings.model, settings.vocoder), allowed='two .nemo files',
            )  # fmt: skip
        try:
            from nemo.collections.tts.models import FastPitchModel, HifiGanModel
        except ImportError as error:
            raise VtbModelError(
                "NeMo's TTS collection is not installed.", field='tts.engine', got=str(error),
                remedy="pip install 'nemo_toolkit[tts]'",
            ) from error  # fmt: skip
        self._settings = settings
        self._speaker = FastPitchModel.restore_from(settings.model, map_location=_device()).eval()
        self._vocoder = HifiGanModel.restore_from(settings.vocoder, map_location=_device()).eval()

    def speakers(self, lang: str, count: int, seed: int) -> list[str]:
        """Speaker numbers of the model."""
        many = getattr(self._speaker.fastpitch, 'speaker_emb', None)
        names = [str(i) for i in range(many.num_embeddings)] if many is not None else ['0']
        names = list(self._settings.voices) or names
        Random(f'{seed}:speakers').shuffle(names)
        return names[:count]

    def say(self, utterances: Sequence[Utterance]) -> list[np.ndarray | None]:
        """Speak one after the other."""
        import torch

        spoken: list[np.ndarray | None] = []
        with torch.inference_mode():
            for utterance in utterances:
                tokens = self._speaker.parse(utterance.text)
                spectrogram = self._speaker.generate_spectrogram(
                    tokens=tokens, speaker=int(utterance.voice), pace=utterance.speed
                )
                audio = self._vocoder.convert_spectrogram_to_audio(spec=spectrogram)
                samples = audio.squeeze(0).float().cpu().numpy()  # (S,)
                spoken.append(_resample(samples, int(self._vocoder.cfg.preprocessor.sample_rate)))
        return spoken


def load_voices(settings: Tts) -> Voices:
    """The engine that the settings name.

    Raises:
        VtbConfigError: It lacks a setting.
        VtbModelError: It is not installed.
    """
    if settings.engine == 'endpoint':
        return EndpointVoices(settings)
    if settings.engine == 'nemo':
        return NemoVoices(settings)
    return PicoVoices()


def _decode(data: bytes) -> np.ndarray | None:
    import soundfile

    if not data:
        return None
    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype='float32', always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise VtbDataError(
            'The speech server sent something that is no recording.', field='audio/speech', got=data[:60],
            allowed='WAV, FLAC, OGG or MP3',
        ) from error  # fmt: skip
    mono = samples.mean(axis=1, dtype=np.float32)
    return _resample(mono, rate) if len(mono) else None


def _resample(samples: np.ndarray, rate: int) -> np.ndarray:
    if rate == SAMPLE_RATE:
        return samples
    import soxr

    return soxr.resample(samples, rate, SAMPLE_RATE).astype(np.float32, copy=False)


def _device() -> str:
    import torch

    return 'cuda' if torch.cuda.is_available() else 'cpu'
