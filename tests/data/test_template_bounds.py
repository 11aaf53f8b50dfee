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
"""A chat template that loops, fills the memory or writes without end is refused; the known ones pass."""

import copy
import os
import time
from typing import Any

import pytest
from transformers import AutoTokenizer

from nemo_vtb.data.conversation import Conversation, Text, Turn
from nemo_vtb.data.template import ChatRenderer
from nemo_vtb.data.template_bounds import MAX_TEMPLATE_BYTES, run_bounded
from nemo_vtb.errors import VtbTemplateError

LOOP = '{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}'
GOOD = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
BOMBS = {
    'loops': LOOP,
    'loops in a long talk': "{% if messages|length > 20 %}" + LOOP + '{% endif %}',
    'loops on a system turn': "{% if messages[0]['role'] == 'system' %}" + LOOP + '{% endif %}',
    'memory': "{% set ns = namespace(x='x') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    'memory at once': "{{ 'x'.center(10 ** 12) | length }}",
    'power': '{{ 9 ** 999999999 }}',
    'output': "{{ 'x' * 10 ** 7 }}",
    'text': '{# ' + 'x' * MAX_TEMPLATE_BYTES + ' #}',
}


@pytest.fixture
def tokenizer(tiny_llm_dir: Any) -> Any:
    return AutoTokenizer.from_pretrained(tiny_llm_dir)


@pytest.mark.parametrize('name', BOMBS)
def test_a_bomb_is_refused_before_anything_is_rendered(
    tokenizer: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('nemo_vtb.data.template_bounds._CPU_S', 1)
    monkeypatch.setattr(run_bounded, '__defaults__', (1, 1 << 28))
    tokenizer.chat_template = BOMBS[name] + GOOD
    with pytest.raises(VtbTemplateError) as caught:
        ChatRenderer(tokenizer)
    assert caught.value.field == 'chat_template'


def test_each_template_is_tried_once(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer.chat_template = GOOD + '{# of this test #}'
    ChatRenderer(tokenizer)
    monkeypatch.setattr('nemo_vtb.data.template_bounds.run_bounded', lambda _: 1)
    ChatRenderer(tokenizer)
    other = copy.deepcopy(tokenizer)
    other.chat_template = GOOD + '{# another #}'
    with pytest.raises(VtbTemplateError):
        ChatRenderer(other)


def test_any_error_of_a_template_is_that_of_one_conversation(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        GOOD + "{{ 1 / (messages|length - 4) }}{{ 'x' * (10 ** 7 if messages|length == 6 else 0) }}"
    )
    renderer = ChatRenderer(tokenizer)
    turns = (Turn('user', (Text('a'),)), Turn('assistant', (Text('b'),)))
    assert renderer.render(Conversation('good', turns)).num_supervised
    for number in (2, 3):
        with pytest.raises(VtbTemplateError) as caught:
            renderer.render(Conversation('bad', turns * number))
        assert caught.value.reason == 'template_refused'


def test_what_runs_bounded_leaves_nothing_behind() -> None:
    seen: list[int] = []
    assert run_bounded(lambda: seen.append(1) or 7) == 7  # type: ignore[func-returns-value]
    assert not seen
    assert run_bounded(lambda: os.kill(os.getpid(), 9) or 0) == -9  # type: ignore[func-returns-value]
    assert run_bounded(lambda: len(bytes(1 << 40))) != 0
    assert run_bounded(lambda: time.sleep(0.01) or 0) == 0  # type: ignore[func-returns-value]
