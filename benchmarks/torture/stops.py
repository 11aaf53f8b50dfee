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
"""P: signals, hangs and lost processes: nothing trained is lost, nothing is torn, nobody waits for ever."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from nemo_vtb.testing.signals import SendSignal
from nemo_vtb.training.stop_signals import EXIT_STOPPED, SIGNALS
from nemo_vtb.training.watchdog import EXIT_STALLED
from torture.trainings import SAVES, STEPS, Training, has_ended, one_rank, two_ranks, wait_for_all
from torture.trials import Experiment, Trial, descendants

Send = Callable[[list[int], int], object]


def stop_and_go(trial: Trial, training: Training, send: Send, allowed: tuple[int, ...] = (EXIT_STOPPED,)) -> None:
    """Each of the four signals once, in a random order, each at a random moment behind a random row; then the end."""
    signals = list(SIGNALS)
    trial.rng.shuffle(signals)
    for number in signals:

        def disturb(training: Training, processes: list[int], number: int = number) -> None:
            ahead = trial.rng.randrange(2 * training.rows_per_batch)
            training.wait_for_row(training.newest_step() * training.rows_per_batch + ahead)
            time.sleep(trial.rng.uniform(0, 0.3))
            send(processes, number)

        statuses = training.attempt(disturb)
        trial.n += 1
        check_stopped(training, statuses, allowed, signal.Signals(number).name)
    training.finish()


def check_stopped(training: Training, statuses: list[int], allowed: tuple[int, ...], name: str) -> None:
    """Nothing trained is lost, and the exit code says that work is left."""
    trained, saved = training.trained_steps(), training.newest_step()
    training.trial.check(saved >= trained, f'{name}: trained to step {trained}, saved is step {saved}')
    good = all(status in allowed for status in statuses) or saved >= STEPS
    training.trial.check(good, f'{name}: exit statuses {statuses}:\n{training.run.log_tail()[-800:]}')


def at_rank(rank: int | None) -> Callable[[Trial], None]:
    """P1: at one of two ranks, or (None) at all of them."""

    def run(trial: Trial) -> None:
        training = Training(trial, 'two', *SAVES['never'])

        def send(processes: list[int], number: int) -> None:
            for process in processes if rank is None else [processes[rank]]:
                os.kill(process, number)

        stop_and_go(trial, training, send)

    return run


def at_one_process(trial: Trial) -> None:
    """P3: one process without torch.distributed, with and without loader processes."""
    training = Training(trial, 'one', *SAVES['never'], f'data.num_workers={trial.rng.choice([0, 2])}')
    stop_and_go(trial, training, lambda pids, number: os.kill(pids[0], number))


def at_launcher(trial: Trial) -> None:
    """P1: torchrun's own agent; USR1 and KILL end it without a word to its ranks, which must notice."""
    training = Training(trial, 'two', *SAVES['never'])
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGKILL]
    trial.rng.shuffle(numbers)
    for number in numbers:
        begins_at = training.newest_step()
        launcher = launch(training)
        training.processes = [launcher]
        training.wait_for_row(begins_at * training.rows_per_batch + trial.rng.randrange(4))
        time.sleep(trial.rng.uniform(0, 0.3))
        ranks = list(descendants(launcher))
        os.kill(launcher, number)
        trial.n += 1
        statuses = wait_for_all([launcher])
        name = f'{signal.Signals(number).name} at the launcher'
        trial.check(statuses != [0], f'{name}: exit status 0')
        until = time.monotonic() + 30
        while (left := [pid for pid in ranks if is_alive(pid)]) and time.monotonic() < until:
            time.sleep(0.02)
        trial.check(not left, f'{name}: {len(left)} ranks go on')
        training.compare(begins_at)
        trained, saved = training.trained_steps(), training.newest_step()
        trial.check(saved >= trained, f'{name}: trained to step {trained}, saved is step {saved}')
    training.finish()


