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
"""Builds the speech side of the model (encoder, adapter, projection), runs it, and puts its frames into packed rows.

Letters: A clips, S samples, F frames of all clips together, T frames of one clip, D adapter width, H LLM width.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from nemo.collections.asr.models import ASRModel
from nemo.collections.asr.modules import ConformerEncoder
from nemo.collections.speechlm2.modules.perception import AudioPerceptionModule
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from nemo.utils import logging
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from nemo_vtb.checkpoint.foreign_limits import check_sizes
from nemo_vtb.checkpoint.nemo_file import SafeConnector
from nemo_vtb.config.schema import PerceptionKeys
from nemo_vtb.constants import SAMPLE_RATE
from nemo_vtb.data.collate import PackedRow
from nemo_vtb.errors import VtbConfigError, VtbModelError
from nemo_vtb.model.aligned_adapter import AlignedAdapterFile
from nemo_vtb.model.ctc import Scores, keeping_scores
from nemo_vtb.model.frames import FrameCounter, frame_counter
from nemo_vtb.model.whisper import is_whisper_folder, load_whisper_encoder, time_mask, whisper_sections

ADAPTER_INITS = ('match_embeddings', 'default', 'aligned')
# clips that differ by less than this may share a batch whatever their ratio: a second of padding is cheap
SIMILAR_SAMPLES = SAMPLE_RATE


# ---- building


def setup_perception(
    model_cfg: DictConfig,
    hidden_size: int,
    embedding_std: float,
    *,
    pretrained: bool,
    embeddings: Callable[[Tensor], Tensor] | None = None,
) -> AudioPerceptionModule:
    """Builds NeMo's perception module from the model's configuration and completes that configuration in place.

    `model_cfg.pretrained_asr` may be a NeMo ASR model (`.nemo` file or name) or a HF Whisper folder. Keys that the
    user gave under `perception.encoder` win over those of the checkpoint, as in NeMo. Afterwards
    `model_cfg.perception` holds everything needed to build the same module without the checkpoint.

    Args:
        model_cfg: The model's section; `perception` is completed in place.
        hidden_size: Width H of the LLM.
        embedding_std: Standard deviation of the LLM's embedding table, the scale that speech frames start at.
        pretrained: Load weights. When False, sections already complete are used without touching `pretrained_asr`.
        embeddings: Token ids (n,) -> their embeddings (n, H), for `adapter_init: aligned`.

    Returns:
        The module in training mode.

    Raises:
        VtbConfigError: `pretrained_asr` is missing though weights are wanted, or `adapter_init` is unknown.
        VtbModelError: The checkpoint is missing, corrupt or does not fit; encoder and adapter widths differ.
        VtbCheckpointError: `init_adapter` was aligned with another LLM or encoder.
    """
    init = model_cfg.perception.get('adapter_init', PerceptionKeys.adapter_init)
    if init not in ADAPTER_INITS:
        raise VtbConfigError(
            'Unknown way to initialise the adapter.',
            field='perception.adapter_init',
            got=init,
            allowed=ADAPTER_INITS,
        )
    weights = _resolve_sections(model_cfg, pretrained)
    aligned = None
    if init == 'aligned' and weights is not None:
        aligned = AlignedAdapterFile.read(model_cfg.perception.get('init_adapter'))
        with open_dict(model_cfg.perception):
            model_cfg.perception.modality_adapter = dict(aligned.section)
    _complete(model_cfg.perception, hidden_size)
    perception = _build(model_cfg.perception)
    if weights is not None:
        _load_encoder(perception, weights, str(model_cfg.pretrained_asr))
    if aligned is not None:
        assert embeddings is not None
        aligned.load_into(perception, embeddings)
    if init == 'match_embeddings':
        _match_embeddings(perception, embedding_std)
    return perception.train()


def build_encoder(model_cfg: DictConfig) -> AudioPerceptionModule:
    """NeMo's perception module without an adapter: `encode` then returns the frames of the pretrained encoder.

    Raises:
        VtbModelError: The encoder is missing or corrupt.
    """
    cfg = OmegaConf.create({'perception': {}, 'pretrained_asr': model_cfg.get('pretrained_asr')})
    if (given := (model_cfg.get('perception') or {}).get('encoder')) is not None:
        cfg.perception.encoder = given
    weights = _resolve_sections(cfg, pretrained=True)
    assert weights is not None
    with open_dict(cfg.perception):
        cfg.perception.modality_adapter = {
            '_target_': 'nemo.collections.speechlm2.modules.perception.IdentityConnector'
        }
        cfg.perception.output_dim = _width(cfg.perception.encoder)
        if str(cfg.perception.encoder._target_).endswith('.ConformerEncoder'):
            cfg.perception.encoder.sync_max_audio_length = False
    perception = _build(cfg.perception)
    _load_encoder(perception, weights, str(cfg.pretrained_asr))
    return perception.eval().requires_grad_(False)


def _resolve_sections(model_cfg: DictConfig, pretrained: bool) -> dict[str, Tensor] | None:
    """Fills preprocessor and encoder sections; returns the weights to load (`encoder.`, `preprocessor.`) or None."""
    cfg = model_cfg.perception
    complete = all(cfg.get(name) is not None and '_target_' in cfg[name] for name in ('preprocessor', 'encoder'))
    if complete and not pretrained:
        return None
    source = model_cfg.get('pretrained_asr')
    if source is None:
        raise VtbConfigError(
            'There is no speech encoder to build from.',
            field='pretrained_asr',
            got=source,
            allowed='a .nemo file, the name of a NeMo ASR model, or a HF Whisper folder',
            remedy='give it, or set pretrained_weights=false and write perception.preprocessor and .encoder out',
        )
    sections: dict[str, Any]
    weights: dict[str, Tensor] | None = None
    if is_whisper_folder(source):
        sections = whisper_sections(source)
        files = Path(source).glob('*.safetensors')
        check_sizes('', sections, sum(file.stat().st_size for file in files), what='Whisper folder')
        if pretrained:
            weights = {f'encoder.{key}': value for key, value in load_whisper_encoder(source).items()}
    else:
        asr = restore_asr(str(source))
        sections = {name: OmegaConf.to_container(asr.cfg[name], resolve=True) for name in ('preprocessor', 'encoder')}
        weights = asr.state_dict() if pretrained else None
    given: Any = OmegaConf.to_container(cfg.encoder, resolve=True) if cfg.get('encoder') is not None else {}
    sections['encoder'].update({key: value for key, value in given.items() if value is not None})
    with open_dict(cfg):
        cfg.preprocessor, cfg.encoder = sections['preprocessor'], sections['encoder']
    return weights


def restore_asr(source: str) -> ASRModel:
    """An ASR model from a `.nemo` file, read with our own care, or by the name that NeMo downloads it by.

    Raises:
        VtbModelError: There is none, or it cannot be restored.
    """
    path = Path(source)
    if (path.suffix == '.nemo' and not path.is_file()) or path.is_dir() or path.is_absolute() and not path.exists():
        raise VtbModelError(
            'There is no speech encoder at this path.',
            field='pretrained_asr',
            got=source,
            allowed='a .nemo file, the name of a NeMo ASR model, or a HF Whisper folder (with config.json)',
            remedy='check the path, or fetch the embedded Whisper with `vtb assets`',
        )
    try:
        read = ASRModel.restore_from if path.is_file() else ASRModel.from_pretrained
        model = read(source, map_location='cpu', save_restore_connector=SafeConnector())
        model._save_restore_connector = SaveRestoreConnector()  # ours reads, and does not write
        return model.eval()
    except Exception as error:  # NeMo, tar, torch and the hub raise a dozen types here
        raise VtbModelError(
            f'The NeMo ASR model cannot be restored: {type(error).__name__}: {error}.',
            field='pretrained_asr',
            got=source,
            allowed='a .nemo file of a NeMo ASR model, or the name of one that can be downloaded',
            remedy='copy the file again from its source; without a network give the path of a local file',
        ) from error


def _complete(cfg: DictConfig, hidden_size: int) -> None:
    """Fills in the widths that follow from the others and checks those that are given."""
    adapter = cfg.get('modality_adapter')
    if adapter is None or '_target_' not in adapter:
        raise VtbConfigError(
            'The perception has no adapter.',
            field='perception.modality_adapter',
            got=adapter,
            allowed='a section with `_target_`, e.g. nemo.collections.asr.modules.ConformerEncoder',
        )
    with open_dict(cfg):
        cfg.output_dim = hidden_size
        if 'output_dim' in adapter:
            adapter.output_dim = hidden_size
        for section in (cfg.encoder, adapter):
            # ranks encode different numbers of groups, so a collective inside the forward pass would hang
            if str(section._target_).endswith('.ConformerEncoder'):
                section.sync_max_audio_length = False
        encoder_width = _width(cfg.encoder)
        if encoder_width is None:
            return
        if 'feat_in' in adapter or adapter._target_.endswith(('.ConformerEncoder', '.StackedMLPAdapter')):
            if adapter.get('feat_in') is None:
                adapter.feat_in = encoder_width
            _check_width('perception.modality_adapter.feat_in', adapter.feat_in, encoder_width)
        elif adapter._target_.endswith('.IdentityConnector'):
            # without d_model NeMo makes no projection, so the encoder must speak the LLM's width itself
            name = 'd_model' if 'd_model' in adapter else 'output_dim'
            _check_width(f'perception.modality_adapter.{name}', adapter.get('d_model', hidden_size), encoder_width)


def _width(encoder: DictConfig) -> int | None:
    feat_out = encoder.get('feat_out', -1)
    return feat_out if feat_out is not None and feat_out > 0 else encoder.get('d_model')


def _check_width(field: str, got: int, encoder_width: int) -> None:
    if got != encoder_width:
        raise VtbModelError(
            f'The adapter expects frames of width {got}, the encoder makes frames of width {encoder_width}.',
            field=field,
            got=got,
            allowed=encoder_width,
            remedy=f'set it to {encoder_width}; feat_in may be left out, it is then taken from the encoder',
        )


def _build(cfg: DictConfig) -> AudioPerceptionModule:
    try:
        return AudioPerceptionModule(cfg)
    except VtbModelError:
        raise
    except Exception as error:  # Hydra wraps whatever a constructor raised
        cause = error.__cause__ if isinstance(error.__cause__, VtbModelError) else error
        if isinstance(cause, VtbModelError):
            raise cause from error
        raise VtbModelError(
            f'The speech encoder or its adapter cannot be built: {type(error).__name__}: {error}.',
            field='perception',
            got={name: cfg[name].get('_target_') for name in ('preprocessor', 'encoder', 'modality_adapter')},
            allowed='sections whose keys the named classes accept',
        ) from error


def _load_encoder(perception: AudioPerceptionModule, weights: dict[str, Tensor], source: str) -> None:
    """Loads encoder (and preprocessor buffer) weights; every weight of the encoder must find its place."""
    inner = 'encoder_multilayer.encoder.' if hasattr(perception, 'encoder_multilayer') else 'encoder.'
    state = {
        inner + key[len('encoder.') :] if key.startswith('encoder.') else key: value
        for key, value in weights.items()
        if key.startswith(('encoder.', 'preprocessor.'))
    }
    try:
        result = perception.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise VtbModelError(
            f'The encoder weights do not fit the configuration: {error}',
            field='perception.encoder',
            got=source,
            allowed='shapes as in the checkpoint',
            remedy='remove the keys of perception.encoder that override its sizes',
        ) from error
    missing = [key for key in result.missing_keys if key.startswith(inner)]
    if missing:
        raise VtbModelError(
            f'{len(missing)} weights of the encoder are not in the checkpoint.',
            field='pretrained_asr',
            got=f'{source}: without {missing[:4]}',
            allowed='a checkpoint of the same encoder',
            remedy='remove the keys of perception.encoder that override its layout',
        )
    if result.unexpected_keys:
        logging.warning(
            f'{source}: {len(result.unexpected_keys)} encoder weights unused: {result.unexpected_keys[:4]}'
        )


def _match_embeddings(perception: AudioPerceptionModule, embedding_std: float) -> None:
    """Starts speech frames at the scale of the LLM's embeddings, where the adapter's output has unit variance."""
    adapter, proj = perception.modality_adapter, perception.proj
    normed = getattr(adapter, 'ends_in_layer_norm', False) or (
        isinstance(adapter, ConformerEncoder) and adapter.out_proj is None and adapter.reduction_position != -1
    )
    if not isinstance(proj, nn.Linear) or not normed:
        logging.info('adapter_init: the adapter does not end in a layer norm, its projection keeps the default init')
        return
    nn.init.normal_(proj.weight, std=embedding_std / math.sqrt(proj.in_features))
    nn.init.zeros_(proj.bias)


# ---- running


def encode(
    perception: AudioPerceptionModule,
    audios: Tensor,
    audio_lens: Tensor,
    *,
    max_group_s: float | None = 120.0,
    chunk_s: float | None = None,
    heard: list[Scores] | None = None,
) -> tuple[Tensor, Tensor]:
    """Turns clips into adapter frames, without padding between them.

    Clips of similar length are encoded together; the number of frames of a clip never depends on the others.

    Args:
        perception: As `setup_perception` builds it.
        audios: (A, S) float32 at 16 kHz, padded; A may be 0.
        audio_lens: (A,) samples, best on the host.
        max_group_s: Bound on clips x longest, in seconds, of one forward pass (a longer clip goes alone). None: as
            few passes as possible, for strategies in which every rank must make the same number (FSDP).
        chunk_s: NeMo's `encoder_chunk_size_seconds`: longer clips are encoded in pieces. None: whole.
        heard: Gets what an aligned adapter scores in each pass.

    Returns:
        (F, H) frames of all clips in order, and on the host (A,) int64 frames of each: as counted, or fewer where the
        adapter `compresses`.

    Raises:
        VtbModelError: The module makes another number of frames than `frame_counter` says.
    """
    counter = frame_counter(perception.cfg, chunk_s=chunk_s)
    lengths = audio_lens.tolist()
    pieces = [(clip, *span) for clip, length in enumerate(lengths) for span in counter.spans(length)]
    sizes = [end - begin for _, begin, end in pieces]
    counts = [counter.count(size) for size in sizes]
    passes: list[tuple[Tensor, Tensor]] = []
    groups = list(_groups(sizes, counter, max_group_s))
    for group in groups:
        signal = pad_sequence([audios[clip, begin:end] for clip, begin, end in (pieces[i] for i in group)], True)
        # copied without waiting for what the device has to do before
        signal_lens = torch.tensor([sizes[index] for index in group]).to(audios.device, non_blocking=True)
        with keeping_scores(perception.modality_adapter, heard, [pieces[i][0] for i in group]):
            passes.append(perception(input_signal=signal, input_signal_length=signal_lens))
    order = [index for group in groups for index in group]
    made = _checked_counts(passes, [counts[index] for index in order], perception)
    counts = [count for _, count in sorted(zip(order, made, strict=True))]
    rows = (row for frames, _ in passes for row in frames)
    encoded = {index: row[: counts[index]] for index, row in zip(order, rows, strict=True)}
    clip_counts = [0] * len(lengths)
    for (clip, _, _), count in zip(pieces, counts, strict=True):
        clip_counts[clip] += count
    frame_lens = torch.tensor(clip_counts, dtype=torch.int64)
    if not pieces:
        return next(perception.parameters()).new_zeros(0, perception.cfg.output_dim), frame_lens
    return torch.cat([encoded[index] for index in range(len(pieces))]), frame_lens


def compresses(perception: AudioPerceptionModule) -> bool:
    """Whether the adapter may make fewer frames of a clip than were counted for it, which is then a bound."""
    return bool(getattr(perception.modality_adapter, 'compresses', False))


def _checked_counts(
    passes: Sequence[tuple[Tensor, Tensor]], expected: list[int], perception: AudioPerceptionModule
) -> list[int]:
    # one wait for the device, after all passes were launched
    got: list[int] = torch.cat([lens.clamp(max=frames.shape[1]) for frames, lens in passes]).tolist() if passes else []
    fewer = compresses(perception) and all(1 <= g <= e for g, e in zip(got, expected, strict=True))
    if got != expected and not fewer:
        raise VtbModelError(
            'The perception made another number of frames than was counted for the packed row.',
            field='perception',
            got=got,
            allowed=expected,
            remedy=f'correct the stages of {perception.cfg.encoder.get("_target_")} in nemo_vtb.model.frames',
        )
    return got


def _groups(lengths: list[int], counter: FrameCounter, max_group_s: float | None) -> Iterator[list[int]]:
    """Yields index groups of similar length, longest first, each small enough when padded to its longest."""
    limit = math.inf if max_group_s is None else max_group_s * SAMPLE_RATE
    order = sorted(range(len(lengths)), key=lambda index: (counter.batch_key(lengths[index]), -lengths[index]))
    group: list[int] = []
    for index in order:
        if group and not _fits(lengths[group[0]], lengths[index], len(group), counter, limit):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _fits(longest: int, length: int, members: int, counter: FrameCounter, limit: float) -> bool:
    similar = limit == math.inf or longest - length <= max(longest // 4, SIMILAR_SAMPLES)
    return similar and (members + 1) * longest <= limit and counter.batch_key(longest) == counter.batch_key(length)


def silent_forward(perception: AudioPerceptionModule) -> Tensor:
    """Runs a short silent clip with weight zero, so that a batch without audio gives the perception gradients too.

    Under DDP every trainable parameter must take part in every step on every rank. Batch statistics, dropout and the
    random state are left alone.

    Returns:
        float32 scalar, always 0, attached to every parameter that a real clip would use.
    """
    device = next(perception.parameters()).device
    # four frames, and never so short that a normalisation sees a single mel frame
    samples = math.ceil(4 * perception.token_equivalent_duration * SAMPLE_RATE)
    signal = torch.zeros(1, samples, device=device)
    with evaluating(perception):
        frames, _ = perception(input_signal=signal, input_signal_length=torch.tensor([samples], device=device))
    return 0.0 * frames.float().sum()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, put back part by part: what is frozen may have been in it all the time."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def splice(text_embeds: Tensor, frames: Tensor, positions: Tensor) -> Tensor:
    """Put audio frames into a row of text embeddings.

    Args:
        text_embeds: (T, H) embeddings of the row's tokens; the values at `positions` are ignored.
        frames: (F, H) output of the perception module, all clips one after the other, without padding.
        positions: (F,) int64, where each frame stands in the row.

    Returns:
        (T, H) in the dtype of `text_embeds`.

    Raises:
        VtbModelError: The encoder made another number of frames than the data pipeline counted.
    """
    if frames.shape[0] != positions.shape[0]:
        raise _another_count(frames.shape[0], positions.shape[0])
    if frames.shape[0] == 0:
        return text_embeds
    return text_embeds.index_copy(0, positions, frames.to(text_embeds.dtype))  # (T, H)


def _another_count(made: Any, counted: Any) -> VtbModelError:
    return VtbModelError(
        'The encoder made another number of frames than the data pipeline counted.',
        field='perception',
        got=f'{made} frames for {counted} positions',
        allowed='the numbers of the row',
        remedy='build the data module with the frame counter of this very model (model.frames)',
    )


# ---- a light adapter


class StackedMLPAdapter(nn.Module):
    """Stacks frames and maps them by Linear, GELU, Linear, LayerNorm: the light adapter for small set-ups.

    Args:
        feat_in: Width of the encoder's frames.
        d_model: Width of the output.
        subsampling_factor: Frames stacked to one; the last stack is completed with zeros.
        hidden: Inner width, None for `d_model`.
        dropout: Dropout behind the GELU.
    """

    ends_in_layer_norm = True

    def __init__(
        self,
        feat_in: int,
        d_model: int,
        subsampling_factor: int = 4,
        hidden: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.d_model, self.subsampling_factor = d_model, subsampling_factor
        self.layers = nn.Sequential(
            nn.Linear(feat_in * subsampling_factor, hidden or d_model),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden or d_model, d_model),
            nn.LayerNorm(d_model),
        )

    def forward(self, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, feat_in, T) with (B,) valid frames to (B, d_model, ceil(T / factor)) and (B,) int64."""
        width = audio_signal.shape[-1]
        valid = time_mask(length, width)
        frames = audio_signal.masked_fill(~valid.unsqueeze(1), 0.0).transpose(1, 2)  # (B, T, feat_in)
        frames = F.pad(frames, (0, 0, 0, -width % self.subsampling_factor))
        frames = frames.unflatten(1, (-1, self.subsampling_factor)).flatten(2)
        stacked_len = torch.div(length + self.subsampling_factor - 1, self.subsampling_factor, rounding_mode='floor')
        return self.layers(frames).transpose(1, 2), stacked_len.to(torch.int64)


