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
"""Interruption cleanup of a folder of checkpoints, at which NeMo's resume stops though its files are complete."""

import fcntl
import functools
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist

from nemo_vtb.checkpoint.checkpoint_io import (
    DAMAGED,
    FORMER,
    LAST,
    AtomicCheckpointIO,
    checkpoint_step,
    remove_older,
    retire,
    shards_of,
    verify_checkpoint,
)
from nemo_vtb.checkpoint.nemo_file import prove_savable
from nemo_vtb.errors import VtbCheckpointError
from nemo_vtb.io import bring_back, tolerated
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.training.history import draw_curves, read_history
from nemo_vtb.training.run_state import run_folder

logger = logging.getLogger(__name__)

_MARKER = '-unfinished'


def clean_interrupted(folder: str | Path) -> Path | None:
    """Prepare a folder of checkpoints for `resume_if_exists`; returns the checkpoint that NeMo will resume from.

    That is the newest one, by the step that it holds, whose files are as they were written; the best ones count, too.
    Nothing older is removed before it was verified; a damaged one is renamed to `NAME.damaged`. Our checkpoints are
    renamed into place when they are whole, so a marker of NeMo's says nothing (NeMo would delete the file beside it),
    and a hidden file was never finished. All ranks may call it at once.

    Raises:
        VtbCheckpointError: There were checkpoints, and each of them is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None
    with _alone(folder):
        _remove_unfinished(folder)
        chosen = _newest_verified(folder)
        if chosen is None:
            return None
        for path in folder.glob(f'*{LAST}'):
            if path != chosen:
                retire(path)
        former = max(
            folder.glob(f'*{LAST}{FORMER}'), key=lambda path: (checkpoint_step(path), path.name), default=None
        )
        if former is not None:
            remove_older(former)
        return chosen


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process after the other; all of one host, and of others where the file system knows locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def _remove_unfinished(folder: Path) -> None:
    for path in (*folder.glob(f'*{_MARKER}'), *folder.glob('.*.ckpt'), *folder.glob('.*.nemo')):
        logger.info('Removed after an interruption: %s', path)
        path.unlink(missing_ok=True)
    for shards in shards_of(folder / 'any').parent.glob('*.ckpt'):
        # the file comes last, so without it these were never whole
        if not any((folder / f'{shards.name}{end}').exists() for end in ('', FORMER, DAMAGED)):
            shutil.rmtree(shards, ignore_errors=True)


def _newest_verified(folder: Path) -> Path | None:
    """The newest checkpoint that is whole, under the name of a last one; None where none was ever written."""
    broken = [f'{path.name} (set aside before)' for path in sorted(folder.glob(f'*{LAST}{DAMAGED}'))]
    # the best ones count, too: a kill may fall between a best one and the last one of the same step
    candidates = {*folder.glob(f'*{LAST}'), *folder.glob(f'*{LAST}{FORMER}'), *_others(folder)}
    while candidates:
        path = max(candidates, key=lambda path: (checkpoint_step(path), path.name.endswith(LAST), path.name))
        try:
            step = verify_checkpoint(path)
        except VtbCheckpointError as error:
            aside = path.with_name(f'{path.name.removesuffix(FORMER)}{DAMAGED}')
            os.replace(path, aside)
            logger.error('A checkpoint is damaged, and was renamed to %s.\n%s', aside.name, error)
            broken.append(path.name)
            candidates.remove(path)
            continue
        chosen = _as_last(path)
        if broken:
            logger.error('Damaged: %s. The run goes on from %s, step %d.', ', '.join(broken), chosen.name, step)
        return chosen
    if broken:
        raise VtbCheckpointError(
            'No checkpoint of the run is as it was written, and nothing is begun anew without your word.',
            field='exp_manager.resume_if_exists',
            got=f'{folder}: {", ".join(broken)}',
            allowed='one whole checkpoint',
            remedy=f'copy one back from elsewhere; or remove *{DAMAGED} there, and the run starts at step 0',
        )
    return None


def _others(folder: Path) -> set[Path]:
    """Checkpoints that are not last ones, such as the best ones."""
    return {path for path in folder.glob('*.ckpt') if not path.name.endswith((LAST, '-EMA.ckpt'))}


def _as_last(path: Path) -> Path:
    """Give a checkpoint a name that NeMo resumes from; a best one keeps its own as well."""
    if path.name.endswith(LAST):
        return path
    if path.name.endswith(FORMER):
        last = path.with_name(path.name.removesuffix(FORMER))
        os.replace(path, last)
        return last
    last = path.with_name(f'{path.stem}-{LAST}')
    if shards_of(path).exists():
        shutil.rmtree(shards_of(last), ignore_errors=True)
        shutil.copytree(shards_of(path), shards_of(last))
    copy = path.with_name(f'.{last.name}.copy.ckpt')
    shutil.copyfile(path, copy)
    os.replace(copy, last)
    return last


class CompleteRun(pl.Callback):
    """Completes a run that was killed after its last step: Lightning finds nothing to train and calls nobody.

    Then the `.nemo` file (where it is missing) and the curves are written as at the end of any run. At the end of any
    run it raises if no checkpoint could be written.
    """

    def __init__(self) -> None:
        self._trained = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let NeMo write no markers (they say nothing about our files), and loggers fail without ending the run."""
        for callback in trainer.checkpoint_callbacks:
            for name in ('set_checkpoint_unfinished_marker', 'remove_checkpoint_unfinished_marker'):
                if hasattr(callback, name):
                    setattr(callback, name, _wait_for_ranks)
        for each in trainer.loggers:
            for name in ('log_metrics', 'save', 'finalize'):
                setattr(each, name, _tolerant(getattr(each, name), f'the log of {type(each).__name__}'))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prove that the file at the end of the run can be written, before anything is trained."""
        if isinstance(pl_module, VoiceTextBlender):
            prove_savable(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """There is something to train: all else ends the run."""
        self._trained = True

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what is missing.

        Raises:
            VtbCheckpointError: No checkpoint of the run could be written.
        """
        writer = trainer.strategy.checkpoint_io
        if isinstance(writer, AtomicCheckpointIO):
            writer.conclude()
        if self._trained or not 0 < (trainer.max_steps or 0) <= trainer.global_step:
            return
        folder = run_folder(trainer)
        if trainer.is_global_zero and bring_back(folder / 'history.jsonl'):
            draw_curves(read_history(folder / 'history.jsonl'), folder / 'curves.png')
        for callback in trainer.callbacks:
            if getattr(callback, 'save_nemo_on_train_end', False) and hasattr(pl_module, 'save_to'):
                path = Path(callback._format_nemo_checkpoint_name())
                if not path.exists():
                    pl_module.save_to(path)


def _wait_for_ranks(checkpoint_path: str | Path, barrier_after: bool = False, barrier_before: bool = False) -> None:
    if (barrier_after or barrier_before) and dist.is_initialized():
        dist.barrier()


def _tolerant(method: Callable[..., Any], what: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **options: Any) -> Any:
        with tolerated(what):
            return method(*args, **options)

    return call