def launch(training: Training) -> int:
    """Start both ranks by the agent that torchrun is made of, forked; returns its process."""
    run = training.run
    run.folder.mkdir(parents=True, exist_ok=True)
    run.attempts += 1
    if launcher := os.fork():
        return launcher
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    status = 1
    try:
        config = LaunchConfig(1, 1, 2, run_id=f'{os.getpid()}', rdzv_backend='c10d', rdzv_endpoint='127.0.0.1:0',
                              start_method='fork', max_restarts=0, monitor_interval=0.1)  # fmt: skip
        elastic_launch(config, _rank)(training)
        status = 0
    finally:
        os._exit(status)


def _rank(training: Training) -> None:
    training.run.train(int(os.environ['RANK']), 2)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not collected does not."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] not in 'ZX'
    except OSError:
        return False


def twice(trial: Trial) -> None:
    """P2: a second signal while the first one is being answered."""
    training = Training(trial, 'one', *SAVES['never'])

    def send(processes: list[int], number: int) -> None:
        second = trial.rng.choice(SIGNALS)
        os.kill(processes[0], number)
        time.sleep(trial.rng.uniform(0, 0.3))
        if not has_ended(processes[0]):
            os.kill(processes[0], second)

    stop_and_go(trial, training, send)


def during_a_save(trial: Trial) -> None:
    """P2: at a file-system operation of a save."""
    training = Training(trial, 'one', *SAVES['each step'])
    for number in trial.rng.sample(SIGNALS, 4):
        step = training.newest_step() + trial.rng.randint(1, 2)
        name = signal.Signals(number).name
        place = trial.rng.choice(['open@*/.step={}-*last.ckpt*', 'save@*/.step={}-*last.ckpt*',
                                  'fsync@*/.step={}-*last.ckpt*', 'replace@*/step={}-*last.ckpt'])  # fmt: skip
        statuses = training.attempt(failpoints=f'{place.format(step)}:1:{name}')
        trial.n += 1
        check_stopped(training, statuses, (EXIT_STOPPED,), f'{name} at {place}')
        trial.check(not list(training.checkpoints.glob('.*')), f'{name} at {place}: a file was left')
    training.finish()


def during_validation(trial: Trial) -> None:
    """P2: while a validation set is read."""
    number = trial.rng.choice(SIGNALS)
    step = trial.rng.choice([6, 12])
    training = Training(trial, 'one', *SAVES['never'])
    training.run.callbacks = [SendSignal(number, step, hook='on_validation_batch_start')]
    statuses = training.attempt()
    trial.n += 1
    check_stopped(training, statuses, (EXIT_STOPPED,), signal.Signals(number).name)
    trial.check(step <= training.newest_step() <= step + 1, f'saved is step {training.newest_step()}')
    training.run.callbacks = []
    training.finish()


def during_start(trial: Trial) -> None:
    """P2: before the first row; nothing may be torn, and what was there goes on."""
    training = Training(trial, 'one', *SAVES['each step'])
    for number in trial.rng.sample(SIGNALS, 4):
        before = training.newest_step()

        def disturb(training: Training, processes: list[int], number: int = number) -> None:
            time.sleep(trial.rng.uniform(0, training.reference['start_s']))
            os.kill(processes[0], number)

        statuses = training.attempt(disturb)
        trial.n += 1
        name = signal.Signals(number).name
        # before the run listens, a signal does what it does to any program
        interrupted = (1,) if 'KeyboardInterrupt' in training.run.log_tail() else ()
        check_stopped(training, statuses, (EXIT_STOPPED, -number, *interrupted), name)
        trial.check(training.newest_step() >= before, f'{name}: step {before} is gone')
    training.finish()


def with_stalled_loader(trial: Trial) -> None:
    """P2, P5: loader processes are stopped, then a signal comes: the watchdog ends what cannot end by itself."""
    training = Training(trial, 'one', *SAVES['steps'], 'data.num_workers=2', '++trainer.watchdog_s=4')

    def disturb(training: Training, processes: list[int]) -> None:
        training.wait_for_row(trial.rng.randrange(4 * training.rows_per_batch))
        for loader in descendants(processes[0]):
            os.kill(loader, signal.SIGSTOP)
        os.kill(processes[0], trial.rng.choice(SIGNALS))

    statuses = training.attempt(disturb)
    trial.n += 1
    trial.check(statuses[0] in (EXIT_STOPPED, EXIT_STALLED), f'exit statuses {statuses}')
    training.finish()


