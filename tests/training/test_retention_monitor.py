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
"""The monitor on a tiny model that learned to hear: it passes; LoRA times ten or a dead adapter is caught."""

import io
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console

from nemo_vtb.config import check_config
from nemo_vtb.data.collate import Collator
from nemo_vtb.data.datamodule import VtbDataModule
from nemo_vtb.errors import VtbConfigError
from nemo_vtb.evaluation.runner import evaluate
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.parallel.dims import ParallelDims
from nemo_vtb.testing import TinyCorpus, tiny_model_cfg
from nemo_vtb.training.history import History, read_history
from nemo_vtb.training.progress_bar import ProgressLine
from nemo_vtb.training.retention import kept_of_chats
from nemo_vtb.training.retention_monitor import (
    PENALTY,
    RetentionMonitor,
    choice_rows,
    choice_scores,
    retention_monitor_of,
)
from nemo_vtb.training.run_state import RunState

STEPS = 60
LIMIT = 0.9


def lora_b(model: VoiceTextBlender) -> list[torch.Tensor]:
    return [p for name, p in model.named_parameters() if 'lora_B' in name]


class _Louder(pl.Callback):
    """Multiplies LoRA before the last validation, as a run that went wrong."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: object) -> None:
        if trainer.global_step == STEPS:
            with torch.no_grad():
                for weight in lora_b(pl_module):
                    weight.mul_(10)


def typed(monitor: RetentionMonitor, chats: Path, path: Path) -> Path:
    """The chats, and the questions of the monitor with their right answers, as one manifest."""
    lines = chats.read_text().splitlines()
    for item in monitor.items:
        texts = {'User': item['question'], 'Assistant': item['choices'][item['answer']]}
        turns = [{'type': 'text', 'from': role, 'value': text} for role, text in texts.items()]
        lines.append(json.dumps({'id': item['id'], 'conversations': turns}))
    path.write_text(''.join(line + '\n' for line in lines))
    return path


@pytest.fixture(scope='module')
def run(
    tmp_path_factory: pytest.TempPathFactory, corpus: TinyCorpus, teach: Callable[[VoiceTextBlender, Path], None]
) -> SimpleNamespace:
    """A model whose LLM knows all that it is asked; it trained well, and at the last step its LoRA grew tenfold."""
    folder = tmp_path_factory.mktemp('monitor')
    monitor = retention_monitor_of({'gate': {'enabled': True, 'items': 20, 'limit': LIMIT}})[0]
    torch.manual_seed(0)
    model_cfg = tiny_model_cfg(folder / 'm') | {'text_anchor': 15.0}
    model_cfg['optimizer']['lr'] = 3e-3
    model = VoiceTextBlender(model_cfg)
    entries = corpus.input_cfg()
    entries[0]['manifest_filepath'] = str(typed(monitor, corpus.path('text'), folder / 'text.jsonl'))
    teach(model, folder / 'text.jsonl')
    cfg = {
        'train_ds': {'seed': 1, 'input_cfg': entries},
        'validation_ds': {'datasets': {e['kind']: {'input_cfg': [e]} for e in entries}},
        'budget': {'text': 0.3, 'asr_ast': 0.3, 'speech_qa': 0.2, 'mixed_modal': 0.2},
        'max_tokens': 512,
        'rows_per_batch': 1,
        'num_workers': 0,
    }
    shown = io.StringIO()
    saver = ModelCheckpoint(folder / 'ckpt', monitor='gated_loss', filename='{step}', save_weights_only=True)
    trainer = pl.Trainer(
        accelerator='cpu', max_steps=STEPS, val_check_interval=20, check_val_every_n_epoch=None, logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=1, use_distributed_sampler=False,
        callbacks=[
            RunState(folder), ProgressLine(20, Console(file=shown, width=240)), History(folder), monitor, _Louder(),
            saver,
        ],
    )  # fmt: skip
    data = VtbDataModule(cfg, model.renderer, model.frames)
    trainer.fit(model, data)
    return SimpleNamespace(
        model=model, trainer=trainer, data=data, monitor=monitor, saver=saver, shown=shown.getvalue(),
        chats=folder / 'text.jsonl',
        history=[r['metrics'] for r in read_history(folder / 'history.jsonl') if r['type'] == 'validation'],
    )  # fmt: skip


@contextmanager
def sound(run: SimpleNamespace) -> Iterator[None]:
    """LoRA as training left it."""
    with torch.no_grad():
        for weight in lora_b(run.model):
            weight.div_(10)
        yield
        for weight in lora_b(run.model):
            weight.mul_(10)


def validate(run: SimpleNamespace) -> dict[str, float]:
    run.trainer.validate(run.model, run.data, verbose=False)
    return run.monitor.values


def test_lora_times_ten_is_caught_and_never_the_best(run: SimpleNamespace) -> None:
    first, second, broken = run.history
    assert first['retention'] > LIMIT and second['retention'] > LIMIT
    assert broken['retention'] < 0.9 and broken['gated_loss'] > PENALTY
    assert Path(run.saver.best_model_path).stem == 'step=40'
    warning = f'below limit {100 * LIMIT:.0f} %'
    assert warning in run.shown.splitlines()[-1]
    assert warning not in ''.join(run.shown.splitlines()[:-1])


def test_questions_catch_it_by_themselves(run: SimpleNamespace) -> None:
    """Whoever has forgotten all is right by chance: with 20 questions, nine tenths are five deviations away."""
    kept = [weight.clone() for weight in lora_b(run.model)]
    try:
        for weight in lora_b(run.model):
            torch.nn.init.normal_(weight, std=3.0)
        assert validate(run)['retention/choices'] < LIMIT
    finally:
        with torch.no_grad():
            for weight, value in zip(lora_b(run.model), kept, strict=True):
                weight.copy_(value)


def test_a_gain_on_one_set_of_chats_hides_no_loss_on_another() -> None:
    monitor = RetentionMonitor(items=0)
    monitor._base_chats = [[10.0, 5.0], [10.0, 5.0], [0.0, 0.0]]
    values = monitor._numbers(torch.zeros(2, 4), torch.zeros(2, 2), None, [[12.0, 5.0], [6.0, 5.0], [0.0, 0.0]])
    assert values['retention'] == values['retention/chats'] == pytest.approx(math.exp(-0.4))


def test_the_evaluation_says_the_same_of_the_same_chats(run: SimpleNamespace) -> None:
    with sound(run):
        monitored = validate(run)['retention/chats']
        evaluated = evaluate(run.model, {'text': run.chats}, max_new_tokens=2)
    # the set of the run holds two sources of the evaluation: chats and questions
    chats = [(s.base['perplexity'][0], *s.scores['perplexity']) for s in evaluated.scores if s.task == 'text']
    base, ours, targets = (sum(column) for column in zip(*chats, strict=True))
    assert kept_of_chats(base, ours, targets) == pytest.approx(monitored, rel=1e-5) and monitored != 1.0
    sets = [m for m in evaluated.of('retention', 'chats') if m.source]
    assert len(sets) == 2 and evaluated.metric('retention', 'kept').value == min(m.value for m in sets)


def test_without_the_limit_it_is_chosen_by_the_loss_on_speech(run: SimpleNamespace) -> None:
    first, second, _ = run.history
    speech = [m['val_loss_asr_ast'] for m in (first, second)]
    assert speech[0] > speech[1] and first['gated_loss'] > second['gated_loss']
    with sound(run):
        values = validate(run)
        sums, counts = run.monitor._kinds
        assert values['gated_loss'] == pytest.approx(float(sums[1:].sum() / counts[1:].sum()), rel=1e-6)
        assert run.monitor.short() == f'retention {100 * values["retention"]:.1f} %'


@pytest.mark.parametrize(
    ('retention', 'hearing', 'words'),
    [
        (1.002, 0.3, 'retention 100.2 %'),
        (0.96, None, 'retention 96.0 %'),
        # nearer to the limit than to what the LLM could: an early warning, no alarm
        (0.94, 0.3, 'retention 94.0 % near limit 90 %'),
        (0.89, 0.3, 'retention 89.0 % below limit 90 %'),
        (0.96, 0.019, 'hearing 1.9 %: audio ignored'),
        (0.94, -0.05, 'retention 94.0 % near limit 90 %, hearing -5.0 %: audio ignored'),
        (None, 0.3, ''),
    ],
)
def test_what_is_said(retention: float | None, hearing: float | None, words: str) -> None:
    monitor = RetentionMonitor(limit=0.9, items=0)
    assert monitor.short() == ''
    monitor.values = {
        k: v for k, v in (('gated_loss', 2.0), ('retention', retention), ('hearing', hearing)) if v is not None
    }
    assert monitor.short() == words


def test_a_dead_adapter_is_deaf(run: SimpleNamespace) -> None:
    with sound(run):
        healthy = dict(validate(run))
        kept = {name: p.clone() for name, p in run.model.perception.proj.named_parameters()}
        try:
            for p in run.model.perception.proj.parameters():
                p.zero_()
            deaf = dict(validate(run))
            problems = run.monitor.problems
        finally:
            for name, p in run.model.perception.proj.named_parameters():
                p.copy_(kept[name])
    # without sound the embedding of the padding token stands in its place, which is zero as well
    assert healthy['hearing'] > 0.2 and deaf['hearing'] == pytest.approx(0, abs=1e-4)
    assert problems[-1].startswith('hearing') and 'audio ignored' in problems[-1]
    assert deaf['gated_loss'] > healthy['gated_loss'] * 1.2
    # text never goes through the adapter
    assert deaf['retention'] == pytest.approx(healthy['retention'])


def auto(folder: Path, corpus: TinyCorpus, steps: int, resume: Path | None = None) -> SimpleNamespace:
    """A run whose text ability is under the limit at once, so that more text is requested at each validation."""
    torch.manual_seed(0)
    model = VoiceTextBlender(tiny_model_cfg(folder / 'm'))
    cfg = {
        'train_ds': {'seed': 1, 'input_cfg': corpus.input_cfg()},
        'validation_ds': {'datasets': {'text': {'input_cfg': corpus.input_cfg()[:1]}}},
        'budget': {'text': 0.1, 'asr_ast': 0.5, 'speech_qa': 0.2, 'mixed_modal': 0.2, 'auto': 0.2},
        'max_tokens': 512,
        'rows_per_batch': 1,
        'refund_batches': 4,
        'num_workers': 0,
    }
    monitor = RetentionMonitor(limit=1.0, items=0)
    saver = ModelCheckpoint(folder / 'ckpt', filename='{step}', save_top_k=-1, every_n_train_steps=None)
    trainer = pl.Trainer(
        accelerator='cpu', max_steps=steps, val_check_interval=4, check_val_every_n_epoch=None, logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
        callbacks=[state := RunState(folder), monitor, saver],
    )  # fmt: skip
    data = VtbDataModule(cfg, model.renderer, model.frames)
    trainer.fit(model, data, ckpt_path=resume)
    return SimpleNamespace(data=data, model=model, ledger=state.ledger.to_json(), folder=folder)


def test_more_text_is_requested_and_a_resumed_run_requests_the_same(
    tmp_path: Path, corpus: TinyCorpus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # a tiny random LLM gains text ability by any training: what it kept is given here, all else is real
    monkeypatch.setattr(RetentionMonitor, '_numbers', lambda *_: {'retention': 0.9, 'gated_loss': 1.0})
    whole = auto(tmp_path / 'whole', corpus, 40)
    changes = whole.ledger['changes']
    # at step 4 for step 9, at 12 (not before the last has come) for 17
    assert [c['batches'] for c in changes] == [9, 17]
    chats = [s['name'] for s in whole.ledger['sources'] if s['kind'] == 'text']
    text = [sum(c['shares'][name] for name in chats) for c in changes]
    assert text == pytest.approx([0.3, 0.5])
    assert 'share of text-only conversations 10.0 % -> 30.0 % from step 9 on' in caplog.text
    asked, delivered = (whole.ledger['kinds']['text'][key] for key in ('asked', 'delivered'))
    assert 0.35 < asked < 0.45 and delivered == pytest.approx(asked, rel=0.1)

    for step in (4, 8, 20):
        part = auto(tmp_path / f'part{step}', corpus, step)
        (saved,) = (part.folder / 'ckpt').glob(f'step={step}.ckpt')
        rest = auto(part.folder, corpus, 40, saved)
        assert rest.ledger == whole.ledger
        for (name, a), b in zip(rest.model.named_parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ('data', 'words'),
    [
        ({'budget': {'asr_ast': 1.0, 'auto': 0.1}}, 'share of text between 0 and 1'),
        ({'budget': {'text': 0.5, 'asr_ast': 0.5, 'auto': 0.7}}, 'at most 0.5'),
    ],
)
def test_a_share_that_cannot_be_raised(
    tmp_path: Path, corpus: TinyCorpus, tiny_model: VoiceTextBlender, data: dict, words: str
) -> None:
    kinds = [entry for entry in corpus.input_cfg() if entry['kind'] in data['budget']]
    with pytest.raises(VtbConfigError, match='data.budget.auto') as error:
        module = VtbDataModule(
            {'train_ds': {'input_cfg': kinds}, 'max_tokens': 512, **data}, tiny_model.renderer, tiny_model.frames,
        )  # fmt: skip
        module.setup('fit')
    assert words in str(error.value)


def test_without_lora_the_base_is_itself(run: SimpleNamespace) -> None:
    with run.model.backbone.without_lora():
        values = validate(run)
    assert values['retention'] == pytest.approx(1.0, abs=1e-6)


def test_choices_score_as_one_by_one(tiny_model: VoiceTextBlender) -> None:
    monitor = RetentionMonitor(items=6)
    assert [item['part'] for item in monitor.items] == [
        'facts', 'facts', 'commonsense', 'language', 'arithmetic', 'reading',
    ]  # fmt: skip
    rows = choice_rows(monitor.items, Collator(tiny_model.renderer, tiny_model.frames))
    with torch.no_grad():
        packed = torch.cat([choice_scores(tiny_model, row) for row in rows])
        alone = torch.cat([choice_scores(tiny_model, [item]) for row in rows for item in row])
    assert len(packed) == 24 and len(rows) < 24
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('ranks', [2, 3])
def test_ranks_share_the_questions(tiny_model: VoiceTextBlender, monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    def total(rank: int, world: int) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        monkeypatch.setattr(ParallelDims, 'sum', lambda self, values: seen.append(values) or values)
        monitor = RetentionMonitor(items=40)
        monitor._rows = choice_rows(monitor.items, Collator(tiny_model.renderer, tiny_model.frames))
        assert len(monitor._rows) > ranks
        trainer = SimpleNamespace(global_rank=rank, world_size=world, strategy=None)
        with torch.no_grad():
            monitor._score(trainer, tiny_model, torch.no_grad())
        return seen[0]

    torch.testing.assert_close(sum(total(r, ranks) for r in range(ranks)), total(0, 1))


def test_a_trained_llm_without_lora_is_refused(tmp_path: Path) -> None:
    model = VoiceTextBlender(tiny_model_cfg(tmp_path, lora=False) | {'freeze_params': []})
    with pytest.raises(VtbConfigError, match='no untouched LLM'):
        RetentionMonitor().on_fit_start(SimpleNamespace(), model)
    RetentionMonitor().on_fit_start(SimpleNamespace(), VoiceTextBlender(tiny_model_cfg(tmp_path, lora=False)))


def test_the_monitor_must_be_measured() -> None:
    monitor = {'exp_manager': {'checkpoint_callback_params': {'monitor': 'gated_loss'}}}
    with pytest.raises(VtbConfigError, match='not measured'):
        check_config(monitor)
    check_config(monitor | {'gate': {'enabled': True, 'limit': 0.98}})
    with pytest.raises(VtbConfigError):
        check_config({'gate': {'enabled': True, 'limt': 0.98}})
    assert retention_monitor_of({}) == [] and retention_monitor_of({'gate': {'enabled': False, 'limit': 0.5}}) == []
