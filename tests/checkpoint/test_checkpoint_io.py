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
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nemo_vtb.checkpoint.checkpoint_io import AtomicCheckpointIO, shards_of
from nemo_vtb.errors import VtbCheckpointError


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
    io, checkpoint = AtomicCheckpointIO(), content()
    checkpoints = Path(folder) / 'checkpoints'
    checkpoints.mkdir(exist_ok=True)
    io.save_sharded(checkpoint, checkpoints / 'one.ckpt')
    # training goes on at once: what is written is what was there when it was asked for
    checkpoint['state_dict']['a.weight'].zero_()
    checkpoint['optimizer_states'][0]['state'][0]['step'] += 1  # as AdamW counts, in place
    io.save_sharded(content(), checkpoints / 'two.ckpt')
    if rank == 0:
        io.remove_checkpoint(checkpoints / 'two.ckpt')  # not before a later one is whole
    io.save_sharded(content(), checkpoints / 'three.ckpt')
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
        assert len({shard.name.split('_')[2] for shard in shards_of(checkpoints / 'one.ckpt').rglob('*.distcp')}) == 2
        io = AtomicCheckpointIO()
        for name in ('one', 'three'):
            assert same(io.load_checkpoint(checkpoints / f'{name}.ckpt'), content())
        for shard in shards_of(checkpoints / 'one.ckpt').rglob('*.distcp'):
            shard.write_bytes(shard.read_bytes()[:40])
        with pytest.raises(VtbCheckpointError, match='shards'):
            io.load_checkpoint(checkpoints / 'one.ckpt')
        # one file over shards of the same name
        io.save_checkpoint(content(), checkpoints / 'one.ckpt')
        assert not shards_of(checkpoints / 'one.ckpt').exists()
        assert same(io.load_checkpoint(checkpoints / 'one.ckpt'), content())


def overwriting(rank: int, folder: str) -> None:
    """Each writing of a name, the second of which fails in the middle."""
    dist.init_process_group('gloo', rank=rank, world_size=2, init_method=f'file://{folder}/meet')
    io, path = AtomicCheckpointIO(), Path(folder) / 'checkpoints' / 'last.ckpt'
    path.parent.mkdir(exist_ok=True)
    io.save_sharded(content(), path)
    io.wait()
    broken = content()
    broken['state_dict']['a.weight'] = torch.zeros(64, 32)
    io.save_sharded(broken, path)
    with pytest.raises(VtbCheckpointError, match='the one before is untouched'):
        io.wait()
    dist.destroy_process_group()


@pytest.mark.integration
def test_a_writing_that_fails_leaves_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed.checkpoint as dcp

    real, calls = dcp.save, []

    def save(*args: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, 'No space left on device')
        return real(*args, **options)

    monkeypatch.setattr(dcp, 'save', save)  # the forked ranks have it, too
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(overwriting, (folder,), nprocs=2, start_method='fork')
        path = Path(folder) / 'checkpoints' / 'last.ckpt'
        assert same(AtomicCheckpointIO().load_checkpoint(path), content())


@pytest.mark.integration
def test_a_list_of_shards_cannot_run_code() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(ranked, (folder,), nprocs=2, start_method='fork')
        path, sentinel = Path(folder) / 'checkpoints' / 'one.ckpt', Path(folder) / 'sentinel'
        (listed,) = shards_of(path).rglob('.metadata')

        class Hostile:
            def __reduce__(self) -> tuple:
                return os.mkdir, (str(sentinel),)

        listed.write_bytes(pickle.dumps(Hostile()))
        with pytest.raises(VtbCheckpointError, match='does not belong'):
            AtomicCheckpointIO().load_checkpoint(path)
        assert not sentinel.exists()
