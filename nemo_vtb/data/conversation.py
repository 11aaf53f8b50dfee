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
"""The one canonical example: turns of text and audio, read from the lines that NeMo's own readers accept."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from nemo_vtb.constants import KINDS
from nemo_vtb.data.addresses import is_address, resolve_address
from nemo_vtb.data.faults import Reason, data_fault, is_unicode
from nemo_vtb.errors import VtbDataError

BOM = b'\xef\xbb\xbf'
"Some editors put it in front of a file."

ROLES = ('system', 'user', 'assistant')
_ROLE_NAMES = {
    'system': 'system',
    'user': 'user',
    'human': 'user',
    'assistant': 'assistant',
    'gpt': 'assistant',
    'model': 'assistant',
}
TASK_NAMES = {
    'asr': 'asr',
    'transcribe': 'asr',
    'transcription': 'asr',
    'ast': 'ast',
    'translate': 'ast',
    'translation': 'ast',
    's2t_translation': 'ast',
}
"""Names that corpora and NeMo's Canary manifests use for the two tasks of the kind asr_ast."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text span of a turn."""

    text: str


@dataclass(frozen=True, slots=True)
class Audio:
    """An audio span of a turn: the part of one recording from `offset_s`, `duration_s` long (to its end if None).

    Args:
        path: The recording, or `ARCHIVE.tar!/MEMBER`.
        duration_s: Seconds.
        offset_s: Seconds.
        text: What is said, where that is known.
        channel: The one that is heard, counted from 0; None is the mean of all.
        trusted: Whether `duration_s` decides how many samples the clip has, without a look at the recording; what
            differs by more than a tolerance is found when it is read.
        whole: Whether a trusted duration is that of the whole recording, so that a longer one differs.
        speed: How much faster than it was recorded it is heard, pitch included.
    """

    path: str
    duration_s: float | None = None
    offset_s: float = 0.0
    text: str | None = None
    channel: int | None = None
    trusted: bool = False
    whole: bool = False
    speed: float = 1.0


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says before the other replies; parts are joined by one space when rendered, as NeMo does."""

    role: str
    parts: tuple[Text | Audio, ...]

    @property
    def text(self) -> str:
        """The text parts alone, joined by a space."""
        return ' '.join(p.text for p in self.parts if isinstance(p, Text))


@dataclass(frozen=True, slots=True)
class Conversation:
    """A whole conversation of one of the four `KINDS`."""

    id: str
    turns: tuple[Turn, ...]
    kind: str = 'text'
    source: str = ''
    custom: Mapping[str, Any] = field(default_factory=dict)

    @property
    def audios(self) -> list[Audio]:
        """All audio spans, in order."""
        return [p for turn in self.turns for p in turn.parts if isinstance(p, Audio)]

    @property
    def is_text_only(self) -> bool:
        """Whether there is no audio."""
        return not self.audios

    @property
    def prompt(self) -> 'Conversation':
        """The same conversation without its last assistant turn: what a model is prompted with."""
        turns = self.turns[:-1] if self.turns and self.turns[-1].role == 'assistant' else self.turns
        return Conversation(self.id, turns, self.kind, self.source, self.custom)

    @property
    def answer(self) -> str:
        """The text of the last assistant turn, '' when the conversation ends with the user."""
        return self.turns[-1].text if self.turns and self.turns[-1].role == 'assistant' else ''


def at_speed(conversation: Conversation, speed: float) -> Conversation:
    """The conversation with its recordings heard faster or slower."""
    if speed == 1:
        return conversation
    turns = (
        replace(turn, parts=tuple(replace(p, speed=speed) if isinstance(p, Audio) else p for p in turn.parts))
        for turn in conversation.turns
    )
    return replace(conversation, turns=tuple(turns))


def read_jsonl(
    path: str | Path, on_fault: Callable[[int, VtbDataError], object] | None = None
) -> Iterator[tuple[int, int, dict]]:
    """Yield (line number from 1, byte offset, object) for every line that is not blank.

    Args:
        path: The file.
        on_fault: Told the number of a broken line and what is wrong; the line is skipped. None: it ends the reading.

    Raises:
        VtbDataError: The file is missing; or without `on_fault`, a line is not UTF-8, not JSON, or not an object.
    """
    path = Path(path)
    if not path.is_file():
        raise VtbDataError(
            'The manifest does not exist.', field='manifest_filepath', got=str(path), remedy='correct the path'
        )
    offset = 0
    with path.open('rb') as stream:
        for number, raw in enumerate(stream, start=1):
            if stripped := raw.removeprefix(BOM).strip():
                try:
                    line = parse_line(stripped, f'{path}:{number}')
                except VtbDataError as error:
                    if on_fault is None:
                        raise
                    on_fault(number, error)
                else:
                    yield number, offset, line
            offset += len(raw)


def parse_line(raw: bytes, where: str) -> dict:
    """Parse one JSON line.

    Raises:
        VtbDataError: Not UTF-8, not JSON, or not an object; `where` names the line.
    """
    try:
        value = _DECODER.decode(raw.decode('utf-8'))
    except (ValueError, RecursionError) as error:  # undecodable bytes and endless numbers are a ValueError too
        raise data_fault(
            Reason.NOT_JSON, field=where, got=f'{raw[:80]!r} ({error})', remedy='mend or remove the line'
        ) from error
    if not isinstance(value, dict):
        raise data_fault(Reason.NOT_AN_OBJECT, field=where, got=raw[:80], allowed='{"id": ..., ...}')
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f'{name} is not JSON')


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def conversation_from_dict(
    d: Mapping[str, Any],
    *,
    kind: str | None = None,
    source: str = '',
    base_dir: str | Path = '',
    where: str = '',
    allowed: Sequence[str] = (),
) -> Conversation:
    """Read one line of NeMo's `multimodal_conversation`: `{"id", "conversations": [{"type", "from", "value", ...}]}`.

    Args:
        d: The parsed line.
        kind: One of `KINDS`; None takes `custom.kind`, or else infers it from the turns.
        source: Name of the source that the line comes from.
        base_dir: Folder to which relative audio paths refer.
        where: File and line for messages.
        allowed: Addresses that recordings may have beside those in the store of `base_dir`.

    Raises:
        VtbDataError: A key is missing or of the wrong type, a role is unknown, or there is nothing to learn from.
    """
    where = where or f'conversation {d.get("id", "?")}'
    entries = d.get('conversations')
    if not isinstance(entries, list) or not entries:
        raise data_fault(
            Reason.MISSING_KEY,
            field=f'{where}: conversations',
            got=entries,
            allowed='[{...}, ...]',
            remedy=layout_hint(d),
        )
    for name in UNREAD_PARTS:
        if d.get(name):
            raise data_fault(
                Reason.UNREAD_PART, field=f'{where}: {name}', got=d[name], allowed='recordings as turns of type audio',
                remedy='type: share_gpt reads sound and audios' if name in ('sound', 'ori_sound', 'audios') else None,
            )  # fmt: skip
    entries = _with_system(entries, d.get('system'), where)
    grouped: list[tuple[str, list[Text | Audio]]] = []
    for number, entry in enumerate(entries):
        role, part = _read_entry(entry, base_dir, f'{where}: conversations[{number}]', allowed)
        if grouped and grouped[-1][0] == role:
            grouped[-1][1].append(part)
        else:
            grouped.append((role, [part]))
    turns = tuple(Turn(role, tuple(parts)) for role, parts in grouped)
    _check_turns(turns, where)
    custom = d.get('custom') or {}
    if not isinstance(custom, Mapping):
        raise data_fault(Reason.BAD_CUSTOM, field=f'{where}: custom', got=custom, allowed='{...}')
    if kind is None:  # `custom` belongs to the user, so a foreign word in it is no mistake
        kind = custom.get('kind') if custom.get('kind') in KINDS else infer_kind(turns)
    if kind not in KINDS:
        raise VtbDataError('Unknown kind of data.', field=f'{where}: kind', got=kind, allowed=', '.join(KINDS))
    id_ = str(d.get('id', where))
    if not is_unicode(id_):
        raise data_fault(Reason.NOT_UNICODE, field=f'{where}: id', got=ascii(id_))
    return Conversation(id_, turns, kind, source, custom)


UNREAD_PARTS = ('audio', 'audios', 'image', 'images', 'ori_sound', 'sound', 'tools', 'video', 'videos')
"""Keys beside `conversations` with which other layouts bring what a turn would have to say here."""

_LAYOUTS = {
    'messages': "OpenAI's or ms-swift's layout: type: openai_messages reads it, `vtb data make text` converts it",
    'audio_filepath': 'a NeMo manifest: type: nemo, or nemo_tarred with its archives',
    'recording': 'a lhotse cut: type: lhotse_as_conversation',
    'tracks': 'a lhotse cut: type: lhotse_as_conversation',
    'conversations': 'conversations: type: multimodal_conversation, share_gpt or nemo_sft_jsonl',
    'instruction': "Alpaca's layout: `vtb data make text` converts it",
    'query': "ms-swift's layout: `vtb data make text` converts `prompt` and `response`",
    'prompt': 'questions and answers: `vtb data make text` converts them',
}


def layout_hint(line: Mapping[str, Any]) -> str | None:
    """What to do with a line of a layout that another type or a converter reads; None for one that nobody knows."""
    return next((hint for key, hint in _LAYOUTS.items() if key in line), None)


def _with_system(entries: list, system: Any, where: str) -> list:
    """The turns behind the system prompt that stands beside them, as ShareGPT and NeMo's SFT files have it."""
    if system is None or system == '':
        return entries
    if not isinstance(system, str):
        raise data_fault(Reason.MISSING_KEY, field=f'{where}: system', got=system, allowed='a text')
    first = entries[0].get('from') if isinstance(entries[0], Mapping) else None
    if str(first).lower() == 'system':
        raise data_fault(
            Reason.WRONG_TURNS, field=f'{where}: system', got='a system turn too', allowed='one system prompt'
        )
    return [{'from': 'System', 'type': 'text', 'value': system}, *entries]


