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
"""A modality adapter that speaks in the LLM's own embeddings, since it learned CTC through them.

Its frames are scored against the embeddings of the LLM's pieces and a learned blank; the posteriors of the pieces
times their embeddings are what the LLM gets, so that speech begins in the LLM's input space. Blank frames are dropped
and repetitions merged: a clip takes about as many positions as its transcript.

Sources: Graves et al. 2006 (CTC); Ma et al. 2025, LegoSLM (posteriors times embeddings); Zhou et al. 2025, CJST
(compression by CTC). Letters: B clips, D encoder width, T encoder frames, S = ceil(T / factor) frames after stacking,
R <= S frames after compression, P pieces, H LLM width.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from nemo_vtb.checkpoint.manifest import weights_digest
from nemo_vtb.errors import VtbCheckpointError, VtbConfigError
from nemo_vtb.io import atomic_path
from nemo_vtb.model.whisper import time_mask

BLANK = 0
"""Class of the blank; piece i is class i + 1."""

ALIGNED_TARGET = 'nemo_vtb.model.aligned_adapter.AlignedAdapter'
ADAPTER_OPTIONS = (
    'subsampling_factor', 'hidden', 'num_blocks', 'kernel_size', 'expansion', 'dropout', 'blank_threshold',
)  # fmt: skip


class AlignedAdapter(nn.Module):
    """Stacked frames -> residual convolutions -> posteriors over the LLM's pieces -> their mean embedding.

    Args:
        feat_in: Width D of the encoder's frames.
        output_dim: Width H of the LLM.
        num_pieces: P, how many of the LLM's tokens the adapter may hear.
        subsampling_factor: Frames stacked to one; the last stack is completed with zeros.
        hidden: Width inside.
        num_blocks: Residual blocks of a depthwise convolution and a feed-forward layer.
        kernel_size: Frames that a convolution sees, odd.
        expansion: Inner width of the feed-forward layers over `hidden`.
        dropout: Dropout behind each block.
        blank_threshold: Frames whose blank is at least as probable are dropped; 1.0 keeps all and merges none.
    """

    def __init__(
        self,
        feat_in: int,
        output_dim: int,
        num_pieces: int,
        subsampling_factor: int = 4,
        hidden: int = 512,
        num_blocks: int = 3,
        kernel_size: int = 7,
        expansion: int = 3,
        dropout: float = 0.1,
        blank_threshold: float = 0.5,
    ) -> None:
        super().__init__()
        self.subsampling_factor, self.blank_threshold = subsampling_factor, blank_threshold
        # statistics of the encoder's frames and what is copied from the LLM: kept with the weights, never trained
        self.register_buffer('mean', torch.zeros(feat_in))
        self.register_buffer('std', torch.ones(feat_in))
        self.register_buffer('pieces', torch.zeros(num_pieces, dtype=torch.int64))
        self.register_buffer('table', torch.zeros(num_pieces, output_dim))
        self.stack = nn.Linear(feat_in * subsampling_factor, hidden)
        self.blocks = nn.ModuleList(_Block(hidden, kernel_size, expansion, dropout) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(hidden)
        self.out = nn.Linear(hidden, output_dim)
        self.dropout = nn.Dropout(dropout)
        self.blank = nn.Parameter(torch.zeros(output_dim))
        self.scale = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(num_pieces + 1))
        self.last_scores: tuple[Tensor, Tensor] | None = None
        "Logits (B, S, P + 1) and (B,) valid frames of the last pass, while `keep_scores`."
        self.keep_scores = False

    @property
    def compresses(self) -> bool:
        """Whether a clip may become fewer frames than are counted for it beforehand."""
        return self.blank_threshold < 1.0

    @torch.no_grad()
    def set_pieces(self, pieces: Sequence[int], embeddings: Tensor) -> None:
        """Take over the LLM's pieces, and start scale and bias of the posteriors from them.

        Args:
            pieces: (P,) token ids.
            embeddings: (P, H) their embeddings, as the LLM's first layer gets them.
        """
        self.pieces.copy_(torch.as_tensor(pieces, dtype=torch.int64))
        self.table.copy_(embeddings)
        std = float(embeddings.float().std())
        nn.init.normal_(self.blank, std=std)
        self.scale.fill_(0.15 / std)
        # most frames are blank: begun at zero, the first hundred steps would be spent on that
        self.bias.zero_()[BLANK] = 1.0

    def logits(self, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of blank and pieces.

        Args:
            audio_signal: (B, D, T) of the encoder.
            length: (B,) valid frames.

        Returns:
            (B, S, P + 1) and (B,) int64 valid frames.
        """
        factor = self.subsampling_factor
        frames = (audio_signal.transpose(1, 2) - self.mean) / self.std  # (B, T, D)
        frames = frames.masked_fill(~time_mask(length, frames.shape[1]).unsqueeze(-1), 0.0)
        frames = F.pad(frames, (0, 0, 0, -frames.shape[1] % factor)).unflatten(1, (-1, factor)).flatten(2)
        stacked_len = torch.div(length + factor - 1, factor, rounding_mode='floor').to(torch.int64)
        valid = time_mask(stacked_len, frames.shape[1]).unsqueeze(-1)  # (B, S, 1)
        hidden = self.dropout(F.gelu(self.stack(frames)))  # (B, S, hidden)
        for block in self.blocks:
            hidden = block(hidden, valid)
        states = self.out(self.norm(hidden))
        states = F.layer_norm(states, states.shape[-1:])  # (B, S, H)
        return F.linear(states, self._vectors(states.dtype)) * self.scale + self.bias, stacked_len

    def forward(self, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, D, T) with (B,) valid frames to (B, H, R) and (B,) int64 frames, at least one for each clip."""
        logits, stacked_len = self.logits(audio_signal, length)
        if self.keep_scores:
            self.last_scores = logits, stacked_len
        posteriors = logits.float().softmax(-1)  # (B, S, P + 1)
        if not self.compresses:
            return (posteriors.to(logits.dtype) @ self._vectors(logits.dtype)).transpose(1, 2), stacked_len
        members, has_word, compressed_len = self._runs(posteriors.detach(), stacked_len)  # (B, R, S), (B,), (B,)
        # without the share of the blank, which is no embedding of the LLM; only a clip without a word is all blank
        weights = torch.cat([posteriors[..., :1] * ~has_word[:, None, None], posteriors[..., 1:]], dim=-1)
        share = members @ weights.sum(-1, keepdim=True)  # (B, R, 1)
        embedded = weights.to(logits.dtype) @ self._vectors(logits.dtype)  # (B, S, H)
        frames = members.to(embedded.dtype) @ embedded / share.clamp(min=1e-6).to(embedded.dtype)
        return frames.transpose(1, 2), compressed_len

    def is_blank(self, frame: Tensor) -> bool:
        """Whether a frame (H,) is nearer to the blank than to any piece."""
        return int((self._vectors(frame.dtype) - frame).norm(dim=-1).argmin()) == BLANK

    def _runs(self, posteriors: Tensor, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What each frame after compression is made of, (B, R, S) of 0 and 1; whether a word is heard (B,); R (B,)."""
        valid = time_mask(length, posteriors.shape[1])  # (B, S)
        best = posteriors.argmax(-1)
        keep = valid & (posteriors[..., BLANK] < self.blank_threshold)
        # a clip without a word is heard as one frame, mostly blank: an empty clip could not be answered at all
        has_word = keep.any(-1)
        keep = torch.where(has_word[:, None], keep, valid)
        goes_on = keep[:, 1:] & keep[:, :-1] & (best[:, 1:] == best[:, :-1])
        goes_on |= (keep & (posteriors[..., BLANK] >= self.blank_threshold))[:, 1:]
        starts = keep & ~F.pad(goes_on, (1, 0))
        number = starts.cumsum(-1) - 1  # (B, S)
        count = starts.sum(-1)
        member = number.unsqueeze(1) == torch.arange(int(count.max().clamp(min=1)), device=number.device)[:, None]
        return (member & keep.unsqueeze(1)).float(), has_word, count

    def _vectors(self, dtype: torch.dtype) -> Tensor:
        return torch.cat([self.blank[None], self.table]).to(dtype)  # (P + 1, H)


