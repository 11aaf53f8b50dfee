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
"""Checkpoints written together: whole or not there, removed with their shards, read by any number of processes."""

import os
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nemo_vtb.errors import VtbCheckpointError
from nemo_vtb.model.sharded import ShardedCheckpointIO, shards_of


def content() -> dict:
    torch.manual_seed(0)
    return {
        'state_dict': {'a.weight': torch.randn(64, 32), 'b': torch.randn(7), 'n': torch.tensor(3)},
        'optimizer_states': [
            {'state': {0: {'step': torch.tensor(4.0), 'exp_avg': torch.randn(64, 32)}},
             'param_groups': [{'lr': 0.1, 'betas': [0.9, 0.98], 'params': [0]}]}
        ],
        'global_step': 4,
        'loops': {'fit': {'note': 'x', 'empty': {}}},
    }  # fmt: skip


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def ranked(rank: int, folder: str) -> None:
    dist.init_process_group('gloo', rank=rank, world_size=2, init_method=f'file://{folder}/meet')
    io, checkpoint = ShardedCheckpointIO(), content()
    checkpoints = Path(folder) / 'checkpoints'
    checkpoints.mkdir(exist_ok=True)
    io.save_together(checkpoint, checkpoints / 'one.ckpt')
    # training goes on at once: what is written is what was there when it was asked for
    checkpoint['state_dict']['a.weight'].zero_()
    io.save_together(content(), checkpoints / 'two.ckpt')
    if rank == 0:
        io.remove_checkpoint(checkpoints / 'two.ckpt')  # not before a later one is whole
    io.save_together(content(), checkpoints / 'three.ckpt')
    io.teardown()
    assert same(io.load_checkpoint(checkpoints / 'one.ckpt'), content())
    dist.destroy_process_group()


@pytest.mark.integration
def test_two_ranks_write_and_one_process_reads() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(ranked, (folder,), nprocs=2, start_method='fork')
        checkpoints = Path(folder) / 'checkpoints'
        assert sorted(os.listdir(checkpoints)) == ['one.ckpt', 'three.ckpt']
        assert sorted(os.listdir(Path(folder) / 'checkpoints_shards')) == ['one.ckpt', 'three.ckpt']
        # both ranks have written
        assert (
            len({name.split('_')[2] for name in os.listdir(shards_of(checkpoints / 'one.ckpt')) if '_' in name}) == 2
        )
        io = ShardedCheckpointIO()
        for name in ('one', 'three'):
            assert same(io.load_checkpoint(checkpoints / f'{name}.ckpt'), content())
        for shard in shards_of(checkpoints / 'one.ckpt').glob('*.distcp'):
            shard.write_bytes(shard.read_bytes()[:40])
        with pytest.raises(VtbCheckpointError, match='shards'):
            io.load_checkpoint(checkpoints / 'one.ckpt')
        # one file over shards of the same name
        io.save_checkpoint(content(), checkpoints / 'one.ckpt')
        assert not shards_of(checkpoints / 'one.ckpt').exists()
        assert same(io.load_checkpoint(checkpoints / 'one.ckpt'), content())
