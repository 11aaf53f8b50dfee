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

import os
from pathlib import Path

from nemo_vtb.training.leftovers import clear_leftovers


def test_the_newest_whole_checkpoint_is_kept(tmp_path: Path) -> None:
    names = ('step=8-last.ckpt', 'step=12-last.ckpt', 'step=4.ckpt')
    for age, name in enumerate(reversed(names)):
        (tmp_path / name).write_bytes(b'whole')
        os.utime(tmp_path / name, (age, age))
    os.utime(tmp_path / 'step=12-last.ckpt', (100, 100))
    for left in ('step=12-last-unfinished', '.step=16-last.ckpt.x7.ckpt', '.run.nemo.x8.nemo'):
        (tmp_path / left).touch()
    assert clear_leftovers(tmp_path) == tmp_path / 'step=12-last.ckpt'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['step=12-last.ckpt', 'step=4.ckpt']
    assert clear_leftovers(tmp_path) == tmp_path / 'step=12-last.ckpt'


def test_a_folder_without_any(tmp_path: Path) -> None:
    assert clear_leftovers(tmp_path) is None
    assert clear_leftovers(tmp_path / 'none') is None


def test_nemo_resumes_from_what_is_left(tmp_path: Path) -> None:
    """Without it, NeMo asks the user to delete the checkpoint by hand."""
    from lightning.pytorch import Trainer
    from nemo.utils.exp_manager import check_resume

    folder = tmp_path / 'checkpoints'
    folder.mkdir()
    for name in ('step=8-last.ckpt', 'step=12-last.ckpt', 'step=12-last-unfinished', 'step=8-last-unfinished'):
        (folder / name).touch()
    trainer = Trainer(accelerator='cpu', logger=False, enable_checkpointing=False)
    newest = clear_leftovers(folder)
    check_resume(trainer, str(tmp_path), resume_if_exists=True)
    assert trainer.ckpt_path == str(newest)
