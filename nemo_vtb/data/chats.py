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
"""Chats in OpenAI's layout: `{"messages": [{"role", "content"}]}`, with recordings as parts of a content."""

import base64
import binascii
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_vtb.data.conversation import Conversation, conversation_from_dict, layout_hint
from nemo_vtb.data.faults import Reason, audio_fault, data_fault

_TEXT_PARTS = ('text', 'input_text', 'output_text')
# what a message can hold beside its content that an answer in text leaves out
_UNREAD = ('tool_calls', 'function_call', 'audio', 'reasoning', 'reasoning_content', 'thinking')


def pick_prompt(prompts: Any, key: str | bytes) -> Any:
    """One of the prompts (a text, or several) by a hash: the same line asks the same in every epoch and resume."""
    items = [prompts] if isinstance(prompts, str) else list(prompts)
    digest = hashlib.sha256(key.encode(errors='replace') if isinstance(key, str) else key).digest()
    return items[int.from_bytes(digest[:4], 'little') % len(items)]


def conversation_of_chat(
    line: Mapping[str, Any],
    *,
    kind: str | None,
    source: str,
    base_dir: str | Path,
    where: str,
    allowed: Sequence[str] = (),
) -> Conversation:
    """Read a chat in OpenAI's layout.

    Args:
        line: The parsed line.
        kind: As of `conversation_from_dict`.
        source: Name of the source that the line comes from.
        base_dir: Folder to which relative audio paths refer.
        where: File and line for messages.
        allowed: As of `conversation_from_dict`.

    Raises:
        VtbDataError: As of `conversation_from_dict`; or a message has a part that is not read.
    """
    messages = line.get('messages')
    if not isinstance(messages, list) or not messages:
        raise data_fault(
            Reason.MISSING_KEY, field=f'{where}: messages', got=messages, allowed='[{"role", "content"}, ...]',
            remedy=None if 'messages' in line else layout_hint(line),
        )  # fmt: skip
    entries: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        entries += _entries(message, f'{where}: messages[{number}]')
    rest = {name: value for name, value in line.items() if name != 'messages'}
    options: dict[str, Any] = {'source': source, 'base_dir': base_dir, 'where': where, 'allowed': allowed}
    return conversation_from_dict({'id': where, **rest, 'conversations': entries}, kind=kind, **options)


def _entries(message: Any, where: str) -> Iterator[dict[str, Any]]:
    """The turns of `multimodal_conversation` that one message stands for."""
    if not isinstance(message, Mapping):
        raise data_fault(Reason.MISSING_KEY, field=where, got=message, allowed='{"role", "content"}')
    role = message.get('role')
    role = 'system' if role == 'developer' else role  # its newer name
    for name in _UNREAD:
        if message.get(name):
            raise data_fault(
                Reason.UNREAD_PART, field=f'{where}.{name}', got=message[name], allowed='text and recordings',
                remedy='say it in words, or take the conversation out',
            )  # fmt: skip
    if message.get('weight', 1) not in (1, None):
        raise data_fault(
            Reason.UNREAD_PART, field=f'{where}.weight', got=message['weight'], allowed='1: every answer is learnt',
            remedy='end the conversation before the answer that is not to be learnt',
        )  # fmt: skip
    content = message.get('content')
    parts = [{'type': 'text', 'text': content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not parts:
        raise data_fault(
            Reason.MISSING_KEY, field=f'{where}.content', got=content, allowed='a text or a list of parts'
        )
    for place, part in enumerate(parts):
        yield _entry(role, part, f'{where}.content[{place}]')


def _entry(role: Any, part: Any, where: str) -> dict[str, Any]:
    if isinstance(part, Mapping) and part.get('type') in _TEXT_PARTS:
        return {'from': role, 'type': 'text', 'value': part.get('text')}
    slot = audio_slot(part)
    if slot is None:
        got = part.get('type') if isinstance(part, Mapping) else part
        raise data_fault(Reason.UNKNOWN_TURN_TYPE, field=f'{where}.type', got=got, allowed='text, input_audio')
    holder, name = slot
    value = holder.get(name)
    if isinstance(value, str) and value and is_embedded(value):  # what could be decoded is a path by now: `unpack.py`
        raise audio_fault(
            Reason.AUDIO_UNREADABLE, field=f'{where}.{name}', got=f'{value[:40]}... ({len(value)} characters)',
            allowed='base64 or a path', remedy='write the recording again',
        )  # fmt: skip
    span = {key: part[key] for key in ('duration', 'offset') if part.get(key) is not None}
    return {'from': role, 'type': 'audio', 'value': value, **span}


def audio_slot(part: Any) -> tuple[dict[str, Any], str] | None:
    """Where a part of a message has its recording: an object and the key in it; None for any other part."""
    if not isinstance(part, dict):
        return None
    holder, names = {
        'input_audio': (part.get('input_audio'), ('data', 'path')),
        'audio_url': (part.get('audio_url'), ('url',)),
        'audio': (part, ('audio', 'path', 'url')),
    }.get(str(part.get('type')), (None, ()))
    if not isinstance(holder, dict):
        return None
    return holder, next((name for name in names if holder.get(name)), names[0])


def is_embedded(value: str) -> bool:
    """Whether a text is a recording itself, not its path: base64 has no dot, and a file with sound has a suffix."""
    return value.startswith('data:') or '.' not in value


def embedded_recording(value: str) -> bytes | None:
    """The bytes of a recording in base64, or in a `data:` address of it; None where it is neither."""
    encoded = value.partition('base64,')[2] if value.startswith('data:') else value
    try:
        return base64.b64decode(''.join(encoded.split()), validate=True) or None
    except (binascii.Error, ValueError):
        return None