# ---- the clips of a row shared among tensor-parallel ranks


def encode_row(
    perception: Any,
    row: PackedRow,
    group: dist.ProcessGroup | None,
    *,
    chunk_s: float | None = None,
    heard: list[Scores] | None = None,
) -> tuple[PackedRow, Tensor]:
    """Encode the clips of a packed row.

    Args:
        perception: As `setup_perception` builds it.
        row: With at least one clip.
        group: Ranks that have the same row and share its clips; None: this rank encodes all of them.
        chunk_s: NeMo's `encoder_chunk_size_seconds`.
        heard: Gets what an aligned adapter scores, where this rank encodes all.

    Returns:
        The row, shorter where the adapter compresses, and (F, H) frames for its `audio_positions`.

    Raises:
        VtbModelError: The frames of the row were counted by another model.
    """
    if group is None:
        frames, frame_lens = encode(perception, row.audios, row.audio_lens, chunk_s=chunk_s, heard=heard)
    else:
        clips = (row.audios, row.audio_lens, row.frame_lens)
        frames, frame_lens = encode_shared(perception, *clips, group, chunk_s=chunk_s)
    if not compresses(perception):
        return row, frames
    if bool((frame_lens > row.frame_lens).any()):
        raise _another_count(frame_lens.tolist(), row.frame_lens.tolist())
    return row.with_frames(frame_lens), frames


