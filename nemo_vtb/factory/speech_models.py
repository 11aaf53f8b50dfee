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
"""Models that speak and models that transcribe it back, each behind one protocol.

Voices: the embedded Pico, an OpenAI-compatible speech server, NeMo's FastPitch and HiFi-GAN. Transcribers: Whisper, or
any NeMo ASR model. Whisper reads 30 s however short a clip is. Short clips are transcribed in a window of 15 s first,
at less than half the cost and nearly the same error rate (docs/factory.md); one that would be rejected is repeated in
the full window.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol

import numpy as np

from nemo_vtb.assets.resolve import resolve_asset
from nemo_vtb.assets.voices import speak, voice_for
from nemo_vtb.constants import SAMPLE_RATE
from nemo_vtb.errors import VtbAssetError, VtbConfigError, VtbDataError, VtbModelError
from nemo_vtb.factory.endpoint import Endpoint
from nemo_vtb.factory.settings import Tts

_FULL_S, _SHORT_S, _SHORT_CLIP_S = 30, 15, 9.0
_MAX_TOKENS = 220


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


# ---- transcribers


@dataclass(frozen=True, slots=True)
class Transcript:
    """The transcript of a clip.

    Args:
        text: The transcript.
        lang: The language that the model recognised, None if it knows only one.
    """

    text: str
    lang: str | None = None


class Transcriber(Protocol):
    """A model that transcribes."""

    def transcribe(self, clips: Sequence[np.ndarray], lang: str, *, careful: bool = False) -> list[Transcript]:
        """Transcribe clips (S,) float32 at 16 kHz.

        Args:
            clips: What to transcribe.
            lang: The expected language.
            careful: Whether accuracy matters more than time.
        """
        ...


class WhisperTranscriber:
    """Whisper, greedy, all clips of a call in one batch.

    Args:
        folder: A Hugging Face folder with weights, configuration and tokenizer.
    """

    def __init__(self, folder: str) -> None:
        import torch
        from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise VtbModelError(
                'The ASR model cannot be loaded.', field='verify.asr', got=f'{folder}: {error}',
                allowed='a Whisper folder with a tokenizer, asset:whisper-tiny.en, or a .nemo file',
            ) from error  # fmt: skip
        finally:
            logging.enable_progress_bar()
        self._device = _device()
        self._model = model.eval().to(self._device)
        self._features = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
        self._config = model.generation_config

    def transcribe(self, clips: Sequence[np.ndarray], lang: str, *, careful: bool = False) -> list[Transcript]:
        """Transcribe; longer clips are cut at 30 s."""
        import torch

        if not clips:
            return []
        if lang != 'en' and not getattr(self._config, 'is_multilingual', False):
            raise VtbConfigError(
                'The ASR model knows English only.', field='verify.asr', got=f'lang {lang}',
                remedy='verify.asr=asset:whisper-base, another Whisper or a .nemo file of that language',
            )  # fmt: skip
        short = not careful and max(map(len, clips)) <= _SHORT_CLIP_S * SAMPLE_RATE
        window = (_SHORT_S if short else _FULL_S) * SAMPLE_RATE
        padded = [np.pad(clip[:window], (0, max(0, window - len(clip)))) for clip in clips]
        with torch.inference_mode():
            mel = self._features(padded, sampling_rate=SAMPLE_RATE, padding=False, truncation=False).input_features
            encoded = self._encode(torch.from_numpy(np.stack(mel)).to(self._device))
            prompt, langs = self._prompt(encoded, lang)
            texts = self._decode(encoded, prompt)
        return [Transcript(text.strip(), heard) for text, heard in zip(texts, langs, strict=True)]

    def _encode(self, mel: Any) -> Any:
        """Whisper's encoder for any even number of mel frames: (B, M, 2T) -> (B, T, H)."""
        from torch.nn.functional import gelu

        encoder = self._model.model.encoder
        hidden = gelu(encoder.conv2(gelu(encoder.conv1(mel)))).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        for layer in encoder.layers:
            out = layer(hidden, None)
            hidden = out[0] if isinstance(out, tuple) else out
        return encoder.layer_norm(hidden)

    def _prompt(self, encoded: Any, lang: str) -> tuple[Any, list[str | None]]:
        """The decoder's first tokens (B, P), and the language recognised in each clip."""
        import torch

        count, config = encoded.shape[0], self._config
        start = torch.full((count, 1), config.decoder_start_token_id, device=encoded.device)
        tokens, langs = [], [None] * count
        by_lang = getattr(config, 'lang_to_id', None)
        if by_lang:
            states = self._model.model.decoder(input_ids=start, encoder_hidden_states=encoded).last_hidden_state
            codes = [name.strip('<|>') for name in by_lang]
            logits = self._model.proj_out(states[:, -1])[:, list(by_lang.values())]
            langs = [codes[number] for number in logits.argmax(-1).tolist()]
            tokens = [by_lang.get(f'<|{lang}|>', by_lang['<|en|>']), config.task_to_id['transcribe']]
        tokens.append(config.no_timestamps_token_id)
        rest = torch.tensor([tokens], device=encoded.device).expand(count, -1)
        return torch.cat([start, rest], 1), langs  # type: ignore[return-value]

    def _decode(self, encoded: Any, ids: Any) -> list[str]:
        import torch
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache

        config, model = self._config, self._model
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        never = torch.tensor(list(config.suppress_tokens or ()), dtype=torch.long, device=encoded.device)
        not_first = torch.tensor(list(config.begin_suppress_tokens or ()), dtype=torch.long, device=encoded.device)
        done = torch.zeros(encoded.shape[0], dtype=torch.bool, device=encoded.device)
        said = []
        for step in range(_MAX_TOKENS):
            out = model.model.decoder(
                input_ids=ids, encoder_hidden_states=encoded, past_key_values=cache, use_cache=True
            )
            logits = model.proj_out(out.last_hidden_state[:, -1])  # (B, V)
            logits[:, never] = -torch.inf
            if step == 0:
                logits[:, not_first] = -torch.inf
            best = logits.argmax(-1)
            best[done] = config.eos_token_id
            done |= best == config.eos_token_id
            said.append(best)
            if done.all():
                break
            ids = best[:, None]
        return self._tokenizer.batch_decode(torch.stack(said, 1), skip_special_tokens=True)


class NemoTranscriber:
    """Any NeMo ASR model.

    Args:
        path: A `.nemo` file.
    """

    def __init__(self, path: str) -> None:
        from nemo.collections.asr.models import ASRModel

        self._model = ASRModel.restore_from(path, map_location=_device()).eval()

    def transcribe(self, clips: Sequence[np.ndarray], lang: str, *, careful: bool = False) -> list[Transcript]:
        """Transcribe all clips in one batch."""
        found = self._model.transcribe(list(clips), batch_size=max(1, len(clips)), verbose=False)
        found = found[0] if isinstance(found, tuple) else found
        return [Transcript(getattr(one, 'text', one)) for one in found]


def load_transcriber(value: str) -> Transcriber:
    """The ASR model that a setting names: a `.nemo` file, a Whisper folder or `asset:NAME`.

    Raises:
        VtbModelError: It cannot be loaded.
    """
    path = resolve_asset(value)
    if Path(path).suffix == '.nemo':
        return NemoTranscriber(path)
    return WhisperTranscriber(path)
