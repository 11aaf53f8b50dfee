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

import logging
import shutil
from pathlib import Path

import lightning.pytorch as pl

from nemo_vtb.checkpoint.checkpoint_io import shards_of
from nemo_vtb.io import bring_back
from nemo_vtb.training.history import draw_curves, read_history

logger = logging.getLogger(__name__)

_MARKER = '-unfinished'


def clean_interrupted(folder: str | Path) -> Path | None:
    """Prepare a folder of checkpoints for `resume_if_exists`; returns the checkpoint that NeMo will resume from.

    Our checkpoints are renamed into place when they are whole. So a marker of NeMo's says nothing (NeMo would delete
    the file beside it), of two newest checkpoints the older one was about to be deleted, and a hidden file was never
    finished. All ranks may call it at once.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None
    for path in (*folder.glob(f'*{_MARKER}'), *folder.glob('.*.ckpt'), *folder.glob('.*.nemo')):
        logger.info('Removed after an interruption: %s', path)
        path.unlink(missing_ok=True)
    for shards in shards_of(folder / 'any').parent.glob('*.ckpt'):
        if not (folder / shards.name).exists():  # the file comes last, so these were never whole
            shutil.rmtree(shards, ignore_errors=True)
    found = []
    for path in folder.glob('*last.ckpt'):
        try:
            found.append((path.stat().st_mtime_ns, path.name, path))
        except FileNotFoundError:  # another rank was faster
            continue
    newest = [path for *_, path in sorted(found)]
    for path in newest[:-1]:
        path.unlink(missing_ok=True)
        shutil.rmtree(shards_of(path), ignore_errors=True)
    return newest[-1] if newest else None


class CompleteRun(pl.Callback):
    """Completes a run that was killed after its last step: Lightning finds nothing to train and calls nobody.

    Then the `.nemo` file (where it is missing) and the curves are written as at the end of any run.
    """

    def __init__(self) -> None:
        self._trained = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """There is something to train: all else ends the run."""
        self._trained = True

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what is missing."""
        if self._trained or not 0 < (trainer.max_steps or 0) <= trainer.global_step:
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # a collective: Lightning broadcasts the folder
        if trainer.is_global_zero and bring_back(folder / 'history.jsonl'):
            draw_curves(read_history(folder / 'history.jsonl'), folder / 'curves.png')
        for callback in trainer.callbacks:
            if getattr(callback, 'save_nemo_on_train_end', False) and hasattr(pl_module, 'save_to'):
                path = Path(callback._format_nemo_checkpoint_name())
                if not path.exists():
                    pl_module.save_to(path)
