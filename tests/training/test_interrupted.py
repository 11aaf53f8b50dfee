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

import errno
import json
import os
import random
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nemo_vtb.checkpoint.checkpoint_io import AtomicCheckpointIO, checkpoint_step
from nemo_vtb.errors import VtbCheckpointError
from nemo_vtb.testing.failpoints import damage
from nemo_vtb.training.interrupted import CompleteRun, clean_interrupted


def write(folder: Path, name: str, step: int, age: int = 0) -> Path:
    path = folder / name
    AtomicCheckpointIO().save_checkpoint({'global_step': step, 'w': torch.full((50,), float(step))}, path)
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_whole_checkpoint_is_kept(tmp_path: Path) -> None:
    for number, step in enumerate((12, 8, 4)):
        write(tmp_path, f'step={step}{"-last" if step > 4 else ""}.ckpt', step, age=number)
    for left in ('step=12-last-unfinished', '.step=16-last.ckpt.x7.ckpt', '.run.nemo.x8.nemo'):
        (tmp_path / left).touch()
    kept = ['step=12-last.ckpt', 'step=4.ckpt', 'step=8-last.ckpt.previous']
    for _ in range(2):
        assert clean_interrupted(tmp_path) == tmp_path / 'step=12-last.ckpt'
        assert names(tmp_path) == kept


def test_a_clock_set_back_removes_nothing_good(tmp_path: Path) -> None:
    """The newest by step is the oldest by time."""
    for step, age in ((12, 500), (8, 100), (4, 0)):
        write(tmp_path, f'step={step}-last.ckpt', step, age)
    assert clean_interrupted(tmp_path) == tmp_path / 'step=12-last.ckpt'
    assert names(tmp_path) == ['step=12-last.ckpt', 'step=8-last.ckpt.previous']


@pytest.mark.parametrize('how', ['flip', 'cut', 'empty'])
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path: Path, how: str, caplog: object) -> None:
    write(tmp_path, 'step=8-last.ckpt.previous', 8)
    newest = write(tmp_path, 'step=12-last.ckpt', 12)
    newest.write_bytes(b'') if how == 'empty' else damage(newest, how, at=0.4)
    assert clean_interrupted(tmp_path) == tmp_path / 'step=8-last.ckpt'
    assert names(tmp_path) == ['step=12-last.ckpt.damaged', 'step=8-last.ckpt']
    said = ' '.join(record.getMessage() for record in caplog.records)
    assert 'step=12-last.ckpt' in said and 'step=8-last.ckpt, step 8' in said
    assert clean_interrupted(tmp_path) == tmp_path / 'step=8-last.ckpt'


def test_a_best_one_of_the_same_step_takes_its_place(tmp_path: Path) -> None:
    write(tmp_path, 'step=8-last.ckpt.previous', 8)
    best = write(tmp_path, 'step=12.ckpt', 12)
    damage(write(tmp_path, 'step=12-last.ckpt', 12), 'cut')
    assert clean_interrupted(tmp_path) == tmp_path / 'step=12-last.ckpt'
    assert checkpoint_step(tmp_path / 'step=12-last.ckpt') == 12 and best.exists()
    assert (tmp_path / 'step=12-last.ckpt.damaged').exists() and (tmp_path / 'step=8-last.ckpt.previous').exists()


@pytest.mark.parametrize('last', [None, 8])
def test_a_best_one_counts_where_the_last_one_was_not_written(tmp_path: Path, last: int | None) -> None:
    """Killed between the best checkpoint of step 12 and the last one, also where that would be the first."""
    if last:
        write(tmp_path, f'step={last}-last.ckpt', last)
    best = write(tmp_path, 'step=12.ckpt', 12)
    assert clean_interrupted(tmp_path) == tmp_path / 'step=12-last.ckpt'
    assert checkpoint_step(tmp_path / 'step=12-last.ckpt') == 12 and best.exists()


def test_a_choice_that_was_interrupted_is_made_again(tmp_path: Path) -> None:
    """Killed between setting the damaged one aside and giving the best one its name."""
    write(tmp_path, 'step=8-last.ckpt.previous', 8)
    write(tmp_path, 'step=12.ckpt', 12)
    damage(write(tmp_path, 'step=12-last.ckpt', 12), 'cut')
    (tmp_path / 'step=12-last.ckpt').rename(tmp_path / 'step=12-last.ckpt.damaged')
    assert checkpoint_step(clean_interrupted(tmp_path)) == 12


def test_nothing_is_begun_anew_where_all_are_damaged(tmp_path: Path) -> None:
    for step, name in ((8, 'step=8-last.ckpt.previous'), (12, 'step=12-last.ckpt')):
        damage(write(tmp_path, name, step), 'flip')
    for _ in range(2):
        with pytest.raises(VtbCheckpointError) as error:
            clean_interrupted(tmp_path)
        assert error.value.field == 'exp_manager.resume_if_exists'
    assert names(tmp_path) == ['step=12-last.ckpt.damaged', 'step=8-last.ckpt.damaged']


