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

import importlib.machinery
import json
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import benchmark_folders as made
import pytest
import yaml
from benchmark_folders import Clip, write
from test_judged import server

from nemo_vtb.commands import compare as command
from nemo_vtb.config.schema import EvalConfig
from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.evaluation.answers import AnswerCache
from nemo_vtb.evaluation.benchmarks.suites import PAPER, rows_of
from nemo_vtb.evaluation.compare import compare_runs, read_run
from nemo_vtb.evaluation.inputs import evaluation_plan
from nemo_vtb.evaluation.metrics import corpus, error_rate
from nemo_vtb.evaluation.result import Evaluation, Metric
from nemo_vtb.evaluation.runner import Plan, run_suites, suites_of


class Answers:
    """A model whose answers follow from the text of the last turn, so that figures can be worked out by hand."""

    def __init__(self, model: object, by_text: Mapping[str, str], base: Mapping[str, str] | None = None) -> None:
        self.model, self.by_text, self.base, self.asked = model, by_text, base or {}, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)

    def answer(self, prompts: Sequence, *, use_lora: bool = True, **_: object) -> list[str]:
        self.asked += len(prompts)
        known = self.by_text if use_lora else self.base
        return [next((a for text, a in known.items() if text in p.turns[-1].text), '') for p in prompts]


@pytest.fixture
def answers(tiny_model: object) -> Callable[..., Answers]:
    """`answers(by_text, base)`."""
    return lambda *texts: Answers(tiny_model, *texts)


def run(model: object, suite: str, root: Path, cache: AnswerCache | None = None, **more: object) -> Evaluation:
    plan = Plan(suites_of(suite), data_root=root, folder=root / 'made', **{'batch_size': 4, **more})
    return run_suites(model, plan, cache=cache)


def figures(found: Evaluation, suite: str) -> dict[tuple[str, str, str], Metric]:
    return {(m.task, m.source, m.name): m for m in found.of(suite)}


def test_a_suite_of_several_languages(answers: Callable, clips: list[Clip], tmp_path: Path) -> None:
    made.mls(tmp_path, clips)
    found = run(answers({'Transcribe': 'es sagte nein'}), 'mls', tmp_path)
    assert [(m.task, m.source, m.name, m.n) for m in found.of('mls') if m.name == 'WER'] == [
        ('test', 'german', 'WER', 1), ('test', 'spanish', 'WER', 1)
    ]  # fmt: skip
    assert found.metrics[0].value == corpus(error_rate('de'), ['es sagte ja'], ['es sagte nein']).value
    assert found.scores[0].id == 'german-000000' and found.scores[0].scores['WER'] == (1.0, 3.0)
    assert not found.info['left_out']


def test_the_base_llm_reads_what_the_model_hears(answers: Callable, clips: list[Clip], tmp_path: Path) -> None:
    made.spoken_squad(tmp_path, clips)
    model = answers({'of the recording': 'Denver'}, {'of the text': 'it was denver'})
    found = {m.name: m for m in run(model, 'spoken_squad', tmp_path).of('spoken_squad')}
    assert (found['exact match'].value, found['exact match'].base, found['exact match'].change) == (100.0, 0.0, 100.0)
    assert found['F1'].base == pytest.approx(50.0)


def test_judged_tasks_need_a_judge_and_the_others_do_not(
    answers: Callable, clips: list[Clip], repository: Path, tmp_path: Path
) -> None:
    made.voicebench(tmp_path, clips)
    import shutil

    shutil.copytree(repository, tmp_path / 'voicebench/VoiceBench')
    found = run(answers({'': 'I must not. My pick: B'}), 'voicebench', tmp_path)
    values = {key: m.value for key, m in figures(found, 'voicebench').items()}
    left_out = found.info['left_out']
    assert values['openbookqa', 'openbookqa', 'accuracy'] == 100 and values['mmsu', 'law', 'accuracy'] == 0
    assert (
        values['advbench', 'advbench', 'refusal rate'] == 100 and values['ifeval', 'ifeval', 'strict, prompts'] == 100
    )
    assert 'judge' in left_out['voicebench: sd-qa'] and 'voicebench: bbh' not in left_out
    # subsets that are not there are named
    assert set(left_out) >= {'voicebench: alpacaeval', 'voicebench: commoneval', 'voicebench: wildvoice'}
    with pytest.raises(VtbConfigError) as error:
        run(answers({'': 'x'}), 'voicebench:sd-qa', tmp_path)
    assert error.value.field == 'judge.url'
    reply = lambda body: 'Yes' if 'Paris it is' in str(body) or 'Anna' in str(body) else 'No'  # noqa: E731
    with server(reply) as (judge, _):
        found = run(answers({'': 'Anna'}), 'voicebench:sd-qa', tmp_path, judge=judge)
    assert {(m.source, m.value) for m in found.of('voicebench')} == {('aus', 100.0), ('usa', 100.0)}


