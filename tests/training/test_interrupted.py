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
"""A folder in which a kill left markers, two newest checkpoints and a half-written one resumes as if it had not."""

import json
import os
from pathlib import Path

import lightning.pytorch as pl
import torch

from nemo_vtb.training.interrupted import CompleteRun, clean_interrupted


def test_the_newest_whole_checkpoint_is_kept(tmp_path: Path) -> None:
    names = ('step=8-last.ckpt', 'step=12-last.ckpt', 'step=4.ckpt')
    for age, name in enumerate(reversed(names)):
        (tmp_path / name).write_bytes(b'whole')
        os.utime(tmp_path / name, (age, age))
    os.utime(tmp_path / 'step=12-last.ckpt', (100, 100))
    for left in ('step=12-last-unfinished', '.step=16-last.ckpt.x7.ckpt', '.run.nemo.x8.nemo'):
        (tmp_path / left).touch()
    assert clean_interrupted(tmp_path) == tmp_path / 'step=12-last.ckpt'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['step=12-last.ckpt', 'step=4.ckpt']
    assert clean_interrupted(tmp_path) == tmp_path / 'step=12-last.ckpt'


def test_a_folder_without_any(tmp_path: Path) -> None:
    assert clean_interrupted(tmp_path) is None
    assert clean_interrupted(tmp_path / 'none') is None


def test_nemo_resumes_from_what_is_left(tmp_path: Path) -> None:
    """Without it, NeMo asks the user to delete the checkpoint by hand."""
    from nemo.utils.exp_manager import check_resume

    folder = tmp_path / 'checkpoints'
    folder.mkdir()
    for name in ('step=8-last.ckpt', 'step=12-last.ckpt', 'step=12-last-unfinished', 'step=8-last-unfinished'):
        (folder / name).touch()
    trainer = pl.Trainer(accelerator='cpu', logger=False, enable_checkpointing=False)
    newest = clean_interrupted(folder)
    check_resume(trainer, str(tmp_path), resume_if_exists=True)
    assert trainer.ckpt_path == str(newest)


class Saveable(pl.LightningModule):
    """One weight that can be written as a `.nemo` file."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return (self.weight - batch).square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def save_to(self, save_path: str | Path) -> None:
        Path(save_path).write_text(str(float(self.weight.detach())))


def fit(folder: Path, ckpt: Path | None = None) -> None:
    from nemo.utils.callbacks.nemo_model_checkpoint import NeMoModelCheckpoint

    saver = NeMoModelCheckpoint(dirpath=folder, monitor=None, every_n_train_steps=1, save_last=True, filename='{step}')
    saver.prefix = 'mine'
    trainer = pl.Trainer(
        accelerator='cpu', devices=1, max_steps=3, callbacks=[saver, CompleteRun()], logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Saveable(), torch.utils.data.DataLoader([torch.ones(1)] * 4), ckpt_path=ckpt)


def test_a_run_killed_after_its_last_step_is_completed(tmp_path: Path) -> None:
    """NeMo writes the model on_train_end, which Lightning does not call when there is nothing left to train."""
    fit(tmp_path)
    expected = (tmp_path / 'mine.nemo').read_text()
    assert float(expected) > 0
    (tmp_path / 'mine.nemo').unlink()
    (tmp_path / 'run_0').mkdir()
    record = {'type': 'train', 'step': 1, 'time_s': 1.0, 'losses': {'text': 1.0}, 'targets': {'text': 1}}
    line = json.dumps(record | {'tokens': 1, 'audio_s': 0.0})
    (tmp_path / 'run_0' / 'history.jsonl').write_text(line + '\n')
    fit(tmp_path, clean_interrupted(tmp_path))
    assert (tmp_path / 'mine.nemo').read_text() == expected
    assert (tmp_path / 'history.jsonl').is_file() and (tmp_path / 'curves.png').is_file()
