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
"""Counts adapter frames from the configuration alone, in plain integers: no torch, no model, no forward pass.

A clip walks through *stages* (preprocessor, encoder, adapter). Each maps `(width, valid)` to `(width, valid)`:
`width` is the size of the time axis that the module really makes for one clip, padding included, and `valid` the
length that it reports. NeMo's stacking subsampling computes `valid` from `width`, so both have to be followed.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nemo_vtb.constants import SAMPLE_RATE
from nemo_vtb.errors import VtbConfigError, VtbModelError

WHISPER_HOP = 160
# 80 ms: 50 Hz frames then divide by 4, the reduction to the 12.5 Hz that the LLM sees
WHISPER_ALIGN = 1280

Step = Callable[[int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the way from samples to adapter frames.

    Args:
        step: Maps `(width, valid)` to `(width, valid)`, both in frames of this stage.
        align: Where greater than 1, `valid` depends on `width % align` of the padded batch, so only clips that agree
            in it may share one.
    """

    step: Step
    align: int = 1


StageBuilder = Callable[[Mapping[str, Any]], list[Stage]]
_BUILDERS: dict[str, StageBuilder] = {}


def register_stages(target: str, builder: StageBuilder) -> None:
    """Teaches the counter a preprocessor, encoder or adapter of your own.

    Args:
        target: The `_target_` as it stands in the configuration.
        builder: Maps that section of the configuration to its stages; must be importable (loader workers pickle it).

    Example:
        >>> register_stages('my_pkg.Halve', lambda cfg: [Stage(lambda width, valid: (width // 2, valid // 2))])
    """
    _BUILDERS[target] = builder


@dataclass(frozen=True, slots=True)
class FrameCounter:
    """Counts the frames that one clip becomes; picklable, pure.

    Args:
        stages: Preprocessor, encoder and adapter, in order.
        chunk_samples: Longest piece of a clip that the encoder gets at once, None for the whole clip.
        min_chunk_samples: A shorter rest is joined to the piece before it.
    """

    stages: tuple[Stage, ...]
    chunk_samples: int | None = None
    min_chunk_samples: int = 1

    def __call__(self, num_samples: int) -> int:
        """Returns the number of frames for one clip of `num_samples` samples at 16 kHz."""
        return sum(self.count(end - begin) for begin, end in self.spans(num_samples))

    def spans(self, num_samples: int) -> list[tuple[int, int]]:
        """Returns the pieces `(begin, end)`, in samples, in which a clip is encoded."""
        return chunk_spans(num_samples, self.chunk_samples, self.min_chunk_samples)

    def batch_key(self, num_samples: int) -> tuple[int, ...]:
        """Returns a key: only clips with equal keys may be padded to one batch without a change of their counts."""
        width = valid = num_samples
        key = []
        for stage in self.stages:
            if stage.align > 1:
                key.append(width % stage.align)
            width, valid = stage.step(width, valid)
        return tuple(key)

    def count(self, num_samples: int) -> int:
        """Returns the number of frames for one piece of a clip, encoded whole."""
        width = valid = num_samples
        for stage in self.stages:
            width, valid = stage.step(width, valid)
        # a module may report more frames than it makes; slicing then ends at the tensor's end
        return max(0, min(width, valid))


def chunk_spans(num_samples: int, chunk_samples: int | None, min_chunk_samples: int = 1) -> list[tuple[int, int]]:
    """Cuts a clip as NeMo's `encoder_chunk_size_seconds` does: equal pieces, a tiny rest joins the piece before it."""
    if chunk_samples is None or num_samples <= max(chunk_samples, min_chunk_samples):
        return [(0, num_samples)]
    size = max(chunk_samples, min_chunk_samples)
    spans = [(begin, min(begin + size, num_samples)) for begin in range(0, num_samples, size)]
    if spans[-1][1] - spans[-1][0] < min_chunk_samples:
        last = spans.pop()
        spans[-1] = (spans[-1][0], last[1])
    return spans