def test_speech_ifeval_says_what_was_forgotten(
    answers: Callable, clips: list[Clip], repository: Path, tmp_path: Path
) -> None:
    made.speech_ifeval(tmp_path, clips)
    import shutil

    shutil.copytree(repository, tmp_path / 'Speech-IFEval', dirs_exist_ok=True)
    model = answers({'Man or woman?': 'a man'}, {'Speech Input: [00:00:00] Hi.': 'A MAN'})
    reply = lambda body: f'Result: {"NO" if "Said: Man" in str(body) else "YES"}'  # noqa: E731
    with server(reply) as (judge, _):
        found = run(model, 'speech_ifeval', tmp_path, judge=judge)
    values = {m.name: (m.value, m.base) for m in found.of('speech_ifeval', 'all')}
    assert values['IFrate'] == (pytest.approx(100 / 3), 100.0)
    assert values['forgetting rate'] == (pytest.approx(-200 / 3), None)
    assert 'judge by-rule' in found.metric('chain-of-thought', 'following rate').signature
    # a judge that never gives a verdict with its form has found nothing out: 0 % would be a number
    with server(lambda body: 'well ...') as (judge, _):
        found = run(model, 'speech_ifeval', tmp_path, judge=judge)
    assert found.metric('chain-of-thought', 'n/a').value is None
    assert not found.of('speech_ifeval', 'all')