def test_an_older_one_is_not_removed_before_the_newer_was_tested(tmp_path: Path) -> None:
    """Of three, the newest is damaged and so is the one before: what was kept before them is still there."""
    write(tmp_path, 'step=4-last.ckpt.previous', 4)
    damage(write(tmp_path, 'step=8-last.ckpt', 8), 'flip')
    damage(write(tmp_path, 'step=12-last.ckpt', 12), 'cut')
    assert clean_interrupted(tmp_path) == tmp_path / 'step=4-last.ckpt'


def test_random_flips_and_cuts_never_resume(tmp_path: Path) -> None:
    """Rows C3 and C4: any bit of the file, any length."""
    seeded, whole = random.Random(0), write(tmp_path, 'one.ckpt', 12)
    for trial in range(200):
        folder = tmp_path / str(trial)
        folder.mkdir()
        shutil.copyfile(whole, newest := folder / 'step=12-last.ckpt')
        write(folder, 'step=8-last.ckpt.previous', 8)
        damage(newest, ('flip', 'cut')[trial % 2], seeded.random(), seeded.randrange(8))
        assert clean_interrupted(folder) == folder / 'step=8-last.ckpt', trial
        shutil.rmtree(folder)


def shards(rank: int, folder: str) -> None:
    dist.init_process_group('gloo', rank=rank, world_size=2, init_method=f'file://{folder}/meet')
    writer, checkpoints = AtomicCheckpointIO(), Path(folder) / 'checkpoints'
    for step in (4, 8, 12):
        content = {'global_step': step, 'state_dict': {'w': torch.full((64,), float(step))}}
        writer.save_sharded(content, checkpoints / f'step={step}-last.ckpt')
        if step > 4 and rank == 0:
            writer.remove_checkpoint(checkpoints / f'step={step - 4}-last.ckpt')
    writer.teardown()
    dist.destroy_process_group()


@pytest.mark.integration
@pytest.mark.parametrize('where', ['*.distcp', '.metadata', 'file'])
def test_a_damaged_shard_falls_back_too(tmp_path: Path, where: str) -> None:
    mp.start_processes(shards, (str(tmp_path),), nprocs=2, start_method='fork')
    folder, other = tmp_path / 'checkpoints', tmp_path / 'checkpoints_shards'
    assert names(folder) == ['step=12-last.ckpt', 'step=8-last.ckpt.previous']
    assert names(other) == ['step=12-last.ckpt', 'step=8-last.ckpt']
    newest = folder / 'step=12-last.ckpt'
    damage(newest if where == 'file' else next((other / newest.name).rglob(where)), 'flip')
    chosen = clean_interrupted(folder)
    assert chosen == folder / 'step=8-last.ckpt'
    read = AtomicCheckpointIO().load_checkpoint(chosen)
    assert read['global_step'] == 8 and torch.equal(read['state_dict']['w'], torch.full((64,), 8.0))


def test_a_folder_without_any(tmp_path: Path) -> None:
    assert clean_interrupted(tmp_path) is None
    assert clean_interrupted(tmp_path / 'none') is None


def test_nemo_resumes_from_what_is_left(tmp_path: Path) -> None:
    """Without it, NeMo asks the user to delete the checkpoint by hand."""
    from nemo.utils.exp_manager import check_resume

    folder = tmp_path / 'checkpoints'
    folder.mkdir()
    for step in (8, 12):
        write(folder, f'step={step}-last.ckpt', step)
        (folder / f'step={step}-last-unfinished').touch()
    trainer = pl.Trainer(accelerator='cpu', logger=False, enable_checkpointing=False)
    newest = clean_interrupted(folder)
    check_resume(trainer, str(tmp_path), resume_if_exists=True)
    assert trainer.ckpt_path == str(newest) == str(folder / 'step=12-last.ckpt')


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


def fit(folder: Path, ckpt: Path | None = None, callbacks: tuple = (), steps: int = 3) -> pl.Trainer:
    from nemo.utils.callbacks.nemo_model_checkpoint import NeMoModelCheckpoint

    saver = NeMoModelCheckpoint(dirpath=folder, monitor=None, every_n_train_steps=1, save_last=True, filename='{step}')
    saver.prefix, saver.CHECKPOINT_NAME_LAST = 'mine', '{step}-last'  # as exp_manager does
    trainer = pl.Trainer(
        accelerator='cpu', devices=1, max_steps=steps, callbacks=[*callbacks, saver, CompleteRun()], logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        plugins=[AtomicCheckpointIO(tolerant=True)],
    )  # fmt: skip
    trainer.fit(Saveable(), torch.utils.data.DataLoader([torch.ones(1)] * 9), ckpt_path=ckpt)
    return trainer


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


