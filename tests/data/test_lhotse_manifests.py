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
"""Manifests of lhotse as rows of a NeMo manifest: every form is written by lhotse itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lhotse import CutSet, Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.supervision import AlignmentItem

from nemo_vtb.assets.recordings import write_wav
from nemo_vtb.data.faults import Reason
from nemo_vtb.data.lhotse_manifests import corpus_rows, language_code, manifest_files, part_of, source_of
from nemo_vtb.errors import VtbDataError
from nemo_vtb.factory.asr_ast import manifest_rows


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two recordings of 3 s; the first has two supervisions, as a talk of VoxPopuli or TED-LIUM has."""
    recordings = []
    for name in ('talk', 'line'):
        write_wav(tmp_path / f'{name}.wav', np.random.default_rng(0).normal(0, 0.1, 48000).astype(np.float32))
        recordings.append(Recording.from_file(tmp_path / f'{name}.wav', recording_id=name))
    words = [AlignmentItem('hello', 1.5, 0.25), AlignmentItem('anna', 1.75, 0.5)]
    supervisions = [
        SupervisionSegment('talk-0', 'talk', 0.25, 1.0, text='good day', language='English'),
        SupervisionSegment('talk-1', 'talk', 1.5, 1.0, text='hello anna', language='en_us', alignment={'word': words}),
        SupervisionSegment(
            'line-0', 'line', 0.0, 3.0, text='guten tag', language='german',
            custom={'translated_text': {'en': 'good day'}},
        ),
    ]  # fmt: skip
    (tmp_path / 'prepared').mkdir()
    RecordingSet.from_recordings(recordings).to_file(tmp_path / 'prepared' / 'my_recordings_train.jsonl.gz')
    SupervisionSet.from_segments(supervisions).to_file(tmp_path / 'prepared' / 'my_supervisions_train.jsonl.gz')
    return tmp_path / 'prepared'


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    return {row['id']: row for _, row in corpus_rows(path)}


def test_a_supervision_is_a_span_of_its_recording(corpus: Path) -> None:
    rows = rows_of(corpus / 'my_supervisions_train.jsonl.gz')
    spans = {id_: (Path(row['audio_filepath']).name, row['offset'], row['duration']) for id_, row in rows.items()}
    assert spans == {
        'talk-0': ('talk.wav', 0.25, 1.0), 'talk-1': ('talk.wav', 1.5, 1.0), 'line-0': ('line.wav', 0.0, 3.0),
    }  # fmt: skip
    assert [row['text'] for row in rows.values()] == ['good day', 'hello anna', 'guten tag']
    assert [row['lang'] for row in rows.values()] == ['en', 'en', 'de']
    assert [row['group'] for row in rows.values()] == ['talk', 'talk', 'line']
    assert rows['line-0']['translation'] == 'good day' and rows['line-0']['target_lang'] == 'en'
    assert not list(corpus_rows(corpus / 'my_recordings_train.jsonl.gz')), 'they are read with their supervisions'


def test_times_of_words_count_from_the_span(corpus: Path) -> None:
    found = dict(manifest_rows([str(corpus / 'my_supervisions_train.jsonl.gz')], 'en'))
    assert found['talk-1']['words'] == [('hello', 0.0, 0.25), ('anna', 0.25, 0.75)]
    assert found['talk-0']['words'] is None


def test_cuts_give_the_same_rows(corpus: Path, tmp_path: Path) -> None:
    recordings, supervisions = sorted(manifest_files([str(corpus)]))
    cuts = CutSet.from_manifests(RecordingSet.from_file(recordings), SupervisionSet.from_file(supervisions))
    cuts.to_file(tmp_path / 'whole.jsonl.gz')
    cuts.trim_to_supervisions().to_file(tmp_path / 'trimmed.jsonl')
    for path in (tmp_path / 'whole.jsonl.gz', tmp_path / 'trimmed.jsonl'):
        assert rows_of(path) == rows_of(corpus / 'my_supervisions_train.jsonl.gz')


@pytest.mark.parametrize('names', [('my_supervisions_train.jsonl.gz',), ('my_recordings_train.jsonl.gz',), ('.',)])
def test_both_files_are_found_by_either(corpus: Path, names: tuple[str, ...]) -> None:
    found = manifest_files([str(corpus / name) for name in names])
    assert sorted(Path(path).name for path in found) == [
        'my_recordings_train.jsonl.gz', 'my_supervisions_train.jsonl.gz',
    ]  # fmt: skip


def test_a_nemo_manifest_passes_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / 'recordings.jsonl'
    path.write_text('{"audio_filepath": "a.wav", "text": "hello"}\n')
    assert list(corpus_rows(path)) == [(1, {'audio_filepath': 'a.wav', 'text': 'hello'})]
    assert manifest_files([str(path)]) == [str(path)]


def test_folders_that_cannot_be_meant(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / 'empty').mkdir()
    with pytest.raises(VtbDataError, match='no manifests of lhotse') as none:
        manifest_files([str(tmp_path / 'empty')])
    assert none.value.field == 'INPUT'
    (corpus / 'my_cuts_train.jsonl.gz').write_bytes(b'')
    with pytest.raises(VtbDataError, match='cuts and supervisions'):
        manifest_files([str(corpus)])


def test_what_cannot_be_read_is_told_with_its_reason(corpus: Path, tmp_path: Path) -> None:
    supervisions = SupervisionSet.from_file(corpus / 'my_supervisions_train.jsonl.gz')
    (tmp_path / 'other').mkdir()
    first, *_ = RecordingSet.from_file(corpus / 'my_recordings_train.jsonl.gz')
    RecordingSet.from_recordings([first]).to_file(tmp_path / 'other' / 'recordings.jsonl')
    supervisions.to_file(tmp_path / 'other' / 'supervisions.jsonl')
    told: list[tuple[int, VtbDataError]] = []
    kept = [row['id'] for _, row in corpus_rows(tmp_path / 'other' / 'supervisions.jsonl', lambda *a: told.append(a))]
    assert kept == ['talk-0', 'talk-1']
    assert [(number, error.reason) for number, error in told] == [(3, Reason.AUDIO_MISSING)]
    (tmp_path / 'other' / 'recordings.jsonl').unlink()
    with pytest.raises(VtbDataError, match='not beside them'):
        list(corpus_rows(tmp_path / 'other' / 'supervisions.jsonl'))


@pytest.mark.parametrize(
    ('name', 'split'),
    [
        ('librispeech_supervisions_dev-clean.jsonl.gz', 'validation'),
        ('librispeech_supervisions_test-other.jsonl.gz', 'test'),
        ('librispeech_supervisions_train-clean-100.jsonl.gz', None),
        ('cv-de_supervisions_validated.jsonl.gz', None),
        ('gigaspeech_supervisions_DEV.jsonl.gz', 'validation'),
        ('my_cuts_valid.jsonl', 'validation'),
        ('test.jsonl', None),
    ],
)
def test_parts_by_their_names(name: str, split: str | None) -> None:
    assert part_of(f'/data/{name}') == split


def test_names_of_sources_and_languages() -> None:
    assert source_of('/data/mls-german_supervisions_dev.jsonl.gz') == 'mls-german_dev'
    assert source_of('manifest.jsonl') == 'manifest'
    codes = [language_code(name) for name in ('English', 'german', 'pt-BR', 'en_us', 'fr', None)]
    assert codes == ['en', 'de', 'pt', 'en', 'fr', None]
