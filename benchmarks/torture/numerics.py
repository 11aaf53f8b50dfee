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
"""N: losses and gradients that are not finite, rows without targets: nothing of it is trained on or saved."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from nemo_vtb.checkpoint.checkpoint_io import AtomicCheckpointIO
from nemo_vtb.errors import VtbCheckpointError
from nemo_vtb.training.history import read_history
from torture.checkpoints import sharded
from torture.trainings import SAVES, STEPS, Training, has_ended, two_ranks
from torture.trials import Experiment, Trial

STRATEGIES: Mapping[str, tuple[str, ...]] = {  # reference, and what is changed in it
    'ddp': ('two',),
    'fsdp2': ('sharded',),
    'zero1': ('sharded', '++trainer.strategy.shard_optimizer=true'),
}


def harmed(trial: Trial, strategy: str, kind: str, **options: Any) -> list[dict[str, Any]]:
    """Train on two ranks with a callback of `nemo_vtb.testing.poison`; every checkpoint must be finite.

    Returns:
        The records of its steps.
    """
    words = ', '.join(f'{name}: {json.dumps(value)}' for name, value in options.items())
    callback = f'++trainer.callbacks=[{{_target_: nemo_vtb.testing.poison.{kind}, {words}}}]'
    reference, *changes = STRATEGIES[strategy]
    config = 'tiny' if reference == 'two' else 'sharded'
    training = Training(trial, reference, *SAVES['each step'], *changes, callback, config=config, compared=False)
    seen: set[str] = set()
    wrong: list[str] = []

    def disturb(training: Training, processes: list[int]) -> None:
        while sum(map(has_ended, processes)) < len(processes):
            wrong.extend(infinite_tensors(training.checkpoints, seen))
            time.sleep(0.05)
        wrong.extend(infinite_tensors(training.checkpoints, seen))

    statuses = training.attempt(disturb)
    trial.n += 1
    trial.figures |= {'kind': kind, **options, 'checkpoints read': len(seen)}
    trial.check(statuses == [0, 0], f'exit statuses {statuses}:\n{training.run.log_tail()[-800:]}')
    trial.check(not wrong, f'not finite in a checkpoint: {wrong[:3]}')
    trial.check(len(seen) >= 2, 'no checkpoint was read')
    return [record for record in read_history(training.folder / 'history.jsonl') if record['type'] == 'train']


def not_finite(strategy: str) -> Callable[[Trial], None]:
    """N1: in the loss, or in a gradient, of one of two ranks, in two steps."""

    def run(trial: Trial) -> None:
        kind = trial.rng.choice(['PoisonLoss', 'PoisonGradient'])
        value, rank = trial.rng.choice(['nan', 'inf', '-inf']), trial.rng.randrange(2)
        steps = sorted(trial.rng.sample(range(1, STEPS - 2), 2))
        records = harmed(trial, strategy, kind, steps=steps, rank=rank, value=value)
        left_out = [record['step'] for record in records if record.get('left_out')]
        trial.check(left_out == steps, f'left out were steps {left_out}, poisoned {steps}')
        quarantine = trial.folder / 'training' / 'run' / 'quarantine.jsonl'
        lines = quarantine.read_text(encoding='utf-8').splitlines() if quarantine.exists() else []
        reasons = {json.loads(line)['reason'] for line in lines}
        trial.check(reasons == {'loss_not_finite'}, f'the quarantine has the reasons {sorted(reasons)}')

    return run


def without_targets(trial: Trial) -> None:
    """N2: rows without a target, on one rank or on both."""
    steps = sorted(trial.rng.sample(range(1, STEPS), 3))
    rank = trial.rng.choice([0, 1, None])
    records = harmed(trial, trial.rng.choice(list(STRATEGIES)), 'PoisonTargets', steps=steps, rank=rank)
    trial.check(len(records) == STEPS, f'{len(records)} steps')
    trial.check(not any(record.get('left_out') for record in records), 'a step was left out')
    empty = [record['step'] for record in records if not record['targets']]
    trial.check(empty == (steps if rank is None else []), f'without targets were steps {empty}')


def both(shared: Path) -> None:
    """References of two ranks, each with the whole LLM and with half of it."""
    two_ranks(shared)
    sharded(shared)


def infinite_tensors(folder: Path, seen: set[str]) -> Iterator[str]:
    """Names of tensors that are not finite in checkpoints that were not looked at before."""
    for path in folder.glob('step=*.ckpt'):
        if path.name in seen:
            continue
        try:
            checkpoint = AtomicCheckpointIO().load_checkpoint(path)
        except VtbCheckpointError:  # replaced by the next one while it was read
            continue
        seen.add(path.name)
        for name, value in tensors({key: checkpoint[key] for key in ('state_dict', 'optimizer_states')}):
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                yield f'{path.name}{name}'


def tensors(value: Any, name: str = '') -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of nested mappings and sequences."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(inner, f'{name}/{key}')


EXPERIMENTS = (
    Experiment('N1/DDP', 'NaN or Inf in a loss or gradient of one of two ranks, in two steps', 8, 1,
               not_finite('ddp'), 16, prepare=two_ranks),
    Experiment('N1/FSDP2', 'the same with the LLM shared among the ranks', 6, 1, not_finite('fsdp2'), 22,
               prepare=both),
    Experiment('N1/ZeRO-1', 'the same with the optimizer shared as well', 6, 1, not_finite('zero1'), 22,
               prepare=both),
    Experiment('N2', 'rows without a target on one rank or on both, in three steps', 6, 1, without_targets, 18,
               prepare=both),
)  # fmt: skip
