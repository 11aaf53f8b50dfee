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
"""Loaders: same rows for any number of loader processes, whole named validation sets, settings that are refused."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from data_helpers import BUDGET

from nemo_vtb.data.datamodule import VtbDataModule
from nemo_vtb.errors import VtbConfigError, VtbDataError

Make = Callable[..., VtbDataModule]


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once: what fails here fails for good."""
    monkeypatch.setattr('nemo_vtb.data.datamodule._RETRY_S', 0.0)


def rows(data: VtbDataModule) -> list[tuple[int, list[str]]]:
    return [(row.index, row.ids) for row in data.train_dataloader()]


@pytest.mark.parametrize('workers', [1, 4])
def test_loader_processes_change_nothing(module: Make, workers: int) -> None:
    assert rows(module(num_workers=workers)) == rows(module(num_workers=0))


def test_batches_are_packed_rows(module: Make) -> None:
    data = module()
    loader = data.train_dataloader()
    assert len(loader) == 10
    for number, batch in enumerate(loader):
        assert batch.index == number
        assert batch.num_tokens == batch.input_ids.shape[0] <= 256
        assert batch.faults == []
        assert len(batch.ids) == len(batch.cu_seqlens) - 1


@pytest.mark.parametrize('workers', [0, 1])
def test_loading_draws_nothing_from_the_global_generator(module: Make, workers: int) -> None:
    """A resumed run opens its loader at another moment; its dropout masks must not depend on that."""
    before = torch.get_rng_state()
    rows(module(num_workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_validation_sets_are_seen_whole_and_by_name(module: Make, small: Path) -> None:
    sets = {
        kind: {'input_cfg': [{'type': 'multimodal_conversation', 'manifest_filepath': str(small / f'{kind}.jsonl')}]}
        for kind in ('text', 'speech_qa')
    }
    data = module(validation_ds={'datasets': sets}, num_workers=1)
    for loader, kind, size in zip(data.val_dataloader(), sets, (60, 40), strict=True):
        batches = list(loader)
        assert len(batches) == len(loader)
        assert {batch.dataset for batch in batches} == {kind}
        assert sorted(id_ for batch in batches for id_ in batch.ids) == sorted(f'{kind}-{n}' for n in range(size))


@pytest.mark.parametrize(
    ('keys', 'named'),
    [
        ({'budget': {**BUDGET, 'text': 0.9}}, 'sum to 1'),
        ({'sampler': 'nemo'}, r'benchmarks/study/nemo_loader\.py'),
        ({'overlong': 'ignore'}, 'data.overlong'),
        ({'max_tokens': 0}, 'data.max_tokens'),
        ({'max_skip_ratio': 2}, 'data.max_skip_ratio'),
        ({'num_workers': 40, 'refund_batches': 8}, 'refund_batches'),
    ],
)
def test_settings_that_cannot_work_are_refused(module: Make, keys: dict[str, Any], named: str) -> None:
    with pytest.raises(VtbConfigError, match=named):
        module(**keys).train_dataloader()


def test_a_fit_that_nobody_counts_is_refused(module: Make) -> None:
    data = module(None)
    data.trainer = pl.Trainer(accelerator='cpu', max_steps=2, logger=False, enable_checkpointing=False)
    with pytest.raises(VtbConfigError) as caught:
        data.train_dataloader()
    assert caught.value.field == 'trainer.callbacks' and 'RunState' in str(caught.value.remedy)


class Deadly:
    """A collator in whose hands one conversation ends the loader process, as a full memory does."""

    def __init__(self, collator: Any, victim: str) -> None:
        self.collator, self.victim = collator, victim

    def prepare(self, conversation: Any) -> Any:
        if conversation.id == self.victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.collator.prepare(conversation)


def test_a_killed_loader_process_is_named_with_what_it_read(module: Make) -> None:
    data = module(num_workers=2)
    victim = [id_ for row in rows(data) for id_ in row[1]][7]
    data = module(num_workers=2)
    data.collator = Deadly(data.collator, victim)
    with pytest.raises(VtbDataError, match='A loader process was killed') as caught:
        list(data.train_dataloader())
    assert caught.value.field == 'data.num_workers'
    offset = int(str(caught.value.got).partition("'byte_offset': ")[2].partition('}')[0])
    file = str(caught.value.got).partition("'file': '")[2].partition("'")[0]
    assert json.loads(Path(file).read_bytes()[offset:].splitlines()[0])['id'] == victim


def test_a_loader_process_that_is_killed_while_it_hands_over_a_row_is_named(
    module: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever takes the row sees a broken connection, not that the process has gone."""
    packed = iter(module(num_workers=1).train_dataloader())
    next(packed)

    def broken(*_: object) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        raise ConnectionResetError(104, 'Connection reset by peer')

    monkeypatch.setattr('torch.multiprocessing.reductions.rebuild_storage_fd', broken)
    with pytest.raises(VtbDataError, match='A loader process was killed') as caught:
        list(packed)
    assert 'byte_offset' in str(caught.value.got)


def test_loader_processes_outlive_a_signal_to_all(module: Make) -> None:
    data = module(num_workers=2)
    expected = [row.index for row in module().train_dataloader()]
    seen = []
    for row in data.train_dataloader():
        if len(seen) == 4:  # all of them have begun
            for child in multiprocessing.active_children():
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                    os.kill(child.pid, number)
        seen.append(row.index)
    assert seen == expected
