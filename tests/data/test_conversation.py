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
"""Lines of NeMo's multimodal_conversation become conversations; a broken line is named by file, line and field."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_vtb.constants import KINDS
from nemo_vtb.data.conversation import (
    Audio,
    Conversation,
    Text,
    Turn,
    conversation_from_dict,
    conversation_from_messages,
    conversation_to_dict,
    infer_kind,
    read_jsonl,
)
from nemo_vtb.errors import VtbDataError

pytestmark = pytest.mark.unit
TAG = '<|audioplaceholder|>'


def typed(role: str, value: Any, **more: Any) -> dict[str, Any]:
    return {'type': 'text', 'from': role, 'value': value, **more}


def spoken(value: str, role: str = 'User', **more: Any) -> dict[str, Any]:
    return {'type': 'audio', 'from': role, 'value': value, **more}


def line(*entries: Any, **more: Any) -> dict[str, Any]:
    return {'id': 'c1', 'conversations': list(entries), **more}


# ---- what is read


def test_a_whole_conversation() -> None:
    d = line(
        typed('System', 'Be brief.'),
        typed('User', 'Listen to'),
        spoken('wav/a.wav', duration=1.5, offset=0.25, text='hello'),
        typed('Assistant', 'Hello.'),
        spoken('/abs/b.wav'),
        typed('Assistant', 'Bye.'),
        custom={'kind': 'mixed_modal', 'lang': 'en'},
    )
    c = conversation_from_dict(d, source='demo', base_dir='data')
    assert [t.role for t in c.turns] == ['system', 'user', 'assistant', 'user', 'assistant']
    assert c.turns[1].parts == (Text('Listen to'), Audio('data/wav/a.wav', 1.5, 0.25, 'hello'))
    assert c.audios == [Audio('data/wav/a.wav', 1.5, 0.25, 'hello'), Audio('/abs/b.wav')]
    assert (c.id, c.kind, c.source, c.custom['lang']) == ('c1', 'mixed_modal', 'demo', 'en')
    assert not c.is_text_only
    assert c.answer == 'Bye.'
    assert [t.role for t in c.prompt.turns] == ['system', 'user', 'assistant', 'user']
    assert c.prompt.prompt == c.prompt
    assert c.prompt.answer == ''


@pytest.mark.parametrize(
    ('name', 'role'),
    [('User', 'user'), ('human', 'user'), ('ASSISTANT', 'assistant'), ('gpt', 'assistant'), ('model', 'assistant')],
)
def test_names_of_roles(name: str, role: str) -> None:
    other = 'Assistant' if role == 'user' else 'User'
    entries = [typed(name, 'a'), typed(other, 'b')] if role == 'user' else [typed(other, 'b'), typed(name, 'a')]
    assert role in [t.role for t in conversation_from_dict(line(*entries)).turns]


def test_consecutive_entries_of_one_role_are_one_turn() -> None:
    c = conversation_from_dict(line(typed('User', 'a'), typed('User', 'b'), typed('Assistant', 'c')))
    assert c.turns == (Turn('user', (Text('a'), Text('b'))), Turn('assistant', (Text('c'),)))
    assert c.turns[0].text == 'a b'


@pytest.mark.parametrize(
    ('entries', 'kind'),
    [
        ([typed('User', 'a'), typed('Assistant', 'b')], 'text'),
        ([spoken('a.wav'), typed('Assistant', 'b')], 'speech_qa'),
        ([typed('User', 'x'), typed('Assistant', 'b'), spoken('a.wav'), typed('Assistant', 'b')], 'mixed_modal'),
    ],
)
def test_kind_is_given_named_or_guessed(entries: list[dict], kind: str) -> None:
    turns = conversation_from_dict(line(*entries)).turns
    assert infer_kind(turns) == kind
    assert conversation_from_dict(line(*entries)).kind == kind
    assert conversation_from_dict(line(*entries, custom={'kind': 'asr_ast'})).kind == 'asr_ast'
    assert conversation_from_dict(line(*entries, custom={'kind': 'podcast'})).kind == kind
    assert conversation_from_dict(line(*entries, custom={'kind': 'asr_ast'}), kind='text').kind == 'text'


def test_written_and_read_again() -> None:
    d = line(
        typed('System', 'Be brief.'), typed('User', 'a'), spoken('/x/a.wav', duration=1.0, offset=2.0, text='t'),
        typed('Assistant', 'b'), custom={'kind': 'speech_qa'},
    )  # fmt: skip
    c = conversation_from_dict(d)
    assert conversation_from_dict(json.loads(json.dumps(conversation_to_dict(c)))) == c


def test_without_an_id_the_place_names_it() -> None:
    d = {'conversations': [typed('User', 'a'), typed('Assistant', 'b')]}
    assert conversation_from_dict(d, where='m.jsonl:7').id == 'm.jsonl:7'


def test_reading_loads_neither_torch_nor_nemo() -> None:
    code = 'import sys, nemo_vtb.data.conversation; print({"torch", "nemo", "transformers"} & set(sys.modules))'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == 'set()'


# ---- files


def test_lines_with_numbers_and_offsets(tmp_path: Path) -> None:
    path = tmp_path / 'm.jsonl'
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}\r\n\n   \n{"b": 2}')
    found = list(read_jsonl(path))
    assert [(n, d) for n, _, d in found] == [(1, {'a': 'é'}), (4, {'b': 2})]
    raw = path.read_bytes()
    assert raw[found[1][1] :] == b'{"b": 2}'


@pytest.mark.parametrize(
    'content',
    [b'{"a": 1', b'nonsense', b'{"a": NaN}', b'{"a": Infinity}', b'\xff\xfe{}', b'[' * 100_000],
    ids=['cut off', 'no json', 'nan', 'infinity', 'not utf-8', 'nested'],
)
def test_bad_json_names_file_and_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / 'm.jsonl'
    path.write_bytes(b'{"good": 1}\n' + content + b'\n')
    lines = read_jsonl(path)
    next(lines)
    with pytest.raises(VtbDataError, match=r'm\.jsonl:2'):
        next(lines)


@pytest.mark.parametrize('content', ['[]', '3', '"text"', 'null'])
def test_a_line_that_is_no_object(tmp_path: Path, content: str) -> None:
    (tmp_path / 'm.jsonl').write_text(content)
    with pytest.raises(VtbDataError) as caught:
        list(read_jsonl(tmp_path / 'm.jsonl'))
    assert caught.value.reason == 'not_an_object'


def test_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(VtbDataError, match='does not exist'):
        list(read_jsonl(tmp_path / 'nowhere.jsonl'))


# ---- what is refused

GOOD = (typed('User', 'a'), typed('Assistant', 'b'))
BROKEN = {
    'no turns': (line(), 'conversations', 'missing_key'),
    'turns are no list': ({'id': 'x', 'conversations': {'a': 1}}, 'conversations', 'missing_key'),
    'no key': ({'id': 'x'}, 'conversations', 'missing_key'),
    'turn is no object': (line('hello', *GOOD), 'conversations[0]', 'missing_key'),
    'unknown role': (line(typed('Narrator', 'x'), *GOOD), 'conversations[0].from', 'unknown_role'),
    'no role': (line({'type': 'text', 'value': 'x'}, *GOOD), 'conversations[0].from', 'unknown_role'),
    'unknown type': (line({'type': 'video', 'from': 'User', 'value': 'x'}, *GOOD), '[0].type', 'unknown_turn_type'),
    'empty value': (line(typed('User', ''), typed('Assistant', 'b')), '[0].value', 'missing_key'),
    'number as value': (line(typed('User', 3), typed('Assistant', 'b')), '[0].value', 'missing_key'),
    'half a surrogate': (line(typed('User', '\ud800'), typed('Assistant', 'b')), '[0].value', 'not_unicode'),
    'spoken answer': (line(typed('User', 'a'), spoken('a.wav', 'Assistant')), '[1].from', 'wrong_turns'),
    'late system': (line(*GOOD, typed('System', 'x')), 'conversations', 'wrong_turns'),
    'assistant first': (line(typed('Assistant', 'b'), typed('User', 'a')), 'conversations', 'wrong_turns'),
    'nobody answers': (line(typed('User', 'a')), 'conversations', 'wrong_turns'),
    'nobody asks': (line(typed('System', 'a'), typed('Assistant', 'b')), 'conversations', 'wrong_turns'),
    'custom is text': (line(*GOOD, custom='x'), 'custom', 'bad_custom'),
}


@pytest.mark.parametrize('name', BROKEN)
def test_broken_conversations(name: str) -> None:
    d, field, reason = BROKEN[name]
    with pytest.raises(VtbDataError) as caught:
        conversation_from_dict(d, where='m.jsonl:3')
    assert caught.value.reason == reason
    assert str(caught.value.field).startswith('m.jsonl:3') and field in str(caught.value.field)


def test_unknown_kind() -> None:
    with pytest.raises(VtbDataError, match='Unknown kind') as caught:
        conversation_from_dict(line(*GOOD), kind='podcast')
    assert all(kind in str(caught.value) for kind in KINDS)


@pytest.mark.parametrize('key', ['duration', 'offset'])
@pytest.mark.parametrize('value', [-1, '2', True, float('inf'), float('nan'), [1]])
def test_bad_spans(key: str, value: Any) -> None:
    with pytest.raises(VtbDataError) as caught:
        conversation_from_dict(line(spoken('a.wav', **{key: value}), typed('Assistant', 'b')))
    assert caught.value.reason == 'bad_span' and str(caught.value.field).endswith(f'.{key}')


@pytest.mark.parametrize(
    'path',
    [
        'pipe:touch hacked',
        ' pipe:x',
        'sox a.flac -t wav - |',
        'https://host/a.wav',
        's3://bucket/a',
        'ais://b/a',
        'a\0b',
    ],
)
def test_commands_and_addresses_are_refused(path: str) -> None:
    with pytest.raises(VtbDataError) as caught:
        conversation_from_dict(line(spoken(path), typed('Assistant', 'b')))
    assert caught.value.reason == 'refused_path'


# ---- prompts as SALM takes them


def test_messages_with_recordings() -> None:
    c = conversation_from_messages(
        [
            {'role': 'system', 'content': 'Be brief.'},
            {'role': 'user', 'content': f'Compare {TAG} with {TAG} now', 'audio': ['a.wav', Audio('b.wav', 1.0)]},
        ],
        audio_tag=TAG,
    )
    parts = (Text('Compare'), Audio('a.wav'), Text('with'), Audio('b.wav', 1.0), Text('now'))
    assert c.turns == (Turn('system', (Text('Be brief.'),)), Turn('user', parts))


def test_messages_in_slots_and_tags_without_recordings() -> None:
    c = conversation_from_messages([{'role': 'user', 'slots': {'message': f'What is {TAG}?'}}], audio_tag=TAG)
    assert c.turns == (Turn('user', (Text(f'What is {TAG}?'),)),)
    assert c.is_text_only


@pytest.mark.parametrize(('content', 'count'), [(TAG, 2), (f'{TAG} {TAG}', 1), ('no tag', 1)])
def test_tags_and_recordings_must_match(content: str, count: int) -> None:
    with pytest.raises(VtbDataError, match=f'for {count} recordings'):
        conversation_from_messages([{'role': 'user', 'content': content, 'audio': ['a.wav'] * count}], audio_tag=TAG)


def test_messages_of_an_unknown_role() -> None:
    with pytest.raises(VtbDataError, match='role') as caught:
        conversation_from_messages([{'role': 'tool', 'content': 'x'}])
    assert 'system, user, assistant' in str(caught.value)


def test_conversations_cannot_be_changed() -> None:
    c = Conversation('a', (Turn('user', (Text('a'),)),))
    with pytest.raises(AttributeError):
        c.id = 'b'  # type: ignore[misc]