def frame_counter(perception_cfg: Mapping[str, Any], *, chunk_s: float | None = None) -> FrameCounter:
    """Builds the counter for a resolved perception configuration.

    Args:
        perception_cfg: `preprocessor`, `encoder` and `modality_adapter` sections (DictConfig or dict), complete as
            `setup_perception` leaves them.
        chunk_s: NeMo's `encoder_chunk_size_seconds`, None for no chunking.

    Returns:
        A callable from samples at 16 kHz to exactly the number of frames that the perception makes of one clip.

    Raises:
        VtbModelError: A section is missing or its `_target_` is unknown.
        VtbConfigError: `chunk_s` is not positive.
    """
    sections = [_section(perception_cfg, name) for name in ('preprocessor', 'encoder', 'modality_adapter')]
    stages = [stage for name, cfg in sections for stage in _builder(name, cfg)(cfg)]
    if chunk_s is None:
        return FrameCounter(tuple(stages))
    if chunk_s <= 0:
        raise VtbConfigError(
            'The chunk size must be positive.',
            field='encoder_chunk_size_seconds',
            got=chunk_s,
            allowed='seconds > 0, or null for no chunking',
        )
    name, cfg = sections[0]
    mel = _builder(name, cfg)(cfg)
    return FrameCounter(tuple(stages), max(1, round(chunk_s * SAMPLE_RATE)), _min_chunk_samples(mel, _hop(cfg)))


def _section(perception_cfg: Mapping[str, Any], name: str) -> tuple[str, Mapping[str, Any]]:
    cfg = perception_cfg.get(name)
    if cfg is None:
        raise VtbModelError(
            'The perception configuration is incomplete, so frames cannot be counted.',
            field=f'perception.{name}',
            got=cfg,
            allowed='a section with `_target_`',
            remedy='give model.pretrained_asr, or write the section out',
        )
    return name, cfg


def _builder(name: str, cfg: Mapping[str, Any]) -> StageBuilder:
    target = str(cfg.get('_target_'))
    builder = _BUILDERS.get(target)
    if builder is None and target.startswith('nemo.'):
        # NeMo exports one class under several module paths
        builder = _NEMO.get(target.rpartition('.')[2])
    if builder is None:
        raise VtbModelError(
            'It is not known how many frames this module makes.',
            field=f'perception.{name}._target_',
            got=target,
            allowed=sorted([*_NEMO, *_BUILDERS]),
            remedy='tell it once: nemo_vtb.model.frames.register_stages(target, builder)',
        )
    return builder


# ---- preprocessors


def _hop(cfg: Mapping[str, Any]) -> int:
    if not str(cfg.get('_target_')).startswith('nemo.'):
        return WHISPER_HOP
    rate = cfg.get('sample_rate', SAMPLE_RATE)
    stride_s = cfg.get('window_stride', 0.01)
    return int(stride_s * rate) if stride_s else int(cfg.get('n_window_stride') or 0)


def _min_chunk_samples(mel: list[Stage], hop: int) -> int:
    # per-feature normalisation breaks on one mel frame, so NeMo looks for the first length with two
    for count in range(1, 17):
        width = valid = count * hop
        for stage in mel:
            width, valid = stage.step(width, valid)
        if valid >= 2:
            return count * hop
    return 17 * hop


@dataclass(frozen=True, slots=True)
class _Mel:
    n_fft: int
    hop: int
    stft_pad: int
    pad_to: int

    def __call__(self, width: int, valid: int) -> tuple[int, int]:
        frames = (width + 2 * self.stft_pad - self.n_fft) // self.hop
        made = frames + 1
        if self.pad_to > 0:
            made += -made % self.pad_to
        return made, frames if valid > 0 else 0


def _nemo_mel(cfg: Mapping[str, Any]) -> list[Stage]:
    rate = cfg.get('sample_rate', SAMPLE_RATE)
    window_s = cfg.get('window_size', 0.02)
    window = int(window_s * rate) if window_s else int(cfg.get('n_window_size') or 0)
    hop = _hop(cfg)
    if window <= 0 or hop <= 0:
        raise VtbModelError(
            'The mel preprocessor has no window or no stride.',
            field='perception.preprocessor',
            got=f'window {window}, stride {hop} samples',
            allowed='window_size and window_stride in seconds, or n_window_size and n_window_stride in samples',
        )
    n_fft = cfg.get('n_fft') or 2 ** math.ceil(math.log2(window))
    stft_pad = (n_fft - hop) // 2 if cfg.get('exact_pad', False) else n_fft // 2
    pad_to = cfg.get('pad_to', 16)
    if not isinstance(pad_to, int):
        raise VtbModelError(
            'NeMo 3.0 cannot build a mel preprocessor with this padding.',
            field='perception.preprocessor.pad_to',
            got=pad_to,
            allowed='a number of frames, 0 for none',
        )
    return [Stage(_Mel(n_fft, hop, stft_pad, pad_to))]


