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
"""D and S: broken data beside good, and files of strangers."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from resume_matrix import Run

from nemo_vtb.data import collate, datamodule
from nemo_vtb.data.faults import Reason, audio_fault
from nemo_vtb.io import read_json_lines
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.testing import tiny_model_cfg
from nemo_vtb.testing.hostile import hostile_cases, try_cases
from nemo_vtb.testing.torture import MAX_TOKENS, TortureSet, make_torture_set
from nemo_vtb.training.run_state import RunState
from torture.trainings import BASE, one_rank, wait_for_all
from torture.trials import Experiment, Trial

SKIPPING = {'max_tokens': MAX_TOKENS, 'overlong': 'drop', 'on_exhausted': 'drop', 'max_skip_ratio': 1.0}


def broken_data(trial: Trial) -> None:
    """D: train on all of it; what is skipped is listed with its reason, what is good is trained on once."""
    data = trial.folder / 'data'
    data.mkdir()
    made = make_torture_set(data, seed=trial.number)
    cfg = OmegaConf.load(trial.shared / 'tiny.yaml')
    keys = {'train_ds': made.train_ds, 'budget': None, 'index_dir': str(trial.folder / 'index'), **SKIPPING}
    for key, value in keys.items():
        OmegaConf.update(cfg.data, key, value, merge=False)
    OmegaConf.save(cfg, trial.folder / 'broken.yaml')
    words = [f'--config-path={trial.folder}', '--config-name=broken', *BASE, 'trainer.max_steps=100000',
             'trainer.limit_val_batches=0', f'data.num_workers={(0, 2)[trial.number % 2]}',
             'exp_manager.create_checkpoint_callback=false',
             f'exp_manager.explicit_log_dir={trial.folder}/training/run']  # fmt: skip
    run = Run(trial.folder / 'training', words)
    statuses = wait_for_all(run.start())
    trial.check(statuses == [0], f'exit statuses {statuses}:\n{run.log_tail()[-1500:]}')
    rows = [row for row in run.rows() if 'row' in row]
    trial.check(all(np.isfinite(float.fromhex(row['loss'])) for row in rows), 'a loss is not finite')
    seen = Counter(id_ for row in rows for id_ in row['ids'])
    wrong = {id_ for id_, count in seen.items() if count > 1} | (seen.keys() ^ made.good_ids)
    trial.check(not wrong, f'not trained on once: {sorted(wrong)[:5]} ({len(wrong)})')
    compare_kinds(trial, made, Path(run.folder) / 'run' / 'quarantine.jsonl')


def compare_kinds(trial: Trial, made: TortureSet, quarantine: Path) -> None:
    """Each kind: as many lines are listed, with the right reason, as were injected."""
    found = [(Path(line['file']).stem, line['reason']) for line in read_json_lines(quarantine)]
    listed, kinds = Counter(found), {}
    for fault in made.kinds:
        expected = made.expected.get((fault.stem, fault.outcome), 0)
        other = sum(count for (stem, reason), count in listed.items() if stem == fault.stem) - expected
        good = listed[fault.stem, fault.outcome] == expected and not other
        trial.check(good, f'{fault.group}: {fault.name}: listed otherwise than {expected} times as {fault.outcome}')
        kinds[f'{fault.group}: {fault.name}'] = [10, 0 if good else 10]
    trial.n += 10 * len(made.kinds)
    trial.figures |= {'kinds': kinds, 'injected': sum(made.expected.values()), 'skipped': len(found)}


def disturbed_reads(trial: Trial) -> None:
    """D: 5 % of the reads fail, each is tried again: none of 1,000 conversations is lost."""
    rng, failures = np.random.default_rng(trial.rng.randrange(1 << 32)), 0
    real = collate.read_audio

    def read(*args: Any, **keys: Any) -> np.ndarray:
        nonlocal failures
        if rng.random() < 0.05:
            failures += 1
            raise audio_fault(Reason.AUDIO_MISSING, field='audio', got='a disturbance')
        return real(*args, **keys)

    collate.read_audio, datamodule._RETRY_S = read, 0.0
    data = trial.folder / 'data'
    data.mkdir()
    made = make_torture_set(data, seed=trial.number, per_kind=1, mutated=0)
    made.train_ds['input_cfg'] = [e for e in made.train_ds['input_cfg'] if e['source'].startswith('clean_')]
    model = VoiceTextBlender(tiny_model_cfg(trial.shared / 'models'))
    cfg = {'train_ds': made.train_ds, 'num_workers': 0, 'index_dir': str(trial.folder / 'index'), **SKIPPING}
    module = datamodule.VtbDataModule(cfg, model.renderer, model.frames)
    module.setup('fit')
    state, seen = RunState(trial.folder / 'run'), Counter[str]()
    loader = module.train_dataloader()
    state.attach(loader, module.dims)
    for row in loader:
        seen.update(row.ids)
        state.consume(row)
    trial.n += failures
    trial.check(failures > 20, f'only {failures} reads failed')
    trial.check(len(seen) == 1000 and set(seen.values()) == {1}, f'{len(seen)} of 1,000 conversations were seen')
    trial.check(state.ledger is not None and not state.ledger.skipped, 'something was skipped')


def strangers(trial: Trial) -> None:
    """S: each file of the corpus is refused by name or harmless, in a process with bounds on time and memory."""
    results = try_cases(hostile_cases(trial.folder / 'files', trial.number), limit_s=120)
    trial.n += len(results)
    for name, result in results.items():
        trial.check(result in ('refused', 'harmless'), f'{name}: {result}')
    trial.figures |= dict(Counter(result.partition(':')[0] for result in results.values()))


EXPERIMENTS = (
    Experiment('D', '10 of each of 152 kinds of broken input beside 1,000 clean conversations, trained on to the end',
               2, 0, broken_data, 150, limit_s=900, prepare=one_rank),
    Experiment('D/short disturbances', '5 % of the reads of 1,000 conversations fail', 5, 1, disturbed_reads, 12,
               prepare=one_rank),
    Experiment('S', 'every file of the corpus of hostile files, by each way that leads to it', 1, 0, strangers, 160,
               limit_s=1500, prepare=one_rank),
)  # fmt: skip
