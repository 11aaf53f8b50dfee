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
"""Real signals to real trainings: no optimizer step is lost, the exit code says that work is left."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from nemo.utils.exp_manager import StatelessTimer

from nemo_vtb.data.datamodule import VtbDataModule
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.testing import TinyCorpus, tiny_model_cfg
from nemo_vtb.testing.signals import SendSignal
from nemo_vtb.training.history import read_history
from nemo_vtb.training.run_state import RunState
from nemo_vtb.training.stop_signals import EXIT_STOPPED, SIGNALS, StopSignals

WORKER = Path(__file__).resolve().parents[1] / 'parallel' / 'train_worker.py'
ROWS = 2


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Leave the signals as they were found."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # shells make commands in the background ignore the one, nohup the other
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def fit(tiny_root: Path, corpus: TinyCorpus, tmp_path: Path) -> Callable[..., pl.Trainer]:
    """Train in a folder, from its last checkpoint if there is one; with a signal, it must end by exit code 75."""

    def run(name: str, steps: int = 5, sent: pl.Callback | None = None, ends: bool = True) -> pl.Trainer:
        torch.manual_seed(0)
        folder = tmp_path / name
        model = VoiceTextBlender(tiny_model_cfg(tiny_root / 'model'))
        cfg = {
            'train_ds': {'seed': 1, 'input_cfg': corpus.input_cfg()},
            'validation_ds': {'datasets': {'text': {'input_cfg': corpus.input_cfg('validation')[:1]}}},
            'max_tokens': 256, 'rows_per_batch': ROWS, 'num_workers': 0,
        }  # fmt: skip
        checkpoints = ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_epochs=1)
        trainer = pl.Trainer(
            accelerator='cpu', max_steps=steps, val_check_interval=3 * ROWS, check_val_every_n_epoch=None,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder,
            use_distributed_sampler=False, logger=False,
            callbacks=[RunState(folder), *([sent] if sent else []), StopSignals(), checkpoints],
        )  # fmt: skip
        data = VtbDataModule(cfg, model.renderer, model.frames)
        last = folder / 'last.ckpt'
        arguments = {'ckpt_path': str(last) if last.exists() else None}
        if sent is None or not ends:
            trainer.fit(model, data, **arguments)
            trainer.save_checkpoint(folder / 'end.ckpt')
            return trainer
        with pytest.raises(SystemExit) as caught:
            trainer.fit(model, data, **arguments)
        assert caught.value.code == EXIT_STOPPED
        return trainer

    return run


def state(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def test_each_signal_costs_no_step_and_the_run_is_the_same(fit: Callable[..., pl.Trainer], tmp_path: Path) -> None:
    fit('whole')
    rng = random.Random(0)
    for step, number in enumerate(SIGNALS):
        row = rng.randrange(ROWS)
        trainer = fit('stopped', sent=SendSignal(number, step, row))
        assert trainer.global_step == step + 1, signal.Signals(number).name
        saved = state(tmp_path / 'stopped/last.ckpt')
        assert saved['global_step'] == saved['run_state']['batches'] == step + 1
    fit('stopped')
    whole, stopped = (state(tmp_path / name / 'end.ckpt') for name in ('whole', 'stopped'))
    assert whole['state_dict'].keys() == stopped['state_dict'].keys()
    for name, value in whole['state_dict'].items():
        assert torch.equal(value, stopped['state_dict'][name]), name
    assert whole['run_state']['ledger'] == stopped['run_state']['ledger']


def test_in_a_validation_it_is_completed_first(fit: Callable[..., pl.Trainer], tmp_path: Path) -> None:
    trainer = fit('v', sent=SendSignal(signal.SIGTERM, 3, hook='on_validation_batch_start'))
    assert trainer.global_step == 4 and 'val_loss' in trainer.callback_metrics
    assert state(tmp_path / 'v/last.ckpt')['global_step'] == 4


def test_the_time_limit_of_a_run_ends_it_behind_a_whole_step(fit: Callable[..., pl.Trainer], tmp_path: Path) -> None:
    for step in (1, 2):
        assert fit('t', sent=StatelessTimer(timedelta(0))).global_step == step
        saved = state(tmp_path / 't/last.ckpt')
        assert saved['global_step'] == saved['run_state']['batches'] == step


def test_before_the_first_step_it_ends_at_once(fit: Callable[..., pl.Trainer], tmp_path: Path) -> None:
    trainer = fit('s', sent=SendSignal(signal.SIGUSR1, hook='on_fit_start'))
    assert trainer.global_step == 0 and not list((tmp_path / 's').glob('*.ckpt'))


@pytest.mark.parametrize('hook', ['on_train_batch_start', 'on_train_end'])
def test_behind_the_last_step_the_run_is_complete(fit: Callable[..., pl.Trainer], hook: str) -> None:
    step = 2 if hook == 'on_train_batch_start' else 3
    trainer = fit('e', steps=3, sent=SendSignal(signal.SIGTERM, step, hook=hook), ends=False)
    assert trainer.global_step == 3
    with pytest.raises(KeyboardInterrupt):  # the signal is Python's again
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def _interrupted_twice(pause_s: float) -> None:
    stop = StopSignals()
    stop._phase = 'training'
    stop._listen()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(pause_s)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
    os._exit(7)


@pytest.mark.parametrize(('pause_s', 'code'), [(1.2, -signal.SIGINT), (0.0, 7)])
def test_a_second_interrupt_ends_at_once_but_not_one_that_was_passed_on(pause_s: float, code: int) -> None:
    process = multiprocessing.get_context('fork').Process(target=_interrupted_twice, args=(pause_s,))
    process.start()
    process.join(30)
    assert process.exitcode == code


# ---- several ranks, launched as by a user


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('ranks')
    code = f'import sys; sys.path.insert(0, {str(WORKER.parent)!r}); import train_worker; from pathlib import Path; '
    subprocess.run([sys.executable, '-c', f'{code}train_worker.write_config(Path({str(folder)!r}))'], check=True)
    ddp = {'trainer.strategy': 'ddp', 'trainer.devices': 2, 'data.rows_per_batch': 4, 'trainer.max_steps': 100_000}
    jobs = {name: {'set': ddp, 'checkpoints': True} for name in ('rank1', 'launcher', 'killed')}
    (folder / 'jobs.json').write_text(json.dumps(jobs))
    return folder


def launch(folder: Path, job: str, *launcher: str) -> subprocess.Popen[str]:
    """Start a job, and wait for its third step."""
    command = [sys.executable, *launcher, str(WORKER), str(folder), job]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while sum(r['type'] == 'train' for r in read_history(folder / job / 'history.jsonl')) < 3:
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.1)
    return process


def pid_of(folder: Path, job: str, rank: int) -> int:
    return int((folder / job / f'pid{rank}').read_text())


def is_alive(pid: int) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] not in 'ZX'
    except OSError:
        return False


def steps_of(folder: Path, job: str) -> int:
    return max(r['step'] for r in read_history(folder / job / 'history.jsonl'))


@pytest.mark.slow
def test_a_signal_at_another_rank_ends_all_and_loses_nothing(folder: Path) -> None:
    process = launch(folder, 'rank1')
    other = pid_of(folder, 'rank1', 1)
    os.kill(other, signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == EXIT_STOPPED, output[-3000:]
    assert not is_alive(other)
    assert state(folder / 'rank1/last.ckpt')['global_step'] == steps_of(folder, 'rank1')


@pytest.mark.slow
def test_a_signal_at_torchrun_ends_all_and_loses_nothing(folder: Path) -> None:
    launcher = ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2')
    process = launch(folder, 'launcher', *launcher)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode != 0
    assert state(folder / 'launcher/last.ckpt')['global_step'] == steps_of(folder, 'launcher')


@pytest.mark.slow
def test_ranks_end_when_their_launcher_was_killed(folder: Path) -> None:
    launcher = ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2')
    process = launch(folder, 'killed', *launcher)
    pids = [pid_of(folder, 'killed', rank) for rank in (0, 1)]
    process.kill()
    for _ in range(1200):
        if not any(map(is_alive, pids)):
            break
        time.sleep(0.1)
    assert not any(map(is_alive, pids))
    assert state(folder / 'killed/last.ckpt')['global_step'] == steps_of(folder, 'killed')
