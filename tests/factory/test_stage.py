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
"""Work lists and journals: nothing is lost, repeated or mixed up, wherever a kill cuts."""

import json
from dataclasses import dataclass

import pytest

from nemo_vtb.errors import VtbDataError
from nemo_vtb.factory.stage import (
    KEPT,
    Item,
    Journal,
    Outcome,
    input_digests,
    open_work_list,
    read_journals,
    read_outcomes,
)


@dataclass
class Counting:
    count: int = 10
    chunk: int = 4
    kind: str = 'counting'
    seed: int = 0

    def describe(self):
        return {'settings': {'seed': self.seed, 'count': self.count}}

    def items(self):
        return (Item(f'item-{n}', f'group-{n // 2}', {'n': n, 'text': 'zwölf\u2028\r\n'}) for n in range(self.count))

    def make(self, items, out):
        return [Outcome(item.id, item.group, {'id': item.id}) for item in items]


def outcomes(chunk):
    return [Outcome(f'{chunk}-{n}', 'g', {'id': 'ü'}, KEPT, {'wer': 0.1}, ('a.wav',), 'u') for n in range(3)]


def test_work_list_gives_each_item_once(tmp_path):
    work = open_work_list(Counting(), tmp_path)
    assert len(work) == 3
    items = [item for chunk in range(3) for item in work.read(chunk)]
    assert items == list(Counting().items())
    assert [len(work.read(chunk)) for chunk in range(3)] == [4, 4, 2]


def test_work_list_is_found_again_and_not_made_anew(tmp_path):
    open_work_list(Counting(), tmp_path)
    before = (tmp_path / '.work' / 'work.jsonl').stat().st_mtime_ns
    open_work_list(Counting(), tmp_path)
    assert (tmp_path / '.work' / 'work.jsonl').stat().st_mtime_ns == before


def test_another_production_is_refused_by_name(tmp_path):
    open_work_list(Counting(), tmp_path)
    with pytest.raises(VtbDataError, match='settings.seed') as caught:
        open_work_list(Counting(seed=1), tmp_path)
    assert (caught.value.got, caught.value.allowed) == (1, 0)
    with pytest.raises(VtbDataError, match='chunk'):
        open_work_list(Counting(chunk=5), tmp_path)


def test_a_list_that_a_kill_left_without_stamp_is_made_anew(tmp_path):
    open_work_list(Counting(), tmp_path)
    (tmp_path / '.work' / 'stamp.json').unlink()
    (tmp_path / '.work' / 'work.jsonl').write_text('half')
    work = open_work_list(Counting(), tmp_path)
    assert [item for chunk in range(len(work)) for item in work.read(chunk)] == list(Counting().items())


def test_identities_must_differ_and_something_must_be_there(tmp_path):
    class Twice(Counting):
        def items(self):
            return iter([Item('a', 'g', {}), Item('a', 'g', {})])

    with pytest.raises(VtbDataError, match='one id'):
        open_work_list(Twice(), tmp_path / 'a')
    with pytest.raises(VtbDataError, match='nothing to make'):
        open_work_list(Counting(count=0), tmp_path / 'b')


def test_journal_gives_back_what_was_written(tmp_path):
    open_work_list(Counting(), tmp_path)
    with Journal(tmp_path, '0-of-1') as journal:
        journal.add(2, outcomes(2))
        journal.add(0, outcomes(0))
    places = read_journals(tmp_path)
    assert sorted(places) == [0, 2]
    assert read_outcomes(*places[2]) == outcomes(2)
    assert read_outcomes(*places[0]) == outcomes(0)


def test_a_line_that_is_cut_anywhere_is_made_again(tmp_path):
    open_work_list(Counting(), tmp_path)
    with Journal(tmp_path, '0-of-1') as journal:
        journal.add(0, outcomes(0))
        whole = journal.path.stat().st_size
        journal.add(1, outcomes(1))
    data = journal.path.read_bytes()
    for end in range(whole, len(data)):
        journal.path.write_bytes(data[:end])
        assert sorted(read_journals(tmp_path)) == [0], end
        with Journal(tmp_path, '0-of-1') as again:
            again.add(1, outcomes(1))
        assert journal.path.read_bytes() == data, end


def test_a_damaged_line_and_what_follows_do_not_count(tmp_path):
    open_work_list(Counting(), tmp_path)
    with Journal(tmp_path, '0-of-1') as journal:
        for chunk in range(3):
            journal.add(chunk, outcomes(chunk))
    data = bytearray(journal.path.read_bytes())
    data[len(data) // 2] ^= 1
    journal.path.write_bytes(bytes(data))
    assert sorted(read_journals(tmp_path)) == [0]


def test_one_process_alone_works_on_a_shard(tmp_path):
    open_work_list(Counting(), tmp_path)
    with Journal(tmp_path, '0-of-2'), Journal(tmp_path, '1-of-2'):
        with pytest.raises(VtbDataError, match='Another process'):
            Journal(tmp_path, '0-of-2')


def test_inputs_are_known_by_content(tmp_path):
    path = tmp_path / 'a.jsonl'
    path.write_text('{}\n')
    before = input_digests([path])
    path.write_text('{} \n')
    assert input_digests([path]) != before and json.dumps(before)
    with pytest.raises(VtbDataError, match='does not exist'):
        input_digests([tmp_path / 'b.jsonl'])
