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
"""The torture set of 1,000 conversations: each fault harms itself alone, and is counted and listed by its reason."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import consume, count_frames, data_cfg, make_corpus
from torture import CLEAN, EACH, FAULTS, MAX_TOKENS, good_ids, make_torture, read_lines, table

from nemo_vtb.data import collate
from nemo_vtb.data.datamodule import VtbDataModule
from nemo_vtb.data.faults import Reason, audio_fault
from nemo_vtb.data.template import ChatRenderer
from nemo_vtb.errors import VtbDataError
from nemo_vtb.training.run_state import RunState

DOCS = Path(__file__).resolve().parents[2] / 'docs' / 'data.md'


def test_the_documentation_shows_the_table_of_outcomes() -> None:
    assert table() in DOCS.read_text(encoding='utf-8')


def test_the_documentation_names_every_reason() -> None:
    page = DOCS.read_text(encoding='utf-8')
    for reason in Reason:
        assert f'| `{reason}` | {reason.meaning} |' in page


def module(folder: Path, renderer: ChatRenderer, train_ds: dict[str, Any], **keys: Any) -> VtbDataModule:
    cfg = {
        'train_ds': train_ds,
        'max_tokens': MAX_TOKENS,
        'overlong': 'drop',
        'on_exhausted': 'drop',
        'index_dir': str(folder / 'index'),
    }
    data = VtbDataModule(cfg | keys, renderer, count_frames)
    data.setup('fit')
    return data


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_every_fault_harms_itself_alone(
    tmp_path: Path, renderer: ChatRenderer, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr('nemo_vtb.data.datamodule._RETRY_S', 0.0)
    assert sum(CLEAN.values()) + EACH * len(FAULTS) == 1000
    train_ds = make_torture(tmp_path)
    with pytest.raises(VtbDataError, match='Too many conversations of a source are broken') as caught:
        module(tmp_path, renderer, train_ds)
    assert 'audio_missing' in str(caught.value)
    data = module(tmp_path, renderer, train_ds, max_skip_ratio=0.9, num_workers=workers)
    state = RunState(tmp_path / 'run')
    seen: list[str] = []
    for row in consume(data, state):
        seen += row.ids
        assert torch.isfinite(row.audios).all()
    assert Counter(seen) == dict.fromkeys(good_ids(), 1)
    expected = {(f.stem, f.outcome): f.skips for f in FAULTS if f.skips}
    listed = Counter(
        (Path(line['file']).stem, line['reason']) for line in read_lines(tmp_path / 'run' / 'quarantine.jsonl')
    )
    assert listed == expected
    skips: Counter[str] = Counter()
    for (_, reason), count in expected.items():
        skips[reason] += count
    assert state.ledger.to_json()['skips'] == dict(skips)


@pytest.mark.slow
def test_short_disturbances_cost_nothing(
    tmp_path: Path, renderer: ChatRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 % of the reads fail as a network file system does now and then: 1,000 conversations, none is lost."""
    monkeypatch.setattr('nemo_vtb.data.datamodule._RETRY_S', 0.0)
    rng = np.random.default_rng(0)
    real = collate.read_audio
    failures = []

    def read(*args: Any, **keys: Any) -> np.ndarray:
        if rng.random() < 0.05:
            failures.append(args[0].path)
            raise audio_fault(Reason.AUDIO_MISSING, field='audio', got='a disturbance')
        return real(*args, **keys)

    monkeypatch.setattr(collate, 'read_audio', read)
    folder = make_corpus(tmp_path, {'text': 100, 'asr_ast': 400, 'speech_qa': 400, 'mixed_modal': 100})
    train_ds = data_cfg(folder)['train_ds']
    for entry in train_ds['input_cfg']:
        entry['max_repeats'] = 1
    data = module(tmp_path, renderer, train_ds, num_workers=0)
    state = RunState(tmp_path / 'run')
    seen = [id_ for row in consume(data, state) for id_ in row.ids]
    assert len(seen) == len(set(seen)) == 1000
    assert len(failures) > 30
    assert state.ledger.skipped == 0
