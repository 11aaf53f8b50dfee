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
"""ASR models behind one protocol, which transcribe synthesised speech back: Whisper, or any NeMo ASR model.

Whisper reads 30 s however short a clip is. Short clips are transcribed in a window of 15 s first, at less than half
the cost and nearly the same error rate (docs/factory.md); one that would be rejected is repeated in the full window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nemo_vtb.assets.resolve import resolve_asset
from nemo_vtb.constants import SAMPLE_RATE
from nemo_vtb.errors import VtbConfigError, VtbModelError

_FULL_S, _SHORT_S, _SHORT_CLIP_S = 30, 15, 9.0
_MAX_TOKENS = 220


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
        self._device = 'cuda' if torch.cuda.is_available() else 'cpu'
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
        import torch
        from nemo.collections.asr.models import ASRModel

        device = 'cuda' if torch.cuda.is_available() else 'cpu'
        self._model = ASRModel.restore_from(path, map_location=device).eval()

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
