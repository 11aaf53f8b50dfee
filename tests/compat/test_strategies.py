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
"""Every strategy that is accepted trains one model on all ranks; the others are translated or refused by name."""

import contextlib
from typing import Any

import pytest
from ranks import TRAINER, on_ranks, train, write_config

pytestmark = pytest.mark.integration

LIGHTNING, OURS = 'lightning.pytorch.strategies', 'nemo_vtb.parallel.strategies'
MODEL_PARALLEL = f'{LIGHTNING}.ModelParallelStrategy'
AUTOMODEL = 'nemo.collections.speechlm2.parts.parallel.AutomodelParallelStrategy'
QUICK: dict[str, Any] = {
    'ddp': 'ddp',
    'fully_sharded': 'fully_sharded',
    'salm_fsdp2': {'_target_': MODEL_PARALLEL, 'data_parallel_size': 2, 'tensor_parallel_size': 1},
    'salm_tensor_parallel': {'_target_': MODEL_PARALLEL, 'tensor_parallel_size': 2},
}
OTHERS: dict[str, Any] = {
    'auto': 'auto',
    'find_unused': 'ddp_find_unused_parameters_true',
    'bucket_view': {'_target_': f'{LIGHTNING}.DDPStrategy', 'gradient_as_bucket_view': True, 'static_graph': True},
    'zero1': {'_target_': f'{OURS}.FullyShardedStrategy', 'shard_optimizer': True},
    'automodel_fsdp2': {'_target_': AUTOMODEL, 'dp_size': None, 'tp_size': 1},
    'megatron': 'megatron',
}
COPIES: dict[str, Any] = {'megatron_copies': {'_target_': f'{OURS}.MegatronStrategy', 'tensor_parallel': 1}}


@pytest.fixture(scope='module')
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_config(tmp_path_factory.mktemp('strategies'))


def trained_tensors(config: dict[str, Any], strategy: Any) -> dict[str, Any]:
    """On one of two ranks: what every rank holds whole, as bytes, and which part of the LLM this one has."""
    trainer, model = train(config | {'trainer': TRAINER | {'devices': 2, 'strategy': strategy}})
    assert trainer.global_step == 3
    whole = {
        name: p.detach().float().numpy().tobytes()
        for name, p in model.named_parameters()
        if p.requires_grad and not getattr(p, 'tensor_model_parallel', False)
    }
    return {'whole': whole, 'strategy': type(trainer.strategy).__name__}


@pytest.mark.forks
@pytest.mark.parametrize(
    'strategies', [QUICK, *(pytest.param(each, marks=pytest.mark.slow) for each in (OTHERS, COPIES))]
)
def test_parameters_are_equal_on_all_ranks_under_every_strategy(
    config: dict[str, Any], strategies: dict[str, Any]
) -> None:
    """One pair of processes for several strategies, since a process group outlives a trainer."""
    train(config)  # everything is imported, and the index built, before the fork
    results = on_ranks(2, lambda: {name: trained_tensors(config, each) for name, each in strategies.items()})
    assert all(isinstance(result, dict) for result in results), results
    first, second = results
    for name in strategies:
        one, two = first[name]['whole'], second[name]['whole']
        assert len(one) > 8 and one.keys() == two.keys(), name
        assert [n for n in one if one[n] != two[n]] == [], name
    kinds = {name: first[name]['strategy'] for name in strategies}
    if strategies is QUICK:
        assert kinds['salm_fsdp2'] == 'FullyShardedStrategy' and kinds['salm_tensor_parallel'] == 'MegatronStrategy'
        assert first['salm_fsdp2']['whole'] == first['fully_sharded']['whole']
        assert first['salm_fsdp2']['whole'] != first['salm_tensor_parallel']['whole']


def test_every_name_of_lightning_is_accepted_or_refused() -> None:
    """A strategy that a later Lightning adds must be looked at before it is let in."""
    from lightning.pytorch.strategies import StrategyRegistry

    from nemo_vtb.errors import VtbConfigError
    from nemo_vtb.parallel.accepted import accepted_strategy
    from nemo_vtb.parallel.strategies import register_strategies

    register_strategies()

    accepted = set()
    for name in StrategyRegistry:
        with contextlib.suppress(VtbConfigError):
            accepted_strategy(name)
            accepted.add(name)
    ddp = {name for name in accepted if name.startswith('ddp')}
    assert accepted - ddp - {'megatron', 'fully_sharded'} == {'single_device'} and 'ddp' in ddp


@pytest.mark.forks
def test_ranks_that_drift_apart_end_with_a_named_error(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.strategies import DDPStrategy

    def job() -> str:
        monkeypatch.setattr(DDPStrategy, 'configure_ddp', lambda self: None)
        from nemo_vtb.errors import VtbModelError

        try:
            train(config | {'trainer': TRAINER | {'devices': 2, 'strategy': 'ddp'}})
        except VtbModelError as error:
            return f'{error.field}: {error}'
        return 'trained'

    for answer in on_ranks(2, job):
        assert answer.startswith('trainer.strategy: After step 1 '), answer
        assert 'of rank 1 differ' in answer


@pytest.mark.parametrize(
    ('strategy', 'field', 'remedy'),
    [
        ('fsdp', 'trainer.strategy', 'fully_sharded'),
        ('deepspeed_stage_2', 'trainer.strategy', 'fully_sharded'),
        ({'_target_': AUTOMODEL, 'pp_size': 2}, 'trainer.strategy.pp_size', 'tp_size'),
        (
            {'_target_': MODEL_PARALLEL, 'data_parallel_size': 4, 'tensor_parallel_size': 1},
            'trainer.strategy.data_parallel_size',
            'leave data_parallel_size out',
        ),
    ],
)
def test_what_would_train_replicas_apart_is_refused_by_name(strategy: Any, field: str, remedy: str) -> None:
    from omegaconf import OmegaConf

    from nemo_vtb import build_trainer
    from nemo_vtb.errors import VtbConfigError

    cfg = OmegaConf.create({'trainer': TRAINER | {'devices': 2, 'strategy': strategy}, 'data': {'rows_per_batch': 2}})
    with pytest.raises(VtbConfigError) as caught:
        build_trainer(cfg)
    assert caught.value.field == field and remedy in str(caught.value.remedy)


def test_a_trainer_of_ones_own_is_looked_at_too(config: dict[str, Any]) -> None:
    from lightning.pytorch import Trainer
    from lightning.pytorch.strategies import ModelParallelStrategy

    from nemo_vtb import VoiceTextBlender
    from nemo_vtb.errors import VtbConfigError

    trainer = Trainer(accelerator='cpu', devices=1, strategy=ModelParallelStrategy(1, 1), logger=False)
    with pytest.raises(VtbConfigError) as caught:
        VoiceTextBlender(config['model'], trainer)
    assert caught.value.field == 'trainer.strategy' and 'build_trainer' in str(caught.value.remedy)


def test_a_digest_sees_one_bit() -> None:
    import torch

    from nemo_vtb.parallel.replicas import digests

    tensors = [torch.randn(3, 5), torch.randn(7).to(torch.bfloat16), torch.randn(4, 6).T]
    before = digests(tensors)
    assert before.shape == (3,) and torch.equal(before, digests([t.clone() for t in tensors]))
    tensors[1].view(torch.int16)[2] ^= 1
    assert (digests(tensors) != before).tolist() == [False, True, False]
