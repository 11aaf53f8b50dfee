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
"""Language models that write: parsing, memory of answers, a real local model."""

import json

import pytest

from nemo_vtb.errors import VtbModelError
from nemo_vtb.factory.settings import Llm
from nemo_vtb.factory.text_generation import (
    LocalGenerator,
    Reply,
    Request,
    ResponseCache,
    load_generator,
    parse_object,
    request_key,
)

FIELDS = ('question', 'answer')


@pytest.mark.parametrize(
    'text, values',
    [
        ('{"question": "Who?", "answer": "Anna."}', ('Who?', 'Anna.')),
        ('Sure!\n```json\n{"question": "Who?",\n "answer": "Anna."}\n```\nDone.', ('Who?', 'Anna.')),
        ('Here: {"question": " Who \\n is it?", "answer": "Anna", "more": 1} ok', ('Who is it?', 'Anna')),
        ('{"question": "Who?"}', None),
        ('{"question": "Who?", "answer": 3}', None),
        ('{"question": "Who?", "answer": "An', None),
        ('["question", "answer"]', None),
        ('Who? Anna.', None),
        ('', None),
    ],
)
def test_objects_in_answers(text, values):
    assert parse_object(text, FIELDS) == (dict(zip(FIELDS, values, strict=True)) if values else None)


def test_answers_are_remembered_and_a_cut_line_is_not(tmp_path):
    reply = Reply({'question': 'Wer?', 'answer': 'Änne'}, 10, 5, 2, 1, 1, '')
    memo = ResponseCache(tmp_path)
    memo.put('a', reply)
    memo.put('b', Reply(None, raw='junk'))
    (path,) = tmp_path.glob('answers.*.jsonl')
    assert ResponseCache(tmp_path).get('a') == reply and ResponseCache(tmp_path).get('b') == Reply(None, raw='junk')
    path.write_bytes(path.read_bytes().rstrip(b'\n')[:-3])
    again = ResponseCache(tmp_path)
    assert again.get('a') == reply and again.get('b') is None
    again.put('c', reply)
    assert ResponseCache(tmp_path).get('c') == reply


def test_a_request_is_known_by_all_that_decides_its_answer():
    request, llm = Request('s', 'u', FIELDS, 1), Llm()
    others = [request_key(Request('s', 'u', FIELDS, 2), llm), request_key(Request('s', 'v', FIELDS, 1), llm)]
    others += [request_key(request, Llm(temperature=0.1)), request_key(request, Llm(model='other'))]
    assert request_key(request, llm) == request_key(request, Llm(url='http://localhost/v1', concurrency=3))
    assert len({request_key(request, llm), *others}) == 5


@pytest.mark.real_weights
def test_a_local_model_cannot_miss_the_form(assets, tmp_path):
    assets('minimind2-small')
    generator = load_generator(Llm(model='asset:minimind2-small', max_tokens=12), tmp_path)
    assert isinstance(generator, LocalGenerator)
    requests = [Request('You are helpful.', f'Talk about {topic}.', fields, 3)
            for topic, fields in (('bees', FIELDS), ('the sea', ('question',)))]  # fmt: skip
    first, second = generator.generate(requests)
    assert set(first.values) == set(FIELDS) and set(second.values) == {'question'}
    assert first.prompt_tokens > 10 and 0 < first.completion_tokens <= 24
    assert all('"' not in value and '\n' not in value for value in first.values.values())
    json.dumps(first.values)
    assert generator.generate(requests) == [first, second] and generator.generate([]) == []


def test_a_folder_that_holds_no_model(tmp_path):
    with pytest.raises(VtbModelError, match='llm.model'):
        LocalGenerator(Llm(model=str(tmp_path)))
