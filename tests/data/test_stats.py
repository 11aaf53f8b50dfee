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
"""Lengths of the data: figures that can be checked by hand, and the bounds that lhotse estimates."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from data_helpers import spoken, text, write_jsonl, write_wav

from nemo_vtb.data.counting import Meter
from nemo_vtb.data.index import open_index
from nemo_vtb.data.sources import parse_input_cfg
from nemo_vtb.data.stats import Lengths, Spread, Stats, bucket_bounds, draw_stats


def test_a_spread_by_hand() -> None:
    spread = Spread.of(np.array([4.0, 1.0, 3.0, 2.0]), buckets=2)
    assert (spread.mean, spread.min, spread.max, spread.total) == (2.5, 1.0, 4.0, 10.0)
    assert spread.std == pytest.approx(1.25**0.5)
    assert spread.percentiles == {
        '1': 1.03, '5': 1.15, '25': 1.75, '50': 2.5, '75': 3.25, '95': 3.85, '99': 3.97, '99.9': 3.997,
    }  # fmt: skip
    assert sum(spread.counts) == 4 and (spread.edges[0], spread.edges[-1]) == (1.0, 4.0)
    assert (spread.counts[0], spread.counts[-1]) == (1, 1)
    # half of the sum is 5: 1 + 2 + 3 are more, so that the second bucket begins at 4
    assert spread.bins == [4.0]


def test_nothing_has_no_spread() -> None:
    spread = Spread.of(np.zeros(0))
    assert (spread.total, spread.max, sum(spread.counts), list(spread.bins)) == (0.0, 0.0, 0, [])


@pytest.mark.parametrize('buckets', [2, 3, 10, 30])
@pytest.mark.parametrize('seed', range(3))
def test_bounds_are_lhotses(seed: int, buckets: int) -> None:
    from lhotse.dataset.sampling.dynamic_bucketing import estimate_duration_buckets

    # sixteenths of a second: sums are exact, whatever their order
    seconds = np.sort(np.random.default_rng(seed).integers(1, 400, 500) / 16)
    constraint = SimpleNamespace(measure_length=lambda value: value)
    assert bucket_bounds(seconds, buckets) == estimate_duration_buckets(seconds, buckets, constraint)


def test_lengths_of_an_index_by_hand(tmp_path: Path, meter: Meter) -> None:
    """From the index alone: the recordings are gone."""
    wavs = [write_wav(tmp_path / f'{n}.wav', seconds) for n, seconds in enumerate((0.5, 1.0, 2.0))]
    chats = [
        {'id': str(n), 'conversations': [spoken(f'{n}.wav'), text('Assistant', 'yes please')]}
        for n in range(3)
    ]  # fmt: skip
    plain = [{'id': 't', 'conversations': [text('User', 'a'), text('Assistant', 'b')]}]
    indexes = []
    for name, kind, lines in (('asr', 'asr_ast', chats), ('chat', 'text', plain)):
        path = str(write_jsonl(tmp_path / f'{name}.jsonl', lines))
        (spec,) = parse_input_cfg([{'type': 'multimodal_conversation', 'kind': kind, 'manifest_filepath': path}])
        indexes.append(open_index(spec, meter, tmp_path / 'index', quiet=True))
    for wav in wavs:
        wav.unlink()
    frames, words = [7, 13, 26], int(indexes[0].column('text')[0])  # 80 ms each, and one more
    stats = Stats.of(indexes, max_tokens=words + 20, buckets=2)
    asr = stats.kinds['asr_ast']
    assert (asr.conversations, asr.with_audio, asr.overlong) == (3, 3, 1)
    assert (asr.duration_s.total, asr.duration_s.percentiles['50'], asr.duration_s.max) == (3.5, 1.0, 2.0)
    assert asr.tokens.total == sum(frames) + 3 * words and asr.tokens.percentiles['50'] == 13 + words
    assert asr.text_tokens.total == 3 * words
    assert asr.supervised_tokens.mean == int(indexes[0].column('supervised')[0])
    assert stats.sources == {'asr': asr, 'chat': stats.kinds['text']}
    assert (stats.total.conversations, stats.total.with_audio) == (4, 3)
    assert stats.kinds['text'].duration_s.total == 0
    assert stats.total == Lengths.of(indexes, words + 20, 2)
    assert draw_stats(stats, tmp_path / 'stats.png').read_bytes()[:4] == b'\x89PNG'
