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
"""The study's arithmetic and its plan of runs, without training anything."""

import json
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / 'benchmarks' / 'study'


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType, ModuleType]:
    """The modules plan, run and summarise of the study."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ('plan', 'run', 'summarise'):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import plan
    import run
    import summarise

    return plan, run, summarise


def write_leg(folder: Path, run: str, seed: int, retention: float, wer: float, qa: float = 50.0) -> None:
    """A complete leg as `run.py` leaves it."""
    leg = folder / f'{run}-{seed}'
    leg.mkdir(parents=True)
    rows = [
        {'task': 'text', 'source': 'reference', 'name': 'perplexity', 'value': 1000 / retention, 'base': 10.0},
        {'task': 'asr', 'source': 'commands', 'name': 'WER', 'value': wer, 'base': None},
        {'task': 'asr', 'source': 'asterisk-asr', 'name': 'WER', 'value': 120.0, 'base': None},
        {'task': 'speech_qa', 'source': 'commands-qa', 'name': 'exact match', 'value': qa, 'base': None},
    ]
    lines = [json.dumps({'type': 'metric', 'suite': 'speech', **row}) + '\n' for row in rows]
    (leg / 'eval.jsonl').write_text(''.join(lines))
    (leg / 'ledger.json').write_text(json.dumps({'tokens': 1000, 'kinds': {'text': {'asked': 0.1, 'delivered': 0.1}}}))
    (leg / 'result.json').write_text(json.dumps({'run': run, 'seed': seed, 'steps': 9, 'seconds': 1.0}))


def test_mean_and_interval_by_hand(scripts: tuple) -> None:
    """Three seeds: Student's quantile for two degrees of freedom is 4.303."""
    found = scripts[2].interval([1.0, 2.0, 3.0])
    assert found['mean'] == 2.0
    assert found['high'] == pytest.approx(2.0 + 4.303 / 3**0.5, abs=1e-3)
    assert scripts[2].interval([5.0]) == {'mean': 5.0, 'low': None, 'high': None, 'n': 1}


def test_questions_are_answered_by_paired_differences(scripts: tuple, tmp_path: Path) -> None:
    """A spread that both runs share does not hide a difference; a lower WER is the better one."""
    for seed, level in enumerate((90.0, 95.0, 99.0)):
        write_leg(tmp_path, 'A', seed, retention=level, wer=20 + level / 10)
        write_leg(tmp_path, 'E', seed, retention=level - 10 - seed / 10, wer=10 + level / 10 + seed / 10)
    summary = scripts[2].summarise(scripts[2].read_study(tmp_path), ['A', 'E'], [0, 1, 2])
    assert summary['retention']['A']['mean'] == pytest.approx(94.667, abs=1e-3)
    assert summary['wer_real']['A']['mean'] == 120.0
    answers = {(q['of'][1], q['metric']): q['verdict'] for q in summary['questions']}
    assert answers['E', 'retention'] == 'A is better'
    assert answers['E', 'wer'] == 'E is better'
    assert answers['E', 'qa'] == 'equal'
    assert ('B', 'wer') not in answers


@pytest.mark.parametrize(
    ('kept', 'seeds_of_e', 'runs', 'missing'),
    [
        (98.1, 2, 'AE', []),
        (97.9, 2, 'AE', []),
        (98.1, 1, 'AE', ['E-1']),
        (98.1, 2, 'AEC', ['C-0', 'C-1']),
    ],
)
def test_ok_wants_the_goal_and_every_run_and_seed(
    scripts: tuple, tmp_path: Path, kept: float, seeds_of_e: int, runs: str, missing: list[str]
) -> None:
    """The goal is that of the house plan; half a study is no study, and a run without any leg is missing too."""
    for seed in range(2):
        write_leg(tmp_path, 'A', seed, kept, 10.0)
    for seed in range(seeds_of_e):
        write_leg(tmp_path, 'E', seed, 50.0, 10.0)
    summary = scripts[2].summarise(scripts[2].read_study(tmp_path), list(runs), [0, 1])
    assert summary['missing'] == missing
    assert summary['ok'] is (kept > 98 and not missing)