class _Block(nn.Module):
    def __init__(self, width: int, kernel_size: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, kernel_size, padding=kernel_size // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        mixed = self.depthwise((x * valid).transpose(1, 2)).transpose(1, 2)  # (B, S, width)
        return x + self.dropout(self.down(F.gelu(self.up(self.norm(mixed)))))


def greedy_pieces(logits: Tensor, length: Tensor) -> list[list[int]]:
    """The best class of each frame, repetitions merged, blanks dropped: classes - 1 of each clip.

    Args:
        logits: (B, S, P + 1).
        length: (B,) valid frames.
    """
    texts = []
    for best, frames in zip(logits.argmax(-1).cpu(), length.tolist(), strict=True):
        merged = torch.unique_consecutive(best[:frames]).tolist() if frames else []
        texts.append([each - 1 for each in merged if each != BLANK])
    return texts


# ---- its file


@dataclass(frozen=True, slots=True)
class AlignedAdapterFile:
    """An aligned adapter as `examples/speechllm_align_adapter.py` writes it: safetensors with a manifest inside.

    The LLM's embeddings are left out: they come from the LLM, and their digest says whether it is the same one.

    Args:
        path: The file.
        manifest: `adapter` (the section of the configuration), `llm` and `encoder` (with digests), `data`, `wer`.
        state: The adapter's weights without `table`.
    """

    path: Path
    manifest: Mapping[str, Any]
    state: Mapping[str, Tensor] = field(repr=False)

    @property
    def section(self) -> dict[str, Any]:
        """`perception.modality_adapter` of a model that gets this adapter."""
        return {'_target_': ALIGNED_TARGET} | dict(self.manifest['adapter'])

    @classmethod
    def read(cls, path: str | Path | None) -> 'AlignedAdapterFile':
        """Read a file.

        Raises:
            VtbConfigError: There is no file at this path.
            VtbCheckpointError: It is corrupt, or no aligned adapter.
        """
        if path is None or not Path(path).is_file():
            raise VtbConfigError(
                'There is no aligned adapter at this path.',
                field='model.perception.init_adapter',
                got=path,
                allowed='a file that examples/speechllm_align_adapter.py wrote',
                remedy='make one for this LLM and encoder: python examples/speechllm_align_adapter.py',
            )
        try:
            with safe_open(str(path), framework='pt') as file:
                manifest = json.loads((file.metadata() or {})['manifest'])
                state = {name: file.get_tensor(name).float() for name in file.keys() if name != 'pieces'}
                pieces = file.get_tensor('pieces')
            _check_sizes(manifest['adapter'], state | {'pieces': pieces})
        except (SafetensorError, OSError, KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise VtbCheckpointError(
                f'The file is no aligned adapter: {type(error).__name__}: {error}.',
                field='model.perception.init_adapter',
                got=str(path),
                allowed='safetensors that examples/speechllm_align_adapter.py wrote',
                remedy='copy it again, or make it again',
            ) from error
        return cls(Path(path), manifest, state | {'pieces': pieces})

    @staticmethod
    def write(path: str | Path, adapter: AlignedAdapter, manifest: Mapping[str, Any]) -> None:
        """Write an adapter in half precision, with `manifest` as described above; in place of the old file, whole."""
        state = {name: value.detach().cpu() for name, value in adapter.state_dict().items() if name != 'table'}
        state = {n: v.half().contiguous() if v.is_floating_point() else v for n, v in state.items()}
        with atomic_path(path) as new:
            save_file(state, str(new), metadata={'format': 'pt', 'manifest': json.dumps(manifest)})

    def load_into(self, perception: Any, embeddings: Callable[[Tensor], Tensor]) -> None:
        """Give a perception module this adapter.

        Args:
            perception: Its encoder has its pretrained weights, its adapter is one of `section`.
            embeddings: Token ids (n,) -> embeddings (n, H) of the LLM.

        Raises:
            VtbCheckpointError: The adapter was aligned with another LLM or encoder, or a weight does not fit.
        """
        pieces = self.state['pieces']
        table = _rows_or_none(embeddings, pieces)
        self._require('llm', 'no such tokens' if table is None else embeddings_digest(table))
        self._require('encoder', encoder_digest(perception))
        adapter = perception.modality_adapter
        assert table is not None
        try:
            adapter.load_state_dict({**self.state, 'table': table}, strict=True)
        except RuntimeError as error:
            raise VtbCheckpointError(
                f'The weights of the adapter do not fit its manifest: {error}',
                field='model.perception.init_adapter',
                got=str(self.path),
                remedy='copy it again, or make it again',
            ) from error

    def start(self, adapter: AlignedAdapter, embeddings: Callable[[Tensor], Tensor], encoder: str) -> None:
        """Start another alignment from this one, also for more pieces than it knows.

        Args:
            adapter: Of the same sizes; its pieces contain those of this file.
            embeddings: Token ids (n,) -> embeddings (n, H) of the LLM.
            encoder: Digest of the encoder's weights.

        Raises:
            VtbCheckpointError: The adapter was aligned with another LLM or encoder.
        """
        table = _rows_or_none(embeddings, self.state['pieces'])
        self._require('llm', 'no such tokens' if table is None else embeddings_digest(table))
        self._require('encoder', encoder)
        known = {name: value for name, value in self.state.items() if name not in ('pieces', 'bias')}
        adapter.load_state_dict(known, strict=False)
        places = torch.searchsorted(adapter.pieces, self.state['pieces'].to(adapter.pieces.device))
        with torch.no_grad():
            adapter.bias[BLANK] = self.state['bias'][BLANK]
            adapter.bias[places + 1] = self.state['bias'][1:]

    def _require(self, part: str, digest: str) -> None:
        made_with = self.manifest.get(part) or {}
        if made_with.get('digest') == digest:
            return
        raise VtbCheckpointError(
            f'The adapter was aligned with another {"LLM" if part == "llm" else "encoder"}.',
            field='model.perception.init_adapter',
            got=f'{self.path}: made with {made_with.get("name")}',
            allowed=f'an adapter made with this very {"LLM" if part == "llm" else "encoder"}',
            remedy='make one: python examples/speechllm_align_adapter.py model=...',
        )


def _check_sizes(adapter: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless a manifest describes just these weights: it could ask for more than any memory."""
    numbers = all(isinstance(value, int | float) for value in adapter.values())
    blocks = len({name.split('.')[1] for name in state if name.startswith('blocks.')})
    if not numbers or adapter.get('num_blocks', 3) != blocks:
        raise ValueError('the manifest does not describe the weights')
    with torch.device('meta'):
        described = AlignedAdapter(**adapter).state_dict()
    shapes = {name: value.shape for name, value in described.items() if name != 'table'}
    if shapes != {name: value.shape for name, value in state.items()} or state['pieces'].dtype != torch.int64:
        raise ValueError('the manifest does not describe the weights')


def embeddings_digest(table: Tensor) -> str:
    """SHA-256 of the embeddings (P, H) that an adapter is aligned with."""
    return hashlib.sha256(table.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()


def encoder_digest(perception: Any) -> str:
    """SHA-256 of the weights of the encoder of a perception module."""
    return weights_digest(perception.encoder.state_dict())


def _rows_or_none(embeddings: Callable[[Tensor], Tensor], pieces: Tensor) -> Tensor | None:
    try:
        return embeddings(pieces)
    except IndexError:
        return None
