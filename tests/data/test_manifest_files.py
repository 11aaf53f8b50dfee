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
"""lhotse Shar and gzipped manifests, written by lhotse itself, from their index to the samples that are heard."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import text, write_jsonl, write_wav
from lhotse import CutSet, Recording, SupervisionSegment

from nemo_vtb.data.audio import read_audio
from nemo_vtb.data.manifest_files import expand_paths, unpack_gzip
from nemo_vtb.data.sources import parse_input_cfg
from nemo_vtb.errors import VtbConfigError, VtbDataError

pytestmark = pytest.mark.unit
NUM_CUTS = 7


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('NEMO_VTB_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.fixture
def cuts(tmp_path: Path) -> CutSet:
    """Cuts from the middle of recordings, at other rates, each at a level of its own."""
    made = []
    for number in range(NUM_CUTS):
        wav = write_wav(
            tmp_path / 'wav' / f'{number}.wav', 1.0, level=0.1 * (number + 1), rate=(16000, 8000)[number % 2]
        )
        cut = Recording.from_file(wav).to_cut().truncate(offset=0.25, duration=0.5)
        cut.id = f'utt-{number}'
        cut.supervisions = [SupervisionSegment(f's{number}', cut.recording_id, 0.0, 0.5, text=f'word {number}')]
        cut.context = f'Question {number}?'
        made.append(cut)
    return CutSet.from_cuts(made)


@pytest.fixture
def shar(cuts: CutSet, tmp_path: Path) -> Path:
    (tmp_path / 'shar').mkdir()
    cuts.to_shar(tmp_path / 'shar', fields={'recording': 'flac'}, shard_size=3)
    return tmp_path / 'shar'


def entry(**keys: Any) -> dict[str, Any]:
    return {'kind': 'asr_ast', **keys}


def heard(module: Callable[..., Any], **keys: Any) -> dict[str, tuple[str, float]]:
    """Through the index: answer and level of each conversation."""
    data = module(num_batches=1, train_ds={'input_cfg': [entry(**keys)], 'seed': 7}, budget={'asr_ast': 1.0})
    (source,) = data.sources
    found = {}
    for number in range(len(source)):
        conversation = source.read(number)
        (audio,) = conversation.audios
        samples = read_audio(audio)
        assert len(samples) == 8000
        found[conversation.id] = (conversation.answer, float(np.abs(samples).max()))
    return found


EXPECTED = {f'utt-{n}': (f'word {n}', pytest.approx(0.1 * (n + 1), rel=0.05)) for n in range(NUM_CUTS)}


def test_shar_by_folder(shar: Path, module: Callable[..., Any]) -> None:
    assert len(list(shar.glob('cuts.*.jsonl.gz'))) == 3
    assert heard(module, type='lhotse_shar', shar_path=str(shar)) == EXPECTED


def test_shar_by_fields_and_as_conversations(shar: Path, module: Callable[..., Any]) -> None:
    """NeMo's other spelling, with patterns; `context` is what is asked."""
    paths = {
        'cuts': f'{shar}/cuts._OP_000000..000002_CL_.jsonl.gz',
        'recording': f'{shar}/recording._OP_000000..000002_CL_.tar',
    }
    assert heard(module, type='lhotse_as_conversation', shar_path=paths) == EXPECTED
    spec = parse_input_cfg([entry(type='lhotse_as_conversation', shar_path=paths)])[0]
    line = json.loads(Path(spec.files[0]).read_text().splitlines()[0])
    conversation = spec.read(line, 0, 'here')
    assert conversation is not None and conversation.turns[0].text == 'Question 0?'


def test_a_second_look_takes_the_copy_and_a_changed_shard_a_new_one(shar: Path, cuts: CutSet, cache: Path) -> None:
    first = parse_input_cfg([entry(type='lhotse_shar', shar_path=str(shar))])[0].files
    again = parse_input_cfg([entry(type='lhotse_shar', shar_path=str(shar))])[0].files
    assert first == again and all(Path(path).is_relative_to(cache) for path in first)
    cuts.subset(first=3).to_shar(shar, fields={'recording': 'wav'}, shard_size=3)
    changed = parse_input_cfg([entry(type='lhotse_shar', shar_path=str(shar))])[0].files
    assert changed[0] != first[0] and changed[1:] == first[1:]


