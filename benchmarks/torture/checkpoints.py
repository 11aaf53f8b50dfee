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
"""C: full disks, damaged and missing files, two jobs in one folder: a checkpoint is whole or it is not used."""

import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import OmegaConf

from nemo_vtb.checkpoint.checkpoint_io import shards_of
from nemo_vtb.errors import VtbCheckpointError
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.testing import tiny_model_cfg
from nemo_vtb.testing.failpoints import damage
from nemo_vtb.training.interrupted import clean_interrupted
from torture.resume import verified
from torture.trainings import SAVES, Training, kill_groups, make_reference, one_rank, wait_for_all
from torture.trials import Experiment, Skipped, Trial

PER_TRIAL = 25


@contextmanager
def mounted(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own, of that size.

    Raises:
        Skipped: This system or user may not mount.
    """
    folder.mkdir(parents=True)
    command = ['mount', '-t', 'tmpfs', '-o', f'size={megabytes}m', 'vtb_torture', str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise Skipped(f'no mount: {error}') from error
    if done.returncode:
        raise Skipped(f'a tmpfs cannot be mounted here: {done.stderr.strip()}')
    try:
        yield folder
    finally:
        subprocess.run(['umount', '-l', str(folder)], check=False)


def full_disk(trial: Trial) -> None:
    """C1: from a random moment to another a random number of bytes is left; the run goes on, and so do its saves."""
    training = Training(trial, 'one', *SAVES['each step'])
    with mounted(training.folder, 64):

        def disturb(training: Training, processes: list[int]) -> None:
            training.wait_for_row(2 * training.rows_per_batch)
            while not training.newest_step():
                time.sleep(0.005)
            filler, room = training.folder / 'filler', trial.rng.randrange(2_500_000)
            fill(filler, room)
            trial.figures['room'] = room
            training.wait_for_row((2 + trial.rng.randint(3, 6)) * training.rows_per_batch)
            trial.figures['kept'] = [verified(path) for path in sorted(training.checkpoints.glob('*last.ckpt*'))]
            filler.unlink()

        statuses = training.attempt(disturb)
        trial.n += 1
        trial.figures['failed saves'] = training.run.log_tail().count('could not be written')
        trial.check(statuses == [0], f'exit statuses {statuses}:\n{training.run.log_tail()[-800:]}')
        trial.check(any(trial.figures.get('kept', [])), 'no whole checkpoint while the disk was full')
        trial.check(not list(training.checkpoints.glob('.*')), 'an unfinished file was left')
        training.check_end()


def fill(filler: Path, room: int) -> None:
    """Write until no more than `room` bytes are left on the file system."""
    filler.parent.mkdir(exist_ok=True)
    with filler.open('wb') as stream:
        while True:
            state = os.statvfs(filler.parent)
            more = state.f_bavail * state.f_frsize - room
            if more <= 0:
                return
            try:
                stream.write(bytes(min(more, 1 << 20)))
                stream.flush()
            except OSError:
                return


def check_survived(training: Training, statuses: list[int]) -> None:
    """The training has come to its right end, with a whole checkpoint."""
    trial = training.trial
    trial.n += 1
    trial.check(statuses == [0], f'exit statuses {statuses}:\n{training.run.log_tail()[-800:]}')
    trial.check(any(map(verified, training.checkpoints.glob('*last.ckpt'))), 'no whole checkpoint at the end')
    training.check_end()


def read_only(trial: Trial) -> None:
    """C2: the folder of checkpoints becomes read-only for a while."""
    training = Training(trial, 'one', *SAVES['each step'])
    with mounted(training.checkpoints, 64):

        def remount(how: str) -> bool:
            command = ['mount', '-o', f'remount,{how}', str(training.checkpoints)]
            return subprocess.run(command, capture_output=True).returncode == 0

        def disturb(training: Training, processes: list[int]) -> None:
            training.wait_for_row(3 * training.rows_per_batch)
            until = time.monotonic() + 20
            while not remount('ro') and time.monotonic() < until:  # busy while a file is written
                time.sleep(0.002)
            training.wait_for_row(8 * training.rows_per_batch)
            remount('rw')

        statuses = training.attempt(disturb)
        check_survived(training, statuses)


def removed(trial: Trial) -> None:
    """C2: the folder of the run, or that of its checkpoints, is removed while it trains."""
    training = Training(trial, 'one', *SAVES['each step'])
    which = (training.folder, training.checkpoints)[trial.number % 2]

    def disturb(training: Training, processes: list[int]) -> None:
        training.wait_for_row(trial.rng.randrange(4, 16))
        shutil.rmtree(which, ignore_errors=True)

    statuses = training.attempt(disturb)
    check_survived(training, statuses)


def half_done(shared: Path) -> None:
    """`half`: a training that was killed behind two checkpoints."""
    one_rank(shared)
    if (shared / 'half').exists():
        return
    training = Training(Trial(0, shared, shared, random.Random(0)), 'one', *SAVES['steps'], name='half.new')

    def disturb(training: Training, processes: list[int]) -> None:
        training.wait_for_row(11 * training.rows_per_batch)
        kill_groups(processes)

    training.attempt(disturb)
    if len(list(training.checkpoints.glob('*last.ckpt*'))) < 2:
        raise RuntimeError(training.run.log_tail())
    training.run.folder.rename(shared / 'half')


def damaged_checkpoint(how: str) -> Callable[[Trial], None]:
    """C3, C4: bits and lengths of the newest `.ckpt`, each alone; then one run goes on from the one before."""

    def run(trial: Trial) -> None:
        whole = trial.shared / 'half' / 'run' / 'checkpoints'
        steps = {path.name: verified(path) for path in whole.glob('*last.ckpt*')}
        before, newest = sorted(steps.values())
        name = next(path for path, step in steps.items() if step == newest)
        for number in range(PER_TRIAL):
            folder = trial.folder / f'{number}'
            shutil.copytree(whole, folder)
            for best in [*folder.glob('*.ckpt')]:
                if best.name not in steps:
                    best.unlink()
            at = damage_one(trial, folder / name, how)
            chosen = clean_interrupted(folder)
            found = verified(chosen) if chosen else 0
            trial.n += 1
            trial.check(found == before, f'{how} at {at}: it goes on from step {found}, not {before}')
            shutil.rmtree(folder)
        training = Training(trial, 'one', *SAVES['steps'], name='resumed')
        shutil.copytree(trial.shared / 'half', training.run.folder, ignore=shutil.ignore_patterns('rows*', 'log*'))
        for path in training.checkpoints.glob('*.ckpt'):
            if path.name not in steps:
                path.unlink()
        damage_one(trial, training.checkpoints / name, how)
        training.finish(begins_at=before)
        said = 'is damaged' in training.run.log_tail() or 'Damaged' in ''.join(
            path.read_text(errors='replace') for path in training.run.folder.glob('log-*'))  # fmt: skip
        trial.check(said, 'the log says nothing of the damage')

    return run


def damage_one(trial: Trial, path: Path, how: str) -> float:
    """Turn a random bit, or cut at a random place."""
    at = trial.rng.random()
    damage(path, how, at, trial.rng.randrange(8))
    return at


def damaged_nemo(how: str) -> Callable[[Trial], None]:
    """C3, C4: the same for the `.nemo` file."""

    def run(trial: Trial) -> None:
        whole = next((trial.shared / 'one' / 'run' / 'checkpoints').glob('*.nemo'))
        path = trial.folder / 'model.nemo'
        for _ in range(PER_TRIAL):
            shutil.copyfile(whole, path)
            at = damage_one(trial, path, how)
            trial.n += 1
            try:
                VoiceTextBlender.restore_from(str(path), map_location='cpu')
                trial.check(False, f'{how} at {at}: it was restored')
            except VtbCheckpointError:
                pass
        shutil.copyfile(whole, path)
        VoiceTextBlender.restore_from(str(path), map_location='cpu')

    return run


SHARDED = ('trainer.strategy={_target_: nemo_vtb.parallel.strategies.FullyShardedStrategy, sharded_checkpoint: true}',)


def sharded(shared: Path) -> None:
    """`sharded`: a training on two ranks that share the LLM, which is read from its folder, and write shards."""
    one_rank(shared)
    if not (shared / 'sharded.yaml').exists():
        cfg = OmegaConf.load(shared / 'tiny.yaml')
        cfg.model = tiny_model_cfg(shared / 'sharded-models', encoder='whisper')
        OmegaConf.save(cfg, shared / 'sharded.yaml')
    make_reference(shared, 'sharded', ranks=2, overrides=[*SHARDED, *SAVES['steps']], config='sharded')


def missing_shard(trial: Trial) -> None:
    """C4: a file of the newest sharded checkpoint is deleted, cut or changed; the one before is used."""
    whole = trial.shared / 'sharded' / 'run'
    for how in ('deleted', 'cut', 'flip'):
        folder = trial.folder / how
        shutil.copytree(whole, folder)
        checkpoints = folder / 'checkpoints'
        steps = {path: verified(path) for path in checkpoints.glob('*last.ckpt*')}
        newest = max(steps, key=lambda path: steps[path])
        for best in checkpoints.glob('*.ckpt'):
            if best not in steps:
                best.unlink()
        files = sorted(path for path in shards_of(newest).rglob('*') if path.is_file())
        if not trial.check(files, f'no shards beside {newest.name}'):
            return
        victim = trial.rng.choice(files)
        victim.unlink() if how == 'deleted' else damage(victim, how, trial.rng.random())
        chosen = clean_interrupted(checkpoints)
        trial.n += 1
        found, expected = verified(chosen) if chosen else 0, min(steps.values())
        trial.check(found == expected, f'{how} {victim.name}: it goes on from step {found}, not {expected}')


def two_jobs(trial: Trial) -> None:
    """C5: a second job in the folder is refused by name, and the first one does not notice."""
    training = Training(trial, 'one', *SAVES['each step'])

    def disturb(training: Training, processes: list[int]) -> None:
        training.wait_for_row(trial.rng.randrange(6))
        second = Training(trial, 'one', *SAVES['each step'], f'exp_manager.explicit_log_dir={training.folder}',
                          name='second')  # fmt: skip
        statuses = wait_for_all(second.run.start())
        said = second.run.log_tail()
        trial.check(statuses == [2], f'the second job: exit statuses {statuses}:\n{said[-600:]}')
        named = re.search(rf'process {processes[0]}\b', said) or str(processes[0]) in said
        trial.check(named, f'the message does not name process {processes[0]}: {said[-600:]}')

    statuses = training.attempt(disturb)
    trial.n += 1
    trial.check(statuses == [0], f'exit statuses {statuses}')
    training.check_end()


def failing_saves(trial: Trial) -> None:
    """C7: from a random save on each fails at a random operation; a whole checkpoint is always left."""
    training = Training(trial, 'one', *SAVES['each step'])
    first = trial.rng.randint(2, 6)
    place = trial.rng.choice(['open@*/.step=*last.ckpt*', 'save@*/.step=*last.ckpt*', 'fsync@*/.step=*last.ckpt*',
                              'replace@*/step=*last.ckpt', 'unlink@*last.ckpt.previous'])  # fmt: skip
    fault = trial.rng.choice(['ENOSPC', 'EIO', 'EDQUOT', 'EROFS'])

    def disturb(training: Training, processes: list[int]) -> None:
        training.wait_for_row((first + trial.rng.randint(1, 6)) * training.rows_per_batch)
        kill_groups(processes)

    training.attempt(disturb, failpoints=f'{place}:{first}+:{fault}')
    trial.n += 1
    steps = [verified(path) for path in training.checkpoints.glob('*last.ckpt*')]
    trial.figures |= {'place': place, 'fault': fault, 'from': first, 'kept': steps}
    trial.check(max(steps, default=0) >= 1, f'{fault} at {place} from save {first} on: verified are {steps}')
    training.finish(begins_at=-1)


EXPERIMENTS = (
    Experiment('C1', 'a tmpfs is filled up to a random number of bytes, later emptied', 10, 1, full_disk, 9,
               prepare=one_rank),
    Experiment('C2/read-only', 'a mounted folder of checkpoints becomes read-only for five steps', 4, 1, read_only, 9,
               prepare=one_rank),
    Experiment('C2/removed', 'the run folder, or that of its checkpoints, is removed', 6, 2, removed, 8,
               prepare=one_rank),
    Experiment('C3', f'one bit of the newest `.ckpt`; {PER_TRIAL} in a trial', 4, 1, damaged_checkpoint('flip'), 12,
               prepare=half_done),
    Experiment('C3/.nemo', f'one bit of the `.nemo`; {PER_TRIAL} in a trial', 4, 1, damaged_nemo('flip'), 6,
               prepare=one_rank),
    Experiment('C4', f'the newest `.ckpt` is cut; {PER_TRIAL} in a trial', 4, 1, damaged_checkpoint('cut'), 12,
               prepare=half_done),
    Experiment('C4/.nemo', f'the `.nemo` is cut; {PER_TRIAL} in a trial', 4, 1, damaged_nemo('cut'), 5,
               prepare=one_rank),
    Experiment('C4/shards', 'a shard is deleted, cut or changed', 4, 1, missing_shard, 3, prepare=sharded),
    Experiment('C5', 'a second job in the run folder', 10, 1, two_jobs, 11, prepare=one_rank),
    Experiment('C7', 'from a random save on each fails at a random operation', 20, 1, failing_saves, 9,
               prepare=one_rank),
)  # fmt: skip
