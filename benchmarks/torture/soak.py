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
"""One long training of the tiny model under everything at once, bit-equal at its end to the undisturbed one.

The disturbed training reads the same good conversations with broken lines among them, on a disk of its own that is
filled now and then. Each attempt is harmed once or twice; before some, the newest checkpoint or the index is damaged.
"""

import os
import shutil
import signal
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from nemo_vtb.testing.failpoints import damage
from nemo_vtb.training.stop_signals import EXIT_STOPPED, SIGNALS
from torture.checkpoints import fill, mounted
from torture.resume import PLACES, verified
from torture.trainings import SAVES, Training, has_ended, kill_groups, make_reference, one_rank, parts_of
from torture.trials import Experiment, Skipped, Trial

STEPS = 300
"""Of one round; a minute undisturbed."""
SAME = ('parameters', 'optimizer', 'scheduler', 'counters', 'random')
"""What must be equal; the plan and the ledger know that there were broken lines."""
BROKEN = (
    b'{"id": "cut", "conversations": [{"from": "User"',
    b'\xff\xfe',
    b'[]',
    b'{"id": "no turns"}',
    b'{"id": "gone", "conversations": [{"from": "User", "type": "audio", "value": "gone.wav"}, '
    b'{"from": "Assistant", "type": "text", "value": "x"}]}',
)


