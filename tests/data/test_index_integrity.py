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
"""A damaged index is built anew, never trained on; audio that was replaced is noticed; an index may vanish in use."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import consume, count_frames, data_cfg, input_cfg, make_corpus

from nemo_vtb.data import index as index_module
from nemo_vtb.data.counting import Meter
from nemo_vtb.data.datamodule import VtbDataModule
from nemo_vtb.data.index import FittedSource, open_index
from nemo_vtb.data.sources import parse_input_cfg
from nemo_vtb.data.template import ChatRenderer
from nemo_vtb.errors import VtbCheckpointError, VtbDataError, VtbIndexError
from nemo_vtb.parallel.dims import ParallelDims
from nemo_vtb.testing.failpoints import damage
from nemo_vtb.training.run_state import RunState


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_corpus(tmp_path / 'c')


@pytest.fixture
def meter(renderer: ChatRenderer) -> Meter:
    return Meter(renderer, count_frames)


@pytest.fixture
def make(folder: Path, renderer: ChatRenderer) -> Callable[..., VtbDataModule]:
    def build(**keys: Any) -> VtbDataModule:
        data = VtbDataModule(data_cfg(folder, max_skip_ratio=0.5, **keys), renderer, count_frames, num_batches=30)
        data.setup('fit')
        return data

    return build


def zero(path: Path) -> None:
    """Plausible numbers in place of the right ones."""
    np.save(path, np.load(path) * 0 + 1)


def forget_a_line(path: Path) -> None:
    meta = json.loads(path.read_text())
    meta['entries'] -= 1
    path.write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ('name', 'harm'),
    [
        ('length.npy', lambda path: damage(path, 'flip', 0.9)),
        ('offset.npy', lambda path: damage(path, 'cut')),
        ('nbytes.npy', Path.unlink),
        ('supervised.npy', lambda path: path.write_bytes(b'')),
        ('file.npy', zero),
        ('quarantine.jsonl', lambda path: path.write_text('{}\n')),
        ('meta.json', forget_a_line),
        ('meta.json', lambda path: damage(path, 'cut')),
        ('meta.json', Path.unlink),
    ],
)
def test_a_damaged_index_is_built_anew(
    folder: Path, meter: Meter, name: str, harm: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    spec = parse_input_cfg(input_cfg(folder))[0]
    first = open_index(spec, meter, folder / 'index', quiet=True)
    content = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    harm(first.folder / name)
    with pytest.raises(VtbDataError, match=name.replace('.', r'\.')):
        open_index(spec, meter, folder / 'index', build=False)
    caplog.clear()
    again = open_index(spec, meter, folder / 'index', quiet=True)
    assert again.folder == first.folder and [record.levelname for record in caplog.records] == ['WARNING']
    assert {path.name: path.read_bytes() for path in again.folder.iterdir()} == content
    assert not list((folder / 'index').glob('.*'))


@pytest.mark.parametrize('damaged', [False, True])
def test_what_another_rank_has_built_meanwhile_stays(
    folder: Path, meter: Meter, damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ranks may find that there is no index; the slowest must not remove the one that the others have opened."""
    spec = parse_input_cfg(input_cfg(folder))[0]
    if damaged:
        zero(open_index(spec, meter, folder / 'index', quiet=True).folder / 'file.npy')
    clear, built = index_module.clear_leftovers, []

    def another_rank_is_faster(where: Path) -> None:
        clear(where)
        if not built:
            built.append(-1)
            built[0] = open_index(spec, meter, folder / 'index', quiet=True).folder.stat().st_ino

    monkeypatch.setattr(index_module, 'clear_leftovers', another_rank_is_faster)
    index = open_index(spec, meter, folder / 'index', quiet=True)
    assert [index.folder.stat().st_ino] == built