def encode_shared(
    perception: Any,
    audios: Tensor,
    audio_lens: Tensor,
    frame_lens: Tensor,
    group: dist.ProcessGroup,
    *,
    chunk_s: float | None = None,
) -> tuple[Tensor, Tensor]:
    """What `encode` returns, each rank of the group having encoded its part of the clips.

    The gradient of the frames must be the same on all ranks of the group, as it is in front of a tensor-parallel LLM.
    Each rank then has the gradient of its own clips, and the perception's gradients must be summed over the group.

    Args:
        perception: As `setup_perception` builds it.
        audios: (A, S) float32 at 16 kHz, padded; the same on all ranks.
        audio_lens: (A,) samples.
        frame_lens: (A,) frames that were counted for each clip.
        group: The ranks.
        chunk_s: NeMo's `encoder_chunk_size_seconds`.

    Returns:
        (F, H) frames of all clips in order, and (A,) int64 frames of each.
    """
    parts = share_clips(audio_lens.tolist(), dist.get_world_size(group))
    mine = parts[dist.get_rank(group)]
    chosen = torch.tensor(mine, dtype=torch.int64)
    clips = audios[chosen.to(audios.device)]
    with _own_random(dist.get_rank(group)):
        own, own_lens = encode(perception, clips, audio_lens[chosen], chunk_s=chunk_s)  # (F_own, H)
    if torch.is_grad_enabled() and not mine and any(p.requires_grad for p in perception.parameters()):
        own.requires_grad_()  # else this rank would leave out the collectives of the others' backward pass
    # under autocast a rank's type would depend on whether it had a clip
    own = own.to(next(perception.parameters()).dtype)
    if compresses(perception):  # each rank knows its own clips only
        shared = torch.zeros_like(frame_lens).index_copy(0, chosen, own_lens).to(audios.device)  # NCCL wants it there
        dist.all_reduce(shared, group=group)
        frame_lens = shared.cpu()
    counts = frame_lens.tolist()
    sizes = [sum(counts[clip] for clip in part) for part in parts]
    gathered: Tensor = _Gather.apply(own, sizes, group)  # (F, H), rank after rank
    return gathered.index_select(0, _places(parts, counts).to(gathered.device)), frame_lens


