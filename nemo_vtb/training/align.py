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
"""Teaches an adapter to hear in the LLM's embeddings, by CTC, without a single pass of the LLM.

The encoder is frozen, so that its frames are computed once and gone over several times. Everything random is a
function of (seed, step): a run that was killed and resumed makes the same adapter.

Letters: B clips, T encoder frames of a clip, S frames after stacking, D encoder width, P pieces.
"""

import hashlib
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import jiwer
import torch
from nemo.collections.common.tokenizers import AutoTokenizer
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from nemo_vtb.backbone.spec import BackboneSpec
from nemo_vtb.checkpoint.manifest import weights_digest
from nemo_vtb.config.schema import AlignKeys, DataSettings
from nemo_vtb.data.counting import Meter
from nemo_vtb.data.index import open_source
from nemo_vtb.data.normalizers import get_normalizer, normalizer_for
from nemo_vtb.data.sources import SourceSpec, eval_specs, train_specs
from nemo_vtb.data.template import ChatRenderer
from nemo_vtb.errors import VtbDataError
from nemo_vtb.io import atomic_path
from nemo_vtb.model.aligned_adapter import (
    ADAPTER_OPTIONS,
    ALIGNED_TARGET,
    AlignedAdapter,
    AlignedAdapterFile,
    embeddings_digest,
    encoder_digest,
    greedy_pieces,
)
from nemo_vtb.model.ctc import ctc_nll, frames_needed, spoken_ids
from nemo_vtb.model.frames import frame_counter
from nemo_vtb.model.perception import build_encoder
from nemo_vtb.training.transcribed_clips import Clip, Features, read_clips

_NEIGHBOURS = 600
"""Clips among which batches of similar length are formed."""
_STATISTICS = 300
"""Clips from which mean and standard deviation of the encoder's frames are taken."""
_LETTERS = 'abcdefghijklmnopqrstuvwxyz'


