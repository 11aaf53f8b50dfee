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
"""A real short run on a tiny model: bar, history, curves, summary; killed and resumed."""

import io
import json
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from rich.console import Console

from nemo_vtb.data.datamodule import VtbDataModule
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.testing import TinyCorpus, tiny_model_cfg
from nemo_vtb.training.history import History, _smooth, draw_curves, read_history
from nemo_vtb.training.progress_bar import ProgressLine, _clock
from nemo_vtb.training.run_state import RunState
from nemo_vtb.training.summary import print_summary

Fit = Callable[..., tuple[str, RunState]]


@pytest.fixture
def fit(tiny_root: Path, corpus: TinyCorpus, tmp_path: Path) -> Fit:
    """Train for some steps; returns what was shown and the state of the run."""

    def run(
        steps: int, *, terminal: bool = False, checkpoint: str | None = None, stop: Exception | None = None
    ) -> tuple:
        torch.manual_seed(0)
        model = VoiceTextBlender(tiny_model_cfg(tiny_root / 'model'))
        sets = {
            kind: {'input_cfg': [entry]}
            for kind, entry in zip(corpus.paths(), corpus.input_cfg('validation'), strict=True)
        }
        cfg = {
            'train_ds': {'seed': 1, 'input_cfg': corpus.input_cfg()},
            'validation_ds': {'datasets': sets},
            'budget': {'text': 0.2, 'asr_ast': 0.4, 'speech_qa': 0.2, 'mixed_modal': 0.2},
            'max_tokens': 256,
            'rows_per_batch': 2,
            'num_workers': 0,
        }
        shown = io.StringIO()
        console = Console(file=shown, width=200, force_terminal=terminal)
        data = VtbDataModule(cfg, model.renderer, model.frames)
        trainer = pl.Trainer(
            accelerator='cpu', max_steps=steps, val_check_interval=4, check_val_every_n_epoch=None, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=1,
            use_distributed_sampler=False,
            callbacks=[state := RunState(tmp_path), ProgressLine(2, console), History(tmp_path), _Stop(stop)],
        )  # fmt: skip
        try:
            trainer.fit(model, data, ckpt_path=checkpoint)
        finally:
            if stop is None:
                trainer.save_checkpoint(tmp_path / 'last.ckpt')
        return shown.getvalue(), state

    return run


class _Stop(pl.Callback):
    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        if self.error is not None and trainer.global_step == 2:
            raise self.error


def test_lines_history_curves_and_summary_of_a_run(fit: Fit, tmp_path: Path) -> None:
    shown, state = fit(4)
    lines = [line for line in shown.splitlines() if line.startswith('step')]
    assert lines[0].startswith('step 1/4  25 %') and lines[-1].startswith('step 4/4 100 %')
    for word in ('text ', 'asr_ast ', 'tokens/s', 's audio/s', 'ETA 0:', 'val_loss ', 'shares off by ', 'skipped 0'):
        assert word in lines[-1]
    assert 'val_loss' not in lines[0], 'the sanity check is no validation'

    records = read_history(tmp_path / 'history.jsonl')
    train = [r for r in records if r['type'] == 'train']
    validation = [r for r in records if r['type'] == 'validation']
    assert [r['step'] for r in train] == [1, 2, 3, 4] and [r['step'] for r in validation] == [2, 4]
    assert {'val_loss', 'val_loss_text', 'val_acc_mixed_modal'} <= set(validation[0]['metrics'])
    assert sum(r['tokens'] for r in train) == state.ledger.tokens
    heard = sum(a.audio_s for a in state.ledger.accounts.values())
    assert sum(r['audio_s'] for r in train) == pytest.approx(heard, abs=0.05)
    assert all(r['lr'] > 0 and r['time_s'] > 0 for r in train)
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')

    console = Console(width=120, record=True, file=io.StringIO())
    print_summary(tmp_path, next_commands=['type this'], console=console)
    text = console.export_text()
    for word in (
        'What was learned',
        'requested',
        'delivered',
        '40.0%',
        '4 steps in',
        'peak memory: CPU',
        'curves.png',
    ):
        assert word in text
    assert 'type this' in text and 'validation loss: first' in text and 'quarantine' not in text