def share_clips(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Clip numbers for each rank, so that all have about the same to do: longest first, to whoever has least."""
    parts: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for clip in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rank = min(range(ranks), key=lambda r: (loads[r], r))
        parts[rank].append(clip)
        loads[rank] += lengths[clip]
    return parts


def _places(parts: Sequence[Sequence[int]], counts: Sequence[int]) -> Tensor:
    """(F,) where each frame, in the order of the clips, stands in the order of the ranks."""
    begins, begin = dict[int, int](), 0
    for clip in (clip for part in parts for clip in part):
        begins[clip] = begin
        begin += counts[clip]
    return torch.cat([torch.arange(begins[clip], begins[clip] + counts[clip]) for clip in range(len(counts))])


@contextmanager
def _own_random(rank: int) -> Iterator[None]:
    """Random numbers of this rank's own; afterwards the generators of all ranks stand at the same place again."""
    seed = int(torch.randint(2**31, (1,)))
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.manual_seed(seed + rank)
        yield


class _Gather(torch.autograd.Function):
    """(F_own, H) of each rank to (F, H) on all of them; backwards each rank takes its own rows."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
        rank, longest = dist.get_rank(group), max(sizes)
        ctx.rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        padded = own.new_zeros(longest, own.shape[1])
        padded[: own.shape[0]] = own
        out = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(out, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(out, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0][ctx.rows].contiguous(), None, None