def test_a_cut_archive_is_counted_by_reason(shar: Path, module: Callable[..., Any]) -> None:
    archive = shar / 'recording.000000.tar'
    os.truncate(archive, 700)
    data = module(
        num_batches=1, train_ds={'input_cfg': [entry(type='lhotse_shar', shar_path=str(shar))], 'seed': 7},
        budget={'asr_ast': 1.0}, max_skip_ratio=0.9,
    )  # fmt: skip
    (source,) = data.sources
    assert source.index.meta['quarantined'] == {'audio_not_in_tar': 3}


def test_shards_that_do_not_belong_together(shar: Path) -> None:
    pair = {'cuts': [f'{shar}/cuts.000000.jsonl.gz'], 'recording': [f'{shar}/recording.000001.tar']}
    with pytest.raises(VtbDataError, match='do not belong together') as caught:
        parse_input_cfg([entry(type='lhotse_shar', shar_path=pair)])
    assert 'utt-0' in str(caught.value) and 'utt-3' in str(caught.value)


def test_shar_without_recordings_or_folder(tmp_path: Path, shar: Path) -> None:
    for archive in shar.glob('recording.*.tar'):
        archive.unlink()
    shar.rename(tmp_path / 'bare')
    with pytest.raises(VtbConfigError, match='no lhotse Shar') as caught:
        parse_input_cfg([entry(type='lhotse_shar', shar_path=str(tmp_path / 'bare'))])
    assert '3 manifests of cuts, 0 archives' in str(caught.value)
    with pytest.raises(VtbDataError, match='does not exist'):
        parse_input_cfg([entry(type='lhotse_shar', shar_path=str(tmp_path / 'none'))])


def test_gzipped_cuts(cuts: CutSet, tmp_path: Path, module: Callable[..., Any]) -> None:
    cuts.to_file(tmp_path / 'cuts.jsonl.gz')
    assert heard(module, type='lhotse_as_conversation', cuts_path=str(tmp_path / 'cuts.jsonl.gz')) == EXPECTED


def test_relative_paths_count_from_the_gzipped_original(tmp_path: Path, module: Callable[..., Any]) -> None:
    write_wav(tmp_path / 'data' / 'wav' / 'a.wav', 0.5, level=0.3)
    lines = [{'id': 'a', 'audio_filepath': 'wav/a.wav', 'duration': 0.5, 'text': 'hello'}]
    plain = write_jsonl(tmp_path / 'data' / 'm.jsonl', lines)
    with gzip.open(tmp_path / 'data' / 'm.jsonl.gz', 'wb') as stream:
        stream.write(plain.read_bytes())
    found = heard(module, type='nemo', manifest_filepath=str(tmp_path / 'data' / 'm.jsonl.gz'))
    assert found == {'a': ('hello', pytest.approx(0.3, rel=0.05))}


@pytest.mark.parametrize('damage', ['cut', 'flipped'])
def test_a_damaged_gzip_is_named_and_leaves_nothing(tmp_path: Path, cache: Path, damage: str) -> None:
    path = tmp_path / 'm.jsonl.gz'
    lines = [{'id': str(n), 'conversations': [text('User', 'hi' * n), text('Assistant', 'ho')]} for n in range(99)]
    path.write_bytes(gzip.compress(b'\n'.join(json.dumps(line).encode() for line in lines)))
    raw = bytearray(path.read_bytes())
    if damage == 'cut':
        raw = raw[: len(raw) // 2]
    else:
        raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(VtbDataError, match='cut off or damaged') as caught:
        unpack_gzip(str(path))
    assert 'm.jsonl.gz' in str(caught.value)
    assert not list((cache / 'manifests').iterdir())


PATTERNS = ('a/m__OP_0..2_CL_.jsonl', 'z_{1..2}.jsonl', 'b_[01..03].jsonl', '{x,y}/m.jsonl')


def test_shard_patterns_are_expanded() -> None:
    assert expand_paths(PATTERNS[0]) == [f'a/m_{n}.jsonl' for n in range(3)]
    assert expand_paths(['x.jsonl', ['y.jsonl', 0.5], PATTERNS[1]]) == ['x.jsonl', 'y.jsonl', 'z_1.jsonl', 'z_2.jsonl']
    assert expand_paths('plain (1).jsonl') == ['plain (1).jsonl']


@pytest.mark.slow
@pytest.mark.parametrize('pattern', PATTERNS)
def test_shard_patterns_are_expanded_as_nemo_does(pattern: str) -> None:
    from nemo.collections.common.data.lhotse.nemo_adapters import expand_sharded_filepaths

    assert expand_paths(pattern) == expand_sharded_filepaths(pattern)
