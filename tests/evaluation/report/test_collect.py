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
"""What a report collects: worst answers, names, runs beside results; hostile text and numbers that are not finite."""

import json
import math
from pathlib import Path

import pytest
from evaluation_helpers import heard, simple

from nemo_vtb.commands import report as command
from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.evaluation.report.collect import (
    Subject,
    make_report,
    name_of,
    read_subject,
    word_diff,
    worst_examples,
    write_report,
)
from nemo_vtb.evaluation.result import Evaluation, Sample


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
        make_report([Subject('m', simple(5, 10)), Subject('m', simple(6, 10))])


def test_hostile_text_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    evil = '<script>alert(1)</script><img src=x onerror=alert(1)>'
    sample = Sample(evil, 'asr', evil, evil, evil, evil + ' more', ('/nowhere/<b>.wav',), (evil,))
    row = heard(50.0, evil)
    report = make_report([Subject(evil, Evaluation((row,), (sample,), {'model': evil}))])
    paths = write_report(report, tmp_path)
    page = paths['html'].read_text()
    assert '<script' not in page and '<img' not in page and page.count('&lt;script&gt;') > 3
    assert 'the recording is no longer there' in page
    assert '<script>' not in paths['md'].read_text().replace('\\<script\\>', '')
    saved = json.loads(paths['json'].read_text())
    assert saved['verdict']['level'] == 'amber' and saved['models'][0]['name'] == evil


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    paths = write_report(make_report([Subject('m', simple(5.0, math.inf))]), tmp_path)
    assert json.loads(paths['json'].read_text())['models'][0]['metrics'][1]['value'] is None
    assert 'nothing' in paths['html'].read_text()


def test_command_reads_results_beside_their_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / 'good'
    run.mkdir()
    simple(5.0, 10.0).write(run / 'eval.json')
    (run / 'history.jsonl').write_text('{"type": "train", "step": 1, "losses": {"text": 2.0}}\n')
    simple(5.0, 12.0).write(tmp_path / 'forgetful.eval.json')
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
    with pytest.raises(VtbConfigError, match='cannot be created'):
        command.main(['llm', *files, '--output', str(tmp_path / 'file' / 'x')])
    with pytest.raises(VtbDataError, match='no such model'):
        command.main(['llm', str(tmp_path / 'absent.nemo')])
