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
"""lhotse's own set-ups on the token budget: any DataLoader, NeMo's dataset, resuming, ranks, archives."""

import copy
import pickle
import tarfile
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import input_cfg, make_corpus, write_wav
from lhotse import CutSet
from lhotse.dataset.iterable_dataset import IterableDatasetWrapper
from lhotse.dataset.sampling.base import CutSampler

from nemo_vtb.data.audio import read_audio
from nemo_vtb.data.conversation import Audio
from nemo_vtb.data.cut_sampler import TokenBudgetCutSampler, cut_of, nemo_conversation
from nemo_vtb.data.sampler import BatchPlan, TokenBudgetSampler
from nemo_vtb.errors import VtbCheckpointError

pytestmark = pytest.mark.unit
TAG = '<|audio|>'
BATCHES = 12


class Ids(torch.utils.data.Dataset):
    """A dataset as lhotse wants it: it is asked for a whole mini-batch."""

    def __getitem__(self, conversations: CutSet) -> list[str]:
        return [conversation.id for conversation in conversations]


@pytest.fixture
def make(module: Callable[..., Any]) -> Callable[..., TokenBudgetCutSampler]:
    """`make(rank=0, world_size=1)`: always the same plan."""

    def sampler(rank: int = 0, world_size: int = 1, rows: int = 2, **keys: Any) -> TokenBudgetCutSampler:
        data = module(**keys)
        rows_of_rank = TokenBudgetSampler(data.plan, BatchPlan(rows, world_size), rank, BATCHES)
        return TokenBudgetCutSampler(rows_of_rank, data.sources, partial(nemo_conversation, audio_locator_tag=TAG))

    return sampler


def plain(data: Any) -> list[list[str]]:
    """The ids of each row, as the plan has them."""
    rows = islice(data.plan, 2 * BATCHES)
    return [[data.sources[source].read(entry).id for source, entry in row.items] for row in rows]


@pytest.mark.parametrize('workers', [0, 2])
def test_a_plain_data_loader(make: Callable[..., Any], module: Callable[..., Any], workers: int) -> None:
    sampler = make()
    assert isinstance(sampler, CutSampler)
    loader = torch.utils.data.DataLoader(Ids(), sampler=sampler, batch_size=None, num_workers=workers)
    expected = plain(module())
    assert list(loader) == expected
    assert list(loader) == expected, 'a second epoch of the same sampler is the same'
    assert sampler.get_report()


def test_lhotses_iterable_wrapper(make: Callable[..., Any], module: Callable[..., Any]) -> None:
    loader = torch.utils.data.DataLoader(IterableDatasetWrapper(Ids(), make()), batch_size=None, num_workers=1)
    assert list(loader) == plain(module())


@pytest.mark.parametrize('stop', [0, 1, 2, 7, 23])
def test_a_state_goes_on_after_the_last_row(make: Callable[..., Any], stop: int) -> None:
    whole = [[c.id for c in batch] for batch in make()]
    first = make()
    head = [[c.id for c in batch] for batch in islice(iter(first), stop)]
    state = pickle.loads(pickle.dumps(first.state_dict()))  # noqa: S301
    second = make()
    second.load_state_dict(copy.deepcopy(state))
    assert head + [[c.id for c in batch] for batch in second] == whole


def test_ranks_share_the_rows_of_each_global_batch(make: Callable[..., Any]) -> None:
    alone = [[c.id for c in batch] for batch in make()]
    ranks = [[[c.id for c in batch] for batch in make(rank, 2)] for rank in (0, 1)]
    for number in range(BATCHES):
        together = sorted(i for rank in ranks for i in rank[number])
        assert together == sorted(i for row in alone[2 * number : 2 * number + 2] for i in row)


