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
"""Text-only conversations: read from the common chat formats, and cleaned, with a reason for each that is rejected."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_vtb.data.conversation import parse_line, read_jsonl
from nemo_vtb.errors import VtbDataError
from nemo_vtb.factory.contamination import AvoidList
from nemo_vtb.factory.language import is_language
from nemo_vtb.factory.settings import TextChats
from nemo_vtb.factory.stage import InputStage, Item, Outcome, broken_item, text_turn

_ROLES = {
    'system': 'system', 'developer': 'system', 'user': 'user', 'human': 'user', 'prompter': 'user',
    'assistant': 'assistant', 'gpt': 'assistant', 'model': 'assistant', 'bot': 'assistant', 'chatgpt': 'assistant',
}  # fmt: skip
_ENDS = tuple('.!?…。！？"”’\')]}>*`:;|»') + ('```',)
_LONG_ANSWER_WORDS = 30


@dataclass(frozen=True, slots=True)
class Chat:
    """A text-only conversation.

    Args:
        turns: (role, text) each; roles are system, user and assistant.
        format: Which layout it came in.
        category: The topic that its source gave, if any.
        cut: Whether the source says that the last answer was truncated.
    """

    turns: tuple[tuple[str, str], ...]
    format: str
    category: str | None = None
    cut: bool = False


def chat_of_row(row: Mapping[str, Any]) -> Chat | None:
    """Read a chat in any of the known layouts.

    ShareGPT and multimodal_conversation (`conversations`), OpenAI (`messages`), Alpaca (`instruction`, `input`,
    `output`, `history`), Magpie (`instruction`, `response`), questions (`prompt`, `response` or `completion`).

    Returns:
        The chat; None if the layout is none of these, or a turn is not text. Unknown roles stay as they are.
    """
    category = row.get('task_category') or row.get('category')
    category = category if isinstance(category, str) else None
    cut = row.get('finish_reason') == 'length' or row.get('truncated') is True
    entries = row.get('conversations') or row.get('messages')
    if isinstance(entries, list):
        openai = 'messages' in row and not row.get('conversations')
        turns = [_turn(entry) for entry in entries]
        if row.get('system') and isinstance(row['system'], str):
            turns.insert(0, ('system', row['system']))
        if any(turn is None for turn in turns):
            return None
        return Chat(tuple(turns), 'openai' if openai else 'sharegpt', category, cut)  # type: ignore[arg-type]
    question = row.get('instruction') or row.get('prompt')
    answer = row.get('output') if 'output' in row else row.get('response', row.get('completion'))
    if not isinstance(question, str) or not isinstance(answer, str):
        return None
    more = row.get('input')
    question = f'{question}\n{more}' if isinstance(more, str) and more.strip() else question
    earlier = [(str(user), str(reply)) for user, reply in row.get('history') or ()]
    pairs = [*earlier, (question, answer)]
    found = [turn for user, reply in pairs for turn in (('user', user), ('assistant', reply))]
    system = [('system', row['system'])] if isinstance(row.get('system'), str) and row['system'].strip() else []
    return Chat((*system, *found), 'alpaca' if 'output' in row else 'magpie', category, cut)


def _turn(entry: Any) -> tuple[str, str] | None:
    if not isinstance(entry, Mapping) or entry.get('type', 'text') != 'text':
        return None
    role = str(entry.get('from') or entry.get('role') or '').lower()
    content = entry.get('value', entry.get('content'))
    if isinstance(content, list):  # OpenAI's parts
        texts = [part.get('text') for part in content if isinstance(part, Mapping) and part.get('type') == 'text']
        content = '\n'.join(map(str, texts)) if len(texts) == len(content) else None
    return (_ROLES.get(role, role), content.strip()) if isinstance(content, str) else None


def clean_reason(chat: Chat | None, settings: TextChats) -> str | None:
    """Why a chat is not used; None if it is."""
    if chat is None:
        return 'not_text'
    roles = [role for role, _ in chat.turns if role != 'system']
    if not roles or any(role not in ('user', 'assistant') for role in roles):
        return 'wrong_roles'
    if 'system' in [role for role, _ in chat.turns[1:]] or roles != ['user', 'assistant'] * (len(roles) // 2):
        return 'wrong_roles'
    if any(not text.strip() for role, text in chat.turns if role != 'system'):
        return 'empty'
    if settings.keep_categories and chat.category not in settings.keep_categories:
        return 'category'
    if chat.category in settings.drop_categories:
        return 'category'
    if len(roles) > 2 * settings.max_turns:
        return 'too_long'
    limits = {'user': settings.max_user_words, 'assistant': settings.max_answer_words}
    if any(len(text.split()) > limits[role] for role, text in chat.turns if role in limits):
        return 'too_long'
    if chat.cut or any(_looks_cut(text) for role, text in chat.turns if role == 'assistant'):
        return 'truncated'
    if settings.check_language and not is_language(' '.join(text for _, text in chat.turns), settings.lang):
        return 'wrong_language'
    return None


def read_chat(row: Mapping[str, Any], settings: TextChats, avoid_list: AvoidList) -> tuple[Chat | None, str | None]:
    """The chat of a row, and why it is not used: `clean_reason`, or overlap with an evaluation set."""
    chat = chat_of_row(row)
    reason = clean_reason(chat, settings)
    if reason is None and chat is not None:
        reason = avoid_list.reason(text for _, text in chat.turns)
    return chat, reason


def _looks_cut(answer: str) -> bool:
    """Whether an answer ends inside a sentence or a block of code."""
    if answer.count('```') % 2:
        return True
    last = answer.rstrip().splitlines()[-1].strip()
    listed = last[:1] in '-*#|•+' or last.split('.')[0].isdigit()
    # short answers, lists and headings often have no full stop
    return len(answer.split()) > _LONG_ANSWER_WORDS and not listed and not last.endswith(_ENDS)


def chat_items(paths: Sequence[str], broken: list[Item] | None = None) -> Iterator[Item]:
    """One item for each row of JSONL files, or of JSON files that hold a list.

    Args:
        paths: The files.
        broken: Takes an item for each row that is not an object; None: such a row ends the reading.

    Raises:
        VtbDataError: A file is neither.
    """
    for path in map(Path, paths):
        names: set[str] = set()
        for number, row in enumerate(_rows(path, broken)):
            own = row.get('id') or row.get('uuid') or row.get('conversation_id')
            name = f'{path.stem}-{own}' if own is not None and f'{path.stem}-{own}' not in names else None
            name = name or f'{path.stem}-{number:07d}'
            names.add(name)
            yield Item(name, name, row)


def _rows(path: Path, broken: list[Item] | None) -> Iterator[dict[str, Any]]:
    def fail(number: int, error: VtbDataError) -> None:
        if broken is None:
            raise error
        broken.append(broken_item(f'{path}:{number}', error))

    if path.suffix != '.json':
        yield from (row for _, _, row in read_jsonl(path, fail))
        return
    try:
        listed = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise VtbDataError('The file is not JSON.', field='INPUT', got=f'{path}: {error}') from error
    if not isinstance(listed, list):
        raise VtbDataError('The file is not a list of chats.', field='INPUT', got=str(path), allowed='[{...}, ...]')
    for number, row in enumerate(listed):
        try:
            yield parse_line(json.dumps(row).encode(), f'{path}[{number}]')
        except VtbDataError as error:
            fail(number, error)


@dataclass
class TextStage(InputStage):
    """Cleans chats into `text` conversations.

    Args:
        settings: What is kept.
        inputs: Files of chats.
    """

    settings: TextChats
    kind: str = 'text'

    def items(self) -> Iterator[Item]:
        """One item for each chat."""
        broken: list[Item] = []
        yield from chat_items(self.inputs, broken)
        yield from broken

    def _make(self, item: Item) -> Outcome:
        chat, reason = read_chat(item.data, self.settings, self.avoid_list)
        facts = {'format': chat.format} if chat else {}
        if reason is not None or chat is None:
            return Outcome(item.id, item.group, None, reason or 'not_text', facts)
        entries = [text_turn(role, text) for role, text in chat.turns if text]
        custom = {'kind': self.kind, 'lang': self.settings.lang, 'source': item.id.rpartition('-')[0], 'task': 'chat'}
        line = {'id': item.id, 'conversations': entries, 'custom': custom}
        said = '\n'.join(f'{role}: {" ".join(text.lower().split())}' for role, text in chat.turns)
        return Outcome(item.id, item.group, line, facts=facts | {'lang': self.settings.lang}, unique=said)
