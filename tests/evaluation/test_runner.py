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
"""Measuring a file: numbers in its manifest beside unchanged weights, in the model card; suites that are skipped."""

import io
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from nemo_vtb.checkpoint.archive import read_info
from nemo_vtb.commands import info as info_command
from nemo_vtb.errors import VtbDataError
from nemo_vtb.evaluation.answers import AnswerCache
from nemo_vtb.evaluation.result import Evaluation
from nemo_vtb.evaluation.runner import Plan, evaluate_file, stamp_of
from nemo_vtb.evaluation.tables import show
from nemo_vtb.evaluation.tasks.ladder import RUNGS
from nemo_vtb.export.model_card import write_card
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.model.pretrained import restore
from nemo_vtb.testing import TinyCorpus, tiny_model_cfg
from nemo_vtb.training.run import build_model


@pytest.fixture
def nemo_file(tiny_model: VoiceTextBlender, tmp_path: Path) -> Path:
    path = tmp_path / 'tiny.nemo'
    tiny_model.save_to(str(path))
    return path


def test_a_measured_file_says_so(
    nemo_file: Path, corpus: TinyCorpus, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = read_info(nemo_file).manifest['members']
    data = {name: corpus.path(name, 'test') for name in ('speech_qa', 'text')}
    plan = Plan(('speech',), data, limit=3, max_new_tokens=3)
    plain, _ = evaluate_file(nemo_file, plan, None, device='cpu')
    assert read_info(nemo_file).manifest.get('evaluation') is None
    result, path = evaluate_file(nemo_file, plan, None, device='cpu', record=True, console=Console(file=io.StringIO()))
    assert result.metrics == plain.metrics
    assert Evaluation.read(path).info['file'] == stamp_of(nemo_file) != plain.info['file']

    manifest = read_info(nemo_file).manifest
    assert [r['model'] for r in manifest['evaluation']['rows']] == pytest.approx(
        [m.value for m in result.metrics if m.suite != 'retention']
    )
    assert manifest['retention']['kept'][-1]['model'] == pytest.approx(100, abs=0.1)
    assert manifest['members'] == before
    model = restore(str(nemo_file), 'cpu')
    (tmp_path / 'peft').mkdir()
    write_card(model, tmp_path / 'peft', 'peft', None)
    card = (tmp_path / 'peft' / 'README.md').read_text()
    assert '| speech_qa | tiny-qa | exact match |' in card and '## Text ability kept' in card
    assert info_command.main([str(nemo_file)]) == 0
    shown = capsys.readouterr().out
    assert 'Measured' in shown and 'perplexity' in shown and 'Text ability kept' in shown


def test_of_several_suites_those_that_cannot_run_are_skipped(nemo_file: Path, corpus: TinyCorpus) -> None:
    data = {'text': corpus.path('text', 'test')}
    shown = io.StringIO()
    plan = Plan(('speech', 'ladder'), data, limit=2, max_new_tokens=2)
    result, _ = evaluate_file(nemo_file, plan, None, device='cpu', console=Console(file=shown, width=300))
    assert [m.task for m in result.of('speech')] == ['text'] and result.info['suites'] == ['speech']
    assert list(result.info['left_out']) == ['ladder'] and 'skipped: ladder.' in shown.getvalue()
    with pytest.raises(VtbDataError, match='no question for the modality ladder'):
        evaluate_file(nemo_file, Plan(('ladder',), data), None, device='cpu')


def test_the_ladder_is_a_suite(nemo_file: Path, corpus: TinyCorpus, tmp_path: Path) -> None:
    plan = Plan(('ladder',), {'speech_qa': corpus.path('speech_qa', 'test')}, limit=2)
    result, path = evaluate_file(nemo_file, plan, tmp_path / 'l.jsonl', device='cpu')
    tasks = {m.task: m for m in result.of('ladder')}
    assert list(tasks) == list(RUNGS) and {task.n for task in tasks.values()} == {2}
    assert [task.base is not None for task in tasks.values()] == [True, True, False, False, False, False]
    assert len(list((tmp_path / 'l.audio' / 'ladder').glob('*.wav'))) == 6
    assert Evaluation.read(path).metrics == result.metrics
    shown = io.StringIO()
    show(result, Console(file=shown, width=200))
    assert 'All spoken, noise at 10 dB' in shown.getvalue()


def test_the_configuration_of_the_run_is_in_the_file(tmp_path: Path) -> None:
    cfg = OmegaConf.create(
        {
            'model': tiny_model_cfg(tmp_path / 'm'),
            'trainer': {'max_steps': 7},
            'data': {'budget': {'text': 1.0}, 'steps': '${trainer.max_steps}'},
        }
    )
    model = build_model(cfg)
    model.save_to(str(tmp_path / 'a.nemo'))
    found = read_info(tmp_path / 'a.nemo').manifest['run_config']
    assert found == {**OmegaConf.to_container(cfg, resolve=True)} and found['data']['steps'] == 7
    # whoever saves it again carries it on
    restore(str(tmp_path / 'a.nemo'), 'cpu').save_to(str(tmp_path / 'b.nemo'))
    assert read_info(tmp_path / 'b.nemo').manifest['run_config'] == found


def test_answers_of_ranks_that_are_gone_are_taken_over(tmp_path: Path) -> None:
    for rank, stamp in ((1, 1), (2, 1), (3, 2)):
        AnswerCache(tmp_path / f'e.answers.{rank}.jsonl', {'m': stamp}).add(f'k{rank}', rank)
    path = tmp_path / 'e.answers.jsonl'
    AnswerCache(path, {'m': 1}).add('k0', 0)
    cache = AnswerCache(path, {'m': 1})
    cache.adopt(sorted(tmp_path.glob('e.answers.*.jsonl')))
    assert cache.resumed == 3 and dict(cache.values) == {'k0': 0, 'k1': 1, 'k2': 2}
    assert AnswerCache(path, {'m': 1}).resumed == 3
    cache.finish()
    assert not list(tmp_path.iterdir())


def test_cached_answers_are_found_again_whatever_they_say(tmp_path: Path) -> None:
    answers = {'a': 'two\u2028lines', 'b': 'four\x85x', 'c': '\ud800', 'd': 'e\x1ef', 'e': 'g\nh'}
    cache = AnswerCache(tmp_path / 'j.jsonl', {'m': 1})
    for key, value in answers.items():
        cache.add(key, value)
    again = AnswerCache(tmp_path / 'j.jsonl', {'m': 1})
    assert again.resumed == len(answers)
    assert {key: again[key] for key in answers} == answers
