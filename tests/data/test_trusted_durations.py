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
"""Durations that are trusted: no recording is opened to build an index, and what differs is found when it is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import count_frames, data_cfg, spoken, text, write_jsonl, write_wav

from nemo_vtb.data import counting
from nemo_vtb.data.collate import Collator
from nemo_vtb.data.counting import Meter
from nemo_vtb.data.datamodule import RowDataset, VtbDataModule
from nemo_vtb.data.faults import Reason
from nemo_vtb.data.index import FittedSource, SourceIndex, open_index
from nemo_vtb.data.sampler import RowPlan
from nemo_vtb.data.sources import parse_input_cfg
from nemo_vtb.data.template import ChatRenderer


def chat(name: str, **span: Any) -> dict[str, Any]:
    return {'id': name, 'conversations': [spoken(f'{name}.wav', **span), text('Assistant', 'yes please')]}


@pytest.fixture
def never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building an index may not open a recording."""
    monkeypatch.setattr(counting, 'probe', lambda path: pytest.fail(f'opened {path}'))


def trusting(folder: Path, lines: list[Any], meter: Meter, **keys: Any) -> SourceIndex:
    entry = {'type': 'multimodal_conversation', 'kind': 'speech_qa', 'durations': 'trust'}
    path = write_jsonl(folder / 'm.jsonl', lines)
    spec = parse_input_cfg([entry | {'manifest_filepath': str(path)} | keys])[0]
    return open_index(spec, meter, folder / 'index', quiet=True)


def row_of(index: SourceIndex, meter: Meter) -> Any:
    """All its conversations in one row, as a loader process makes it."""
    source = FittedSource(index, meter, 4096)
    rows = RowDataset([source], Collator(meter.renderer, count_frames))
    return rows[RowPlan(0, tuple((0, entry) for entry in range(len(source))), 0, 0.0)]


def test_no_recording_is_opened(tmp_path: Path, meter: Meter, never_opened: None) -> None:
    index = trusting(tmp_path, [chat('none', duration=1.25), chat('neither', offset=3.0, duration=0.5)], meter)
    assert index.column('frames').tolist() == [count_frames(20000), count_frames(8000)]
    assert index.column('seconds').tolist() == [1.25, 0.5]
    assert not index.broken


def test_the_loader_makes_what_was_counted(tmp_path: Path, meter: Meter, never_opened: None) -> None:
    """Rounded durations, other rates, several channels: exact all the same."""
    for name, seconds, keys in (
        ('exact', 0.5, {}),
        ('shorter', 0.497, {}),
        ('longer', 0.56, {}),
        ('slow', 0.5031, {'rate': 8000}),
        ('odd', 0.49, {'rate': 44100, 'channels': 2}),
    ):
        write_wav(tmp_path / f'{name}.wav', seconds, **keys)
    names = ('exact', 'shorter', 'longer', 'slow', 'odd')
    index = trusting(tmp_path, [chat(name, duration=0.5) for name in names], meter)
    row = row_of(index, meter)
    assert not row.faults
    assert row.audio_lens.tolist() == [8000] * 5
    assert row.num_tokens == int(index.column('length').sum())
    assert float(row.audios[1, 7953:].abs().max()) == 0.0 and float(row.audios[0, -1600:].abs().max()) > 0


def test_what_differs_is_found_when_it_is_read(tmp_path: Path, meter: Meter, never_opened: None) -> None:
    write_wav(tmp_path / 'good.wav', 0.5)
    for name, seconds in (('short', 0.2), ('long', 0.9), ('segment', 0.9)):
        write_wav(tmp_path / f'{name}.wav', seconds)
    lines = [chat(name, duration=0.5) for name in ('good', 'short', 'long', 'missing')]
    index = trusting(tmp_path, [*lines, chat('segment', duration=0.5, offset=0)], meter)
    row = row_of(index, meter)
    assert row.ids == ['good', 'segment']
    found = {fault['id'] if 'id' in fault else fault['place']: fault['reason'] for fault in row.faults}
    assert sorted(found.values()) == [Reason.AUDIO_MISSING, Reason.DURATION_MISMATCH, Reason.DURATION_MISMATCH]


def test_a_line_without_duration_is_probed(tmp_path: Path, meter: Meter) -> None:
    write_wav(tmp_path / 'good.wav', 0.5)
    index = trusting(tmp_path, [chat('good'), chat('missing'), chat('trusted', duration=0.25)], meter)
    assert index.column('frames').tolist() == [count_frames(8000), count_frames(4000)]
    assert index.meta['quarantined'] == {'audio_missing': 1}


def test_a_duration_of_nothing_is_refused(tmp_path: Path, meter: Meter, never_opened: None) -> None:
    index = trusting(tmp_path, [chat('a', duration=0.5), chat('b', duration=0.0), chat('c', duration=1e9)], meter)
    assert index.meta['quarantined'] == {'audio_no_samples': 1, 'clip_too_large': 1}


@pytest.mark.parametrize('mismatch', ['quarantine', 'segment'])
def test_the_setting_reaches_every_source(small: Path, renderer: ChatRenderer, mismatch: str) -> None:
    """`data.durations` holds where an entry says nothing; a plan of the same shares and rows follows."""

    def lengths(**keys: Any) -> dict[str, np.ndarray]:
        data = VtbDataModule(data_cfg(small, **keys), renderer, count_frames, num_batches=4)
        data.setup('fit')
        return {source.name: np.array(source.index.column('length')) for source in data.sources}

    trusted = lengths(durations='trust', on_duration_mismatch=mismatch)
    for name, counted in lengths().items():
        assert (np.abs(trusted[name] - counted) <= 1).all(), name


def test_an_entry_may_differ_from_the_setting(small: Path, renderer: ChatRenderer) -> None:
    make: Callable[..., dict[str, Any]] = data_cfg
    cfg = make(small, durations='trust')
    cfg['train_ds']['input_cfg'][1]['durations'] = 'probe'
    data = VtbDataModule(cfg, renderer, count_frames, num_batches=4)
    data.setup('fit')
    found = {source.kind: source.index.spec.options.get('durations') for source in data.sources}
    assert found == {'text': 'trust', 'asr_ast': None, 'speech_qa': 'trust', 'mixed_modal': 'trust'}
