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
"""The report: what its verdict rests on, that broken models are caught, and what the page says and leaves out."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from nemo_vtb.commands import report as command
from nemo_vtb.data.datamodule import VtbDataModule
from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.evaluation.report import Subject, judge, make_report, name_of, read_subject, text_kept, write_report
from nemo_vtb.evaluation.report_examples import word_diff, worst_examples
from nemo_vtb.evaluation.result import Evaluation, Row, Sample
from nemo_vtb.evaluation.tasks import evaluate
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.testing import TinyCorpus, tiny_model_cfg

STEPS = 100


def rows(wer: float, ours: float, *, kept: tuple[float | None, ...] | None = None) -> Evaluation:
    """A result with one word error rate and one perplexity, 10 for the base LLM."""
    return Evaluation(
        (
            Row('asr', 'calls', 'WER', 40, wer, None, wer - 5, wer + 5, False),
            Row('text', 'chats', 'perplexity', 40, ours, 10.0, ours - 1, ours + 1, False, kept=kept),
        )
    )


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory, corpus: TinyCorpus) -> SimpleNamespace:
    """A tiny model that knows its two recordings of each source by heart, and reads as its base LLM."""
    folder = tmp_path_factory.mktemp('report')
    torch.manual_seed(0)
    model = VoiceTextBlender(tiny_model_cfg(folder / 'm') | {'text_anchor': 1.0})
    cfg = {
        'train_ds': {'seed': 1, 'input_cfg': [e for e in corpus.input_cfg() if e['kind'] in ('asr_ast', 'text')]},
        'budget': {'text': 0.1, 'asr_ast': 0.9},
        'max_tokens': 512,
        'rows_per_batch': 1,
        'num_workers': 0,
    }
    trainer = pl.Trainer(
        accelerator='cpu', max_steps=STEPS, logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, use_distributed_sampler=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(model, VtbDataModule(cfg, model.renderer, model.frames, run_dir=folder))
    data = {'asr_ast': corpus.path('asr_ast', 'train')}
    data |= {f'text-{split}': corpus.path('text', split) for split in ('validation', 'test')}
    return SimpleNamespace(model=model, data=data)


def verdict(run: SimpleNamespace) -> Any:
    return judge(Subject('tiny', evaluate(run.model, run.data, max_new_tokens=12)))


@contextmanager
def changed(weights: list[torch.Tensor], factor: float) -> Iterator[None]:
    kept = [w.detach().clone() for w in weights]
    with torch.no_grad():
        for w in weights:
            w.mul_(factor)
        yield
        for w, k in zip(weights, kept, strict=True):
            w.copy_(k)


def test_a_sound_model_is_green(trained: SimpleNamespace) -> None:
    found = verdict(trained)
    assert found.level == 'green', found
    assert found.sentence.startswith('It hears (WER ') and 'It reads as before' in found.sentence


def test_a_zeroed_adapter_is_caught(trained: SimpleNamespace) -> None:
    with changed(list(trained.model.perception.proj.parameters()), 0.0):
        found = verdict(trained)
    assert found.level == 'red' and 'does not hear' in found.sentence and 'reads as before' in found.sentence


def test_lora_times_ten_is_caught(trained: SimpleNamespace) -> None:
    with changed([p for name, p in trained.model.named_parameters() if 'lora_B' in name], 10.0):
        found = verdict(trained)
    assert found.level == 'red' and 'forgotten how to read' in found.sentence


@pytest.mark.parametrize(
    ('wer', 'ours', 'kept', 'level', 'words'),
    [
        (5.0, 10.0, None, 'green', 'kept at least 100.0 %'),
        (30.0, 10.0, None, 'amber', 'with many mistakes'),
        (61.0, 10.0, None, 'red', 'does not hear'),
        (5.0, 10.5, None, 'amber', 'forgotten a little: it kept 95.2 %'),
        (5.0, 12.0, None, 'red', 'forgotten how to read: it kept 83.3 %'),
        # an interval that holds 100 % proves no loss, and a mean under the goal proves no keeping
        (5.0, 12.0, (83.3, 60.0, 104.0), 'amber', 'may have forgotten something'),
        (5.0, 12.0, (83.3, 80.0, 87.0), 'red', '80.0 to 87.0'),
        (5.0, math.inf, None, 'red', 'it kept 0.0 %'),
    ],
)
def test_verdict(wer: float, ours: float, kept: tuple | None, level: str, words: str) -> None:
    found = judge(Subject('m', rows(wer, ours, kept=kept)))
    assert found.level == level and words in found.sentence, found


def test_what_was_not_measured_is_said() -> None:
    found = judge(Subject('m', Evaluation(())))
    assert found.level == 'amber' and found.sentence.count('not measured') == 2


def test_a_model_that_is_worse_than_the_other_beyond_both_intervals() -> None:
    base = Subject('before', rows(5.0, 10.0))
    assert judge(Subject('m', rows(9.0, 10.0)), base).level == 'green'
    found = judge(Subject('m', rows(18.0, 10.0)), base)
    assert found.level == 'amber' and 'Worse than before: WER on calls 18.0, there 5.0.' in [
        r for _, r in found.reasons
    ]


def test_text_kept_is_drawn_in_pairs(trained: SimpleNamespace) -> None:
    with changed([p for name, p in trained.model.named_parameters() if 'lora_B' in name], 1.5):
        row = evaluate(trained.model, trained.data, max_new_tokens=2).rows[-1]
    kept, *_ = row.kept
    assert row.task == 'text' and kept == pytest.approx(100 * row.base / row.ours)
    suite = {
        'retention': 0.9,
        'retention_interval': [0.8, 1.0],
        'tasks': {
            'facts': {
                'metric': 'acc', 'value': 0.4, 'n': 10, 'higher_is_better': True, 'p_value': 0.5,
                'base': {'value': 0.5}, 'change': {'value': -0.1, 'interval': [-0.2, 0.0]},
            }
        },
    }  # fmt: skip
    facts, mean = text_kept(Evaluation((), suites={'text_suite': suite}))
    assert [facts[k] for k in ('kept', 'low', 'high')] == pytest.approx([80, 60, 100])
    assert [mean[k] for k in ('kept', 'low', 'high', 'n')] == pytest.approx([90, 80, 100, 10])


def test_words_that_differ_are_marked() -> None:
    assert word_diff('turn the lamp on', 'Turn a lamp on now.') == [
        ('same', 'Turn'),
        ('missing', 'the'),
        ('wrong', 'a'),
        ('same', 'lamp on'),
        ('wrong', 'now.'),
    ]


def test_the_worst_come_from_every_source_and_right_answers_are_no_examples() -> None:
    samples = [Sample(f'a{i}', 'asr', 'hopeless', 'p', 'one two', 'x y') for i in range(9)]
    samples += [Sample('b', 'asr', 'fair', 'p', 'one two', 'one y'), Sample('c', 'asr', 'good', 'p', 'one', 'One.')]
    found = worst_examples(Evaluation((), tuple(samples), {}), 3)
    assert [(w['source'], w['error']) for w in found] == [('hopeless', 1.0), ('fair', 0.5), ('hopeless', 1.0)]


@pytest.mark.parametrize(
    ('path', 'name'),
    [
        ('runs/a/checkpoints/model.nemo', 'a'),
        ('runs/a/checkpoints/best.nemo', 'best'),
        ('runs/b/eval.json', 'b'),
        ('runs/b/quick.eval.json', 'quick'),
    ],
)
def test_names(path: str, name: str) -> None:
    assert name_of(Path(path)) == name


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(VtbDataError, match='different names'):
        make_report([Subject('m', rows(5, 10)), Subject('m', rows(6, 10))])


def test_hostile_text_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    evil = '<script>alert(1)</script><img src=x onerror=alert(1)>'
    sample = Sample(evil, 'asr', evil, evil, evil, evil + ' more', ('/nowhere/<b>.wav',), (evil,))
    row = Row('asr', evil, 'WER', 1, 50.0, None, 40.0, 60.0, False)
    report = make_report([Subject(evil, Evaluation((row,), (sample,), {'model': evil}))])
    paths = write_report(report, tmp_path)
    page = paths['html'].read_text()
    assert '<script' not in page and '<img' not in page and page.count('&lt;script&gt;') > 3
    assert 'the recording is no longer there' in page
    assert '<script>' not in paths['md'].read_text().replace('\\<script\\>', '')
    saved = json.loads(paths['json'].read_text())
    assert saved['verdict']['level'] == 'amber' and saved['models'][0]['name'] == evil


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    paths = write_report(make_report([Subject('m', rows(5.0, math.inf))]), tmp_path)
    assert json.loads(paths['json'].read_text())['models'][0]['text'][0]['ours'] is None
    assert 'nothing' in paths['html'].read_text()


def test_command_reads_results_beside_their_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / 'good'
    run.mkdir()
    rows(5.0, 10.0).to_json(run / 'eval.json')
    (run / 'history.jsonl').write_text('{"type": "train", "step": 1, "losses": {"text": 2.0}}\n')
    rows(5.0, 12.0).to_json(tmp_path / 'forgetful.eval.json')
    assert read_subject(run / 'eval.json').history[0]['losses'] == {'text': 2.0}
    out = tmp_path / 'out'
    files = [str(run / 'eval.json'), f'second={tmp_path / "forgetful.eval.json"}']
    assert command.main(['llm', *files[:1], '--output', str(out)]) == 0
    assert command.main(['llm', *files, '--output', str(out)]) == 1
    printed = capsys.readouterr().out
    assert 'green good: It hears (WER 5.0 % on calls).' in printed and 'red second:' in printed
    report = json.loads((out / 'report.json').read_text())
    assert [m['name'] for m in report['models']] == ['good', 'second'] and report['verdict']['level'] == 'red'
    assert report['models'][0]['curves']['text']['train'] == [[1, 2.0]]
    (tmp_path / 'file').write_text('')
    with pytest.raises(VtbConfigError, match='cannot be made'):
        command.main(['llm', *files, '--output', str(tmp_path / 'file' / 'x')])
    with pytest.raises(VtbDataError, match='no such model'):
        command.main(['llm', str(tmp_path / 'absent.nemo')])