def test_another_number_of_ranks_goes_on_after_a_whole_batch(make: Callable[..., Any]) -> None:
    alone = [[c.id for c in batch] for batch in make()]
    first = make()
    list(islice(iter(first), 6))
    ranks = []
    for rank in (0, 1):
        sampler = make(rank, 2)
        sampler.load_state_dict(first.state_dict())
        ranks.append([[c.id for c in batch] for batch in sampler])
    assert sorted(i for rank in ranks for i in rank[0]) == sorted(i for row in alone[6:8] for i in row)
    list(islice(iter(first), 1))
    with pytest.raises(VtbCheckpointError, match='within a global batch'):
        make(0, 2).load_state_dict(first.state_dict())


def test_nemos_dataset_gets_every_recording_once(make: Callable[..., Any], renderer: Any, tiny_llm_dir: Path) -> None:
    """SALM's own dataset, two recordings of one file name among the data: each conversation has its own sound."""
    from nemo.collections.common.tokenizers import AutoTokenizer
    from nemo.collections.speechlm2.data.salm_dataset import SALMDataset

    sampler = make()

    def tokenise(batch: CutSet) -> CutSet:
        for conversation in batch:
            conversation.input_ids = torch.arange(3)
            conversation.mask = torch.ones(3, dtype=torch.bool)
        return batch

    sampler.map(tokenise)
    dataset = SALMDataset(AutoTokenizer(str(tiny_llm_dir), use_fast=True))
    loader = torch.utils.data.DataLoader(dataset, sampler=sampler, batch_size=None)
    heard = 0
    for batch in islice(loader, 6):
        clips = [turn.cut for c in batch['conversations'] for turn in c.turns if hasattr(turn, 'cut')]
        assert batch['input_ids'].shape[0] == len(batch['conversations'])
        assert len({cut.id for cut in clips}) == len(clips)
        assert batch['audio_lens'].tolist() == [cut.num_samples for cut in clips]
        heard += len(clips)
    assert heard


@pytest.mark.parametrize('rate', [16000, 22050])
@pytest.mark.parametrize('channels', [1, 2])
@pytest.mark.parametrize('span', [(0.0, None), (0.25, 0.5)])
def test_a_cut_is_what_our_loader_reads(
    tmp_path: Path, rate: int, channels: int, span: tuple[float, float | None]
) -> None:
    path = write_wav(tmp_path / 'a.wav', 1.0, rate=rate, channels=channels)
    audio = Audio(str(path), span[1], span[0])
    cut = cut_of(audio, 'c-0')
    ours = read_audio(audio, rate)
    loaded = cut.load_audio()  # (1, S)
    assert loaded.shape == (1, len(ours))
    np.testing.assert_allclose(loaded[0], ours, atol=1e-6)


def test_a_cut_of_an_archive_member(tmp_path: Path) -> None:
    path = write_wav(tmp_path / 'a.wav', 0.5)
    with tarfile.open(tmp_path / 's.tar', 'w') as tar:
        tar.add(path, 'a.wav')
    cut = cut_of(Audio(f'{tmp_path}/s.tar!/a.wav'), 'c-0')
    np.testing.assert_allclose(cut.load_audio()[0], read_audio(Audio(str(path))), atol=1e-6)


def test_recordings_of_one_file_name_stay_apart(tmp_path: Path, module: Callable[..., Any]) -> None:
    folders = [make_corpus(tmp_path / name, {'asr_ast': 4}, seed=seed) for seed, name in enumerate('ab')]
    entries = [entry | {'source': f.name} for f in folders for entry in input_cfg(f, ('asr_ast',))]
    data = module(train_ds={'input_cfg': entries, 'seed': 7}, budget={'asr_ast': 1.0})
    rows = TokenBudgetSampler(data.plan, BatchPlan(1), num_batches=4)
    sampler = TokenBudgetCutSampler(rows, data.sources, partial(nemo_conversation, audio_locator_tag=TAG))
    ids = {}
    for batch in sampler:
        for conversation in batch:
            for cut in conversation.list_cuts():
                where = (conversation.source, conversation.id, cut.recording.sources[0].source)
                assert ids.setdefault(cut.id, where) == where
    assert len({conversation for _, conversation, _ in ids.values()}) < len(ids), 'the two sources share their ids'
