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
"""The ledger adds up, survives a resume, and is drawn."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from nemo_vtb.data.ledger import Ledger, SourceAccount


def ledger(unit: str = 'tokens') -> Ledger:
    accounts = [SourceAccount('chats', 'text', 0.25, 100), SourceAccount('asr', 'asr_ast', 0.75, 50)]
    return Ledger(accounts, 100, unit)


def filled(batches: int = 10) -> Ledger:
    book = ledger()
    for _ in range(batches):
        book.add('chats', 2, 48, 10, 0.0)
        book.add('asr', 5, 144, 20, 7.5)
        book.close_batch(2)
    return book


def test_shares_padding_and_epochs() -> None:
    book = filled()
    assert book.shares() == {'chats': 0.25, 'asr': 0.75}
    assert book.kind_shares()['asr_ast'] == (0.75, 0.75)
    assert book.padding == pytest.approx(0.04)
    assert book.short() == 'shares off by 0.0%  skipped 0'
    book.add('chats', 1, 25, 1, 0.0)
    # of tokens: (n + 25) / (4 n + 25) in place of a quarter
    chats = book.accounts['chats'].tokens
    off = chats / book.tokens / 0.25 - 1
    assert book.short() == f'shares off by {off:.1%}  skipped 0' and off > 0.01
    assert book.accounts['asr'].epochs == 1.0
    assert book.accounts['asr'].audio_s == 75.0
    assert ledger().padding == 0.0
    assert ledger().shares() == {'chats': 0.0, 'asr': 0.0}


def test_supervised_tokens_can_be_the_unit() -> None:
    book = ledger('supervised_tokens')
    book.add('chats', 1, 1000, 1, 0.0)
    book.add('asr', 1, 10, 3, 0.0)
    assert book.shares() == {'chats': 0.25, 'asr': 0.75}


def test_what_could_not_be_loaded_is_taken_back_and_counted() -> None:
    book = filled()
    book.add('asr', -1, -20, -4, -1.5)
    book.skip('asr', 'audio_missing')
    book.skip('asr', 'audio_missing', 2)
    assert book.accounts['asr'].conversations == 49
    assert book.skipped == 3
    assert book.short().endswith('skipped 3')
    assert book.to_json()['skips'] == {'audio_missing': 3}


def test_it_is_saved_whole_and_read_back(tmp_path: Path) -> None:
    book = filled()
    book.save(tmp_path / 'run' / 'ledger.json')
    state = json.loads((tmp_path / 'run' / 'ledger.json').read_text())
    assert Ledger.from_json(state).to_json() == book.to_json() == state
    other = ledger()
    other.load_state_dict(state)
    assert other.to_json() == book.to_json()
    assert [p.name for p in (tmp_path / 'run').iterdir()] == ['ledger.json']


def test_the_curve_of_a_long_run_stays_short() -> None:
    book = filled(5000)
    assert 100 < len(book.to_json()['curve']) <= 401
    assert book.to_json()['curve'][-1][0] > 4900


def test_table_and_picture(tmp_path: Path) -> None:
    console = Console(record=True, width=160)
    book = filled()
    book.skip('asr', 'overlong', 4)
    book.table(console)
    shown = console.export_text()
    assert '75.00%' in shown
    assert '4 overlong' in shown
    book.plot(tmp_path / 'ledger.png')
    assert (tmp_path / 'ledger.png').read_bytes()[:4] == b'\x89PNG'
    ledger().plot(tmp_path / 'empty.png')