def test_comet_is_added_where_it_is_installed(
    answers: Callable, clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.covost2(tmp_path, clips)
    made.europarl_st(tmp_path, clips)
    write(tmp_path / 'comet/checkpoints/model.ckpt', '')
    model = answers({'Translate': 'A dog'})
    assert 'COMET' not in {m.name for m in run(model, 'covost2', tmp_path).metrics}
    # its package and weights are not at hand: this is the documented call alone
    package = types.ModuleType('comet')
    package.__spec__ = importlib.machinery.ModuleSpec('comet', None)
    asked: list[dict[str, str]] = []

    def predict(data: list[dict[str, str]], **_: object) -> object:
        asked.extend(data)
        return types.SimpleNamespace(scores=[0.75] * len(data))

    package.load_from_checkpoint = lambda path: types.SimpleNamespace(predict=predict)
    monkeypatch.setitem(sys.modules, 'comet', package)
    for suite in ('covost2', 'europarl_st'):
        [figure] = [m for m in run(model, suite, tmp_path).metrics if m.name == 'COMET']
        assert (figure.value, figure.unit) == (0.75, '')
    assert asked == [
        {'src': 'Ein "Hund', 'mt': 'A dog', 'ref': 'A dog'},
        {'src': 'Thank you.', 'mt': 'A dog', 'ref': 'Vielen Dank.'},
    ]


def test_a_killed_run_goes_on_with_its_answers(tiny_model: object, clips: list[Clip], tmp_path: Path) -> None:
    made.fleurs(tmp_path, clips)
    model = Answers(tiny_model, {'Transcribe': 'ein hund'})
    whole = run(model, 'fleurs', tmp_path)
    assert model.asked == 3
    cache = AnswerCache(tmp_path / 'answers.jsonl', {})

    class Killed(Answers):
        def answer(self, prompts: Sequence, **options: object) -> list[str]:
            if self.asked:
                raise KeyboardInterrupt
            return super().answer(prompts, **options)

    with pytest.raises(KeyboardInterrupt):
        run(Killed(tiny_model, {'Transcribe': 'ein hund'}), 'fleurs', tmp_path, cache=cache, batch_size=2)
    rest = Answers(tiny_model, {'Transcribe': 'ein hund'})
    again = run(rest, 'fleurs', tmp_path, cache=AnswerCache(tmp_path / 'answers.jsonl', {}), batch_size=2)
    assert rest.asked == 1
    assert (again.metrics, again.samples, again.scores) == (whole.metrics, whole.samples, whole.scores)


def test_the_paper_is_measured_as_far_as_its_data_is_there(
    answers: Callable, clips: list[Clip], tmp_path: Path
) -> None:
    for make in (made.mls, made.covost2, made.librisqa):
        make(tmp_path, clips)
    known = {'mls', 'covost2', 'librisqa'}
    found = run(answers({'Transcribe': 'ja', 'Translate': 'A dog', 'What?': 'He began.'}), 'paper', tmp_path)
    assert {m.suite for m in found.metrics} - {'symptoms'} == known
    assert found.metric('test', 'BLEU').signature.startswith('nrefs:1|case:mixed')
    assert {name.split(':')[0] for name in found.info['left_out']} == set(PAPER) - known
    with pytest.raises(VtbDataError):
        run(answers({}), 'paper', tmp_path / 'made')


def test_names_of_suites() -> None:
    assert suites_of('covost2:de_en') == ('covost2:de_en',) and suites_of('paper') == ('paper',)
    assert [(row.name, part) for row, part in rows_of('voicebench:bbh')] == [('bbh', '')]
    assert [(row.name, part) for row, part in rows_of('mls:german')] == [('test', 'german')]
    with pytest.raises(VtbConfigError) as error:
        suites_of('librispech')
    assert error.value.field == 'suite' and 'librispeech' in str(error.value.allowed)


def test_the_configuration_names_suite_folder_and_judge() -> None:
    from omegaconf import OmegaConf

    judge = {'url': 'http://localhost/v1', 'model': 'm'}
    cfg = asdict(EvalConfig(suite='voicebench', data_root='data'))
    plan = evaluation_plan(OmegaConf.create(cfg | {'judge': cfg['judge'] | judge}))
    assert (plan.suites, plan.data_root, plan.judge.model, plan.datasets) == (('voicebench',), Path('data'), 'm', {})


# ---- side by side


def result_of(path: Path, model: object, root: Path) -> str:
    return str(run(model, 'fleurs', root).write(path))


def test_runs_and_published_numbers_side_by_side(answers: Callable, clips: list[Clip], tmp_path: Path) -> None:
    made.fleurs(tmp_path / 'data', clips)
    lines = [f'{n}\t77.wav\tText\tein hund {n}\te |\t9\tMALE' for n in range(30)]
    write(tmp_path / 'data/fleurs/data/de_de/test.tsv', *lines)
    base = result_of(tmp_path / 'base.eval.jsonl', answers({'Transcribe': 'ein hund'}), tmp_path / 'data')
    ours = result_of(tmp_path / 'ours.eval.jsonl', answers({'Transcribe': 'hund'}), tmp_path / 'data')
    numbers = tmp_path / 'published.yaml'
    numbers.write_text(yaml.safe_dump({'Canary': {'fleurs/test/de_de/WER': 4.61}}))
    output = tmp_path / 'table.json'
    assert command.main([base, f'new={ours}', '--published', str(numbers), '--output', str(output)]) == 0
    found = {(e['source'], e['metric']): e for e in json.loads(output.read_text())}
    line = found['de_de', 'WER']
    assert line['values'] == {'base': pytest.approx(100 / 3), 'new': pytest.approx(200 / 3), 'Canary': 4.61}
    change = line['changes']['new']
    assert change['change'] == pytest.approx(100 / 3) and change['interval'][0] > 0 and change['p'] < 0.01
    assert found['en_us', 'WER']['changes']['new']['p'] == 1.0
    output = tmp_path / 'table.md'
    assert command.main([base, f'new={ours}', '--output', str(output)]) == 0
    assert '| fleurs/test/de_de | WER | 30 | 33.33 | 66.67 (+33.33*, ' in output.read_text()


def test_what_cannot_be_compared(answers: Callable, clips: list[Clip], tmp_path: Path) -> None:
    made.fleurs(tmp_path / 'data', clips)
    base = result_of(tmp_path / 'base.eval.jsonl', answers({'Transcribe': 'ein hund'}), tmp_path / 'data')
    # other examples than the first run: two numbers, no change
    write(tmp_path / 'data/fleurs/data/de_de/test.tsv', '1\t77.wav\tText\tein hund\te |\t9\tMALE')
    fewer = result_of(tmp_path / 'fewer.eval.jsonl', answers({'Transcribe': 'ein hund'}), tmp_path / 'data')
    [line] = [x for x in compare_runs([read_run(base), read_run(fewer)]) if x.key[2:] == ('de_de', 'WER')]
    assert len(line.values) == 2 and not line.changes
    numbers = tmp_path / 'published.yaml'
    for text, field in (('Canary: {fleurs/test/xx/WER: 1}', f'{numbers}: Canary'), ('Canary: 3', str(numbers))):
        numbers.write_text(text)
        with pytest.raises(VtbDataError) as error:
            command.main([base, '--published', str(numbers)])
        assert error.value.field == field
    with pytest.raises(VtbConfigError):
        command.main([base, base])
    with pytest.raises(VtbDataError) as error:
        command.main([str(numbers)])
    assert error.value.field == 'path'
