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
"""Whisper as a NeMo encoder: variable length, no padding to 30 s, features that do not depend on the neighbours.

Letters: B clips, S samples, F mel bins, M mel frames (10 ms), T encoder frames (20 ms), D encoder width.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nemo.core.classes import NeuralModule
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from nemo_vtb.backbone.attention import attend_row, has_row_kernel, kernels_for_any_length, takes_whole_rows
from nemo_vtb.constants import SAMPLE_RATE
from nemo_vtb.errors import VtbModelError
from nemo_vtb.io import read_json_object
from nemo_vtb.model.frames import WHISPER_ALIGN, WHISPER_HOP

N_FFT = 400


def is_whisper_folder(path: str | Path) -> bool:
    """Tells whether the path is a folder whose config.json says `model_type: whisper`."""
    return read_json_object(Path(path) / 'config.json').get('model_type') == 'whisper'


def whisper_sections(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Reads the `preprocessor` and `encoder` sections of a perception from a HF Whisper folder.

    Raises:
        VtbModelError: The folder or its config.json is missing or broken, or it is no Whisper.
    """
    path = Path(folder) / 'config.json'
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
        sections = _sections(config)
    except OSError as error:
        raise VtbModelError(
            'This folder holds no Whisper model.',
            field='pretrained_asr',
            got=str(path),
            allowed='a HF Whisper folder with config.json and model.safetensors',
            remedy='check the path, or fetch the embedded one with `vtb assets`',
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise VtbModelError(
            f'The configuration of the Whisper folder cannot be used: {error!r}.',
            field='pretrained_asr',
            got=str(path),
            allowed='config.json of a HF WhisperModel',
            remedy='copy the folder again from its source',
        ) from error
    return sections


def _sections(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    if config.get('activation_function', 'gelu') != 'gelu':
        raise ValueError(f'activation_function is {config["activation_function"]!r}, only gelu is known')
    prefix = 'nemo_vtb.model.whisper.'
    return {
        'preprocessor': {
            '_target_': prefix + 'WhisperMelPreprocessor',
            'features': config['num_mel_bins'],
            'sample_rate': SAMPLE_RATE,
        },
        'encoder': {
            '_target_': prefix + 'WhisperEncoder',
            'feat_in': config['num_mel_bins'],
            'd_model': config['d_model'],
            'n_layers': config['encoder_layers'],
            'n_heads': config['encoder_attention_heads'],
            'ff': config['encoder_ffn_dim'],
            'max_positions': config['max_source_positions'],
            'dropout': config.get('dropout', 0.0),
        },
    }


def load_whisper_encoder(folder: str | Path) -> dict[str, Tensor]:
    """Reads the encoder's weights of a HF Whisper folder, named as in `WhisperEncoder`.

    Args:
        folder: Holds model.safetensors, or shards with model.safetensors.index.json.

    Returns:
        State dict in float32.

    Raises:
        VtbModelError: A file is missing or corrupt, or there is no encoder inside.
    """
    folder = Path(folder)
    try:
        tensors: dict[str, Tensor] = {}
        for name in _weight_files(folder):
            tensors.update(load_file(folder / name))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise VtbModelError(
            f'The weights of the Whisper folder cannot be read: {error}.',
            field='pretrained_asr',
            got=str(folder),
            allowed='model.safetensors of a HF WhisperModel or WhisperForConditionalGeneration',
            remedy='copy the folder again from its source, or fetch the embedded one with `vtb assets`',
        ) from error
    for prefix in ('model.encoder.', 'encoder.'):
        state = {key[len(prefix) :]: value.float() for key, value in tensors.items() if key.startswith(prefix)}
        if state:
            return state
    raise VtbModelError(
        'The safetensors file holds no Whisper encoder.',
        field='pretrained_asr',
        got=f'{folder}: {sorted(tensors)[:3]} ...',
        allowed='keys that start with model.encoder. or encoder.',
    )


def _weight_files(folder: Path) -> list[str]:
    index = folder / 'model.safetensors.index.json'
    if not (folder / 'model.safetensors').exists() and index.exists():
        return sorted(set(json.loads(index.read_text(encoding='utf-8'))['weight_map'].values()))
    return ['model.safetensors']


class _Featurizer:
    """What NeMo asks a preprocessor's featurizer: its rate, its hop and the number of mel frames."""

    sample_rate = SAMPLE_RATE
    hop_length = WHISPER_HOP

    @staticmethod
    def get_seq_len(seq_len: Tensor) -> Tensor:
        """Maps samples to valid mel frames, of any shape, int64."""
        units = torch.div(seq_len.to(torch.int64) + WHISPER_ALIGN - 1, WHISPER_ALIGN, rounding_mode='floor')
        return units * (WHISPER_ALIGN // WHISPER_HOP)


class WhisperMelPreprocessor(NeuralModule):
    """Whisper's log-mel features, for clips of any length.

    Each clip is taken as zero-padded to a multiple of 80 ms and followed by more zeros, and is normalised by its own
    maximum, so its features do not depend on the batch that it came in.

    Args:
        features: Number of mel bins, 80 (128 for large-v3).
        sample_rate: Must be 16000.

    Raises:
        VtbModelError: Another sample rate.
    """

    def __init__(self, features: int = 80, sample_rate: int = SAMPLE_RATE) -> None:
        super().__init__()
        if sample_rate != SAMPLE_RATE:
            raise VtbModelError(
                'Whisper hears 16 kHz only.',
                field='perception.preprocessor.sample_rate',
                got=sample_rate,
                allowed=SAMPLE_RATE,
                remedy='resample the recordings',
            )
        self.features = features
        self.featurizer = _Featurizer()
        # tells which dtype to put out, as NeMo's preprocessors do; the features themselves are computed in float32
        self.register_buffer('dtype_sentinel_tensor', torch.tensor((), dtype=torch.float32), persistent=False)
        # no buffers: a cast of the module to bfloat16 would round the filters
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def forward(self, input_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the log-mel spectrogram.

        Args:
            input_signal: (B, S) float, 16 kHz; what lies behind a clip's length is ignored.
            length: (B,) samples.

        Returns:
            (B, F, M) features in the module's dtype, zero behind each clip's length, and (B,) int64 mel frames:
            8 for each started 80 ms.
        """
        window, filters = self._on(input_signal.device)
        mel_len = self.featurizer.get_seq_len(length)
        with torch.autocast(input_signal.device.type, enabled=False):
            signal = self._padded(input_signal.to(torch.float32), length)
            spectrum = torch.stft(signal, N_FFT, WHISPER_HOP, window=window, center=False, return_complex=True)
            power = spectrum[..., :-1].abs().square()  # (B, 201, M)
            log_mel = (filters @ power).clamp(min=1e-10).log10()  # (B, F, M)
        valid = time_mask(mel_len, log_mel.shape[-1]).unsqueeze(1)  # (B, 1, M)
        peak = log_mel.masked_fill(~valid, -10.0).amax(dim=(1, 2), keepdim=True)
        log_mel = (torch.maximum(log_mel, peak - 8.0) + 4.0) / 4.0
        return log_mel.masked_fill(~valid, 0.0).to(self.dtype_sentinel_tensor.dtype), mel_len

    @staticmethod
    def _padded(signal: Tensor, length: Tensor) -> Tensor:
        # Whisper's centred STFT: mirrored on the left, zeros on the right
        samples = max(1, -(-signal.shape[1] // WHISPER_ALIGN)) * WHISPER_ALIGN
        signal = signal.masked_fill(~time_mask(length, signal.shape[1]), 0.0)
        signal = F.pad(signal, (0, samples - signal.shape[1] + N_FFT // 2))
        return torch.cat([signal[:, 1 : N_FFT // 2 + 1].flip(1), signal], dim=1)  # (B, 200 + samples + 200)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._tables:
            import librosa

            filters = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=N_FFT, n_mels=self.features, dtype=np.float32)
            self._tables[device] = (
                torch.hann_window(N_FFT, dtype=torch.float32, device=device),
                torch.from_numpy(filters).to(device),
            )
        return self._tables[device]


class WhisperEncoder(NeuralModule):
    """Whisper's encoder with the face of a NeMo encoder and the parameter names of HF's `WhisperEncoder`.

    The table of positions is sliced to the clip's length; clips longer than the table (30 s) are encoded in pieces of
    its size and joined. Padding is masked before every convolution and in attention, so a clip's frames do not depend
    on its neighbours.

    Args:
        feat_in: Mel bins.
        d_model: Width.
        n_layers: Transformer layers.
        n_heads: Attention heads.
        ff: Inner width of the feed-forward layers, None for 4 x d_model.
        max_positions: Frames (20 ms) in the table of positions.
        dropout: Dropout behind positions, attention and feed-forward.

    Raises:
        VtbModelError: `d_model` is odd or no multiple of `n_heads`.
    """

    subsampling_factor = 2

    def __init__(
        self,
        feat_in: int = 80,
        d_model: int = 384,
        n_layers: int = 4,
        n_heads: int = 6,
        ff: int | None = None,
        max_positions: int = 1500,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if d_model % n_heads or d_model % 2:
            raise VtbModelError(
                'The width of the Whisper encoder does not divide by its heads.',
                field='perception.encoder.d_model',
                got=d_model,
                allowed=f'an even multiple of n_heads = {n_heads}',
            )
        self.d_model, self.n_layers, self.max_positions, self.dropout = d_model, n_layers, max_positions, dropout
        self.conv1 = nn.Conv1d(feat_in, d_model, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(d_model, d_model, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(max_positions, d_model)
        with torch.no_grad():
            self.embed_positions.weight.copy_(_sinusoids(max_positions, d_model))
        self.embed_positions.requires_grad_(False)
        self.layers = nn.ModuleList(
            _EncoderLayer(d_model, n_heads, ff or 4 * d_model, dropout) for _ in range(n_layers)
        )
        self.layer_norm = nn.LayerNorm(d_model)

    def forward(self, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes mel features.

        Args:
            audio_signal: (B, F, M) log-mel.
            length: (B,) valid mel frames.

        Returns:
            (B, D, T) with T = ceil(M / 2), zero behind each clip's length, and (B,) int64 valid frames.
        """
        piece = 2 * self.max_positions
        encoded = [
            self._encode(audio_signal[..., begin : begin + piece], (length - begin).clamp(0, piece))
            for begin in range(0, audio_signal.shape[-1], piece)
        ]
        frames = encoded[0] if len(encoded) == 1 else torch.cat(encoded, dim=1)
        return frames.transpose(1, 2), _halved(length.to(torch.int64))

    def _encode(self, mel: Tensor, length: Tensor) -> Tensor:
        mel_mask = time_mask(length, mel.shape[-1]).unsqueeze(1)  # (B, 1, M)
        x = F.gelu(self.conv1(mel.masked_fill(~mel_mask, 0.0)))
        x = F.gelu(self.conv2(x.masked_fill(~mel_mask, 0.0))).transpose(1, 2)  # (B, T, D)
        valid = time_mask(_halved(length), x.shape[1])  # (B, T)
        x = F.dropout(x + self.embed_positions.weight[: x.shape[1]], self.dropout, self.training)
        # an empty row still attends to its first frame: a softmax over nothing is NaN
        keys = valid | (torch.arange(x.shape[1], device=x.device) == 0)
        borders = _clip_borders(_halved(length), x.shape[1]) if has_row_kernel(x.device) else None
        for layer in self.layers:
            x = layer(x, keys[:, None, None, :], borders)
        return self.layer_norm(x).masked_fill(~valid.unsqueeze(-1), 0.0)


class _EncoderLayer(nn.Module):
    def __init__(self, d_model: int, n_heads: int, ff: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.self_attn = _SelfAttention(d_model, n_heads, dropout)
        self.self_attn_layer_norm = nn.LayerNorm(d_model)
        self.fc1 = nn.Linear(d_model, ff)
        self.fc2 = nn.Linear(ff, d_model)
        self.final_layer_norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor, keys: Tensor, borders: Tensor | None) -> Tensor:
        x = x + F.dropout(self.self_attn(self.self_attn_layer_norm(x), keys, borders), self.dropout, self.training)
        hidden = self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))
        return x + F.dropout(hidden, self.dropout, self.training)


class _SelfAttention(nn.Module):
    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model)
        self.q_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, keys: Tensor, borders: Tensor | None) -> Tensor:
        query, key, value = (
            proj(x).unflatten(-1, (self.n_heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # (B, T, heads, D / heads)
        dropout = self.dropout if self.training else 0.0
        if borders is not None and takes_whole_rows(query, dropout):
            q, k, v = (part.flatten(0, 1) for part in (query, key, value))  # (B T, heads, D / heads)
            mixed = attend_row(q, k, v, borders, x.shape[1], causal=False)
            return self.out_proj(mixed.flatten(1).view(x.shape))
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))  # (B, heads, T, D / heads)
        with kernels_for_any_length(query):
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=keys, dropout_p=dropout)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


def time_mask(length: Tensor, size: int) -> Tensor:
    """Which of `size` frames lie within each clip's length: (B,) to (B, size) of bool."""
    return torch.arange(size, device=length.device) < length.unsqueeze(1)  # (B, size)


def _clip_borders(length: Tensor, size: int) -> Tensor:
    """(B,) to (2 B + 1,) int32: clips of a batch as one row, each followed by a part of nothing but its padding."""
    begins = torch.arange(len(length) + 1, device=length.device) * size
    return torch.cat([torch.stack([begins[:-1], begins[:-1] + length], 1).flatten(), begins[-1:]]).to(torch.int32)


def _halved(length: Tensor) -> Tensor:
    return torch.div(length + 1, 2, rounding_mode='floor')


def _sinusoids(length: int, channels: int) -> Tensor:
    step = np.log(10000.0) / max(1, channels // 2 - 1)
    angles = torch.arange(length).unsqueeze(1) * torch.exp(-step * torch.arange(channels // 2)).unsqueeze(0)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
