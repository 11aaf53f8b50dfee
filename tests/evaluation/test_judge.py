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
"""The judge behind a real server: verdicts, faults, resuming, and what an evaluation keeps without it."""

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from factory_helpers import openai_server, read_lines
from rich.console import Console

from nemo_vtb.commands import eval as command
from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.evaluation.answers import AnswerCache
from nemo_vtb.evaluation.judge import (
    CONTROLS,
    PROMPT_VERSION,
    SYSTEM,
    Judge,
    _body,
    _material,
    add_verdicts,
    check_judge,
    judge_of,
    judge_samples,
)
from nemo_vtb.evaluation.metrics import bootstrap_interval
from nemo_vtb.evaluation.result import Evaluation, Metric, Sample
from nemo_vtb.evaluation.tables import show
from nemo_vtb.testing import TinyCorpus

SAID = 'Open the curtain in the garage at midnight.'
RIGHT, WRONG, COPY = 'At midnight.', 'At seven.', SAID


@pytest.fixture(autouse=True)
def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command silences the logs of its process, which is here that of all tests."""
    monkeypatch.setenv('NEMO_LOG_LEVEL', 'WARNING')


def sample(number: int, answer: str, source: str = 'qa', **more: object) -> Sample:
    values = {
        'id': f'{number}#1',
        'task': 'speech_qa',
        'source': source,
        'prompt': f'user: What time is named? ▶ clip-{number}.wav (2.9 s)',
        'reference': RIGHT,
        'hypothesis': answer,
        'audios': (f'/data/clip-{number}.wav',),
        'said': (SAID,),
    }
    return Sample(**(values | more))


ANSWERS = (RIGHT, WRONG, COPY, 'In the garage at midnight.')
SAMPLES = [sample(number, answer) for number, answer in enumerate(ANSWERS)]


def judge(url: str, **more: object) -> Judge:
    values = {'concurrency': 1, 'first_wait_s': 0.05, 'timeout_s': 20.0}
    return Judge(url, 'by-rule', **(values | more))


def requests(folder: Path) -> list[dict]:
    return read_lines(folder / 'requests.jsonl')


# ---- verdicts


def test_right_wrong_and_copied_answers(tmp_path: Path) -> None:
    others = [sample(7, 'x', task='asr'), sample(8, 'x', task='text')]
    with openai_server(tmp_path) as url:
        found = judge_samples([others[0], *SAMPLES, others[1]], judge(url, concurrency=4))
    none, right, wrong, copy, wordy, last = found.verdicts
    assert none is last is None
    assert [v.correctness for v in (right, wrong, copy, wordy)] == [1, 0, 0, 1]
    assert [v.redundancy for v in (right, wrong, copy, wordy)] == [1, 1, 10, 6]
    assert copy.correctness_explanation == 'It repeats the recording.' and copy.redundancy_explanation
    correct, redundancy = found.rows
    assert (correct.name, correct.value, correct.n, correct.higher_is_better) == ('judge: correct', 50.0, 4, True)
    assert (redundancy.name, redundancy.value, redundancy.higher_is_better) == ('judge: redundancy', 4.5, False)
    assert correct.interval == bootstrap_interval(
        lambda chosen: sum([100.0, 0.0, 0.0, 100.0][i] for i in chosen) / 4, 4
    )
    assert correct.signature == redundancy.signature == 'judge by-rule, prompt 1'
    assert found.info['judged'] == 4 and found.info['unjudged'] == 0
    assert (found.info['prompt_tokens'], found.info['completion_tokens']) == (1200, 160)


def test_each_task_and_source_has_rows_of_its_own(tmp_path: Path) -> None:
    samples = [sample(0, RIGHT, 'a'), sample(1, WRONG, 'b'), sample(2, RIGHT, 'a', task='mixed_modal')]
    with openai_server(tmp_path) as url:
        rows = judge_samples(samples, judge(url)).rows
    assert [(r.task, r.source, r.value) for r in rows if r.name == 'judge: correct'] == [
        ('speech_qa', 'a', 100.0),
        ('speech_qa', 'b', 0.0),
        ('mixed_modal', 'a', 100.0),
    ]


def test_the_judge_sees_what_was_said_and_asked() -> None:
    two = sample(
        1,
        'Yes.',
        prompt='user: ▶ a.wav (1.0 s) Who?\nassistant: Anna.\nuser: ▶ a.wav (2.0 s) (or ▶ b.wav) and ▶ a.wav (9.9 s)?',
        audios=('x/a.wav', 'y/a.wav', 'b.wav', 'x/a.wav'),
        said=('one', 'two', 'three', 'one'),
    )
    seen = _material(two)
    assert seen['conversation'] == (
        'user: [recording 1] Who?\nassistant: Anna.\nuser: [recording 2] (or [recording 3]) and [recording 4]?'
    )
    assert list(seen['recordings'].values()) == ['one', 'two', 'three', 'one']
    assert (seen['reference'], seen['answer']) == (RIGHT, 'Yes.')


def test_prompt_and_its_version_change_together() -> None:
    digest = hashlib.sha256(SYSTEM.encode()).hexdigest()[:12]
    assert (PROMPT_VERSION, digest) == ('1', '4d250471b05f')


def test_requests_hold_only_what_the_server_takes() -> None:
    full = _body(SAMPLES[0], judge('http://h/v1'), 0)
    schema = full['response_format']['json_schema']
    assert schema['strict'] and set(schema['schema']['required']) == set(schema['schema']['properties'])
    assert (full['temperature'], full['max_tokens'], full['seed']) == (0.0, 512, 0)
    # a verdict without the form would come again at temperature 0
    again = _body(SAMPLES[0], judge('http://h/v1'), 1)
    assert again['temperature'] > 0 and again['seed'] == 1 and again['messages'] == full['messages']
    plain = _body(SAMPLES[0], judge('http://h/v1', temperature=None, max_tokens=None, structured='none'), 1)
    assert set(plain) == {'model', 'messages'}
    assert _body(SAMPLES[0], judge('http://h/v1', structured='json_object'), 0)['response_format'] == {
        'type': 'json_object'
    }


# ---- faults


@pytest.mark.parametrize(
    ('faults', 'retries', 'invalid'),
    [('429', 1, 0), ('500 cut', 2, 0), ('junk', 0, 1), ('range', 0, 1), ('junk 500 range', 1, 2)],
)
def test_faults_are_asked_again(tmp_path: Path, faults: str, retries: int, invalid: int) -> None:
    with openai_server(tmp_path, faults) as url:
        found = judge_samples(SAMPLES, judge(url))
    assert [v.correctness for v in found.verdicts] == [1, 0, 0, 1]
    assert (found.info['retries'], found.info['invalid'], found.info['unjudged']) == (retries, invalid, 0)
    assert len(requests(tmp_path)) == len(SAMPLES) + retries + invalid


def test_a_judge_that_hangs_is_asked_again(tmp_path: Path) -> None:
    with openai_server(tmp_path, 'hang') as url:
        found = judge_samples(SAMPLES[:1], judge(url, timeout_s=5.0))
    assert found.verdicts[0].correctness == 1 and found.info['retries'] == 1


def test_what_has_no_verdict_is_counted_as_unjudged(tmp_path: Path) -> None:
    dumb = sample(9, RIGHT, said=('',))
    with openai_server(tmp_path, 'junk range junk') as url:
        found = judge_samples([*SAMPLES, dumb, sample(10, RIGHT, 'other', said=('',))], judge(url))
    assert [bool(v.unjudged) for v in found.verdicts] == [True, False, False, False, True, True]
    assert 'bees' in found.verdicts[0].unjudged and 'no transcript' in found.verdicts[4].unjudged
    assert found.info['unjudged'] == 3 and found.info['judged'] == 3
    assert found.info['unjudged_of'] == {'speech_qa/qa': 2, 'speech_qa/other': 1}
    assert {row.source for row in found.rows} == {'qa'} and {row.n for row in found.rows} == {3}
    assert found.rows[0].value == pytest.approx(100 / 3) and '2 unjudged' in found.rows[0].signature
    assert len(requests(tmp_path)) == 3 + 3  # nothing is asked about what cannot be judged


def test_a_text_that_the_server_refuses_is_unjudged_and_a_server_that_refuses_all_is_an_error(tmp_path: Path) -> None:
    cache = AnswerCache(None)
    with openai_server(tmp_path / 'one', '400') as url:
        found = judge_samples(SAMPLES, judge(url), cache)
        assert found.info['unjudged'] == 1 and 'HTTP 400' in found.verdicts[0].unjudged
        # nothing was paid for a refusal: it is asked for again
        assert judge_samples(SAMPLES, judge(url), cache).info['unjudged'] == 0
    with openai_server(tmp_path / 'two', '400 400 400 400') as url, pytest.raises(VtbDataError, match='HTTP 400'):
        judge_samples([*SAMPLES, sample(9, RIGHT, said=('',))], judge(url))


def test_an_error_does_not_break_off_what_is_on_the_way(tmp_path: Path) -> None:
    path = tmp_path / 'answers.jsonl'
    with openai_server(tmp_path / 'one', '401') as url, pytest.raises(VtbDataError):
        judge_samples(SAMPLES, judge(url, concurrency=4), AnswerCache(path))
    assert AnswerCache(path).resumed == 3


def test_verdicts_are_not_paid_for_twice(tmp_path: Path) -> None:
    path = tmp_path / 'answers.jsonl'
    with openai_server(tmp_path / 'one', 'ok junk junk junk 401') as url:
        with pytest.raises(VtbDataError, match='judge.url') as error:
            judge_samples(SAMPLES, judge(url), AnswerCache(path, {'model': 'm'}))
    assert 'HTTP 401' in str(error.value) and 'by-rule' in str(error.value) and 'kept' in str(error.value)
    with openai_server(tmp_path / 'two') as url:
        cache = AnswerCache(path, {'model': 'm'})
        assert cache.resumed == 2
        again = judge_samples(SAMPLES, judge(url), cache)
        assert len(requests(tmp_path / 'two')) == 2
        assert judge_samples(SAMPLES, judge(url), AnswerCache(path, {'model': 'm'})) == again
        assert len(requests(tmp_path / 'two')) == 2
        # another answer, model or temperature is another question
        judge_samples([sample(0, WRONG)], judge(url), cache)
        judge_samples(SAMPLES[:1], replace(judge(url), model='other'), cache)
        judge_samples(SAMPLES[:1], replace(judge(url), temperature=0.1), cache)
        assert len(requests(tmp_path / 'two')) == 5
    assert [bool(v.unjudged) for v in again.verdicts] == [False, True, False, False]
    assert [v.correctness for v in again.verdicts] == [1, None, 0, 1]


def test_the_key_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('JUDGE_KEY', 'secret')
    with openai_server(tmp_path) as url:
        judge_samples(SAMPLES[:1], judge(url, api_key_env='JUDGE_KEY'))
    assert [row['auth'] for row in requests(tmp_path)] == ['Bearer secret']


# ---- settings


@pytest.mark.parametrize(
    ('url', 'model', 'suites', 'field'),
    [
        ('http://h/v1', None, ('speech',), 'judge.model'),
        (None, 'm', ('speech',), 'judge.url'),
        ('localhost:8000', 'm', ('speech',), 'judge.url'),
        ('http://h/v1', 'm', ('text',), 'suite'),
    ],
)
def test_half_a_judge_is_an_error(url: str | None, model: str | None, suites: tuple, field: str) -> None:
    with pytest.raises(VtbConfigError) as error:
        judge_of(url, model, suites)
    assert error.value.field == field and error.value.remedy


def test_nobody_judges_by_default() -> None:
    assert judge_of(None, None) is None
    assert judge_of('http://h/v1', 'm', ('speech', 'text'), tries=2) == Judge('http://h/v1', 'm', tries=2)


# ---- known verdicts


def test_known_verdicts_show_what_a_judge_cannot_do(tmp_path: Path) -> None:
    assert Counter(right for _, right in CONTROLS) == {1: 3, 0: 3}
    with openai_server(tmp_path) as url:
        found = check_judge(judge(url))
    # a rule knows no other words
    assert found == {'right': 5, 'of': 6, 'missed': ['control: other words']}


# ---- within an evaluation


def test_result_with_verdicts_travels(tmp_path: Path) -> None:
    rows = (
        Metric('speech', 'speech_qa', 'qa', 'F1', 4, 50.0), Metric('speech', 'text', 'chats', 'perplexity', 3, 9.0),
    )  # fmt: skip
    console = Console(record=True, width=160, file=(tmp_path / 'screen').open('w'))
    with openai_server(tmp_path, 'junk junk junk') as url:
        before = Evaluation(rows, (*SAMPLES, sample(5, 'x', task='text')), {'model': 'm'})
        result = add_verdicts(before, judge(url), controls=check_judge(judge(url)), console=console)
    assert [m.name for m in result.metrics] == ['F1', 'judge: correct', 'judge: redundancy', 'perplexity']
    assert result.info['judge']['controls']['missed'] == ['control: the reference itself', 'control: other words']
    back = Evaluation.read(result.write(tmp_path / 'e.jsonl'))
    assert back.metrics == result.metrics and back.samples == result.samples
    assert back.samples[2].verdict['correctness'] == 0 and back.samples[-1].verdict is None
    show(result, console)
    shown = console.export_text()
    assert '2 of 6 known verdicts' in shown and 'unreliable' in shown and 'no mere copies' in shown


@pytest.fixture(scope='module')
def nemo_file(tiny_model: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('judged') / 'tiny.nemo'
    tiny_model.save_to(str(path))
    return path


def test_an_evaluation_whose_judge_goes_away_keeps_its_answers(
    nemo_file: Path, corpus: TinyCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, data = tmp_path / 'e.jsonl', str(corpus.path('speech_qa', 'test'))
    arguments = [str(nemo_file), '--data', data, '--max-new-tokens', '4', '--device', 'cpu', '--output', str(output)]
    cache = tmp_path / 'e.answers.jsonl'
    with openai_server(tmp_path / 'one', ' '.join(['ok'] * 8 + ['401'] * 20)) as url:
        with pytest.raises(VtbDataError, match='judge.url'):
            command.main([*arguments, '--judge-url', url, '--judge-model', 'by-rule'])
    assert not output.exists() and len(cache.read_text().splitlines()) == 1 + 6 + 6 + 2
    with openai_server(tmp_path / 'two') as url:
        assert command.main([*arguments, '--judge-url', url, '--judge-model', 'by-rule']) == 0
    assert 'resumed with 14 cached answers' in capsys.readouterr().out
    assert len(requests(tmp_path / 'two')) == 4 and not cache.exists()
    saved = Evaluation.read(output)
    assert [m.name for m in saved.of('speech')] == ['exact match', 'F1', 'judge: correct', 'judge: redundancy']
    assert saved.info['judge']['judged'] == 6 and all(s.verdict['correctness_explanation'] for s in saved.samples)


def test_a_judge_that_is_not_there_ends_before_the_model_is_asked(
    nemo_file: Path, corpus: TinyCorpus, tmp_path: Path
) -> None:
    arguments = [
        str(nemo_file),
        '--data',
        str(corpus.path('speech_qa', 'test')),
        '--output',
        str(tmp_path / 'e.jsonl'),
    ]
    with openai_server(tmp_path / 'one', ' '.join(['400'] * 20)) as url, pytest.raises(VtbDataError) as error:
        command.main([*arguments, '--judge-url', url, '--judge-model', 'by-rule'])
    assert error.value.field == 'judge.url' and url in str(error.value.got) and 'OPENAI_API_KEY' in error.value.remedy
    assert len((tmp_path / 'e.answers.jsonl').read_text().splitlines()) == 1