def stopped_rank(trial: Trial) -> None:
    """P5: SIGSTOP to one of two ranks, as a frozen node would look."""
    limit_s = 4
    training = Training(trial, 'two', *SAVES['steps'], f'++trainer.watchdog_s={limit_s}')
    rank, began = trial.rng.randrange(2), 0.0

    def disturb(training: Training, processes: list[int]) -> None:
        nonlocal began
        training.wait_for_row(trial.rng.randrange(4 * training.rows_per_batch))
        os.kill(processes[rank], signal.SIGSTOP)
        began = time.monotonic()
        until = began + 60
        while not has_ended(processes[1 - rank]) and time.monotonic() < until:
            time.sleep(0.02)

    statuses = training.attempt(disturb)
    took = time.monotonic() - began
    trial.n += 1
    trial.figures |= {'rank': rank, 'seconds': round(took, 1)}
    trial.check(statuses[1 - rank] == EXIT_STALLED, f'exit statuses {statuses}')
    trial.check(took < limit_s + 10, f'it took {took:.0f} s')
    report = training.folder / 'watchdog' / 'report.txt'
    text = report.read_text(encoding='utf-8') if report.exists() else 'none'
    trial.check(f'missing: rank {rank}\n' in text, f'the report: {text}')
    trial.check((training.folder / 'watchdog' / f'stacks_rank{1 - rank}.txt').exists(), 'no stacks')
    training.finish()


def killed_loader(trial: Trial) -> None:
    """P5: a loader process is killed, as by the kernel for want of memory: an error names the row, nobody waits."""
    training = Training(trial, 'one', *SAVES['steps'], 'data.num_workers=2', '++trainer.watchdog_s=20')

    def disturb(training: Training, processes: list[int]) -> None:
        training.wait_for_row(trial.rng.randrange(4 * training.rows_per_batch))
        for loader in descendants(processes[0]):
            os.kill(loader, signal.SIGKILL)

    statuses = training.attempt(disturb)
    trial.n += 1
    trial.check(statuses == [2] or training.newest_step() == STEPS, f'exit statuses {statuses}')
    trial.check('VtbDataError' in training.run.log_tail() or statuses == [0], training.run.log_tail()[-600:])
    training.finish()


EXPERIMENTS = (
    Experiment('P1/rank 0', 'TERM, INT, HUP, USR1 at the first of two ranks', 5, 1, at_rank(0), 38, prepare=two_ranks),
    Experiment('P1/rank 1', 'TERM, INT, HUP, USR1 at the second of two ranks', 5, 1, at_rank(1), 38,
               prepare=two_ranks),
    Experiment('P1/all ranks', 'TERM, INT, HUP, USR1 at both ranks', 5, 0, at_rank(None), 38, prepare=two_ranks),
    Experiment('P1/launcher', "TERM, INT, USR1, KILL at torchrun's agent of two ranks", 5, 1, at_launcher, 45,
               prepare=two_ranks),
    Experiment('P2/twice', 'a second signal within 0.3 s', 5, 1, twice, 20, prepare=one_rank),
    Experiment('P2/during a save', 'at the opening, writing, flushing or renaming of a checkpoint', 5, 1,
               during_a_save, 20, prepare=one_rank),
    Experiment('P2/during validation', 'at a row of a validation', 20, 1, during_validation, 8, prepare=one_rank),
    Experiment('P2/during start-up', 'before the first row', 5, 1, during_start, 16, prepare=one_rank),
    Experiment('P2/stalled loader', 'while the loader processes are stopped', 5, 1, with_stalled_loader, 14,
               prepare=one_rank),
    Experiment('P3', 'TERM, INT, HUP, USR1 at one process without torch.distributed', 5, 1, at_one_process, 20,
               prepare=one_rank),
    Experiment('P5', 'SIGSTOP to one of two ranks', 5, 1, stopped_rank, 18, prepare=two_ranks),
    Experiment('P5/killed loader', 'SIGKILL to the loader processes', 5, 1, killed_loader, 10, prepare=one_rank),
)  # fmt: skip
