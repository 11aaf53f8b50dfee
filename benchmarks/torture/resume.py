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
"""R: a training that was ended somewhere goes on as if it had not been."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from resume_matrix import ROOT

from nemo_vtb.checkpoint.checkpoint_io import verify_checkpoint
from nemo_vtb.testing.oracle import differing, state_digests
from torture.trainings import SAVES, STEPS, Training, has_ended, kill_groups, make_reference, one_rank, two_ranks
from torture.trials import Experiment, Trial

EARLY = 0.15  # share of the kills that come before the first row
PLACES = {  # of a save -> the failpoint
    'before the file': 'open@*/.step={step}-*last.ckpt*:1:kill',
    'in the middle of it': 'save@*/.step={step}-*last.ckpt*:1:tear',
    'before it is flushed': 'fsync@*/.step={step}-*last.ckpt*:1:kill',
    'before it has its name': 'replace@*/step={step}-*last.ckpt:1:kill',
    'after it has its name': 'replace@*/step={step}-*last.ckpt:1:kill_after',
    'before the former one is renamed': 'replace@*/step={former}-*last.ckpt.previous:1:kill',
    'before the oldest one is removed': 'unlink@*/step={oldest}-*last.ckpt.previous:1:kill',
    'after the oldest one was removed': 'unlink@*/step={oldest}-*last.ckpt.previous:1:kill_after',
}


def at_random(training: Training, processes: list[int], within: float = 1.0) -> bool:
    """SIGKILL to all at a random moment; whether it hit a running one."""
    rng = training.trial.rng
    if rng.random() < EARLY:
        time.sleep(rng.uniform(0, training.reference['start_s']))
    else:
        training.wait_for_row()
        time.sleep(rng.uniform(0, within * training.remaining_s()))
    hit = kill_groups(processes)
    training.trial.n += hit
    return hit


def killed(trial: Trial) -> None:
    """R1: four kills, then the end."""
    saves = trial.rng.choice(['validation', 'steps'])
    workers = trial.rng.choice([0, 2])
    training = Training(trial, 'one', *SAVES[saves], f'data.num_workers={workers}')
    for _ in range(4):
        training.attempt(at_random)
    training.finish()
    trial.figures |= {'saves': saves, 'workers': workers}


def one_of_two_killed(trial: Trial) -> None:
    """R1: one of two ranks; the other must not go on by itself."""
    training = Training(trial, 'two', *SAVES['steps'])

    def kill_one(training: Training, processes: list[int]) -> None:
        training.wait_for_row()
        time.sleep(trial.rng.uniform(0, training.remaining_s()))
        rank = trial.rng.randrange(2)
        if not has_ended(processes[rank]):
            os.killpg(processes[rank], signal.SIGKILL)
            trial.n += 1
        until = time.monotonic() + 20
        while not has_ended(processes[1 - rank]) and time.monotonic() < until:
            time.sleep(0.01)
        # without a launcher nobody ends the other one but the collective that breaks
        trial.figures['the other had to be ended'] = kill_groups(processes)

    training.attempt(kill_one)
    training.finish()


def killed_often(trial: Trial) -> None:
    """R2: ten kills within one run."""
    training = Training(trial, 'one', *SAVES['steps'])
    while trial.n < 10 and training.newest_step() < STEPS:
        training.attempt(lambda training, processes: at_random(training, processes, within=0.4))
    training.finish()


def killed_in_a_save(trial: Trial) -> None:
    """R3: one run is killed at each named place of a save, one after the other."""
    training = Training(trial, 'one', *SAVES['each step'])
    places = list(PLACES)
    trial.rng.shuffle(places)
    for place in places:
        # both older ones of the first attempt must be there to be renamed and removed
        step = max(training.newest_step() + 1, 3)
        if step > STEPS:
            break
        point = PLACES[place].format(step=step, former=step - 1, oldest=step - 2)
        statuses = training.attempt(failpoints=point)
        trial.n += 1
        trial.check(statuses == [-signal.SIGKILL], f'{place}: exit statuses {statuses}')
        kept = [verified(path) for path in training.checkpoints.glob('*last.ckpt*')]
        trial.check(max(kept, default=0) >= step - 1, f'{place}: of step {step}, verified are {kept}')
    training.finish()


def verified(path: Path) -> int:
    """Step of a checkpoint that is whole; 0 for any other."""
    try:
        return verify_checkpoint(path)
    except Exception:  # noqa: BLE001  whatever is wrong with it
        return 0


def ended_at(trial: Trial) -> None:
    """R5: four places at which a run ends, with one or four rows in a global batch."""
    place = ('step', 'validation', 'SIGTERM', 'time limit')[trial.number // 2 % 4]
    reference = ('rows1', 'rows4')[trial.number % 2]
    save = {'step': 'steps', 'validation': 'validation'}.get(place, 'never')
    limit = ['++exp_manager.max_time_per_run=00:00:00:02'] if place == 'time limit' else []
    training = Training(trial, reference, *SAVES[save], *limit)

    def end(training: Training, processes: list[int]) -> None:
        if place == 'time limit':
            return
        until = time.monotonic() + 60
        while not training.newest_step() and place != 'SIGTERM' and time.monotonic() < until:
            time.sleep(0.005)
        training.wait_for_row(trial.rng.randrange(8))
        os.killpg(processes[0], signal.SIGTERM if place == 'SIGTERM' else signal.SIGKILL)

    statuses = training.attempt(end)
    trial.n += 1
    if place in ('SIGTERM', 'time limit') and training.trained_steps() < STEPS:
        lost = training.trained_steps() - training.newest_step()
        trial.check(not lost, f'{place}: {lost} steps lost')
        trial.check(statuses == [75], f'{place}: exit statuses {statuses}, with work left')
    while limit and training.newest_step() < STEPS and len(trial.problems) == 0 and training.run.attempts < 30:
        training.attempt()
    if not limit:
        training.finish()
    training.check_end()
    trial.figures |= {'place': place, 'rows': reference}


def with_one_row(shared: Path) -> None:
    """References with one and with four rows in a global batch."""
    make_reference(shared, 'rows1', rows=1)
    make_reference(shared, 'rows4', rows=4)


def script_killed(trial: Trial) -> None:
    """R14: the command as a user gives it, imports and all, with the retention monitor."""
    whole, folder = trial.shared / 'script' / 'run', trial.folder / 'run'
    takes_s = float((trial.shared / 'script' / 'seconds').read_text())
    while trial.n < 5:
        process = launch(trial.shared, folder, trial.folder / 'script.log')
        time.sleep(trial.rng.uniform(0.2, 1.0) * takes_s)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        trial.n += 1
    status = launch(trial.shared, folder, trial.folder / 'script.log').wait()
    trial.check(status == 0, f'exit status {status}')
    ends = [next(each.glob('checkpoints/step=12-*last.ckpt'), None) for each in (whole, folder)]
    if trial.check(all(ends), f'no checkpoint of the last step: {ends}'):
        wrong = differing(*(state_digests(str(end)) for end in ends))
        trial.check(not wrong, f'the state differs at the end: {", ".join(wrong)}')


def launch(shared: Path, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """The script of the examples, in a process group of its own."""
    words = [f'--config-path={shared}', '--config-name=tiny', f'exp_manager.explicit_log_dir={folder}']
    words += ['trainer.devices=1', 'trainer.max_steps=12', 'trainer.val_check_interval=2', 'gate.items=20']
    script = str(ROOT / 'examples' / 'speechllm_joint_sft.py')
    with log.open('ab') as stream:
        return subprocess.Popen(
            [sys.executable, script, *words], stdout=stream, stderr=stream, start_new_session=True, cwd=ROOT
        )


def with_script(shared: Path) -> None:
    """The undisturbed run of the same command."""
    one_rank(shared)
    (shared / 'script').mkdir(exist_ok=True)
    begin = time.monotonic()
    if status := launch(shared, shared / 'script' / 'run', shared / 'script.log').wait():
        raise RuntimeError(f'exit status {status}: {(shared / "script.log").read_text()[-2000:]}')
    (shared / 'script' / 'seconds').write_text(f'{time.monotonic() - begin}')


EXPERIMENTS = (
    Experiment('R1', 'SIGKILL to the process group at a random moment of start, training or save; 4 in a run', 22, 1,
               killed, 26, prepare=one_rank),
    Experiment('R1/one of two ranks', 'SIGKILL to one of two ranks at a random moment', 12, 1, one_of_two_killed, 12,
               prepare=two_ranks),
    Experiment('R2', '10 kills within one run', 5, 1, killed_often, 40, prepare=one_rank),
    Experiment('R3', 'SIGKILL at each of 8 named places of a save of the tiny model', 5, 1, killed_in_a_save, 32,
               prepare=one_rank),
    Experiment('R5', 'ended behind a step, a validation, by SIGTERM, by the time limit; 1 and 4 rows in a batch', 8, 2,
               ended_at, 9, prepare=with_one_row),
    Experiment('R14', 'SIGKILL to `examples/speechllm_joint_sft.py` as a user starts it, 5 in a run', 2, 0,
               script_killed, 150, limit_s=900, prepare=with_script),
)  # fmt: skip