def _whisper_mel_step(width: int, valid: int) -> tuple[int, int]:
    per_unit = WHISPER_ALIGN // WHISPER_HOP
    units = -(-valid // WHISPER_ALIGN)
    return max(1, -(-width // WHISPER_ALIGN)) * per_unit, units * per_unit


# ---- encoders and adapters


@dataclass(frozen=True, slots=True)
class _Conv:
    """`repeat` convolutions with stride 2 over a time axis padded by `padding` in all."""

    padding: int
    kernel: int
    repeat: int
    stride: int = 2

    def __call__(self, width: int, valid: int) -> tuple[int, int]:
        for _ in range(self.repeat):
            width = (width + self.padding - self.kernel) // self.stride + 1
            valid = (valid + self.padding - self.kernel) // self.stride + 1
        return width, valid


@dataclass(frozen=True, slots=True)
class _Stack:
    """NeMo's stacking: the reported length counts the padding that completes the batch's last stack."""

    factor: int

    def __call__(self, width: int, valid: int) -> tuple[int, int]:
        padding = -width % self.factor
        return (width + padding) // self.factor, (valid + padding) // self.factor


@dataclass(frozen=True, slots=True)
class _Ceil:
    """Every started group of `factor` frames makes one."""

    factor: int

    def __call__(self, width: int, valid: int) -> tuple[int, int]:
        return -(-width // self.factor), -(-valid // self.factor)


@dataclass(frozen=True, slots=True)
class _Pool:
    """NeMo's pooling reduction, whose length formula is applied log2(factor) times though it pools once."""

    factor: int

    def __call__(self, width: int, valid: int) -> tuple[int, int]:
        for _ in range(int(math.log2(self.factor))):
            valid = (valid - self.factor) // self.factor + 1
        return width // self.factor, valid


def _conformer(cfg: Mapping[str, Any]) -> list[Stage]:
    factor = cfg.get('subsampling_factor', 4)
    kind = cfg.get('subsampling', 'striding')
    stages = []
    if kind and factor > 1:
        if kind in ('stacking', 'stacking_norm'):
            stages.append(Stage(_Stack(factor), align=factor))
        elif kind in ('striding', 'dw_striding'):
            # causal convolutions pad kernel - 1 on the left and stride - 1 on the right
            padding = 3 if cfg.get('causal_downsampling', False) else 2
            stages.append(Stage(_Conv(padding, kernel=3, repeat=int(math.log2(factor)))))
        else:
            raise VtbModelError(
                'ConformerEncoder of NeMo 3.0 cannot run this subsampling.',
                field='subsampling',
                got=kind,
                allowed=['striding', 'dw_striding', 'stacking', 'stacking_norm'],
            )
    reduction, reduction_factor = cfg.get('reduction'), cfg.get('reduction_factor', 1)
    if reduction and reduction_factor > 1:
        if reduction == 'pooling':
            stages.append(Stage(_Pool(reduction_factor)))
        else:
            stages.append(Stage(_Conv(2, kernel=3, repeat=int(math.log2(reduction_factor)))))
    return stages


_NEMO: dict[str, StageBuilder] = {
    'AudioToMelSpectrogramPreprocessor': _nemo_mel,
    'ConformerEncoder': _conformer,
    'IdentityConnector': lambda cfg: [],
    'MultiLayerProjectionConnector': lambda cfg: [],
}
register_stages('nemo_vtb.model.whisper.WhisperMelPreprocessor', lambda cfg: [Stage(_whisper_mel_step)])
register_stages('nemo_vtb.model.whisper.WhisperEncoder', lambda cfg: [Stage(_Ceil(2))])
register_stages(
    'nemo_vtb.model.perception.StackedMLPAdapter', lambda cfg: [Stage(_Ceil(cfg.get('subsampling_factor', 4)))]
)
# the bound: how many frames are merged or dropped is known only when the clip was heard
register_stages(
    'nemo_vtb.model.aligned_adapter.AlignedAdapter', lambda cfg: [Stage(_Ceil(cfg.get('subsampling_factor', 4)))]
)