def test_a_leg_without_its_result_is_missing(scripts: tuple, tmp_path: Path) -> None:
    """An evaluation that was written does not make a leg complete: `result.json` comes last."""
    write_leg(tmp_path, 'A', 0, 99.0, 10.0)
    write_leg(tmp_path, 'A', 1, 99.0, 10.0)
    (tmp_path / 'A-1' / 'result.json').unlink()
    summary = scripts[2].summarise(scripts[2].read_study(tmp_path), ['A'], [0, 1])
    assert summary['missing'] == ['A-1']
    assert not summary['ok']
    assert summary['retention']['A'] == {'mean': 99.0, 'low': None, 'high': None, 'n': 1}


def test_seeds_that_were_not_asked_for_do_not_count(scripts: tuple, tmp_path: Path) -> None:
    """A mean is over the seeds that the summary names."""
    write_leg(tmp_path, 'A', 0, 99.0, 10.0)
    write_leg(tmp_path, 'A', 7, 50.0, 90.0)
    summary = scripts[2].summarise(scripts[2].read_study(tmp_path), ['A'], [0])
    assert summary['wer']['A']['mean'] == 10.0


def test_the_last_line_is_one_json_object(
    scripts: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As every benchmark: a table, then JSON; and a picture that is one."""
    write_leg(tmp_path, 'A', 0, 99.0, 10.0)
    write_leg(tmp_path, 'B', 0, 100.0, 30.0)
    picture = tmp_path / 'study.png'
    command = ['summarise.py', str(tmp_path), '--plot', str(picture)]
    monkeypatch.setattr(sys, 'argv', command)
    assert scripts[2].main() == 1
    assert 'not complete: A-1, A-2, B-1' in capsys.readouterr().out
    monkeypatch.setattr(sys, 'argv', [*command, '--runs', 'A', 'B', '--seeds', '0'])
    assert scripts[2].main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert {'benchmark', 'ok', 'runs', 'seeds', 'retention', 'wer', 'bleu', 'qa'} <= json.loads(lines[-1]).keys()
    assert lines[0].startswith('| run ')
    assert picture.read_bytes().startswith(b'\x89PNG')


def test_stages_share_the_steps_and_all_overrides_are_valid(scripts: tuple) -> None:
    """Every run of every size composes and passes the check of the configuration; frozen means a rate of nought."""
    from hydra import compose, initialize_config_dir

    from nemo_vtb.config import check_config

    plan = scripts[0]
    for size in plan.SIZES.values():
        assert plan.steps_of(plan.RUNS['stage1'], size) + plan.steps_of(plan.RUNS['D'], size) == size.steps
        for name, run in plan.RUNS.items():
            words = plan.overrides(run, size, 3, init_from='stage1.nemo')
            with initialize_config_dir(str(FOLDER.parents[1] / 'conf'), version_base=None):
                cfg = compose('speechllm_joint_sft', [*words, 'model.pretrained_llm=x', 'model.pretrained_asr=y'])
            check_config(cfg)
            assert sum(share for kind, share in cfg.data.budget.items() if kind != 'auto') == pytest.approx(
                1, abs=1e-7
            )
            assert cfg.data.budget.auto is None  # the shares of a study stay as they are
            assert (cfg.model.lr_factors[0].factor == 0) is (name in ('B', 'stage1'))
            assert (cfg.model.text_anchor > 0) is (name in ('A', 'D', 'M'))
    half = plan.RUNS['D'].shares['text'] / sum(plan.RUNS['D'].shares.values())
    assert half == pytest.approx(0.5)


def test_what_is_done_is_not_done_again_and_time_is_kept(
    scripts: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leg with a result is left alone; a process that runs over the deadline is ended and reported."""
    run = scripts[1]
    legs = run.legs_of(['A', 'C'], [0], tmp_path)
    assert [leg.run for leg in legs] == ['stage1', 'A', 'C']
    write_leg(tmp_path, 'A', 0, 99.0, 10.0)
    monkeypatch.setattr(run, 'call', lambda *_: pytest.fail('nothing is to be done'))
    assert run.work(legs[1], 'quick', time.time() + 9) == 'already complete'
    monkeypatch.undo()
    script = tmp_path / 'slow.py'
    script.write_text('import time; time.sleep(60)')
    with pytest.raises(run.OutOfTimeError):
        run.call([str(script)], tmp_path / 'log.txt', time.time() + 0.5)
    with pytest.raises(SystemExit, match='status 2'):
        run.call(['-c', 'raise SystemExit(2)'], tmp_path / 'log.txt', time.time() + 60)
