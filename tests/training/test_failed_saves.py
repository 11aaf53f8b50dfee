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
"""Row R3: a run that is killed anywhere in a save resumes from a whole checkpoint and ends as if it had not been."""

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_interrupted import fit

from nemo_vtb.checkpoint.checkpoint_io import AtomicCheckpointIO, verify_checkpoint
from nemo_vtb.testing.failpoints import install
from nemo_vtb.training.interrupted import clean_interrupted

STEPS = 8
# where it fails -> the failpoint, and how many steps are lost
PLACES = {
    'before the best one': ('open@*/.step={step}.ckpt*:1:kill', 1),
    # the best one of the same step takes its place
    'before the file': ('open@*/.step={step}-last.ckpt*:1:kill', 0),
    'in the middle of it': ('save@*/.step={step}-last.ckpt*:1:tear', 0),
    'before it is flushed': ('fsync@*/.step={step}-last.ckpt*:1:kill', 0),
    'before it has its name': ('replace@*/step={step}-last.ckpt:1:kill', 0),
    'after it has its name': ('replace@*/step={step}-last.ckpt:1:kill_after', 0),
    'before the former one is renamed': ('replace@*/step={former}-last.ckpt.previous:1:kill', 0),
    'before the oldest one is removed': ('unlink@*/step={oldest}-last.ckpt.previous:1:kill', 0),
    'after the oldest one was removed': ('unlink@*/step={oldest}-last.ckpt.previous:1:kill_after', 0),
    'a bit of it turns': ('replace@*/step={step}-last.ckpt:1:flip,replace@*/step={next}.ckpt:1:kill', 0),
    'it is cut': ('replace@*/step={step}-last.ckpt:1:cut,replace@*/step={next}.ckpt:1:kill', 0),
    'both are cut': ('replace@*/step={step}*ckpt:1+:cut,replace@*/step={next}.ckpt:1:kill', 1),
}


def in_child(action: Callable[[], object]) -> int:
    """Run in a process forked after the imports; its exit status, or the negative signal."""
    if (process := os.fork()) == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.fixture(scope='module')
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    import nemo.utils.callbacks.nemo_model_checkpoint  # noqa: F401 (once, not in each child)

    folder = tmp_path_factory.mktemp('whole')
    assert in_child(lambda: fit(folder, steps=STEPS)) == 0
    return (folder / 'mine.nemo').read_text()


@pytest.mark.integration
@pytest.mark.parametrize('step', [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 5, 6, 7))])
@pytest.mark.parametrize('place', PLACES)
def test_killed_in_a_save(tmp_path: Path, expected: str, place: str, step: int) -> None:
    failpoint, lost = PLACES[place]

    def broken() -> None:
        install(failpoint.format(step=step, former=step - 1, oldest=step - 2, next=step + 1))
        fit(tmp_path, steps=STEPS)

    assert in_child(broken) == -signal.SIGKILL
    newest = clean_interrupted(tmp_path)
    assert verify_checkpoint(newest) == step - lost
    assert not list(tmp_path.glob('.*')) and len(list(tmp_path.glob('*last.ckpt'))) == 1
    assert in_child(lambda: fit(tmp_path, newest, steps=STEPS)) == 0
    assert (tmp_path / 'mine.nemo').read_text() == expected


@pytest.mark.parametrize('share', [0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 0.999])
def test_a_disk_that_is_full_at_any_place(tmp_path: Path, share: float) -> None:
    """Row C1."""
    io = AtomicCheckpointIO(tolerant=True)
    content = {'global_step': 1, 'w': torch.arange(5000.0)}
    io.save_checkpoint(content, first := tmp_path / 'step=1-last.ckpt')
    size = first.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * size), hard))
    try:
        io.save_checkpoint(content | {'global_step': 2}, tmp_path / 'step=2-last.ckpt')
        io.remove_checkpoint(first)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert io.failed == 1 and [path.name for path in tmp_path.iterdir()] == [first.name]
    assert verify_checkpoint(first) == 1
