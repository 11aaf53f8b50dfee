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
"""What is longer than a row is cut between turns, left out with a reason, or an error."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import count_frames, spoken, text, write_jsonl, write_wav

from nemo_vtb.data.collate import Collator
from nemo_vtb.data.index import Meter, open_index
from nemo_vtb.data.overlong import FittedSource, keep_exchanges
from nemo_vtb.data.sources import parse_input_cfg
from nemo_vtb.errors import VtbDataError


def long_chat(id_: str, exchanges: int, words: int = 6) -> dict[str, Any]:
    turns = [text('System', 'yes')]
    for _ in range(exchanges):
        turns += [text('User', 'turn on the lamp ' * words), spoken('a.wav'), text('Assistant', 'no ' * words)]
    return {'id': id_, 'conversations': turns}


def fitted(tmp_path: Path, meter: Meter, lines: list[Any], max_tokens: int, overlong: str) -> FittedSource:
    write_wav(tmp_path / 'a.wav', 0.5)
    path = write_jsonl(tmp_path / 'm.jsonl', lines)
    spec = parse_input_cfg(
        [{'type': 'multimodal_conversation', 'kind': 'mixed_modal', 'manifest_filepath': str(path)}]
    )[0]
    return FittedSource(open_index(spec, meter, tmp_path / 'index', quiet=True), meter, max_tokens, overlong)


LINES = [long_chat('short', 1), long_chat('long', 5), long_chat('huge', 1, 100), long_chat('also short', 1)]


def test_cut_keeps_whole_exchanges_and_the_system_turn(tmp_path: Path, meter: Meter) -> None:
    source = fitted(tmp_path, meter, LINES, 200, 'cut')
    collator = Collator(meter.renderer, count_frames)
    assert [source.read(n).id for n in range(len(source))] == ['short', 'long', 'also short']
    assert source.num_cut == 1
    cut = source.read(1)
    assert cut.turns[0].role == 'system'
    assert cut.turns[-1].role == 'assistant'
    tokens, supervised, seconds = source.measure(np.arange(3))
    for entry in range(3):
        batch = collator([source.read(entry)])
        assert batch.num_tokens == tokens[entry] <= 200
        assert (batch.labels != -100).sum() == supervised[entry]
        assert float(batch.audio_lens.sum()) / 16000 == pytest.approx(float(seconds[entry]))
    more = keep_exchanges(source.index.read(1), len(cut.audios) + 1)
    assert meter.measure(more)['length'] > 200
    assert [fault['id'] for fault in source.dropped] == ['huge']
    assert source.dropped[0]['reason'] == 'overlong'


def test_the_cut_is_remembered(tmp_path: Path, meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fitted(tmp_path, meter, LINES, 200, 'cut')
    monkeypatch.setattr(FittedSource, '_cut_to', lambda *_: pytest.fail('measured again'))
    again = FittedSource(first.index, meter, 200, 'cut')
    assert again.measure(np.arange(3))[0].tolist() == first.measure(np.arange(3))[0].tolist()


def test_drop_leaves_out_and_error_stops(tmp_path: Path, meter: Meter) -> None:
    source = fitted(tmp_path, meter, LINES, 200, 'drop')
    assert [source.read(n).id for n in range(len(source))] == ['short', 'also short']
    assert [fault['id'] for fault in source.dropped] == ['long', 'huge']
    assert source.locate(1)['byte_offset'] == source.index.column('offset')[3]
    with pytest.raises(VtbDataError, match='longer than a row'):
        fitted(tmp_path, meter, LINES, 200, 'error')


def test_a_source_of_nothing_but_too_long_conversations_is_named(tmp_path: Path, meter: Meter) -> None:
    with pytest.raises(VtbDataError, match='longer than a row'):
        fitted(tmp_path, meter, [long_chat('a', 3), long_chat('b', 4)], 60, 'drop')
