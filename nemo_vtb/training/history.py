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
"""Keeps the losses of a run in `history.jsonl`, complete also after a resume, and draws `curves.png`."""

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from nemo_vtb.constants import KIND_COLOURS, KINDS
from nemo_vtb.io import append_text, bring_back, read_json_lines, sync_tree, tolerated, write_atomically
from nemo_vtb.parallel.dims import ParallelDims
from nemo_vtb.training.meter import StepMeter
from nemo_vtb.training.retention_monitor import MONITOR_METRICS
from nemo_vtb.training.run_state import run_folder

_OTHER_COLOURS = ('#937860', '#DA8BC3', '#8C8C8C', '#CCB974', '#64B5CD')


class History(pl.Callback):
    """Writes one JSON line per optimizer step and per validation, and a picture at the end.

    | `type` | keys |
    |---|---|
    | `train` | step, time_s, losses (kind -> mean over all ranks), targets (kind -> count), tokens, audio_s, lr, |
    | | grad_norm (before clipping) |
    | `validation` | step, time_s, metrics (`val_loss`, `val_loss_<set>`, `val_acc_<set>`, `retention` ...) |

    What is not finite is null. A step that was left out for it has `left_out: true` besides.

    Args:
        folder: Where `history.jsonl` and `curves.png` go; None is that of the run.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._folder = folder
        self._meter = StepMeter()
        self._kept: str | None = None  # what the file begins with, while it is not written
        self._unwritten: list[str] = []
        self._path: Path | None = None  # while it is written to

    @property
    def folder(self) -> Path:
        """Where the files are; known once the fit has begun."""
        return Path(self._folder or '.')

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the file; steps behind the checkpoint that a run is resumed from will be made again, so they go."""
        self._folder = self._folder or run_folder(trainer)
        self._step, self._began, self._time_before = trainer.global_step, time.perf_counter(), 0.0
        if not trainer.is_global_zero:
            return
        path = self.folder / 'history.jsonl'
        path.parent.mkdir(parents=True, exist_ok=True)
        if trainer.global_step:
            bring_back(path)
        kept = [r for r in read_json_lines(path) if r['step'] <= self._step] if trainer.global_step else []
        self._time_before = kept[-1]['time_s'] if kept else 0.0
        self._kept, self._path = ''.join(json.dumps(r) + '\n' for r in kept), path
        self._flush(path)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the row; write the step that it completes."""
        self._meter.add(outputs, batch)
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        totals = self._meter.close(ParallelDims.of(trainer))
        optimizers, outcome = trainer.optimizers, getattr(pl_module, 'step_outcome', None)
        self._write(
            {
                'type': 'train',
                'losses': {kind: _rounded(loss) for kind, loss in totals.losses.items()},
                'targets': totals.targets,
                'tokens': int(totals.tokens),
                'audio_s': round(totals.audio_s, 3),
                'lr': optimizers[0].param_groups[0]['lr'] if optimizers else None,
                'grad_norm': None if outcome is None else _rounded(outcome.norm),
                **({} if outcome is None or outcome.is_finite else {'left_out': True}),
            }
        )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the metrics of a validation, but not of the sanity check."""
        if trainer.sanity_checking or self._path is None:
            return
        wanted = {k: v for k, v in trainer.callback_metrics.items() if k.startswith('val_') or k in MONITOR_METRICS}
        metrics = {k: _rounded(float(v)) for k, v in wanted.items()}
        self._write({'type': 'validation', 'metrics': metrics})

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the file and draw the curves."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Draw what there is also when a run ends early."""
        self._close()

    def _write(self, record: dict[str, Any]) -> None:
        if self._path is None:
            return
        seconds = self._time_before + time.perf_counter() - self._began
        record = {'type': record['type'], 'step': self._step, 'time_s': round(seconds, 3), **record}
        self._unwritten.append(json.dumps(record) + '\n')
        self._flush(self._path)

    def _flush(self, path: Path) -> None:
        with tolerated(str(path)):  # what could not be written is tried again with the next line
            if self._kept is not None:
                write_atomically(path, self._kept)
                self._kept = None
            append_text(path, ''.join(self._unwritten))
            self._unwritten.clear()

    def _close(self) -> None:
        if (path := self._path) is None:
            return
        self._path = None
        self._flush(path)
        with tolerated(str(path)):
            sync_tree(path)
        with tolerated(f'{self.folder}/curves.png'):
            draw_curves(read_history(path), self.folder / 'curves.png')


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """Read the records of `history.jsonl`; [] where there is no file.

    Lines that are cut off are skipped, and so are losses and metrics that were not finite.
    """
    return [r | {key: _finite(r[key]) for key in ('losses', 'metrics') if key in r} for r in read_json_lines(path)]


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {k: v for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}