class Alignment:
    """One run: reads the clips, encodes them, trains the adapter, measures it, writes its file.

    Args:
        cfg: An `AlignConfig`, assets resolved.
        folder: Of the run: features, checkpoint and the adapter's file.
        console: Where progress is shown; None: nowhere.

    Raises:
        VtbDataError: There is no clip to learn from; the error lists why clips were left aside.
        VtbModelError: The LLM or the encoder is missing or corrupt.
    """

    def __init__(self, cfg: DictConfig, folder: str | Path, console: Console | None = None) -> None:
        self.folder, self.console = Path(folder), console or Console(quiet=True)
        keys: Any = OmegaConf.to_container(cfg.align, resolve=True)
        self.keys = AlignKeys(**keys)
        self.seed, self.names = int(cfg.seed), {'llm': cfg.model.pretrained_llm, 'encoder': cfg.model.pretrained_asr}
        self.tokenizer = AutoTokenizer(str(cfg.model.pretrained_llm), use_fast=True).tokenizer
        self.encoder = build_encoder(cfg.model)
        self.encoder_digest = encoder_digest(self.encoder)
        self.before = AlignedAdapterFile.read(self.keys.init_adapter) if self.keys.init_adapter else None
        self.spec = BackboneSpec.plan(str(cfg.model.pretrained_llm))
        settings = DataSettings.from_config(cfg.data)
        self.train, self.aside = self._read(settings, train_specs(settings))
        self._require(self.train)
        held_out = {
            name: self._read(settings, specs)[0] for name, specs in eval_specs(settings, 'validation_ds').items()
        }
        with self._progress() as progress:
            self.features = self._features(self.train, progress)
            self.held_out = {
                name: (clips, self._features(clips, progress)) for name, clips in held_out.items() if clips
            }
        self.pieces = self._pieces()
        self.number = {piece: number for number, piece in enumerate(self.pieces)}
        self.clips, self.targets = self._learnable()
        self.adapter = self._first_adapter()
        self.step, self.losses = 0, list[float]()

    # ---- what is learned from

    def _read(self, settings: DataSettings, specs: Sequence[SourceSpec]) -> tuple[list[Clip], Counter[str]]:
        # the frames that the joint run will count, so that both share one index
        adapter = {'_target_': ALIGNED_TARGET} | self._section(1)
        cfg = dict(self.encoder.cfg) | {'modality_adapter': adapter}
        meter = Meter.of(settings, ChatRenderer(self.tokenizer), frame_counter(cfg))
        return read_clips(open_source(spec, settings, meter) for spec in specs)

    def _features(self, clips: Sequence[Clip], progress: Progress) -> Features:
        return Features(self.folder, self.encoder, self.encoder_digest, clips, progress)

    def _ids(self, text: str) -> list[int]:
        return spoken_ids(self.tokenizer, text)

    def _pieces(self) -> list[int]:
        """The tokens that occur in the transcripts, and single letters for words that do not."""
        unknown = self.tokenizer.unk_token_id
        texts = {clip.text for clip in self.train} | {form for c in _LETTERS for form in (c, f'x{c}')}
        found = {piece for text in texts for piece in self._ids(text)}
        found |= set(self.before.state['pieces'].tolist()) if self.before else set()
        return sorted(found - {unknown, *self.tokenizer.all_special_ids})

    def _learnable(self) -> tuple[list[int], list[list[int]]]:
        """Numbers of the clips that CTC can be taught, and their targets."""
        chosen, targets = [], []
        for index, clip in enumerate(self.train):
            ids = self._ids(clip.text)
            frames = -(-self.features.lengths[index] // self.keys.subsampling_factor)
            if any(piece not in self.number for piece in ids):
                self.aside["a script that the LLM's tokens do not have"] += 1
            elif frames_needed(ids) > frames:
                self.aside['more tokens than frames'] += 1
            else:
                chosen.append(index)
                targets.append([self.number[piece] + 1 for piece in ids])
        self._require(chosen)
        return chosen, targets

    def _require(self, clips: Sequence[Any]) -> None:
        if not clips:
            raise VtbDataError(
                'There is no recording with a transcript to learn from.',
                field='data.train_ds.input_cfg',
                got=', '.join(f'{reason}: {n}' for reason, n in self.aside.items() if n) or 'no recordings',
                allowed='recordings with a transcript, in the script of the LLM',
                remedy='give ASR manifests, or conversations whose recordings have `text`',
            )

    def _section(self, num_pieces: int) -> dict[str, Any]:
        widths = {'feat_in': int(self.encoder.cfg.output_dim), 'output_dim': self.spec.hidden_size}
        options = {name: getattr(self.keys, name) for name in ADAPTER_OPTIONS}
        if self.before:  # its sizes, not those of the configuration
            options |= {name: value for name, value in self.before.manifest['adapter'].items() if name in options}
        return widths | {'num_pieces': num_pieces} | options

    def _first_adapter(self) -> AlignedAdapter:
        torch.manual_seed(self.seed)
        adapter = AlignedAdapter(**self._section(len(self.pieces)))
        adapter.set_pieces(self.pieces, self.spec.embeddings(torch.tensor(self.pieces)))
        if self.before:
            self.before.start(adapter, self.spec.embeddings, self.encoder_digest)
            return adapter
        some = random.Random(self.seed).sample(self.clips, min(_STATISTICS, len(self.clips)))
        frames = torch.cat([self.features[index] for index in some])  # (T, D)
        adapter.mean.copy_(frames.mean(0))
        adapter.std.copy_(frames.std(0).clamp(min=1e-3))
        return adapter

    # ---- training

    def run(self) -> dict[str, float]:
        """Train to the end, from the last checkpoint if there is one; returns WER in percent of each held-out set."""
        batches = [batch for number in range(self.keys.passes) for batch in self._batches(number)]
        optimizer = torch.optim.AdamW(
            self.adapter.parameters(), lr=self.keys.lr, betas=(0.9, 0.98), weight_decay=self.keys.weight_decay
        )
        self._resume(optimizer)
        wer = dict[str, float]()
        with self._progress() as progress:
            task = progress.add_task('aligning', total=len(batches), completed=self.step)
            while self.step < len(batches):
                for group in optimizer.param_groups:
                    group['lr'] = self.keys.lr * _schedule(self.step, len(batches))
                self.losses.append(self._train(batches[self.step], optimizer))
                self.step += 1
                done = self.step == len(batches)
                if done or self.step % self.keys.check_every == 0:
                    wer = self.measure()
                    self._save(optimizer)
                recent = sum(self.losses[-50:]) / len(self.losses[-50:])
                heard = f'hearing: WER {sum(wer.values()) / len(wer):.0f} % (adapter)' if wer else ''
                line = f'loss {recent:.2f}  {heard}'
                progress.update(task, completed=self.step, description=line)
                if self.step % self.keys.check_every == 0 and not self.console.is_terminal:  # a bar is no use in a log
                    self.console.print(f'step {self.step} of {len(batches)}  {line}', highlight=False)
        return wer or self.measure()

    def _batches(self, number: int) -> list[list[int]]:
        """Positions in `self.clips`, in batches of similar length, for one pass; the same whenever it is asked."""
        rng = random.Random(f'{self.seed} {number}')
        repeats = self.keys.repeats or {}
        order = [p for p, index in enumerate(self.clips) for _ in range(repeats.get(self.train[index].source, 1))]
        rng.shuffle(order)
        batches: list[list[int]] = []
        for begin in range(0, len(order), _NEIGHBOURS):
            batch: list[int] = []
            for position in sorted(order[begin : begin + _NEIGHBOURS], key=self._frames_of):
                if batch and (len(batch) + 1) * self._frames_of(position) > self.keys.batch_frames:
                    batches.append(batch)
                    batch = []
                batch.append(position)
            batches += [batch] if batch else []
        rng.shuffle(batches)
        return batches

    def _frames_of(self, position: int) -> int:
        return -(-self.features.lengths[self.clips[position]] // self.keys.subsampling_factor)

    def _train(self, batch: Sequence[int], optimizer: torch.optim.Optimizer) -> float:
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        self.adapter.train()
        frames = [self._augmented(self.features[self.clips[position]]) for position in batch]
        with torch.autocast('cpu', torch.bfloat16, enabled=self.keys.precision == 'bf16-mixed'):
            logits, lengths = self.adapter.logits(*_padded(frames))
        targets = [self.targets[position] for position in batch]
        loss = ctc_nll(logits, lengths, targets) / sum(map(len, targets))
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.adapter.parameters(), 1.0)
        if torch.isfinite(norm):
            optimizer.step()
        return float(loss.detach())

    def _augmented(self, frames: Tensor) -> Tensor:
        """Time masks and noise on (T, D) frames."""
        mean, std = self.adapter.mean, self.adapter.std
        frames = frames.clone()
        for _ in range(max(1, len(frames) // 100)):
            width = int(torch.randint(2, 13, ()))
            begin = int(torch.randint(0, max(1, len(frames) - width), ()))
            if torch.rand(()) < self.keys.time_mask:
                frames[begin : begin + width] = mean
        if torch.rand(()) < 0.5:
            frames += torch.randn_like(frames) * std * torch.rand(()) * self.keys.noise
        return frames

    # ---- measuring

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """WER in percent of greedy CTC on each held-out set: the adapter's own hearing, no LLM."""
        self.adapter.eval()
        found = {}
        for name, (clips, features) in self.held_out.items():
            heard = [self.transcribe(features[index]) for index in range(len(clips))]
            forms = [get_normalizer(normalizer_for(clip.lang)) for clip in clips]
            pairs = [(form(clip.text), form(text)) for form, clip, text in zip(forms, clips, heard, strict=True)]
            pairs = [pair for pair in pairs if pair[0]]
            found[name] = 100 * jiwer.wer([said for said, _ in pairs], [text for _, text in pairs])
        return found

    @torch.no_grad()
    def transcribe(self, frames: Tensor) -> str:
        """What the adapter hears in a clip: frames (T, D) of the encoder to text."""
        [numbers] = greedy_pieces(*self.adapter.logits(*_padded([frames])))
        return self.tokenizer.decode([self.pieces[number] for number in numbers]).strip()

    # ---- files

    @property
    def hours(self) -> float:
        """Of the recordings that are learned from."""
        frames = sum(self.features.lengths[index] for index in self.clips)
        return frames * self.encoder.token_equivalent_duration / 3600

    def write(self, path: str | Path, wer: Mapping[str, float]) -> Path:
        """Write the adapter's file; returns its path."""
        # its name alone: the file goes to others
        before = Path(self.keys.init_adapter).name if self.keys.init_adapter else None
        by_source = Counter(self.train[index].source for index in self.clips)
        manifest = {
            'adapter': self._section(len(self.pieces)),
            'llm': {'name': Path(self.names['llm']).name, 'digest': embeddings_digest(self.adapter.table)},
            'encoder': {'name': Path(self.names['encoder']).name, 'digest': self.encoder_digest},
            'data': {'clips': len(self.clips), 'hours': round(self.hours, 2), 'sources': dict(by_source)},
            'left_aside': {reason: n for reason, n in self.aside.items() if n},
            'training': asdict(self.keys) | {'seed': self.seed, 'steps': self.step, 'init_adapter': before},
            'continues': {k: self.before.manifest[k] for k in ('data', 'training', 'wer')} if self.before else None,
            'wer': {name: round(value, 2) for name, value in wer.items()},
        }
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        AlignedAdapterFile.write(path, self.adapter, manifest)
        return Path(path)

    @cached_property
    def _checkpoint(self) -> Path:
        """Named by all that decides the run: with other data or settings a run begins anew."""
        digest = hashlib.sha256(repr((asdict(self.keys), self.seed, self.pieces, self.targets)).encode())
        digest.update(self.encoder_digest.encode() + embeddings_digest(self.adapter.table).encode())
        digest.update(weights_digest(self.before.state).encode() if self.before else b'')
        return self.folder / f'align-{digest.hexdigest()[:20]}.pt'

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        state = {'step': self.step, 'losses': self.losses, 'adapter': self.adapter.state_dict()}
        with atomic_path(self._checkpoint) as new:
            torch.save(state | {'optimizer': optimizer.state_dict()}, new)

    def _resume(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._checkpoint.is_file():
            return
        state = torch.load(self._checkpoint, weights_only=True)
        self.adapter.load_state_dict(state['adapter'])
        optimizer.load_state_dict(state['optimizer'])
        self.step, self.losses = state['step'], state['losses']
        self.console.print(f'Resumed at step {self.step}: {self._checkpoint}', highlight=False)

    def _progress(self) -> Progress:
        columns = (BarColumn(), TextColumn('{task.completed}/{task.total}'), TimeRemainingColumn())
        return Progress(TextColumn('{task.description}'), *columns, console=self.console)


def _schedule(step: int, steps: int) -> float:
    """Share of the highest learning rate: linear over the first 4 %, then a cosine down to 2 %."""
    done = (step + 1) / steps
    return min(1.0, done / 0.04) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _padded(frames: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Clips of (T_i, D) as (B, D, T) and (B,) lengths."""
    lengths = torch.tensor([len(clip) for clip in frames])
    return nn.utils.rnn.pad_sequence(list(frames), batch_first=True).transpose(1, 2), lengths


def align_adapter(cfg: DictConfig, folder: str | Path, path: str | Path, console: Console | None = None) -> Path:
    """Align an adapter from start to end, or from where an interrupted run left off, and write its file.

    Args:
        cfg: An `AlignConfig`, assets resolved.
        folder: Of the run.
        path: The adapter's file.
        console: Where progress is shown; None: nowhere.

    Returns:
        `path`.
    """
    console = console or Console(quiet=True)
    run = Alignment(cfg, folder, console)
    hours = run.hours
    console.print(f'{len(run.clips)} recordings, {hours:.2f} h, {len(run.pieces)} tokens', highlight=False)
    for reason, number in run.aside.items():
        if number:
            console.print(f'  left aside: {number} recordings: {reason}', highlight=False)
    wer = run.run()
    for name, percent in wer.items():
        console.print(f'  {name}: WER {percent:.1f} % (the adapter by itself, greedy CTC)', highlight=False)
    console.print(f'The adapter: {run.write(path, wer)}', highlight=False, soft_wrap=True)
    return Path(path)