def _read_entry(entry: Any, base_dir: str | Path, where: str, allowed: Sequence[str]) -> tuple[str, Text | Audio]:
    if not isinstance(entry, (dict, Mapping)):
        raise data_fault(Reason.MISSING_KEY, field=where, got=entry, allowed='{"type", "from", "value"}')
    role = _ROLE_NAMES.get(str(entry.get('from', '')).lower())
    if role is None:
        raise data_fault(
            Reason.UNKNOWN_ROLE,
            field=f'{where}.from',
            got=entry.get('from'),
            allowed='System, User, Assistant',
            remedy=_LAYOUTS['messages'] if 'role' in entry else None,
        )
    value = entry.get('value')
    if not isinstance(value, str) or not value:
        raise data_fault(Reason.MISSING_KEY, field=f'{where}.value', got=value, allowed='a text or a path')
    if not is_unicode(value):
        raise data_fault(Reason.NOT_UNICODE, field=f'{where}.value', got=ascii(value))
    match entry.get('type', 'text'):
        case 'text':
            return role, Text(value)
        case 'audio' if role == 'user':
            said = entry.get('text')
            if not isinstance(said, str | None):
                raise data_fault(Reason.MISSING_KEY, field=f'{where}.text', got=said, allowed='a text')
            return role, Audio(_resolve(value, base_dir, allowed), *_read_span(entry, where), text=said)
        case 'audio':
            raise data_fault(Reason.WRONG_TURNS, field=f'{where}.from', got=entry['from'], allowed='User')
        case other:
            raise data_fault(Reason.UNKNOWN_TURN_TYPE, field=f'{where}.type', got=other, allowed='text, audio')