def test_a_terminal_gets_a_bar(fit: Fit) -> None:
    shown, _ = fit(2, terminal=True)
    assert 'training' in shown and '2/2' in shown and '━' in shown
    assert 'step 1/2' not in shown


def test_resume_takes_back_steps_behind_the_checkpoint(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a clock that goes on by a second whenever it is read
    monkeypatch.setattr('nemo_vtb.training.history.time', SimpleNamespace(perf_counter=partial(next, count(100.0))))
    fit(2)
    path = tmp_path / 'history.jsonl'
    before = [r for r in read_history(path) if r['type'] == 'train']
    # as after a kill: a step that no checkpoint holds, and half a line
    with path.open('a') as stream:
        stream.write(json.dumps(before[-1] | {'step': 3}) + '\n{"type": "tr')
    shown, _ = fit(4, checkpoint=str(tmp_path / 'last.ckpt'))
    train = [r for r in read_history(path) if r['type'] == 'train']
    assert 'resumed at step 2' in shown
    assert [r['step'] for r in train] == [1, 2, 3, 4] and train[:2] == before
    assert train[2]['time_s'] >= train[1]['time_s'] + 1


def test_an_error_leaves_history_and_curves(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match='cable'):
        fit(4, stop=RuntimeError('cable pulled'))
    assert [r['step'] for r in read_history(tmp_path / 'history.jsonl') if r['type'] == 'train'][:1] == [1]
    assert (tmp_path / 'curves.png').exists()


def test_smoothing_is_weighted_and_unbiased_at_the_start() -> None:
    assert _smooth([3.0, 5.0], [1, 3], window=1) == [3.0, 5.0]
    assert _smooth([3.0, 5.0], [2, 3], window=2) == pytest.approx([3.0, (0.5 * 6 + 15) / (0.5 * 2 + 3)])
    assert _smooth([2.0] * 5, [1] * 5, window=10) == pytest.approx([2.0] * 5)


def test_no_steps_no_curves(tmp_path: Path) -> None:
    assert draw_curves([], tmp_path / 'c.png') is None
    console = Console(record=True, file=io.StringIO())
    print_summary(tmp_path, console=console)
    assert 'No optimizer step was made' in console.export_text()


def test_names_of_sets_beside_the_kinds_are_drawn(tmp_path: Path) -> None:
    records = [
        {
            'type': 'train',
            'step': 1,
            'time_s': 1.0,
            'losses': {'text': 2.0},
            'targets': {'text': 3},
            'tokens': 5,
            'audio_s': 0,
        },
        {'type': 'validation', 'step': 1, 'time_s': 2.0, 'metrics': {'val_loss_mine': 1.5, 'val_loss_text': 1.0}},
    ]
    assert draw_curves(records, tmp_path / 'c.png') == tmp_path / 'c.png'
    assert draw_curves([records[0] | {'losses': {}}], tmp_path / 'd.png') is None


def test_what_is_not_finite_is_drawn_over(tmp_path: Path) -> None:
    step = {'type': 'train', 'time_s': 1.0, 'targets': {'text': 3}, 'tokens': 5, 'audio_s': 0}
    losses = [2.0, None, float('nan'), float('inf'), 1.0]
    lines = [step | {'step': n, 'losses': {'text': loss}} for n, loss in enumerate(losses, start=1)]
    lines += [
        {'type': 'validation', 'step': n, 'time_s': 2.0, 'metrics': {'val_loss': value, 'val_loss_text': value}}
        for n, value in ((1, float('nan')), (2, None), (5, 1.5))
    ]
    (tmp_path / 'history.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    records = read_history(tmp_path / 'history.jsonl')
    assert [r['losses'] for r in records if r['type'] == 'train'] == [{'text': 2.0}, {}, {}, {}, {'text': 1.0}]
    assert draw_curves(records, tmp_path / 'c.png')
    console = Console(width=120, record=True, file=io.StringIO())
    print_summary(tmp_path, console=console)
    text = console.export_text()
    assert 'validation loss: first 1.500' in text and 'nan' not in text


def test_helpers() -> None:
    assert [_clock(s) for s in (5, 65, 3700)] == ['0:05', '1:05', '1:01:40']
