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
"""The torture set: each fault harms itself alone, and is counted and listed by its reason."""

import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import consume, count_frames, data_cfg, make_corpus

from nemo_vtb.data import collate
from nemo_vtb.data.counting import Meter
from nemo_vtb.data.datamodule import VtbDataModule
from nemo_vtb.data.faults import Reason, audio_fault
from nemo_vtb.data.index import open_index
from nemo_vtb.data.sources import parse_input_cfg
from nemo_vtb.data.template import ChatRenderer
from nemo_vtb.errors import VtbDataError
from nemo_vtb.io import read_json_lines
from nemo_vtb.testing.faulty_lines import write_lines
from nemo_vtb.testing.mutations import RULES, good_line, mutated_faults
from nemo_vtb.testing.torture import MAX_TOKENS, WRITTEN, TortureSet, make_torture_set, table
from nemo_vtb.training.run_state import RunState

DOCS = Path(__file__).resolve().parents[2] / 'docs' / 'data.md'
CPU_S, MEMORY_MB = 20.0, 200
"""What ten lines of one kind may cost; the largest is a million characters, ten times."""


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


def train(folder: Path, renderer: ChatRenderer, made: TortureSet, workers: int) -> None:
    """Train on the set to its end: what is not skipped is seen once, what is skipped is listed with its reason."""
    data = module(folder, renderer, made.train_ds, max_skip_ratio=1.0, num_workers=workers)
    state = RunState(folder / 'run')
    seen: list[str] = []
    for row in consume(data, state):
        seen += row.ids
        assert torch.isfinite(row.audios).all()
    listed = Counter(
        (Path(line['file']).stem, line['reason']) for line in read_json_lines(folder / 'run' / 'quarantine.jsonl')
    )
    assert listed == made.expected
    assert Counter(seen) == dict.fromkeys(made.good_ids, 1)
    assert state.ledger is not None and state.ledger.to_json()['skips'] == made.skips


def test_one_of_each_kind_harms_itself_alone(
    tmp_path: Path, renderer: ChatRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('nemo_vtb.data.datamodule._RETRY_S', 0.0)
    made = make_torture_set(tmp_path, seed=0, per_kind=1, clean=60)
    assert len(made.kinds) >= 150
    with pytest.raises(VtbDataError, match='Too many conversations of a source are broken') as caught:
        module(tmp_path, renderer, made.train_ds)
    assert 'audio_missing' in str(caught.value)
    train(tmp_path, renderer, made, workers=0)


@pytest.mark.slow
@pytest.mark.parametrize(('seed', 'workers'), [(1, 0), (2, 2)])
def test_ten_of_each_kind_among_a_thousand_clean_ones(
    tmp_path: Path, renderer: ChatRenderer, monkeypatch: pytest.MonkeyPatch, seed: int, workers: int
) -> None:
    monkeypatch.setattr('nemo_vtb.data.datamodule._RETRY_S', 0.0)
    train(tmp_path, renderer, make_torture_set(tmp_path, seed=seed), workers)


@pytest.mark.slow
def test_every_mutation_has_the_outcome_of_its_rule(tmp_path: Path, renderer: ChatRenderer) -> None:
    """All places and classes of values at once, not only those that a seed draws."""
    count = sum(len(rules) for places in RULES.values() for rules in places.values()) + 10 * len(RULES)
    made = make_torture_set(tmp_path, seed=3, per_kind=2, clean=20, mutated=count)
    train(tmp_path, renderer, made, workers=0)


@pytest.mark.slow
def test_each_kind_costs_little_time_and_memory(tmp_path: Path, renderer: ChatRenderer) -> None:
    made = make_torture_set(tmp_path, seed=4, clean=20)
    meter = Meter(renderer, count_frames)
    for fault in made.kinds:
        entry = {'type': fault.type, 'kind': 'speech_qa', 'manifest_filepath': str(tmp_path / f'{fault.stem}.jsonl')}
        if fault.group == 'tar':
            entry['tarred_audio_filepaths'] = str(tmp_path / f'{fault.stem}.tar')
        begin = time.process_time()
        tracemalloc.start()
        open_index(parse_input_cfg([entry])[0], meter, tmp_path / 'index', quiet=True)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert time.process_time() - begin < CPU_S, fault.name
        assert peak < MEMORY_MB << 20, fault.name


@pytest.mark.parametrize('type_', sorted(RULES))
def test_the_lines_that_are_changed_would_be_taken(tmp_path: Path, renderer: ChatRenderer, type_: str) -> None:
    (tmp_path / 'x').mkdir()
    write_lines(tmp_path / 'x.jsonl', [good_line(type_, tmp_path / 'x', n) for n in range(3)])
    spec = parse_input_cfg([{'type': type_, 'kind': 'speech_qa', 'manifest_filepath': str(tmp_path / 'x.jsonl')}])[0]
    index = open_index(spec, Meter(renderer, count_frames), tmp_path / 'index', quiet=True)
    assert len(index) == 3 and index.meta['quarantined'] == {}


def test_equal_seeds_make_equal_sets(tmp_path: Path) -> None:
    sets = []
    for name, seed in (('a', 5), ('b', 5), ('c', 6)):
        (tmp_path / name).mkdir()
        faults = mutated_faults(seed, 30)
        lines = []
        for fault in faults:
            (tmp_path / name / fault.stem).mkdir()
            lines.append(fault.make(tmp_path / name / fault.stem, 0))
        sets.append(repr(lines))
    assert sets[0] == sets[1] != sets[2]
    assert len({fault.stem for fault in (*WRITTEN, *mutated_faults(0, 100))}) == len(WRITTEN) + 100


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