def _read_span(entry: Mapping[str, Any], where: str) -> tuple[float | None, float]:
    span = []
    for name, least in (('duration', 0.0), ('offset', 0.0)):
        value = entry.get(name)
        if value is not None and not (is_number(value) and value >= least):
            raise data_fault(
                Reason.BAD_SPAN,
                field=f'{where}.{name}',
                got=value,
                allowed='>= 0',
            )
        span.append(None if value is None else float(value))
    return span[0], span[1] or 0.0


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number that a float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # hundreds of digits
        return False


def _resolve(path: str, base_dir: str | Path, allowed: Sequence[str] = ()) -> str:
    command = path.lstrip().startswith('pipe:') or path.rstrip().endswith('|') or '\0' in path
    if not command and (is_address(path) or (is_address(str(base_dir)) and '://' not in path and path[:1] != '/')):
        return resolve_address(path, str(base_dir), allowed)
    if command or '://' in path:
        raise data_fault(
            Reason.REFUSED_PATH,
            field='value',
            got=path,
            allowed='a relative or absolute path',
            remedy='download or convert the recording first',
        )
    if path.startswith('/') or not base_dir:
        return path
    folder = _normal(str(base_dir))
    return str(Path(folder) / path) if folder == '.' or _ODD_PATH.search(path) else f'{folder}/{path}'


@lru_cache(maxsize=4096)
def _normal(folder: str) -> str:
    return str(Path(folder))


_ODD_PATH = re.compile(r'(?:^|/)\.?(?:/|$)')  # parts that `Path` leaves out


