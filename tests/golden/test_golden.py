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
"""Trained by the scripts, tiny models have the losses, ledgers, plans and answers that golden.json holds.

`record.py` wrote it at the commit before the modules of the library were put in order, and the fixtures beside it, a
`.ckpt` and a `.nemo` of that commit. The runs use slow kernels that every processor has in common (`golden.PINNED`).
Where packages, kernels and processor are those of the recording, each number must have the same bits. Elsewhere a
number may be off by ten times what it was off at the recording between those kernels and the fastest ones: rounding
may do that, a change of what is computed does more. Counts, plans, names of weights and answers are equal everywhere.

One library's square root cannot be pinned and differs by a bit between processors. The optimizer avoids it; the
spectrogram of the Conformer run does not, so that run has the widest tolerance.
"""

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import golden
import pytest
from golden_jobs import HALF, QUICK_JOBS, STEPS, TINY_JOBS

pytestmark = pytest.mark.integration

RECORDED: Mapping[str, Any] = json.loads(golden.GOLDEN.read_text(encoding='utf-8'))
TRAINED = ('hf', 'conformer', 'tp2', 'fsdp2')
FACTOR = 10.0
SUMS = 1e-12  # of seconds and shares, which are sums of float64


class Measured:
    """What a launch of the jobs gave, compared with the record."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self.runs = found['runs']
        self.same_machine = found['fingerprint'] == RECORDED['fingerprint']

    def check(self, run: str, part: str, got: Any = None, expected: Any = None) -> None:
        """Names each number of a part of a run that is not what it was."""
        got = self.runs[run][part] if got is None else got
        expected = RECORDED['runs'][run][part] if expected is None else expected
        wrong = list(golden.differences(expected, got, self.tolerance(run, part), f'{run}.{part}'))
        assert not wrong, '\n'.join(wrong)

    def tolerance(self, run: str, part: str) -> float | None:
        """None: the same bits."""
        if self.same_machine or part not in ('losses', 'metrics', 'weights', 'ledger'):
            return None
        return SUMS if part == 'ledger' else FACTOR * RECORDED['rounding'][run]


@pytest.fixture(scope='module')
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp('golden')
    golden.prepare(folder)
    jobs = [name for name in TINY_JOBS if name != 'tp2' or importlib.util.find_spec('megatron')]
    return Measured(golden.measure(folder, jobs))


@pytest.mark.parametrize('part', ['losses', 'metrics', 'weights', 'ledger', 'plan_sha256'])
@pytest.mark.parametrize('run', TRAINED)
def test_a_run_is_what_it_was(tiny: Measured, run: str, part: str) -> None:
    if run == 'tp2':
        pytest.importorskip('megatron.core')
    tiny.check(run, part)


def test_the_record_is_whole() -> None:
    for run in TRAINED:
        recorded = RECORDED['runs'][run]
        assert list(recorded['losses']) == [str(step) for step in range(1, STEPS + 1)]
        assert list(recorded['plan_sha256']) == [str(HALF), str(STEPS)]
        assert recorded['ledger']['batches'] == STEPS and recorded['ledger']['skips']
    ledgers = [RECORDED['runs'][run]['ledger'] for run in TRAINED]
    assert ledgers[1:] == ledgers[:-1]


def test_a_checkpoint_made_before_is_gone_on_from(tiny: Measured) -> None:
    got, whole = tiny.runs['resumed'], RECORDED['runs']['hf']
    rest = {step: rows for step, rows in whole['losses'].items() if int(step) > HALF}
    tiny.check('hf', 'losses', got['losses'], rest)
    for part in ('metrics', 'plan_sha256'):
        tiny.check('hf', part, got[part], {str(STEPS): whole[part][str(STEPS)]})
    for part in ('weights', 'ledger'):
        tiny.check('hf', part, got[part])


def test_a_nemo_file_made_before_has_the_same_weights_and_answers(tiny: Measured) -> None:
    for part in ('tensors', 'sha256'):
        tiny.check('restored', part)
    tiny.check('answers', 'answers')


@pytest.mark.real_weights
def test_the_quickstart_trains_and_answers_as_it_did(assets: Callable[..., dict[str, Path]], tmp_path: Path) -> None:
    assets('minimind2-small', 'whisper-tiny.en', 'demo-corpus')
    golden.prepare(tmp_path)
    measured = Measured(golden.measure(tmp_path, QUICK_JOBS))
    shutil.rmtree(tmp_path / 'quick')  # 300 MB that pytest would keep
    for run in QUICK_JOBS:
        for part in RECORDED['runs'][run]:
            measured.check(run, part)


# ---- the comparison itself


def test_equal_bits_are_demanded_without_a_tolerance() -> None:
    recorded = {'losses': {'1': [['3f800000']]}, 'answers': ['yes'], 'tokens': 3}
    assert not list(golden.differences(recorded, recorded, None))
    next_float = recorded | {'losses': {'1': [['3f800001']]}}
    assert list(golden.differences(recorded, next_float, None)) == [
        '.losses.1[0][0]: 3f800001 instead of 3f800000',
    ]
    assert not list(golden.differences(recorded, next_float, 1e-6))
    assert list(golden.differences(recorded, next_float, 1e-8))


@pytest.mark.parametrize('changed', [{'answers': ['no']}, {'tokens': 4}, {'losses': {}}, {'more': 1}])
def test_no_tolerance_lets_another_text_or_count_pass(changed: dict[str, Any]) -> None:
    recorded = {'losses': {'1': [['3f800000']]}, 'answers': ['yes'], 'tokens': 3}
    assert list(golden.differences(recorded, recorded | changed, 1.0))
