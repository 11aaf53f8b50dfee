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
"""One number of one rank that is not finite costs all ranks the step, and nothing else, on every strategy."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import train_worker
from test_megatron import CONFORMER, Runs, megatron

pytestmark = pytest.mark.integration

POISON = 'nemo_vtb.testing.poison'
FSDP2 = 'nemo_vtb.parallel.strategies.FullyShardedStrategy'


def poison(kind: str, *steps: int, **options: Any) -> dict[str, Any]:
    return {'trainer.callbacks': [{'_target_': f'{POISON}.Poison{kind}', 'steps': list(steps), **options}]}


def job(strategy: dict[str, Any], last: int, harm: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    values = {'trainer.max_steps': last, 'trainer.devices': 2, 'data.rows_per_batch': 4, **strategy, **(harm or {})}
    return {'set': values, **keys}


STRATEGIES = {
    'ddp': {'trainer.strategy': 'ddp'},
    'fsdp2': {'trainer.strategy': {'_target_': FSDP2}},
    'zero1': {'trainer.strategy': {'_target_': FSDP2, 'shard_optimizer': True}},
    'tp2': megatron(2, sequence_parallel=True),
}
HARM = {
    # LoRA is a part on each rank under tensor parallelism: the other rank's own gradient stays finite
    'ddp': poison('Gradient', 2, rank=1),
    'fsdp2': poison('Gradient', 2, rank=1, row=-1, value='inf'),
    'tp2': poison('Gradient', 2, rank=1, parameter='lora_'),
    'zero1': poison('Loss', 2, rank=1, row=-1),
}
ONE = {'trainer.devices': 1}
JOBS: dict[str, dict[str, Any]] = {
    **{f'{name}_before': job(strategy, 1) for name, strategy in STRATEGIES.items()},
    **{f'{name}_harmed': job(strategy, 2, HARM[name]) for name, strategy in STRATEGIES.items()},
    'ddp_mute': job(STRATEGIES['ddp'], 3, mute_on=[1]),
    'ddp_all_mute': job(STRATEGIES['ddp'], 3, mute_on=[0, 1]),
    # the last of its launch: it ends by an error
    'ddp_ended': job(STRATEGIES['ddp'], 6, poison('Loss', 2, 3, 4, rank=1), error='VtbNumericsError'),
    'one_mute': job(ONE, 3, mute_on=[0]),
    'one_before': job(ONE, 1),
    'one_harmed': job(ONE, 2, poison('Gradient', 2, row=2)),
    'one_last_row': job(ONE, 2, poison('Loss', 2, row=1, target=3)),
    'one_deafened': job(ONE, 3, poison('Sound', 2, row=0)),
    'one_goes_on': job(ONE, 6, poison('Gradient', 2, 3, 5)),
    'one_goes_on_half': job(ONE, 3, poison('Gradient', 2, 3, 5)),
    'one_goes_on_rest': job(ONE, 6, poison('Gradient', 2, 3, 5), resume='one_goes_on_half'),
    'one_ended': job(ONE, 6, poison('Gradient', 2, 4, 5, 6, value='-inf'), error='VtbNumericsError'),
}


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp('left_out'), adapter=CONFORMER)
    (runs.folder / 'jobs.json').write_text(json.dumps(JOBS))
    return runs


@pytest.fixture(scope='module')
def ranked(runs: Runs) -> Runs:
    runs.ranked(2, 'ddp_before', 'ddp_harmed', 'ddp_ended')
    return runs


@pytest.fixture(scope='module')
def sharded(runs: Runs) -> Runs:
    kinds = ('fsdp2_', 'zero1_', 'tp2_') if train_worker.has_megatron() else ('fsdp2_', 'zero1_')
    runs.ranked(2, 'ddp_mute', 'ddp_all_mute', *(name for name in JOBS if name.startswith(kinds)))
    return runs


def here(runs: Runs, *names: str) -> None:
    for name in names:
        train_worker.run_job(runs.folder, {'name': name, **JOBS[name]})


def quarantine(runs: Runs, name: str) -> list[dict[str, Any]]:
    path = runs.folder / name / 'quarantine.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def tensors(value: Any, name: str = '') -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(inner, f'{name}/{key}')


def trained(runs: Runs, name: str) -> dict[str, torch.Tensor]:
    """Weights, running statistics and moments of the last checkpoint."""
    checkpoint = runs.checkpoint(name)
    return dict(tensors({key: checkpoint[key] for key in ('state_dict', 'optimizer_states')}))


def check_nothing_changed(runs: Runs, name: str) -> None:
    """The harmed second step left what the first had made, to the bit, and all is accounted for."""
    before, after = trained(runs, f'{name}_before'), trained(runs, f'{name}_harmed')
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(after[key], value), key
    checkpoint = runs.checkpoint(f'{name}_harmed')
    assert checkpoint['global_step'] == 2
    assert checkpoint['lr_schedulers'][0]['last_epoch'] == 2, 'the schedule counts steps'
    whole, harmed = runs.checkpoint(f'{name}_before')['run_state'], checkpoint['run_state']
    assert harmed['batches'] == 2 and harmed['bad_steps'] == 1
    assert harmed['ledger']['tokens'] == whole['ledger']['tokens']
    assert harmed['ledger']['bad_batches'] == 1 and harmed['ledger']['bad_tokens'] > 0
    listed = quarantine(runs, f'{name}_harmed')
    assert listed and {line['reason'] for line in listed} == {'loss_not_finite'}
    assert harmed['ledger']['skips'] == {'loss_not_finite': len(listed)}
    steps = train_records(runs, f"{name}_harmed")
    assert [r.get('left_out', False) for r in steps] == [False, True]


def train_records(runs: Runs, name: str) -> list[dict[str, Any]]:
    lines = (runs.folder / name / 'history.jsonl').read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def test_no_rank_takes_a_step_that_is_not_finite(ranked: Runs) -> None:
    check_nothing_changed(ranked, 'ddp')


@pytest.mark.slow
@pytest.mark.parametrize('name', ['fsdp2', 'zero1', 'tp2'])
def test_no_rank_of_a_sharded_model_takes_such_a_step(sharded: Runs, name: str) -> None:
    if name == 'tp2':
        pytest.importorskip('megatron.core')
    check_nothing_changed(sharded, name)


def test_a_batch_without_targets_keeps_training(runs: Runs) -> None:
    here(runs, 'one_mute')
    check_keeps_training(runs, 'one_mute', has_targets=False)


@pytest.mark.slow
def test_a_batch_without_targets_on_one_or_all_ranks_keeps_training(sharded: Runs) -> None:
    check_keeps_training(sharded, 'ddp_mute', has_targets=True)
    check_keeps_training(sharded, 'ddp_all_mute', has_targets=False)


def check_keeps_training(runs: Runs, name: str, *, has_targets: bool) -> None:
    records = train_records(runs, name)
    assert [r['step'] for r in records] == [1, 2, 3] and not any('left_out' in r for r in records)
    assert bool(records[1]['targets']) is has_targets and records[2]['targets']
    assert all(bool(value.isfinite().all()) for value in trained(runs, name).values())


def test_a_run_on_two_ranks_ends_after_three_such_steps(ranked: Runs) -> None:
    for rank in (0, 1):
        message = (ranked.folder / 'ddp_ended' / f'error{rank}').read_text()
        assert 'data.max_bad_steps' in message
        for step in (2, 3, 4):
            assert f'step {step}, rank 1: its loss is not finite' in message
    assert len(train_records(ranked, 'ddp_ended')) == 3


def test_one_process_leaves_the_step_out(runs: Runs) -> None:
    here(runs, 'one_before', 'one_harmed')
    check_nothing_changed(runs, 'one')
    assert {line['detail'] for line in quarantine(runs, 'one_harmed')} == {'the gradient of its row is not finite'}


def test_the_conversation_is_named_where_its_loss_tells(runs: Runs) -> None:
    here(runs, 'one_last_row')
    (line,) = quarantine(runs, 'one_last_row')
    assert line['detail'] == 'its loss is not finite' and line['id'].startswith('train-')
    assert (
        Path(line['file']).read_text().encode()[line['byte_offset'] :].startswith(f'{{"id": "{line["id"]}"'.encode())
    )


def test_a_recording_that_overflows_leaves_no_trace_in_running_statistics(runs: Runs) -> None:
    here(runs, 'one_deafened')
    assert all(bool(value.isfinite().all()) for value in trained(runs, 'one_deafened').values())
    records = train_records(runs, 'one_deafened')
    assert [r.get('left_out', False) for r in records] == [False, True, False]
    assert all(math.isfinite(loss) for loss in records[-1]['losses'].values())


def test_single_steps_do_not_end_a_run_and_a_resume_is_the_run(runs: Runs) -> None:
    here(runs, 'one_goes_on', 'one_goes_on_half', 'one_goes_on_rest')
    left_out = [r['step'] for r in train_records(runs, 'one_goes_on') if r.get('left_out')]
    assert left_out == [2, 3, 5]
    whole, rest = trained(runs, 'one_goes_on'), trained(runs, 'one_goes_on_rest')
    assert all(torch.equal(rest[key], value) for key, value in whole.items())
    assert (
        runs.checkpoint('one_goes_on_rest')['run_state']['ledger']
        == runs.checkpoint('one_goes_on')['run_state']['ledger']
    )


def test_one_process_ends_after_three_in_a_row(runs: Runs) -> None:
    here(runs, 'one_ended')
    message = (runs.folder / 'one_ended' / 'error0').read_text()
    assert 'step 6, rank 0: the gradient of its row' in message and 'step 2,' not in message
