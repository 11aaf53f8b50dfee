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
"""What an evaluation shows and saves."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn
from nemo_vtb.errors import VtbCheckpointError, VtbDataError
from nemo_vtb.evaluation.result import Evaluation, ExampleScore, Metric, Sample, readable
from nemo_vtb.evaluation.tables import show_examples, show_table, to_tensorboard

METRICS = (
    Metric('speech', 'asr', 'commands', 'WER', 40, 12.34, (8.0, 15.0), higher_is_better=False, signature='jiwer'),
    Metric('speech', 'text', 'typed-chat', 'perplexity', 60, 5.05, (4.0, 6.0), 5.0, 0.05, (0.0, 0.1), 0.02, False, ''),
)
SAMPLES = (
    Sample(
        'a#1', 'asr', 'commands', 'user: ▶ a.wav (1.0 s)', 'open the door', 'open [red]door', ('a.wav',), ('open',)
    ),
    Sample('a#2', 'asr', 'commands', 'user: second', 'x', 'never shown'),
    Sample('b#1', 'asr', 'real', 'user: ▶ b.wav', 'hello', 'yellow\x1b[31m'),
    Sample('m#1', 'mixed_modal', 'mixed', 'user: only typed', 'x', 'not the first choice'),
    Sample('m#2', 'mixed_modal', 'mixed', 'user: typed and ▶', 'x', 'mixed answer', typed_and_spoken=True),
    Sample('q#1', 'speech_qa', 'qa', 'user: which room?', 'The office.', 'The garage.'),
    Sample('q#2', 'speech_qa', 'qa', 'user: when?', 'Now.', 'At noon.'),
    Sample('q#3', 'speech_qa', 'qa', 'user: what?', 'Now.', 'never shown'),
    Sample('t#1', 'text', 'typed-chat', 'user: hi', 'Hello!', 'Hey!', base='Good day!'),
)
SCORES = (ExampleScore('speech', 'asr', 'commands', 'a#1', {'WER': (1.0, 3.0)}),)
RESULT = Evaluation(METRICS, SAMPLES, {'model': 'm'}, SCORES)


@pytest.fixture
def console() -> Iterator[Console]:
    with open(os.devnull, 'w') as nowhere:
        yield Console(width=140, record=True, file=nowhere)


def test_table_says_what_a_number_means(console: Console) -> None:
    show_table(RESULT, 'speech', console)
    text = console.export_text()
    for expected in (
        'Transcribe speech',
        'WER % (lower is better)',
        '12.3',
        '8.0 to 15.0',
        '5.0',
        '(+1.0 %)',
        'of 100 words',
    ):
        assert expected in text
    assert 'BLEU:' not in text


def test_tensorboard_shows_the_record(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    nothing = Metric('speech', 'ast', 'x', 'BLEU', 0, None)
    to_tensorboard(Evaluation((*METRICS, nothing)), tmp_path, 240)
    events = EventAccumulator(str(tmp_path)).Reload()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()['scalars']}
    assert found == {
        'eval/speech/asr/commands/WER': [(240, pytest.approx(12.34))],
        'eval/speech/text/typed-chat/perplexity': [(240, pytest.approx(5.05))],
    }


def test_examples_are_the_first_of_each_sort_and_free_of_control_codes(console: Console) -> None:
    show_examples(RESULT, console)
    text = console.export_text()
    assert [s.id for s in RESULT.examples()] == ['q#1', 'q#2', 'm#2', 'a#1', 'b#1', 't#1']
    for expected in ('open [red]door', 'mixed answer', 'Good day!', 'yellow', 'said: "open"'):
        assert expected in text
    assert 'never shown' not in text and '\x1b' not in text


def test_records_are_lines_and_come_back(tmp_path: Path) -> None:
    path = RESULT.write(tmp_path / 'new' / 'e.jsonl')
    back = Evaluation.read(path)
    assert back == RESULT and back.metrics[1].change_percent == pytest.approx(1.0)
    kinds = [json.loads(line)['type'] for line in path.read_text().splitlines()]
    assert kinds == ['info', *['metric'] * 2, *['sample'] * 9, 'score']
    assert sorted(p.name for p in path.parent.iterdir()) == ['e.jsonl']


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    path = Evaluation((Metric('speech', 'text', 's', 'perplexity', 1, math.inf, base=math.nan),)).write(tmp_path / 'e')
    row = json.loads(path.read_text().splitlines()[1])
    assert row['value'] is None and row['base'] is None


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(VtbCheckpointError, match='cannot be written') as caught:
        RESULT.write(tmp_path / 'file' / 'e.json')
    assert 'e.json' in str(caught.value.field)


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = RESULT.write(tmp_path / 'e.json')
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(VtbCheckpointError, match='disk is full'):
        Evaluation(()).write(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['e.json']


def test_other_files_are_refused_and_an_earlier_form_is_named(tmp_path: Path) -> None:
    (tmp_path / 'x.json').write_text('{"rows": 3}')
    (tmp_path / 'old.eval.json').write_text(json.dumps({'format_version': 1, 'info': {}, 'rows': [], 'samples': []}))
    for name in ('x.json', 'absent.json', 'old.eval.json'):
        with pytest.raises(VtbDataError, match='no result') as caught:
            Evaluation.read(tmp_path / name)
        assert 'vtb eval' in caught.value.remedy
    assert 'before 2.0' in str(caught.value.got)


def test_lookup_lists_what_there_is() -> None:
    assert RESULT.metric('asr', 'WER', 'commands') is METRICS[0]
    with pytest.raises(VtbDataError, match='typed-chat'):
        RESULT.metric('asr', 'BLEU')


def test_readable_conversation() -> None:
    turns = (Turn('user', (Text('Listen to'), Audio('x/a.wav', 1.25), Text('!'))), Turn('assistant', (Text('Ok.'),)))
    assert readable(Conversation('c', turns)) == 'user: Listen to ▶ a.wav (1.2 s) !\nassistant: Ok.'