def test_a_changed_list_of_cuts_is_made_anew(folder: Path, meter: Meter) -> None:
    spec = parse_input_cfg(input_cfg(folder))[0]
    index = open_index(spec, meter, folder / 'index', quiet=True)
    longest = int(index.column('length').max())
    first = FittedSource(index, meter, longest - 1, 'drop')
    (cache,) = index.folder.glob('overlong-*')
    assert first.dropped
    cache.write_text(cache.read_text().replace('"entry": ', '"entry": 1'))
    assert FittedSource(index, meter, longest - 1, 'drop').dropped == first.dropped


def test_a_killed_build_is_cleared_at_the_next_start(folder: Path, make: Callable[..., VtbDataModule]) -> None:
    script = """
import os, signal, sys
from nemo_vtb.io import atomic_replace
with atomic_replace(sys.argv[1], folder=True) as new:
    (new / 'length.npy').write_text('half')
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, '-c', script, str(folder / 'index' / 'text-0')], check=False)
    assert done.returncode == -signal.SIGKILL and len(list((folder / 'index').glob('.*'))) == 1
    data = make()
    data.prepare_data()
    assert not list((folder / 'index').glob('.*'))


def replace_audio(path: Path) -> None:
    """Other samples, as many of them, in a file of the same size."""
    raw = bytearray(path.read_bytes())
    raw[-400:] = bytes(reversed(raw[-400:]))
    stat = path.stat()
    path.write_bytes(raw)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def test_replaced_audio_of_the_same_length_is_noticed(
    folder: Path, make: Callable[..., VtbDataModule], tmp_path: Path
) -> None:
    make()
    replace_audio(folder / 'wav/3.wav')
    faults = [fault for row in consume(make(), RunState(tmp_path / 'run')) for fault in row.faults]
    assert {fault['reason'] for fault in faults} == {'audio_changed'} and faults
    index = make().sources[0].index.folder.parent
    shutil.rmtree(index)  # the remedy that the fault names
    assert not [fault for row in consume(make(), RunState(tmp_path / 'run2')) for fault in row.faults]


def test_other_recordings_are_refused_at_a_resume_also_with_a_new_index(
    folder: Path, make: Callable[..., VtbDataModule], tmp_path: Path
) -> None:
    data, state = make(), RunState(tmp_path)
    list(consume(data, state, 3))
    saved = json.loads(json.dumps(state.state()))
    os.utime(folder / 'wav/3.wav', ns=(1, 1))  # copied anew: the same bytes
    shutil.rmtree(folder / 'index')
    again = RunState(tmp_path)
    again.load(saved)
    again.attach(make().train_dataloader(), ParallelDims())
    with (folder / 'wav/3.wav').open('ab') as stream:
        stream.write(b'LIST\x04\0\0\0abcd')  # a chunk that no reader minds
    shutil.rmtree(folder / 'index')
    again = RunState(tmp_path)
    again.load(saved)
    with pytest.raises(VtbCheckpointError) as error:
        again.attach(make().train_dataloader(), ParallelDims())
    assert error.value.field.startswith('sources.')
    again.load(saved)
    again.attach(make(allow_changed=True).train_dataloader(), ParallelDims())


@pytest.mark.parametrize('workers', [0, 2])
def test_an_index_may_vanish_while_it_is_in_use(
    folder: Path, make: Callable[..., VtbDataModule], tmp_path: Path, workers: int
) -> None:
    expected = [row.ids for row in consume(make(), RunState(tmp_path / 'a'))]
    data = make(num_workers=workers)
    shutil.rmtree(folder / 'index')
    assert [row.ids for row in consume(data, RunState(tmp_path / 'b'))] == expected


def test_a_column_that_is_gone_is_not_the_fault_of_the_data(folder: Path, meter: Meter) -> None:
    spec = parse_input_cfg(input_cfg(folder))[0]
    index = open_index(spec, meter, folder / 'index', quiet=True)
    index._columns.clear()  # as in a process that was spawned
    shutil.rmtree(index.folder)
    with pytest.raises(VtbIndexError) as error:
        index.read(0)
    assert 'gone' in error.value.got
