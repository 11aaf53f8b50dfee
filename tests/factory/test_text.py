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
"""Typed chats: every layout is read, and each fault has its reason."""

import json

import pytest
from factory_helpers import write_jsonl

from nemo_vtb.config import read_settings
from nemo_vtb.data.conversation import conversation_from_dict
from nemo_vtb.errors import VtbDataError
from nemo_vtb.factory.settings import TextChats
from nemo_vtb.factory.text import TextStage, chat_items, chat_of_row, clean_reason

PAIR = (('user', 'What do bees make?'), ('assistant', 'Honey.'))


@pytest.mark.parametrize(
    'row, format_',
    [
        ({'conversations': [{'from': 'human', 'value': PAIR[0][1]}, {'from': 'gpt', 'value': 'Honey.'}]}, 'sharegpt'),
        (
            {'conversations': [{'type': 'text', 'from': 'User', 'value': PAIR[0][1]},
                               {'type': 'text', 'from': 'Assistant', 'value': 'Honey.'}]},
            'sharegpt',
        ),
        ({'messages': [{'role': 'user', 'content': PAIR[0][1]},
                       {'role': 'assistant', 'content': 'Honey.'}]}, 'openai'),
        (
            {'messages': [{'role': 'user', 'content': [{'type': 'text', 'text': PAIR[0][1]}]},
                          {'role': 'assistant', 'content': 'Honey.'}]},
            'openai',
        ),
        ({'instruction': PAIR[0][1], 'input': '', 'output': 'Honey.'}, 'alpaca'),
        ({'instruction': PAIR[0][1], 'response': 'Honey.', 'task_category': 'Planning'}, 'magpie'),
        ({'prompt': PAIR[0][1], 'completion': 'Honey.'}, 'magpie'),
    ],
)  # fmt: skip
def test_layouts(row, format_):
    chat = chat_of_row(row)
    assert chat.turns == PAIR and chat.format == format_ and chat.category == row.get('task_category')


def test_alpaca_with_input_history_and_system():
    row = {
        'system': 'Be brief.',
        'instruction': 'Sum up:',
        'input': 'A text.',
        'output': 'It.',
        'history': [['a', 'b']],
    }
    turns = chat_of_row(row).turns
    assert turns == (
        ('system', 'Be brief.'), ('user', 'a'), ('assistant', 'b'), ('user', 'Sum up:\nA text.'), ('assistant', 'It.'),
    )  # fmt: skip


def talk(*texts, **more):
    roles = ('human', 'gpt')
    entries = [{'from': roles[i % 2], 'value': text} for i, text in enumerate(texts)]
    return {'conversations': entries, **more}


LONG = 'word ' * 40


@pytest.mark.parametrize(
    'row, reason',
    [
        (talk('Hello, how are you?', 'Fine.'), None),
        (talk('Hello', 'Fine', 'And now?', 'Also fine'), None),
        (talk('Hello', ' '), 'empty'),
        (talk('Hello'), 'wrong_roles'),
        (talk('Hello', 'Fine', 'More?'), 'wrong_roles'),
        ({'conversations': [{'from': 'gpt', 'value': 'Hi'}, {'from': 'human', 'value': 'Hi'}]}, 'wrong_roles'),
        ({'conversations': [{'from': 'human', 'value': 'Hi'}, {'from': 'tool', 'value': 'x'}]}, 'wrong_roles'),
        ({'conversations': [{'from': 'human', 'value': 'Hi'}, {'from': 'gpt', 'value': 'a'},
                            {'from': 'system', 'value': 'x'}]}, 'wrong_roles'),
        ({'text': 'no chat at all'}, 'not_text'),
        ({'messages': [{'role': 'user', 'content': [{'type': 'image_url'}]}]}, 'not_text'),
        (talk('Hello', f'{LONG}and then the'), 'truncated'),
        (talk('Hello', f'{LONG}and then the end.'), None),
        (talk('Code?', '```python\nprint(1)'), 'truncated'),
        (talk('Hello', 'Fine.', finish_reason='length'), 'truncated'),
        (talk(LONG * 3, 'Fine.'), 'too_long'),
        (talk('Was ist das und wie ist es?', 'Das ist nicht die Katze, es ist der Hund.'), 'wrong_language'),
        (talk('你好吗？', '我很好。'), 'wrong_language'),
        (talk('Hello', 'Fine.', category='Math'), 'category'),
    ],
)  # fmt: skip
def test_cleaning(row, reason):
    settings = read_settings(TextChats, {'max_user_words': 100, 'drop_categories': ['Math']})
    assert clean_reason(chat_of_row(row), settings) == reason


def test_files_of_lines_and_of_lists(tmp_path):
    rows = [talk('Hi', 'Hello.', id=7), talk('Hi', 'Hello.', id=7), talk('Bye', 'Goodbye.')]
    lines = write_jsonl(tmp_path / 'a.jsonl', rows)
    listed = tmp_path / 'b.json'
    listed.write_text(json.dumps(rows))
    assert [item.id for item in chat_items([str(lines)])] == ['a-7', 'a-0000001', 'a-0000002']
    assert [item.data for item in chat_items([str(listed)])] == rows
    (tmp_path / 'c.json').write_text('{}')
    with pytest.raises(VtbDataError, match='list of chats'):
        list(chat_items([str(tmp_path / 'c.json')]))


def test_text_conversations_are_read_by_our_sources_and_avoid_evaluation_sets(tmp_path):
    asked = 'How many minutes does it take to walk around the old lake?'
    path = write_jsonl(tmp_path / 'a.jsonl', [talk('Hi', 'Hello.'), talk(asked, 'Ten.')])
    held_out = write_jsonl(tmp_path / 'eval.jsonl', [{'question': f'Tell me: {asked.lower()}', 'answer': 'x'}])
    stage = TextStage(read_settings(TextChats, {'avoid': {'files': [str(held_out)]}}), (str(path),))
    kept, left_out = stage.make(list(stage.items()), tmp_path)
    assert conversation_from_dict(kept.line).kind == 'text'
    assert left_out.reason == 'contaminated_text' and left_out.line is None


def test_a_broken_row_costs_itself_and_is_listed(tmp_path):
    rows = [talk('Hi', 'Hello.'), {'instruction': 'a', 'output': 'b', 'history': [3]}]
    lines = write_jsonl(tmp_path / 'a.jsonl', rows)
    lines.write_text(lines.read_text() + '[1]\n{\n')
    (tmp_path / 'b.json').write_text(json.dumps([7, talk('Bye', 'Goodbye.')]))
    stage = TextStage(read_settings(TextChats, {'check_language': False}), (str(lines), str(tmp_path / 'b.json')))
    reasons = [outcome.reason for outcome in stage.make(list(stage.items()), tmp_path)]
    assert sorted(reasons) == ['kept', 'kept', 'not_an_object', 'not_an_object', 'not_json', 'other']
