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
"""FSDP2 of the frozen LLM: what one rank trains, with a part of the LLM on each."""

import json
from typing import Any

import pytest
import train_worker
from test_megatron import Runs

pytestmark = pytest.mark.integration

SHARDED = 'nemo_vtb.parallel.strategies.FullyShardedStrategy'


def sharded(devices: int = 2, **options: Any) -> dict[str, Any]:
    return {'trainer.strategy': {'_target_': SHARDED, **options}, 'trainer.devices': devices}


HALF = {'trainer.max_steps': 3}
ANCHOR = {'model.text_anchor': 15.0}
JOBS: dict[str, dict[str, Any]] = {
    'hf': {'nemo': True},
    'hf_half': {'set': HALF},
    'fs2': {'set': sharded(), 'nemo': True},
    'fs2_half': {'set': HALF | sharded(shard_optimizer=True, sharded_checkpoint=True)},
    'fs2_rest': {'set': sharded(), 'resume': 'hf_half'},
    'hf_rest': {'resume': 'fs2_half'},
    'broken': {'set': sharded(), 'empty_on': 1},
    'anchor': {'set': HALF | sharded() | ANCHOR},
    'anchor_whole': {'set': HALF | ANCHOR},
    'anchor_broken': {'set': HALF | sharded() | ANCHOR, 'empty_on': 1},
    'warm': {'set': HALF | sharded() | {'init_from_nemo': 'hf/model.nemo'}},
    'warm_whole': {'set': HALF | {'init_from_nemo': 'hf/model.nemo'}},
    'bf16': {'set': HALF | sharded() | {'trainer.precision': 'bf16-true'}},
    'bf16_whole': {'set': HALF | {'trainer.precision': 'bf16-true'}},
}


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp('sharded'), validation=2)
    for job in JOBS.values():
        if source := job.get('set', {}).get('init_from_nemo'):
            job['set']['init_from_nemo'] = str(runs.folder / source)
    (runs.folder / 'jobs.json').write_text(json.dumps(JOBS))
    here(runs, 'hf', 'hf_half', 'warm_whole', 'bf16_whole', 'anchor_whole')
    # one launch for all, since most of a launch is imports
    runs.ranked(2, 'fs2', 'fs2_half', 'fs2_rest', 'broken', 'warm', 'bf16', 'anchor', 'anchor_broken')
    return runs


def here(runs: Runs, *names: str) -> None:
    for name in names:
        train_worker.run_job(runs.folder, {'name': name, **JOBS[name]})


def metrics(runs: Runs, name: str) -> dict[str, float]:
    return json.loads((runs.folder / name / 'metrics.json').read_text())


def test_two_ranks_with_half_of_the_llm_each_train_as_one(runs: Runs) -> None:
    runs.check_equal('fs2')
    assert runs.losses('hf')[1] != runs.losses('hf')[6]


def test_validation_is_that_of_one_rank(runs: Runs) -> None:
    """Ranks have different numbers of rows there, and must not wait for one another."""
    whole, ours = metrics(runs, 'hf'), metrics(runs, 'fs2')
    for name in ('val_loss', 'val_loss_text', 'val_loss_speech', 'val_acc'):
        assert ours[name] == pytest.approx(whole[name], abs=1e-4), name


def test_each_goes_on_from_the_others_checkpoint(runs: Runs) -> None:
    runs.check_equal('fs2_rest')
    assert min(runs.losses('fs2_rest')) == 4
    here(runs, 'hf_rest')
    runs.check_equal('hf_rest')


def test_the_nemo_file_is_that_of_one_rank(runs: Runs) -> None:
    import torch

    from nemo_vtb.model.pretrained import restore

    whole, ours = (restore(runs.folder / name / 'model.nemo', 'cpu').state_dict() for name in ('hf', 'fs2'))
    assert whole.keys() == ours.keys()
    for name, value in whole.items():
        torch.testing.assert_close(ours[name], value, atol=1e-4, rtol=1e-3, msg=name)
        if name.startswith('llm.') and '.lora_' not in name:
            assert torch.equal(ours[name], value), name


def test_a_rank_whose_row_is_broken_does_not_stop_the_others(runs: Runs) -> None:
    losses = runs.losses('broken')
    assert list(losses) == list(range(1, 7)) and losses[1] == pytest.approx(runs.losses('hf')[1], abs=1e-4)


def test_typed_chats_are_held_to_the_untouched_llm(runs: Runs) -> None:
    """Some rows have none, and one is broken: their ranks must not leave the others alone."""
    runs.check_equal('anchor', 'anchor_whole')
    assert list(runs.losses('anchor_broken')) == [1, 2, 3]
    by_kind = runs.losses('anchor_whole').values()
    assert any('text' in losses for losses in by_kind) and runs.losses('anchor')[3] != runs.losses('fs2')[3]


def test_a_nemo_file_is_where_it_begins(runs: Runs) -> None:
    for step, losses in runs.losses('warm_whole').items():
        assert runs.losses('warm')[step] == pytest.approx(losses, abs=1e-4), step


def test_an_llm_in_bfloat16(runs: Runs) -> None:
    for step, losses in runs.losses('bf16_whole').items():
        assert runs.losses('bf16')[step] == pytest.approx(losses, abs=0.15), step


@pytest.mark.parametrize(
    ('key', 'value', 'named'),
    [
        ('model.freeze_params', [r'^embed_tokens\..+$'], 'freeze_params'),
        ('model.pretrained_weights', False, 'pretrained_weights'),
    ],
)
def test_what_cannot_be_trained_so_is_named(runs: Runs, key: str, value: Any, named: str) -> None:
    from omegaconf import OmegaConf

    from nemo_vtb.errors import VtbConfigError
    from nemo_vtb.training.run import build_model, build_trainer

    cfg = OmegaConf.load(runs.folder / 'cfg.yaml')
    OmegaConf.update(cfg, 'trainer.strategy', sharded()['trainer.strategy'], merge=False)
    OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    with pytest.raises(VtbConfigError, match=named):
        build_model(cfg, build_trainer(cfg))
