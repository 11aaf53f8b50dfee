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

import errno
import hashlib
import os
import pickle
import random
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nemo_vtb.checkpoint.checkpoint_io import AtomicCheckpointIO, checkpoint_step, shards_of, verify_checkpoint
from nemo_vtb.checkpoint.seal import verify_file
from nemo_vtb.errors import VtbCheckpointError
from nemo_vtb.io import file_digest
from nemo_vtb.testing.failpoints import damage


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


def reseal(path: Path, listed: Path) -> None:
    """As a stranger would: the digests fit what was put in its place."""
    known = torch.load(path, weights_only=True)
    known['vtb_shards']['sha256'][listed.name] = file_digest(listed)
    AtomicCheckpointIO().save_checkpoint(known, copy := path.with_name('copy.ckpt'))
    copy.replace(path)


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
        with pytest.raises(VtbCheckpointError, match='SHA-256'):
            AtomicCheckpointIO().load_checkpoint(path)
        reseal(path, listed)
        with pytest.raises(VtbCheckpointError, match='does not belong'):
            AtomicCheckpointIO().load_checkpoint(path)
        assert not sentinel.exists()


# ---- what was written, or nothing


def test_the_digest_is_in_the_file_and_any_zip_reader_reads_it(tmp_path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint(content(), tmp_path / 'a.ckpt')
    raw = (tmp_path / 'a.ckpt').read_bytes()
    assert raw[-80:-64] == b'nemo_vtb sha256 ' and zipfile.ZipFile(tmp_path / 'a.ckpt').testzip() is None
    assert hashlib.sha256(raw[:-64]).hexdigest() == raw[-64:].decode()
    assert same(torch.load(tmp_path / 'a.ckpt', weights_only=True), content())
    assert verify_file(tmp_path / 'a.ckpt') and verify_checkpoint(tmp_path / 'a.ckpt') == 4


def test_no_flip_and_no_cut_loads(tmp_path: Path) -> None:
    """Rows C3 and C4, each also at the very end, where the digest is."""
    io, seeded = AtomicCheckpointIO(), random.Random(0)
    io.save_checkpoint(content(), whole := tmp_path / 'a.ckpt')
    raw = whole.read_bytes()
    places = [1 - n / len(raw) for n in (1, 40, 70, 79, 82, 90, 101)] + [seeded.random() for _ in range(93)]
    for number, place in enumerate(places):
        for how in ('flip', 'cut'):
            (path := tmp_path / f'{how}{number}.ckpt').write_bytes(raw)
            damage(path, how, place, seeded.randrange(8))
            with pytest.raises(VtbCheckpointError) as error:
                io.load_checkpoint(path)
            assert error.value.field == 'checkpoint' and str(path) in str(error.value.got)


def test_a_file_of_before_has_no_digest_and_loads_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(content(), old := tmp_path / 'old.ckpt')
    assert not verify_file(old)
    assert same(AtomicCheckpointIO().load_checkpoint(old), content())
    assert 'earlier version' in caplog.text
    raw = old.read_bytes()
    at = raw.index(content()['state_dict']['a.weight'].numpy().tobytes()[:64]) + 9
    old.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    with pytest.raises(VtbCheckpointError, match='was changed'):
        AtomicCheckpointIO().load_checkpoint(old)


@pytest.mark.integration
def test_each_shard_is_verified() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(ranked, (folder,), nprocs=2, start_method='fork')
        path = Path(folder) / 'checkpoints' / 'one.ckpt'
        assert verify_checkpoint(path) == 4
        shards = sorted(shards_of(path).rglob('*.distcp')) + list(shards_of(path).rglob('.metadata'))
        assert len(shards) == 3
        for shard in shards:
            raw = shard.read_bytes()
            damage(shard, 'flip', at=0.7)
            for use in (verify_checkpoint, AtomicCheckpointIO().load_checkpoint):
                with pytest.raises(VtbCheckpointError, match='shards'):
                    use(path)
            shard.write_bytes(raw)
        shards[0].unlink()
        with pytest.raises(VtbCheckpointError, match='shards'):
            verify_checkpoint(path)


# ---- what is kept


def steps(folder: Path) -> dict[str, int]:
    return {path.name: checkpoint_step(path) for path in sorted(folder.iterdir())}


def save(io: AtomicCheckpointIO, folder: Path, step: int, before: int | None) -> None:
    """As a `ModelCheckpoint` with `save_last` does."""
    io.save_checkpoint({'global_step': step, 'w': torch.zeros(9)}, folder / f'step={step}-last.ckpt')
    if before is not None:
        io.remove_checkpoint(folder / f'step={before}-last.ckpt')
    io.wait()


def test_the_one_before_is_kept(tmp_path: Path) -> None:
    io = AtomicCheckpointIO()
    for step in (4, 8, 12):
        save(io, tmp_path, step, step - 4 or None)
    assert steps(tmp_path) == {'step=12-last.ckpt': 12, 'step=8-last.ckpt.previous': 8}
    io.save_checkpoint(content(), tmp_path / 'best.ckpt')
    io.remove_checkpoint(tmp_path / 'best.ckpt')
    assert 'best.ckpt' not in steps(tmp_path)


def test_a_verified_one_is_always_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Row C7: each file that is written from some step on is damaged as soon as it is there."""
    io = AtomicCheckpointIO()
    for step in range(4, 40, 4):
        save(io, tmp_path, step, step - 4 or None)
        if step > 8:
            damage(tmp_path / f'step={step}-last.ckpt', ('flip', 'cut')[step % 8 == 0], 0.3)
        whole = []
        for path in tmp_path.iterdir():
            try:
                whole.append(verify_checkpoint(path))
            except VtbCheckpointError:
                continue
        assert whole and max(whole) == min(step, 8)
    assert 'is kept' in caplog.text


def test_what_cannot_be_removed_costs_space_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name.endswith('.previous'):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        unlink(path, missing_ok)

    io = AtomicCheckpointIO(tolerant=True)
    with monkeypatch.context() as full:
        full.setattr(Path, 'unlink', refuse)
        for step in (4, 8, 12):
            save(io, tmp_path, step, step - 4 if step > 4 else None)
            io.wait()
    assert steps(tmp_path) == {'step=4-last.ckpt.previous': 4, 'step=8-last.ckpt.previous': 8, 'step=12-last.ckpt': 12}
    save(io, tmp_path, 16, 12)
    io.wait()
    assert steps(tmp_path) == {'step=12-last.ckpt.previous': 12, 'step=16-last.ckpt': 16}


def test_the_same_name_keeps_the_one_before(tmp_path: Path) -> None:
    io = AtomicCheckpointIO()
    for step in (4, 8, 12):
        io.save_checkpoint({'global_step': step}, tmp_path / 'last.ckpt')
    assert steps(tmp_path) == {'last.ckpt': 12, 'last.ckpt.previous': 8}
    damage(tmp_path / 'last.ckpt', 'flip')
    io.save_checkpoint({'global_step': 16}, tmp_path / 'last.ckpt')
    assert steps(tmp_path) == {'last.ckpt': 16, 'last.ckpt.previous': 8}


@pytest.mark.parametrize(('number', 'says'), [(errno.ENOSPC, 'disk is full'), (errno.EROFS, 'is read-only')])
def test_a_run_goes_on_where_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    io = AtomicCheckpointIO(tolerant=True)
    save(io, tmp_path, 4, None)
    with monkeypatch.context() as broken:

        def fail(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        broken.setattr(os, 'replace', fail)
        save(io, tmp_path, 8, 4)
        save(io, tmp_path, 12, 8)
    assert steps(tmp_path) == {'step=4-last.ckpt': 4}  # what was to be removed is still there
    assert (io.failed, io.written) == (2, 1) and says in caplog.text
    save(io, tmp_path, 16, 12)
    assert steps(tmp_path) == {'step=16-last.ckpt': 16, 'step=4-last.ckpt.previous': 4}
    io.conclude()


def test_a_run_that_could_write_none_fails_at_its_end(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    io = AtomicCheckpointIO(tolerant=True)
    for step in (4, 8):
        save(io, tmp_path / 'file', step, None)  # no folder
    with pytest.raises(VtbCheckpointError) as error:
        io.conclude()
    assert error.value.field == 'exp_manager.explicit_log_dir' and io.failed == 2
