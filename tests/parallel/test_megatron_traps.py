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
"""Runs on ranks in which something is easily got wrong without a word: random numbers, types, seeds."""

import json
from typing import Any

import pytest
import torch
import train_worker
from test_megatron import Runs, megatron

pytest.importorskip('megatron.core')
pytestmark = pytest.mark.integration

SP = megatron(2, sequence_parallel=True)
DROP = {'model.lora.lora_dropout': 0.3}
JOBS: dict[str, dict[str, Any]] = {
    'drop': {'set': DROP | SP},
    'drop_half': {'set': DROP | SP | {'trainer.max_steps': 3}},
    'drop_rest': {'set': DROP | SP, 'resume': 'drop_half'},
    'mixed': {'set': SP | {'trainer.precision': 'bf16-mixed'}},
    'mixed_whole': {'set': {'trainer.precision': 'bf16-mixed'}},
    'unseeded': {'set': megatron(2, spread_audio=False) | DROP | {'seed': None}},
    'nemo': {'set': {'trainer.max_steps': 3}, 'nemo': True},
    'warm': {'set': {'init_from_nemo': 'nemo/model.nemo', 'trainer.max_steps': 2}},
    'warm_tp2': {'set': SP | {'init_from_nemo': 'nemo/model.nemo', 'trainer.max_steps': 2}},
    'copies': {'set': megatron(1) | DROP | {'trainer.max_steps': 1}, 'draw': True},
}


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp('traps'))
    for job in JOBS.values():
        if source := job['set'].get('init_from_nemo'):
            job['set']['init_from_nemo'] = str(runs.folder / source)
    (runs.folder / 'jobs.json').write_text(json.dumps(JOBS))
    return runs


def here(runs: Runs, name: str) -> None:
    train_worker.run_job(runs.folder, {'name': name, **JOBS[name]})


def test_a_resumed_run_drops_out_what_the_uninterrupted_one_does(runs: Runs) -> None:
    runs.ranked(2, 'drop', 'drop_half', 'drop_rest')
    whole, rest = runs.losses('drop'), runs.losses('drop_rest')
    assert min(rest) == 4
    assert rest == {step: whole[step] for step in rest}
    one, two = (runs.checkpoint(name)['state_dict'] for name in ('drop', 'drop_rest'))
    for key, value in one.items():
        assert torch.equal(two[key], value), key


def test_autocast_to_bfloat16_trains(runs: Runs) -> None:
    runs.ranked(2, 'mixed')
    here(runs, 'mixed_whole')
    whole = runs.losses('mixed_whole')
    assert runs.losses('mixed').keys() == whole.keys()
    for step in (1, 2, 3):  # later on, roundings have become another model
        assert runs.losses('mixed')[step] == pytest.approx(whole[step], abs=0.15), step


def test_ranks_without_a_common_seed_hold_the_same_model(runs: Runs) -> None:
    # the worker compares all that is whole on each rank, to the bit
    runs.ranked(2, 'unseeded')


def test_copies_of_the_llm_drop_out_differently(runs: Runs) -> None:
    runs.ranked(2, 'copies')
    drawn = [json.loads((runs.folder / 'copies' / f'drawn{rank}').read_text()) for rank in range(2)]
    # whatever the rows have drawn since: not the same numbers at another place
    assert not set(drawn[0]) & set(drawn[1])


def test_a_nemo_file_is_where_a_split_model_begins(runs: Runs) -> None:
    here(runs, 'nemo')
    here(runs, 'warm')
    runs.ranked(2, 'warm_tp2')
    runs.check_equal('warm_tp2', 'warm')