class FullDisk(pl.Callback):
    """From one step on to another nothing can be written: the limit that the system has for a file is 0."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object, **__: object) -> None:
        full = self.first <= trainer.global_step <= self.last
        resource.setrlimit(resource.RLIMIT_FSIZE, (0 if full else self.limits[0], self.limits[1]))


@pytest.fixture
def limits() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_no_more_than_its_checkpoints(tmp_path: Path, limits: None) -> None:
    trainer = fit(tmp_path, callbacks=(FullDisk(3, 4),), steps=6)
    assert trainer.global_step == 6 and trainer.strategy.checkpoint_io.failed >= 2
    assert clean_interrupted(tmp_path) == tmp_path / 'step=6-last.ckpt'
    assert not list(tmp_path.glob('*unfinished')) and not list(tmp_path.glob('.*'))
    assert sorted(path.name for path in tmp_path.glob('*last*')) == ['step=5-last.ckpt.previous', 'step=6-last.ckpt']


def test_no_marker_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk it would raise on the first rank alone, while the others wait for it."""
    touch = Path.touch

    def full(path: Path, *args: Any, **options: Any) -> None:
        if path.name.endswith('-unfinished'):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        touch(path, *args, **options)

    monkeypatch.setattr(Path, 'touch', full)
    assert fit(tmp_path).global_step == 3


def test_a_run_without_any_checkpoint_fails_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(VtbCheckpointError) as error:
        fit(tmp_path)
    assert error.value.field == 'exp_manager.explicit_log_dir'
    assert (tmp_path / 'mine.nemo').is_file()  # not before all was done


def test_a_folder_that_is_removed_comes_back(tmp_path: Path) -> None:
    class Remove(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: object, **__: object) -> None:
            if trainer.global_step == 2:
                shutil.rmtree(tmp_path / 'run')

    fit(tmp_path / 'run', callbacks=(Remove(),))
    assert clean_interrupted(tmp_path / 'run') == tmp_path / 'run' / 'step=3-last.ckpt'


def test_history_quarantine_and_logger_survive_a_full_disk(tmp_path: Path, limits: None) -> None:
    """What could not be written in between is there at the end."""
    from lightning.pytorch.loggers import CSVLogger

    from nemo_vtb.io import read_json_lines
    from nemo_vtb.training.history import History
    from nemo_vtb.training.run_state import Quarantine

    history, quarantine = History(tmp_path), Quarantine(tmp_path / 'quarantine.jsonl')
    trainer = pl.Trainer(accelerator='cpu', logger=CSVLogger(tmp_path), enable_checkpointing=False)
    CompleteRun().setup(trainer, Saveable(), 'fit')
    history.on_train_start(trainer, Saveable())
    disk = FullDisk(3, 4)
    for step in range(1, 7):
        disk.on_train_batch_end(SimpleNamespace(global_step=step))
        history._step = step
        history._write({'type': 'validation', 'metrics': {'val_loss': 1.0}})
        quarantine.add([{'source': 's', 'byte_offset': step, 'reason': 'not_json'}])
        trainer.logger.log_metrics({'a': 1.0}, step)
        trainer.logger.save()
    assert [record['step'] for record in read_json_lines(tmp_path / 'history.jsonl')] == [1, 2, 3, 4, 5, 6]
    assert [record['byte_offset'] for record in read_json_lines(quarantine.path)] == [1, 2, 3, 4, 5, 6]


def test_a_history_is_cut_back_when_a_disk_that_was_full_has_space(tmp_path: Path, limits: None) -> None:
    """The run is resumed at step 2 on a full disk, which has space again behind step 3."""
    from nemo_vtb.io import read_json_lines
    from nemo_vtb.training.history import History

    lines = [json.dumps({'type': 'validation', 'step': step, 'time_s': 1.0, 'metrics': {}}) for step in (1, 2, 3, 4)]
    (tmp_path / 'history.jsonl').write_text('\n'.join(lines) + '\n')
    history, disk = History(tmp_path), FullDisk(2, 3)
    trainer = SimpleNamespace(global_step=2, is_global_zero=True)
    disk.on_train_batch_end(trainer)
    history.on_train_start(trainer, Saveable())  # type: ignore[arg-type]
    for step in (3, 4, 5):
        disk.on_train_batch_end(SimpleNamespace(global_step=step))
        history._step = step
        history._write({'type': 'validation', 'metrics': {'val_loss': 1.0}})
    records = read_json_lines(tmp_path / 'history.jsonl')
    assert [record['step'] for record in records] == [1, 2, 3, 4, 5]
    assert [bool(record['metrics']) for record in records] == [False, False, True, True, True]