def _rounded(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None


def draw_curves(records: Iterable[dict[str, Any]], path: str | Path) -> Path | None:
    """Draw the loss per kind, smoothed over the faint raw values, and the validation losses; None without any step.

    Args:
        records: As `read_history` returns them.
        path: The PNG to write.
    """
    from matplotlib.figure import Figure

    records = list(records)
    train = [r for r in records if r['type'] == 'train' and r['losses']]
    if not train:
        return None
    figure = Figure(figsize=(9, 5), layout='constrained')
    axes = figure.subplots()
    ends = [_draw_kind(axes, train, kind) for kind in KINDS]
    _draw_validation(axes, [r for r in records if r['type'] == 'validation'])
    axes.set_ylim(0, _top(train))
    axes.margins(x=0.01)
    _label_ends(axes, [end for end in ends if end is not None])
    tokens, hours = sum(r['tokens'] for r in train), sum(r['audio_s'] for r in train) / 3600
    axes.set_title(
        f'Loss per kind of data: {train[-1]["step"]:,} steps, {tokens:,} tokens, {hours:.2f} h of speech, '
        f'{train[-1]["time_s"] / 60:.1f} min',
        fontsize=11,
        loc='left',
    )
    axes.set_xlabel('optimizer steps')
    axes.set_ylabel('loss per target token [nats]')
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', linewidth=0.5, alpha=0.5)
    axes.set_axisbelow(True)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return Path(path)


def _draw_kind(axes: Any, train: Sequence[dict[str, Any]], kind: str) -> tuple[float, float, str, str] | None:
    """Draw one kind; returns (x, y, label, colour) of its end."""
    steps = [r['step'] for r in train if kind in r['losses']]
    losses = [r['losses'][kind] for r in train if kind in r['losses']]
    if not steps:
        return None
    weights = [r['targets'].get(kind, 1) for r in train if kind in r['losses']]
    smooth = _smooth(losses, weights, window=max(1, len(steps) // 25))
    axes.plot(steps, losses, color=KIND_COLOURS[kind], linewidth=0.7, alpha=0.25)
    axes.plot(steps, smooth, color=KIND_COLOURS[kind], linewidth=2.2, solid_capstyle='round')
    return steps[-1], smooth[-1], f'{kind} {smooth[-1]:.2f}', KIND_COLOURS[kind]


def _draw_validation(axes: Any, records: Sequence[dict[str, Any]]) -> None:
    names = dict.fromkeys(k for r in records for k in r['metrics'] if k.startswith('val_loss_'))
    if not names and any('val_loss' in r['metrics'] for r in records):
        names = {'val_loss': None}
    others = iter(_OTHER_COLOURS * 10)
    for name in names:
        points = [(r['step'], r['metrics'][name]) for r in records if name in r['metrics']]
        kind = name.removeprefix('val_loss_')
        colour = KIND_COLOURS.get(kind) or next(others)
        label = None if kind in KIND_COLOURS else f'validation: {kind}'
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=0.8, linestyle=(0, (2, 2)), alpha=0.8)
        axes.scatter(
            *zip(*points, strict=True),
            color=colour,
            s=42,
            marker='D',
            edgecolor='white',
            linewidth=0.9,
            zorder=3,
            label=label,
        )
    if names:
        axes.scatter(
            [], [], color='#555555', s=42, marker='D', edgecolor='white', label='validation (colour of its kind)'
        )
        axes.legend(frameon=False, fontsize=9, loc='upper right')


def _label_ends(axes: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write the names beside the ends of the lines, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    gap, last = 0.045 * (high - low), -1e9
    for x, y, label, colour in sorted(ends, key=lambda end: end[1]):
        last = max(y, last + gap)
        axes.annotate(
            label,
            (x, last),
            xytext=(8, 0),
            textcoords='offset points',
            color=colour,
            va='center',
            fontsize=10,
            annotation_clip=False,
        )


def _smooth(values: Sequence[float], weights: Sequence[float], window: int) -> list[float]:
    """Exponential mean weighted by targets, free of the start's bias."""
    decay = 1 - 1 / window if window > 1 else 0.0
    total = count = 0.0
    out = []
    for value, weight in zip(values, weights, strict=True):
        total, count = decay * total + weight * value, decay * count + weight
        out.append(total / count)
    return out


def _top(train: Sequence[dict[str, Any]]) -> float:
    """Upper end of the axis: above nearly all values, whatever single ones do at the start."""
    values = sorted(v for r in train for v in r['losses'].values())
    return 1.12 * values[min(len(values) - 1, int(0.995 * len(values)))] + 1e-6
