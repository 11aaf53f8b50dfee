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
"""Open conversations: answers are in what is said or typed, and the test asks kinds that training never asks."""

import json
import re
from pathlib import Path
from random import Random

import numpy as np
import pytest

from nemo_vtb.factory.demo import open_dialogues, open_speech
from nemo_vtb.factory.demo.open_dialogues import HELD_OUT_KINDS, KINDS_OF_QUESTION, Fact, Script, of_common_words

SENTENCES = [
    f'the {a} {b} went over a {c}' for a in ('old', 'young') for b in ('lynx', 'poet') for c in ('hill', 'lake')
]


def script(split: str) -> Script:
    return Script(split, SENTENCES, Random(4))


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


def told(line: dict) -> str:
    return ' '.join(e.get('text') or e['value'] for e in line['conversations'] if e['from'] == 'User')


def test_every_fact_can_be_asked_about() -> None:
    for number, slot in KINDS_OF_QUESTION:
        fact = Fact.draw(Random(number), number)
        assert fact.values[slot] in fact.text
        assert fact.values[slot] not in fact.question(slot).split()
        assert '{' not in fact.text + fact.question(slot)
        assert not re.search(r'\ba [aeiou]', fact.text)
    assert HELD_OUT_KINDS < set(KINDS_OF_QUESTION)


@pytest.mark.parametrize('kind', ['questions', 'mixed'])
def test_answers_follow_from_what_is_said(kind: str) -> None:
    for line in getattr(script('train'), kind)(120):
        answer = line['conversations'][-1]['value']
        if line['custom']['task'].startswith('exchange'):
            assert {word.rstrip('s') for word in words(answer)} <= {word.rstrip('s') for word in words(told(line))}
        elif line['custom']['task'] != 'said':
            assert words(answer) <= words(told(line)), line
        assert any(entry['type'] == 'audio' for entry in line['conversations'])


@pytest.mark.parametrize('kind', ['questions', 'mixed'])
def test_the_test_asks_kinds_that_training_never_asks(kind: str) -> None:
    asked = {}
    for split in ('train', 'test'):
        tasks = [line['custom']['task'] for line in getattr(script(split), kind)(400)]
        # the form of a mixed turn stands before the kind
        asked[split] = {' '.join(task.split()[-2:]) for task in tasks}
    assert asked['train'] and asked['test'] and not asked['train'] & asked['test']


def test_text_only_conversations_change_nothing_that_is_spoken() -> None:
    plain, other = script('train'), script('train')
    typed = other.typed(50)
    assert plain.recognition(0.02) == other.recognition(0.02)
    assert all(entry['type'] == 'text' for line in typed for entry in line['conversations'])
    assert {line['conversations'][-1]['from'] for line in typed} == {'Assistant'}
    assert len({line['conversations'][0]['value'] for line in typed}) > 25 and typed == script('train').typed(50)


def test_the_spoken_part_of_a_mixed_turn_is_needed() -> None:
    for line in script('train').mixed(120):
        task, *_, answer = line['custom']['task'].split()[0], line['conversations'][-1]['value']
        typed = ' '.join(e['value'] for e in line['conversations'] if e['type'] == 'text' and e['from'] == 'User')
        if task in ('topic',):
            assert words(answer) - words(typed)


def test_recordings_have_their_durations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tone = np.zeros(16000, np.float32)
    monkeypatch.setattr(open_dialogues, 'speak_clip', lambda sentences, rng: (tone[: 4000 * len(sentences)], 'x'))
    made = script('train')
    lines = made.recognition(0.01)
    (tmp_path / 'audio').mkdir()
    seconds = open_dialogues._speak(list(made.spans.items()), tmp_path, 1)
    kept = [line for line in lines if open_dialogues._fill(line, seconds)]
    # a quarter of a second is too short
    assert 0 < len(kept) < len(lines)
    for line in kept:
        [entry] = [e for e in line['conversations'] if e['type'] == 'audio']
        assert entry['duration'] == seconds[entry['value']] >= 0.5 and (tmp_path / entry['value']).is_file()
        assert line['conversations'][-1]['value'] == entry['text']
    assert json.dumps(kept)
    assert open_speech.LONGEST_S > 10


def test_sentences_with_a_rare_word_are_left_out() -> None:
    sentences = ['The lake is old.', 'An old lake', "It's the lake", 'the coelacanth is old', 'The old, old lake is']
    assert of_common_words(sentences, 2) == ['The lake is old.', 'The old, old lake is']
    assert of_common_words(sentences, 1) == sentences
