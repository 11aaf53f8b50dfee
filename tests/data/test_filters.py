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
"""What NeMo's filters refuse is not trained on, is counted, and is no fault of the data."""

from pathlib import Path
from typing import Any

import pytest
from data_helpers import count_frames, data_cfg, make_corpus, write_jsonl, write_wav

from nemo_vtb.config.schema import DataSettings
from nemo_vtb.data.filters import filters_of
from nemo_vtb.data.index import open_index
from nemo_vtb.data.sources import eval_specs, train_specs
from nemo_vtb.errors import VtbConfigError


@pytest.fixture
def lines(tmp_path: Path) -> list[dict[str, Any]]:
    """Recordings of 0.5, 1.0 and 2.0 s with answers of 2, 4 and 6 words, and notes."""
    return [
        {
            'audio_filepath': str(write_wav(tmp_path / f'{n}.wav', seconds)), 'duration': seconds,
            'text': ' '.join(['lamp'] * words), 'other': 'kitchen', **notes,
        }
        for n, (seconds, words, notes) in enumerate(
            [(0.5, 2, {'cer': 0.01}), (1.0, 4, {'cer': 0.5}), (2.0, 6, {'validation_status': 'fail'})]
        )
    ]  # fmt: skip


def kept(lines: list[dict[str, Any]], folder: Path, meter: Any, **loader: Any) -> tuple[list[float], dict[str, int]]:
    manifest = write_jsonl(folder / 'm.jsonl', lines)
    section = {'input_cfg': [{'type': 'nemo', 'manifest_filepath': str(manifest)}], **loader}
    (spec,) = train_specs(DataSettings.from_config({'train_ds': section}))
    index = open_index(spec, meter, folder / 'index', quiet=True)
    index.check(0.0)
    return [round(float(s), 2) for s in index.column('seconds')], index.meta['quarantined']


@pytest.mark.parametrize(
    ('loader', 'seconds'),
    [
        ({'keep': 'pass'}, [0.5, 1.0, 2.0]),
        ({'min_duration': 0.6}, [1.0, 2.0]),
        ({'max_duration': 1.5}, [0.5, 1.0]),
        ({'min_duration': -1, 'max_duration': float('inf'), 'max_cer': float('inf')}, [0.5, 1.0, 2.0]),
        ({'max_cer': 0.1}, [0.5, 2.0]),
        ({'max_tokens': 1}, []),
        ({'min_tokens': 1}, [0.5, 1.0, 2.0]),
        ({'max_tps': 0.1}, []),
        ({'min_tpt': 1e9}, [0.5, 1.0, 2.0]),  # for text alone
    ],
)
def test_filters_of_a_loader_section(
    lines: list[dict[str, Any]], tmp_path: Path, meter: Any, loader: dict[str, Any], seconds: list[float]
) -> None:
    del lines[2]['validation_status']
    chat = {'audio_filepath': lines[0]['audio_filepath'], 'duration': 0.5, 'text': 'on'}
    if not seconds:  # a source that nothing is left of is refused
        from nemo_vtb.errors import VtbDataError

        with pytest.raises(VtbDataError, match='filtered'):
            kept([*lines, chat], tmp_path, meter, **loader)
        return
    found, reasons = kept(lines, tmp_path, meter, **loader)
    assert found == seconds
    assert reasons == ({'filtered': 3 - len(seconds)} if len(seconds) < 3 else {})


def test_a_line_that_failed_validation_is_left_out(lines: list[dict[str, Any]], tmp_path: Path, meter: Any) -> None:
    assert kept(lines, tmp_path, meter, max_cer=1.0)[0] == [0.5, 1.0]
    lines[1]['validation_status'] = 'pass'
    assert kept(lines, tmp_path, meter, keep='fail')[0] == [0.5, 2.0]  # lines without a note stay


def test_the_field_of_a_section_holds_for_its_entries(lines: list[dict[str, Any]], tmp_path: Path, meter: Any) -> None:
    manifest = write_jsonl(tmp_path / 'm.jsonl', lines)
    entry = {'type': 'nemo', 'manifest_filepath': str(manifest)}
    section = {'input_cfg': [entry, {**entry, 'text_field': 'text'}], 'text_field': 'other'}
    first, second = train_specs(DataSettings.from_config({'train_ds': section}))
    answers = [spec.read(lines[0], 0, 'here').turns[-1].parts[0].text for spec in (first, second)]  # type: ignore
    assert answers == ['kitchen', 'lamp lamp']


def test_manifests_in_the_section_itself_are_read(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    """NeMo's older form, without an input_cfg."""
    path = str(write_jsonl(tmp_path / 'm.jsonl', lines))
    sets = {'a': {'manifest_filepath': path}, 'b': {'cuts_path': path, 'max_duration': 9.0}}
    settings = DataSettings.from_config(
        {'train_ds': {'manifest_filepath': path}, 'validation_ds': {'datasets': sets, 'max_duration': 1.5}}
    )
    assert [s.type for s in train_specs(settings)] == ['nemo']
    evals = eval_specs(settings, 'validation_ds')
    assert {name: (s.type, s.options['filters']) for name, (s,) in evals.items()} == {
        'a': ('nemo', {'max_duration': 1.5}),
        'b': ('lhotse', {'max_duration': 9.0}),
    }


def test_bounds_for_buckets_are_refused() -> None:
    with pytest.raises(VtbConfigError) as caught:
        filters_of({'max_tps': [10, 20]})
    assert caught.value.field == 'data.train_ds.max_tps'


def test_what_is_filtered_is_in_the_ledger(tmp_path: Path, renderer: Any) -> None:
    from nemo_vtb.data.datamodule import VtbDataModule
    from nemo_vtb.parallel.dims import ParallelDims
    from nemo_vtb.training.run_state import RunState

    folder = make_corpus(tmp_path / 'corpus', {'text': 4, 'asr_ast': 40})
    cfg = data_cfg(folder)
    cfg['train_ds']['input_cfg'] = [e for e in cfg['train_ds']['input_cfg'] if e['kind'] in ('text', 'asr_ast')]
    cfg['budget'] = None
    cfg['train_ds']['min_duration'] = 0.5
    data = VtbDataModule(cfg, renderer, count_frames, num_batches=2)
    state = RunState(tmp_path / 'run')
    state.attach(data.train_dataloader(), ParallelDims())
    assert state.ledger is not None
    skips = {name: dict(account.skips) for name, account in state.ledger.accounts.items()}
    assert skips['asr_ast']['filtered'] > 0 and not skips['text']
    assert '"filtered"' in (tmp_path / 'run' / 'quarantine.jsonl').read_text()
