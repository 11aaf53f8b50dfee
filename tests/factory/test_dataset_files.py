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
"""Outcomes to files: splits, duplicates, archives that NeMo's and our readers take, indexes, the card."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from factory_helpers import digest, read_lines, write_manifest

from nemo_vtb.data.audio import read_audio
from nemo_vtb.data.conversation import conversation_from_dict
from nemo_vtb.data.sources import parse_input_cfg
from nemo_vtb.errors import VtbDataError
from nemo_vtb.factory.dataset_files import _publish, finish, split_of
from nemo_vtb.factory.pipeline import make_stage, produce
from nemo_vtb.factory.settings import Common
from nemo_vtb.factory.stage import WORK, Item, Journal, Outcome, read_journals, read_outcomes
from nemo_vtb.io import json_line, parse_json_lines

TEXTS = ['Turn on the lamp.', 'Open the door, please.', 'It is ten to four.', 'Close the window.', 'Say it again.']


@dataclass
class Given:
    outcomes: tuple
    kind: str = 'text'
    chunk: int = 2

    def describe(self):
        return {}

    def items(self):
        return (Item(outcome.id, outcome.group, {}) for outcome in self.outcomes)

    def make(self, items, out):
        return [next(o for o in self.outcomes if o.id == item.id) for item in items]


def line(name):
    turns = [{'type': 'text', 'from': who, 'value': name} for who in ('User', 'Assistant')]
    return {'id': name, 'conversations': turns, 'custom': {}}


def test_all_of_a_group_goes_into_one_split_and_shares_are_met():
    splits = [split_of(f'recording-{n}', 0, 0.1, 0.2) for n in range(4000)]
    assert abs(splits.count('validation') / 4000 - 0.1) < 0.02 and abs(splits.count('test') / 4000 - 0.2) < 0.02
    assert splits == [split_of(f'recording-{n}', 0, 0.1, 0.2) for n in range(4000)]
    assert splits != [split_of(f'recording-{n}', 1, 0.1, 0.2) for n in range(4000)]


def test_order_duplicates_and_rejects(tmp_path):
    (tmp_path / 'wav').mkdir()
    for name in ('b', 'd', 'x'):
        (tmp_path / 'wav' / f'{name}.wav').write_text('')
    outcomes = (
        Outcome('a', 'a', line('a'), unique='same'),
        Outcome('b', 'b', line('b'), unique='same', files=('wav/b.wav',)),
        Outcome('c', 'c', line('c'), unique='other'),
        Outcome('d', 'd', None, 'wer', {'spans': [{'wer': 0.5, 'voice': 'v'}]}, ('wav/d.wav',)),
        Outcome('e', 'e', line('e')),
        Outcome('f', 'f', line('f')),
    )
    stage = Given(outcomes)
    produce(stage, tmp_path)
    card = finish(stage, Common(validation_share=0.0), tmp_path)
    assert [row['id'] for row in read_lines(tmp_path / 'text.train.jsonl')] == ['a', 'c', 'e', 'f']
    rejected = {row['id']: row['reason'] for row in read_lines(tmp_path / 'rejected.jsonl')}
    assert rejected == {'b': 'duplicate', 'd': 'wer'}
    assert [path.name for path in (tmp_path / 'wav').iterdir()] == ['x.wav']
    assert dict(card.reasons) == {'kept': 4, 'duplicate': 1, 'wer': 1}
    assert '| wer | 1 | 16.7% |' in (tmp_path / 'card.md').read_text()
    offsets = np.fromfile(tmp_path / 'text.train.jsonl.idx', '<u8')
    raw = (tmp_path / 'text.train.jsonl').read_bytes()
    assert [json.loads(raw[a:b])['id'] for a, b in zip(offsets, offsets[1:], strict=False)] == ['a', 'c', 'e', 'f']


def test_the_order_of_making_does_not_matter(tmp_path):
    outcomes = tuple(Outcome(str(n), str(n), line(str(n)), unique=str(n % 3)) for n in range(8))
    stage = Given(outcomes)
    for number, order in enumerate(((0, 1, 2, 3), (3, 1, 0, 2))):
        out = tmp_path / str(number)
        with pytest.raises(VtbDataError, match='not complete'):
            finish(stage, Common(), out)
        for chunk in order:
            with Journal(out, f'{chunk}-of-4') as journal:
                journal.add(chunk, outcomes[2 * chunk : 2 * chunk + 2])
        finish(stage, Common(), out)
    assert digest(tmp_path / '0') == digest(tmp_path / '1')


@pytest.fixture(scope='module')
def archives(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp('manifest')
    manifest = write_manifest(folder, TEXTS)
    stage = make_stage('asr_ast', [str(manifest)], {'form': 'tar', 'shard_size': 2, 'validation_share': 0.0})
    out = folder / 'out'
    produce(stage, out)
    finish(stage, stage.settings, out)
    return folder, out / 'asr_ast.train'


def test_archives_are_read_by_our_sources(archives):
    folder, tars = archives
    assert sorted(path.name for path in tars.glob('*.tar')) == ['audio_0.tar', 'audio_1.tar', 'audio_2.tar']
    entry = {
        'type': 'multimodal_conversation', 'manifest_filepath': f'{tars}/manifest_{{0..2}}.jsonl',
        'tarred_audio_filepaths': f'{tars}/audio_{{0..2}}.tar',
    }  # fmt: skip
    (source,) = parse_input_cfg([entry])
    assert source.kind == 'asr_ast'
    for number, text in enumerate(TEXTS):
        row = read_lines(tars / f'manifest_{number // 2}.jsonl')[number % 2]
        found = source.read(row, number // 2, 'here')
        assert found is not None and found.audios[0].text == text
        original = read_audio(conversation_from_dict(_audio_line(folder, number)).audios[0])
        assert np.array_equal(read_audio(found.audios[0]), original)


@pytest.mark.integration
def test_archives_are_read_by_nemo(archives):
    from nemo.collections.common.data.lhotse.indexed_adapters import IndexedJSONLReader, IndexedTarSampleReader
    from nemo.collections.common.data.lhotse.text_adapters import NeMoMultimodalConversationJsonlAdapter

    _, tars = archives
    adapter = NeMoMultimodalConversationJsonlAdapter(
        manifest_filepath=[str(tars / f'manifest_{n}.jsonl') for n in range(3)],
        tarred_audio_filepaths=[str(tars / f'audio_{n}.tar') for n in range(3)],
        audio_locator_tag='<audio>',
    )
    found = list(adapter)
    assert len(found) == len(TEXTS)
    assert [len(cut.load_audio()[0]) for each in found for cut in each.list_cuts()] == [
        16000 + 1600 * n for n in range(len(TEXTS))
    ]
    reader = IndexedTarSampleReader(tars / 'audio_0.tar')
    assert len(reader) == 2 and reader[1].audio_name.endswith('.flac')
    assert IndexedJSONLReader(tars / 'manifest_0.jsonl')[1] == read_lines(tars / 'manifest_0.jsonl')[1]


def _audio_line(folder: Path, number: int) -> dict:
    turns = [
        {'type': 'audio', 'from': 'User', 'value': str(folder / f'rec-{number}.wav')},
        {'type': 'text', 'from': 'Assistant', 'value': 'x'},
    ]
    return {'id': 'x', 'conversations': turns}


def test_archives_of_texts_with_line_separators_are_cut_at_line_feeds_alone(tmp_path: Path) -> None:
    texts = ['wide\u2028and blue', 'next\x85line', 'a\u2029b\x1ec']
    lines = [
        {'id': f'c{n}', 'conversations': [{'from': 'User', 'type': 'text', 'value': t}]} for n, t in enumerate(texts)
    ]
    part = tmp_path / 'part.jsonl'
    part.write_text(''.join(map(json_line, lines)), encoding='utf-8')
    _publish(part, tmp_path, 'text.train', Common(form='tar', shard_size=2))
    manifests = [tmp_path / 'text.train' / f'manifest_{n}.jsonl' for n in range(2)]
    assert [line for path in manifests for line in parse_json_lines(path.read_bytes())] == lines


def test_a_journal_gives_back_any_text(tmp_path: Path) -> None:
    (tmp_path / WORK).mkdir()
    odd = ['a\u2028b', 'c\x85d', '\ud800', 'e\x1ef']
    outcomes = [Outcome(text, 'g', None, 'no', {'text': text}) for text in odd]
    with Journal(tmp_path, '0') as journal:
        journal.add(0, outcomes)
        journal.add(1, outcomes)
    places = read_journals(tmp_path)
    assert sorted(places) == [0, 1]
    assert read_outcomes(*places[1]) == outcomes
