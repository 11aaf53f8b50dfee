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
"""Training on tensor-parallel ranks is training on one: same losses, same weights, each other's checkpoints."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import train_worker

from nemo_vtb.training.history import read_history

pytest.importorskip('megatron.core')
pytestmark = pytest.mark.integration

STRATEGY = 'nemo_vtb.parallel.strategies.MegatronStrategy'
CONFORMER = {
    '_target_': 'nemo.collections.asr.modules.ConformerEncoder', 'feat_in': 32, 'feat_out': -1, 'n_layers': 1,
    'd_model': 32, 'subsampling': 'striding', 'subsampling_factor': 1, 'n_heads': 2, 'conv_kernel_size': 5,
    'dropout': 0.0, 'dropout_pre_encoder': 0.0, 'dropout_att': 0.0,
}  # fmt: skip


def megatron(tensor_parallel: int, devices: int = 2, **options: Any) -> dict[str, Any]:
    strategy = {'_target_': STRATEGY, 'tensor_parallel': tensor_parallel, **options}
    return {'trainer.strategy': strategy, 'trainer.devices': devices}


HALF = {'trainer.max_steps': 3}
JOBS: dict[str, dict[str, Any]] = {
    'hf': {},
    'hf_half': {'set': HALF},
    'tp2': {'set': megatron(2, sequence_parallel=True), 'nemo': True},
    'tp2_half': {'set': HALF | megatron(2, sequence_parallel=True, sharded_checkpoint=True, recompute='full')},
    'tp2_rest': {'set': megatron(2, spread_audio=False), 'resume': 'hf_half'},
    'hf_rest': {'resume': 'tp2_half'},
    'dp2_half': {'set': HALF | megatron(1, shard_optimizer=True)},
    'dp2_rest': {'set': megatron(1, shard_optimizer=True), 'resume': 'tp2_half'},
    'tp1_rest': {'set': megatron(1, 1), 'resume': 'dp2_half'},
    'tp4': {'set': megatron(4, 4, sequence_parallel=True)},
    'tp2dp2': {'set': megatron(2, 4, sequence_parallel=True, shard_optimizer=True)},
}


class Runs:
    """All runs of one configuration in a folder.

    Args:
        folder: Holds `cfg.yaml` and a folder for each run.
    """

    def __init__(self, folder: Path, **keys: Any) -> None:
        self.folder = folder
        train_worker.write_config(folder, **keys)
        (folder / 'jobs.json').write_text(json.dumps(JOBS))

    def here(self, *names: str) -> None:
        """Run in this process."""
        for name in names:
            train_worker.run_job(self.folder, {'name': name, **JOBS[name]})

    def ranked(self, ranks: int, *names: str) -> None:
        """Run on several ranks."""
        launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={ranks}']
        done = subprocess.run(
            [*launch, train_worker.__file__, str(self.folder), *names], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-4000:]

    def losses(self, name: str) -> dict[int, dict[str, float]]:
        """Step -> loss per kind."""
        return {r['step']: r['losses'] for r in self._steps(name)}

    def rows(self, name: str) -> list[tuple[Any, ...]]:
        """What each step was made of."""
        return [(r['step'], r['tokens'], r['audio_s'], r['targets'], r['lr']) for r in self._steps(name)]

    def _steps(self, name: str) -> list[dict[str, Any]]:
        """Records of training, without those of validations."""
        return [r for r in read_history(self.folder / name / 'history.jsonl') if r['type'] == 'train']

    def checkpoint(self, name: str) -> dict[str, Any]:
        """The checkpoint at the end of a run, a file or shards."""
        from nemo_vtb.checkpoint.checkpoint_io import AtomicCheckpointIO

        return AtomicCheckpointIO().load_checkpoint(self.folder / name / 'end.ckpt')

    def check_equal(self, name: str, whole: str = 'hf', atol: float = 1e-4) -> None:
        """Losses, rows, weights and moments of a run are those of another, whatever their strategies."""
        expected, got = self.losses(whole), self.losses(name)
        assert got.keys() == set(range(min(got), max(got) + 1))
        for step, losses in got.items():
            assert losses == pytest.approx(expected[step], abs=atol), step
        assert self.rows(name) == [row for row in self.rows(whole) if row[0] in got]
        one, two = self.checkpoint(whole), self.checkpoint(name)
        assert list(one['state_dict']) == list(two['state_dict'])
        for key, value in one['state_dict'].items():
            torch.testing.assert_close(two['state_dict'][key], value, atol=atol, rtol=1e-3, msg=key)
        ours, theirs = two['optimizer_states'][0], one['optimizer_states'][0]
        assert [g['params'] for g in ours['param_groups']] == [g['params'] for g in theirs['param_groups']]
        assert ours['state'].keys() == theirs['state'].keys()
        for number, entry in theirs['state'].items():
            for key, value in entry.items():
                torch.testing.assert_close(
                    ours['state'][number][key], value, atol=atol, rtol=1e-2, msg=f'{number} {key}'
                )


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp('runs'))
    runs.here('hf', 'hf_half')
    runs.ranked(2, 'tp2', 'tp2_half', 'tp2_rest')
    return runs


def test_two_ranks_train_as_one(runs: Runs) -> None:
    runs.check_equal('tp2')
    assert runs.losses('hf')[1] != runs.losses('hf')[6]


def test_each_backbone_goes_on_from_the_others_checkpoint(runs: Runs) -> None:
    runs.check_equal('tp2_rest')
    assert min(runs.losses('tp2_rest')) == 4
    assert (runs.folder / 'tp2_half_shards').is_dir()
    runs.here('hf_rest')
    runs.check_equal('hf_rest')
    assert min(runs.losses('hf_rest')) == 4


def test_no_base_weight_enters_a_checkpoint(runs: Runs) -> None:
    for name in ('tp2', 'tp2_half'):
        assert not [k for k in runs.checkpoint(name)['state_dict'] if k.startswith('llm.') and '.lora_' not in k]


def test_nemo_file_of_two_ranks_is_restored_by_one(runs: Runs) -> None:
    from nemo_vtb.model.pretrained import restore

    model = restore(runs.folder / 'tp2' / 'model.nemo', 'cpu')
    state = model.state_dict()
    for name, value in runs.checkpoint('tp2')['state_dict'].items():
        assert torch.equal(state[name], value), name
    from nemo_vtb.backbone.hf import load_llm

    llm = load_llm(str(runs.folder / 'models' / 'llm-llama-64'), pretrained=True)
    assert torch.equal(model.embed_tokens.weight, llm.model.embed_tokens.weight)
    name = 'layers.1.mlp.down_proj'
    own = model.backbone.decoder.get_submodule(name).base_layer.weight
    assert torch.equal(own, llm.model.get_submodule(name).weight)


@pytest.mark.slow
def test_data_parallel_ranks_with_shared_moments_train_as_one(runs: Runs) -> None:
    runs.ranked(2, 'dp2_half', 'dp2_rest')
    runs.check_equal('dp2_rest')
    runs.ranked(1, 'tp1_rest')
    runs.check_equal('tp1_rest')


@pytest.mark.slow
def test_four_ranks(runs: Runs) -> None:
    runs.ranked(4, 'tp4')
    runs.check_equal('tp4')
    runs.ranked(4, 'tp2dp2')
    runs.check_equal('tp2dp2')


@pytest.mark.slow
def test_gemma_with_a_conformer_adapter(tmp_path: Path) -> None:
    runs = Runs(tmp_path, family='gemma', adapter=CONFORMER)
    runs.here('hf', 'hf_half')
    runs.ranked(2, 'tp2_rest')
    runs.check_equal('tp2_rest')


def test_ranks_that_do_not_divide_are_named() -> None:
    from omegaconf import OmegaConf

    from nemo_vtb.errors import VtbConfigError
    from nemo_vtb.training.run import build_trainer

    cfg = OmegaConf.create({'trainer': train_worker.TRAINER | {'devices': 3}, 'data': {'rows_per_batch': 6}})
    OmegaConf.update(cfg, 'trainer.strategy', megatron(2)['trainer.strategy'], merge=False)
    with pytest.raises(VtbConfigError, match='tensor_parallel'):
        build_trainer(cfg)


@pytest.mark.parametrize(
    ('key', 'value', 'named'),
    [
        ('model.freeze_params', [r'^embed_tokens\..+$'], 'freeze_params'),
        ('model.lora.use_dora', True, 'model.lora'),
        ('model.lora.target_modules', r'.*layers\.1\..*\.[qv]_proj', '1 of 2 layers'),
        ('model.pretrained_weights', False, 'pretrained_weights'),
    ],
)
def test_what_this_backbone_cannot_do_is_named(runs: Runs, key: str, value: Any, named: str) -> None:
    from omegaconf import OmegaConf

    from nemo_vtb.errors import VtbConfigError
    from nemo_vtb.training.run import build_model, build_trainer

    cfg = OmegaConf.load(runs.folder / 'cfg.yaml')
    OmegaConf.update(cfg, 'trainer.strategy', megatron(1)['trainer.strategy'], merge=False)
    OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    with pytest.raises(VtbConfigError, match=named):
        build_model(cfg, build_trainer(cfg))