class Soak:
    """One disturbed training.

    Args:
        trial: Its generator draws all that is done.
        log: Every attempt is a line there.
        number: Of the round.
    """

    def __init__(self, trial: Trial, log: Path, number: int) -> None:
        self.trial, self.rng, self.log, self.number = trial, trial.rng, log, number
        self.counts: Counter[str] = Counter()
        self.filler: Path | None = None
        self.training = Training(
            trial, 'soak', *SAVES['steps'], f'data.index_dir={trial.folder}/index', name=f'round-{number}',
            config='soak',
        )  # fmt: skip

    def disturb(self, training: Training, processes: list[int]) -> None:
        """Harm a running training once or twice, and end it unless it ends by itself."""
        if self.rng.random() < 0.15:
            time.sleep(self.rng.uniform(0, training.reference['start_s']))
        else:
            training.wait_for_row()
            time.sleep(self.rng.uniform(0, 8))
        if self.rng.random() < 0.3:
            self._harm_gently(training, processes)
        if self.rng.random() < 0.5:
            self.counts['SIGKILL'] += kill_groups(processes)
        elif not has_ended(processes[0]):
            number = self.rng.choice(SIGNALS)
            self.counts[signal.Signals(number).name] += 1
            os.kill(processes[0], number)
        until = time.monotonic() + 60
        while not has_ended(processes[0]) and time.monotonic() < until:
            time.sleep(0.02)
        if kill_groups(processes):
            self.trial.check(False, 'a signal was not answered within 60 s')
        self._empty()

    def _harm_gently(self, training: Training, processes: list[int]) -> None:
        if self.filler is not None and self.rng.random() < 0.6:
            self.counts['full disk'] += 1
            fill(self.filler, self.rng.randrange(2_500_000))
            time.sleep(self.rng.uniform(0.5, 4))
            if self.rng.random() < 0.5:
                self._empty()
        elif not has_ended(processes[0]):
            self.counts['SIGSTOP'] += 1
            os.kill(processes[0], signal.SIGSTOP)
            time.sleep(self.rng.uniform(0.2, 2))
            os.kill(processes[0], signal.SIGCONT)

    def _empty(self) -> None:
        if self.filler is not None:
            self.filler.unlink(missing_ok=True)

    def damage_before(self) -> None:
        """Sometimes turn a bit of the newest checkpoint, cut it, or harm the index in the cache."""
        lasts = {path: verified(path) for path in self.training.checkpoints.glob('*last.ckpt*')}
        whole = sorted((step, path) for path, step in lasts.items() if step)
        if len(whole) >= 2 and self.rng.random() < 0.25:
            how = self.rng.choice(['flip', 'cut'])
            self.counts[f'checkpoint: {how}'] += 1
            damage(whole[-1][1], how, self.rng.random(), self.rng.randrange(8))
        if self.rng.random() < 0.15:
            files = sorted(path for path in (self.trial.folder / 'index').rglob('*') if path.is_file())
            if files:
                self.counts['index: flip'] += 1
                damage(self.rng.choice(files), 'flip', self.rng.random())

    def failpoints(self) -> str:
        """Sometimes a kill at a named place of the next save but one."""
        if self.rng.random() > 0.15:
            return ''
        self.counts['kill in a save'] += 1
        step = (self.training.newest_step() // 3 + 2) * 3
        return PLACES[self.rng.choice(list(PLACES))].format(step=step, former=step - 3, oldest=step - 6)

    def run(self, until: float) -> None:
        """Disturb until then, or until it has come to its end; then let it end."""
        training = self.training
        while time.monotonic() < until and training.newest_step() < STEPS:
            before, counts = training.newest_step(), Counter(self.counts)
            self.damage_before()
            statuses = training.attempt(self.disturb, failpoints=self.failpoints(), begins_at=-1)
            self.say(f'from step {before}', dict(self.counts - counts), f'exit {statuses[0]}')
            self.trial.check(self.is_known(statuses[0]), f'exit {statuses[0]}: {training.run.log_tail()[-800:]}')
        ends = training.attempt(begins_at=-1)
        expected, found = training.reference['parts'][0], parts_of(training.run, 1)[0]
        wrong = training.differing({part: expected[part] for part in SAME}, found)
        self.trial.check(ends == [0], f'exit statuses {ends} at the end: {training.run.log_tail()[-800:]}')
        self.trial.check(not wrong, f'differs at the end: {", ".join(wrong)}')
        listed = training.folder / 'quarantine.jsonl'
        self.trial.check(listed.exists(), 'nothing is listed in quarantine.jsonl')
        self.say(
            f'the end of round {self.number}', f'{training.run.attempts} attempts', f'differs: {wrong or "nothing"}'
        )

    def is_known(self, status: int) -> bool:
        """Whether the end of an attempt is one that is documented."""
        if status == 1:  # Ctrl-C before the run listens to signals
            return 'KeyboardInterrupt' in self.training.run.log_tail()
        if status == 2:  # a named error: it began while the disk was full
            return 'Error: ' in self.training.run.log_tail() and bool(self.counts['full disk'])
        return status in (0, EXIT_STOPPED, -signal.SIGKILL, *(-number for number in SIGNALS))

    def say(self, *words: Any) -> None:
        """A line of the log."""
        problems = f'; {len(self.trial.problems)} problems' if self.trial.problems else ''
        line = '  '.join(map(str, words))
        with self.log.open('a', encoding='utf-8') as stream:
            stream.write(f'{time.strftime("%H:%M:%S")}  {line}; now step {self.training.newest_step()}{problems}\n')


def soak(trial: Trial) -> None:
    """Rounds until the time is up, each to its end."""
    minutes, log = float(trial.options['soak_minutes']), Path(trial.options['soak_log'])
    log.unlink(missing_ok=True)
    begin, counts, rounds, attempts = time.monotonic(), Counter[str](), 0, 0
    with ExitStack() as stack:
        while rounds == 0 or time.monotonic() < begin + 60 * minutes:
            one = Soak(trial, log, rounds)
            try:
                stack.enter_context(mounted(one.training.folder, 64))
                # a folder: NeMo moves the files of a run away at each resume
                one.filler = one.training.folder / 'full' / 'filler'
            except Skipped as reason:
                one.training.folder.mkdir(parents=True, exist_ok=True)
                one.say(f'without full disks: {reason}')
            one.run(begin + 60 * minutes)
            rounds, attempts = rounds + 1, attempts + one.training.run.attempts
            counts.update(one.counts)
            stack.close()
            shutil.rmtree(one.training.run.folder)
    trial.n = sum(counts.values())
    minutes_taken = round((time.monotonic() - begin) / 60, 1)
    trial.figures |= {'minutes': minutes_taken, 'rounds': rounds, 'attempts': attempts, **dict(sorted(counts.items()))}


def soak_data(shared: Path) -> None:
    """`soak.yaml`: the corpus with broken lines among its own; and the undisturbed training without them."""
    one_rank(shared)
    if not (shared / 'soak.yaml').exists():
        cfg = OmegaConf.load(shared / 'tiny.yaml')
        shutil.copytree(shared / 'corpus', shared / 'broken')
        for entry in cfg.data.train_ds.input_cfg:
            # of the same name: the order inside a source is drawn from it
            path = shared / 'broken' / Path(entry.manifest_filepath).relative_to(shared / 'corpus')
            lines = path.read_bytes().splitlines()
            for place, line in enumerate(BROKEN):
                lines.insert(2 * place + 1, line)
            path.write_bytes(b'\n'.join(lines) + b'\n')
            entry.manifest_filepath = str(path)
        cfg.data.max_skip_ratio = 1.0
        OmegaConf.save(cfg, shared / 'soak.yaml')
    make_reference(shared, 'soak', steps=STEPS, overrides=[*SAVES['steps'], 'trainer.val_check_interval=60'])


EXPERIMENTS = (
    Experiment('soak', 'kills, signals, stops, full disks, damaged checkpoints and indexes, broken lines, all at once',
               1, 0, soak, 2000, limit_s=5400, prepare=soak_data),
)  # fmt: skip