def _check_turns(turns: tuple[Turn, ...], where: str) -> None:
    roles = [turn.role for turn in turns]
    if 'system' in roles[1:]:
        raise data_fault(Reason.WRONG_TURNS, field=f'{where}: conversations', got=roles, allowed='system first')
    if 'user' not in roles or 'assistant' not in roles:
        raise data_fault(
            Reason.WRONG_TURNS,
            field=f'{where}: conversations',
            got=roles,
            allowed='user and assistant turns in alternation',
        )
    speakers = [role for role in roles if role != 'system']
    if speakers[0] != 'user':
        raise data_fault(Reason.WRONG_TURNS, field=f'{where}: conversations', got=roles, allowed='user first')


def infer_kind(turns: tuple[Turn, ...]) -> str:
    """Guess the kind: no audio is `text`; audio in a dialogue of several user turns is `mixed_modal`."""
    users = [turn for turn in turns if turn.role == 'user']
    if not any(isinstance(p, Audio) for turn in users for p in turn.parts):
        return 'text'
    return 'mixed_modal' if len(users) > 1 else 'speech_qa'


def task_of(conversation: Conversation) -> str:
    """Task of a conversation: its kind, and for `asr_ast` what `custom` says (task, taskname, languages).

    Raises:
        VtbDataError: `custom.task` of an `asr_ast` conversation is unknown.
    """
    if conversation.kind != 'asr_ast':
        return conversation.kind
    custom = conversation.custom
    name = custom.get('task') or custom.get('taskname')
    if name is None:
        spoken, wanted = custom.get('source_lang') or custom.get('lang'), custom.get('target_lang')
        return 'ast' if spoken and wanted and spoken != wanted else 'asr'
    if str(name).lower() not in TASK_NAMES:
        raise VtbDataError(
            'Unknown task.',
            field=f'conversation {conversation.id}: custom.task',
            got=name,
            allowed=', '.join(sorted(TASK_NAMES)),
        )
    return TASK_NAMES[str(name).lower()]


def conversation_from_messages(
    messages: Sequence[Mapping[str, Any]], *, audio_tag: str | None = None, id: str = 'prompt'
) -> Conversation:
    """Read a prompt as SALM's `generate` takes it: `{"role", "content", "audio": [paths]}`.

    The tag stands for a recording only in a message that brings recordings; elsewhere it is ordinary text.

    Raises:
        VtbDataError: Unknown role, or the number of tags differs from the number of recordings.
    """
    turns = []
    for number, message in enumerate(messages):
        role = _ROLE_NAMES.get(str(message.get('role', '')).lower())
        if role is None:
            raise data_fault(
                Reason.UNKNOWN_ROLE,
                field=f'messages[{number}].role',
                got=message.get('role'),
                allowed=', '.join(ROLES),
            )
        content = message.get('content', message.get('slots', {}).get('message', ''))
        turns.append(Turn(role, _split_content(content, list(message.get('audio') or []), audio_tag, number)))
    return Conversation(id, tuple(turns), infer_kind(tuple(turns)))


def _split_content(content: str, audio: list, tag: str | None, number: int) -> tuple[Text | Audio, ...]:
    if not audio:
        return (Text(content),)
    pieces = content.split(tag) if tag else [content]
    if len(pieces) - 1 != len(audio):
        raise data_fault(
            Reason.PLACEHOLDER_MISMATCH,
            field=f'messages[{number}]',
            got=f'{len(pieces) - 1} x {tag!r} for {len(audio)} recordings',
            allowed='one placeholder for each recording',
        )
    parts: list[Text | Audio] = []
    for index, piece in enumerate(pieces):
        if piece.strip():
            parts.append(Text(piece.strip(' ')))
        if index < len(audio):
            parts.append(audio[index] if isinstance(audio[index], Audio) else Audio(str(audio[index])))
    return tuple(parts)


def conversation_to_dict(conversation: Conversation) -> dict[str, Any]:
    """Write a conversation back as one line of NeMo's `multimodal_conversation`."""
    entries: list[dict[str, Any]] = []
    for turn in conversation.turns:
        for part in turn.parts:
            entry: dict[str, Any] = {'from': turn.role.capitalize()}
            if isinstance(part, Text):
                entry |= {'type': 'text', 'value': part.text}
            else:
                entry |= {'type': 'audio', 'value': part.path, 'duration': part.duration_s, 'offset': part.offset_s}
                entry |= {'text': part.text} if part.text else {}
            entries.append(entry)
    return {'id': conversation.id, 'conversations': entries, 'custom': dict(conversation.custom)}
