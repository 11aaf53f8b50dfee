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
"""What a line of each format means: one reader for each `type` of an `input_cfg` entry.

Formats that are no JSON lines become some first (`unpack.py`), so that each reader here gets one object.
"""

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nemo_vtb.constants import LANGUAGES
from nemo_vtb.data.chats import conversation_of_chat, pick_prompt
from nemo_vtb.data.conversation import (
    TASK_NAMES,
    Audio,
    Conversation,
    Text,
    Turn,
    conversation_from_dict,
    is_number,
    layout_hint,
)
from nemo_vtb.data.faults import Reason, data_fault, is_unicode
from nemo_vtb.data.lhotse_manifests import is_cut, sound_of_cut, unsupported_cut

if TYPE_CHECKING:
    from nemo_vtb.data.sources import SourceSpec


def _read_conversation(spec: 'SourceSpec', line: Mapping[str, Any], base: str, where: str) -> Conversation:
    options: dict[str, Any] = {'source': spec.name, 'base_dir': base, 'where': where, 'allowed': spec.allowed}
    return conversation_from_dict(line, kind=spec.kind or None, **options)


def _read_share_gpt(spec: 'SourceSpec', line: Mapping[str, Any], base: str, where: str) -> Conversation:
    """ShareGPT with optional recordings: `sound`/`ori_sound` (NeMo: one for all placeholders) or `audios` (a list)."""
    entries = line.get('conversations')
    if not isinstance(entries, list):
        raise data_fault(
            Reason.MISSING_KEY, field=f'{where}: conversations', got=entries, allowed='[{...}, ...]',
            remedy=layout_hint(line),
        )  # fmt: skip
    listed, single = line.get('audios'), line.get('sound') or line.get('ori_sound')
    listed = [listed] if isinstance(listed, str) else listed
    queue = deque(listed) if isinstance(listed, list) else None
    # NeMo's two; and <audio>, which is an ordinary word where there is no recording at all
    marks = ['<sound>', '<speech>', *(['<audio>'] if single or queue is not None else [])]
    given = spec.options.get('audio_placeholders') or marks
    marks = [given] if isinstance(given, str) else list(given)
    pattern = re.compile('|'.join(map(re.escape, marks)))
    turns: list[dict[str, Any]] = []
    for entry in entries:
        if not isinstance(entry, Mapping) or not isinstance(entry.get('value'), str):
            raise data_fault(Reason.MISSING_KEY, field=f'{where}: value', got=entry, allowed='{"from", "value"}')
        turns += _split_share_gpt(entry, pattern, queue, single, where)
    unused = list(queue or ()) or (single if not any(turn.get('type') == 'audio' for turn in turns) else None)
    if unused or (listed is not None and queue is None):
        raise data_fault(
            Reason.PLACEHOLDER_MISMATCH,
            field=where,
            got=f'recordings without a placeholder: {unused or listed}',
            allowed=f'{", ".join(marks)} in a turn of the user',
        )
    rest = {key: value for key, value in line.items() if key not in ('audios', 'sound', 'ori_sound')}
    return _read_conversation(spec, {**rest, 'conversations': turns}, base, where)


def _split_share_gpt(
    entry: Mapping[str, Any], pattern: re.Pattern[str], queue: deque | None, single: str | None, where: str
) -> list[dict[str, Any]]:
    role = entry.get('from')
    pieces = pattern.split(entry['value'])
    if len(pieces) == 1 or str(role).lower() not in ('human', 'user'):
        return [{'from': role, 'type': 'text', 'value': entry['value']}]
    turns = []
    for number, piece in enumerate(pieces):
        if piece.strip():
            turns.append({'from': role, 'type': 'text', 'value': piece.strip()})
        if number + 1 == len(pieces):
            continue
        path = queue.popleft() if queue else (None if queue is not None else single)
        if not path:
            raise data_fault(Reason.PLACEHOLDER_MISMATCH, field=where, got='a placeholder without a recording')
        span = {key: entry[key] for key in ('duration', 'offset') if entry.get(key) is not None}
        turns.append({'from': role, 'type': 'audio', 'value': path, **span})
    return turns


def _read_lhotse(spec: 'SourceSpec', line: Mapping[str, Any], base: str, where: str) -> Conversation:
    """A line of a NeMo manifest, or of a lhotse cut manifest: a `MonoCut` of one plain file."""
    if not is_cut(line):
        return _read_manifest(spec, line, base, where)
    path, channel = sound_of_cut(line, where)
    supervisions, custom = _supervisions(line, where), _custom(line)
    manifest = {
        'text': supervisions[0].get('text'),
        'lang': supervisions[0].get('language'),
        **(supervisions[0].get('custom') or {}),
        **custom,
        'id': line.get('id'),
        'audio_filepath': path,
        'offset': line.get('start'),
        'duration': line.get('duration'),
    }
    if (count := len(supervisions)) > 1 and not _own_answer(manifest):
        raise unsupported_cut(where, 'supervisions', f'{count} supervisions', 'cuts.trim_to_supervisions()')
    conversation = _read_manifest(spec, manifest, base, where)
    return conversation if channel is None else _of_channels(conversation, [channel])


def _supervisions(cut: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    supervisions = cut.get('supervisions') or [{}]
    if not isinstance(supervisions, list) or not all(isinstance(each, Mapping) for each in supervisions):
        raise data_fault(Reason.MISSING_KEY, field=f'{where}: supervisions', got=supervisions, allowed='[{...}]')
    return supervisions


def _custom(cut: Mapping[str, Any]) -> Mapping[str, Any]:
    custom = cut.get('custom')
    return custom if isinstance(custom, Mapping) else {}


def _of_channels(conversation: Conversation, channels: Sequence[int | None]) -> Conversation:
    """The conversation with the channel that is heard of each recording, in their order."""
    queue = deque(channels)
    turns = [
        Turn(turn.role, tuple(replace(p, channel=queue.popleft()) if isinstance(p, Audio) else p for p in turn.parts))
        for turn in conversation.turns
    ]
    return replace(conversation, turns=tuple(turns))


_USERS, _AGENTS = ('user', 'User'), ('assistant', 'Assistant', 'agent', 'Agent')
_TIMESTAMP = re.compile(r'<\|\d+\|>')


def _read_dialogue(spec: 'SourceSpec', line: Mapping[str, Any], base: str, where: str) -> Conversation:
    """A cut whose supervisions are turns: the user is heard, of the agent the text is learnt."""
    if not is_cut(line):
        raise data_fault(
            Reason.MISSING_KEY, field=f'{where}: recording', got=None, allowed='a lhotse cut', remedy=layout_hint(line)
        )
    users, agents = (spec.options.get(f'{side}_roles', who) for side, who in (('input', _USERS), ('output', _AGENTS)))
    roles = dict.fromkeys(users, 'User') | dict.fromkeys(agents, 'Assistant')
    custom = _custom(line)
    turns: list[dict[str, Any]] = []
    if custom.get('system_prompt'):
        turns.append({'from': 'System', 'type': 'text', 'value': custom['system_prompt']})
    if custom.get('context'):
        turns.append({'from': 'User', 'type': 'text', 'value': custom['context']})
    channels = []
    for number, said in enumerate(_supervisions(line, where)):
        place = f'{where}: supervisions[{number}]'
        words, role = said.get('text'), roles.get(str(said.get('speaker')))
        if role is None:
            raise data_fault(
                Reason.UNKNOWN_ROLE, field=f'{place}.speaker', got=said.get('speaker'), allowed=', '.join(roles),
                remedy='name the speakers in input_roles and output_roles of the entry',
            )  # fmt: skip
        if isinstance(words, str) and spec.options.get('strip_timestamp_tokens', True):
            words = ' '.join(_TIMESTAMP.sub('', words).split())
        if role == 'Assistant':
            turns.append({'from': role, 'type': 'text', 'value': words})
            continue
        path, channel = sound_of_cut({**line, 'channel': said.get('channel', line.get('channel', 0))}, place)
        starts = (line.get('start') or 0, said.get('start') or 0)
        if not all(is_number(start) and start >= 0 for start in starts):
            raise data_fault(Reason.BAD_SPAN, field=f'{place}.start', got=starts, allowed='>= 0')
        span = {'offset': sum(starts), 'duration': said.get('duration')}
        turns.append({'from': role, 'type': 'audio', 'value': path, 'text': words, **span})
        channels.append(channel)
    said_by = {'id': line.get('id', where), 'conversations': turns, 'custom': custom}
    return _of_channels(_read_conversation(spec, said_by, base, where), channels)


def _own_answer(line: Mapping[str, Any]) -> Any:
    return line.get('answer') or line.get('target_text') or line.get('translation')


def _read_manifest(spec: 'SourceSpec', line: Mapping[str, Any], base: str, where: str) -> Conversation:
    """A line of a NeMo ASR/AST/SQA manifest: instruction, recording -> answer, translation or transcript."""
    path = line.get('audio_filepath')
    transcript = line.get(spec.options.get('text_field', 'text'))
    answer = _own_answer(line) or transcript
    for name, value in (('audio_filepath', path), ('text', answer)):
        if not isinstance(value, str) or not value.strip():
            hint = layout_hint(line) if path is None else None
            raise data_fault(Reason.MISSING_KEY, field=f'{where}: {name}', got=value, allowed='a text', remedy=hint)
    span = {key: line[key] for key in ('duration', 'offset') if line.get(key) is not None}
    user = [{'from': 'User', 'type': 'text', 'value': text} for text in _instructions(spec, line, where)]
    # of a Canary manifest `text` is the translation itself, not what is said
    said = None if answer is transcript and _translates(spec, line) else transcript
    spoken = {'from': 'User', 'type': 'audio', 'value': path, 'text': said, **span}
    turns = [*user, spoken, {'from': 'Assistant', 'type': 'text', 'value': answer}]
    if line.get('system_prompt'):
        turns.insert(0, {'from': 'System', 'type': 'text', 'value': line['system_prompt']})
    id_ = line.get('id') or line.get('key') or where
    return conversation_from_dict(
        {'id': id_, 'conversations': turns, 'custom': _facts(line)},
        kind=spec.kind or 'asr_ast',
        source=spec.name,
        base_dir=base,
        where=where,
        allowed=spec.allowed,
    )


def _facts(line: Mapping[str, Any]) -> Any:
    """`custom` with the languages and the task that stand beside it, as NeMo puts them there."""
    custom = line.get('custom') or {}
    if not isinstance(custom, Mapping):
        return custom
    found = {name: line[name] for name in ('source_lang', 'target_lang') if line.get(name)}
    task = TASK_NAMES.get(_word(line.get('taskname') or line.get('task')))
    return found | ({'task': task} if task else {}) | dict(custom)


def _word(value: Any) -> str:
    """A value of a Canary manifest, where `<|pnc|>`, `pnc`, `yes`, true and 1 are all written."""
    return _bare(str(value)).lower()


def _bare(value: str) -> str:
    return value.removeprefix('<|').removesuffix('|>')


def _translates(spec: 'SourceSpec', line: Mapping[str, Any]) -> bool:
    """Whether a line asks for a translation: by its task, else by its languages."""
    task = line.get('taskname') or line.get('task')
    if task is None:
        source = line.get('source_lang') or line.get(spec.options.get('lang_field', 'lang'))
        target = line.get('target_lang')
        return bool(target) and _bare(str(target)) != _bare(source or '')
    return TASK_NAMES.get(_word(task)) == 'ast'


_STYLES = {
    'pnc': ('with punctuation and capitalization', 'without punctuation and capitalization'),
    'itn': ('with numbers in digits', ''),
    'timestamp': ('with timestamps', ''),
    'diarize': ('with a mark for each speaker', ''),
}
"""Fields of a Canary manifest -> how an instruction says that they are set, and that they are not."""


def _style(line: Mapping[str, Any], where: str) -> str:
    """In what form a Canary manifest wants the answer, in words; '' where it says nothing."""
    asked = []
    for name, (yes, no) in _STYLES.items():
        if (value := line.get(name)) is None:
            continue
        if (word := _word(value)) in ('yes', 'true', '1', name):
            asked.append(yes)
        elif word in ('no', 'false', '0', f'no{name}'):
            asked.append(no)
        else:
            raise data_fault(Reason.MISSING_KEY, field=f'{where}: {name}', got=value, allowed='yes, no')
    return ', '.join(filter(None, asked))


def _instructions(spec: 'SourceSpec', line: Mapping[str, Any], where: str) -> list[str]:
    """The instruction for a recording: the line's own words, else one of the source's prompts, else a plain phrase."""
    language = spec.options.get('lang_field', 'lang')
    for name in ('context', 'question', 'source_lang', 'target_lang', language):
        if not isinstance(line.get(name), str | None):
            raise data_fault(Reason.MISSING_KEY, field=f'{where}: {name}', got=line[name], allowed='a text')
    own = [line[name] for name in ('context', 'question') if (line.get(name) or '').strip()]
    if own or spec.options.get('context'):
        return own
    task = line.get('taskname') or line.get('task')
    if task is not None and _word(task) not in TASK_NAMES:
        allowed = ', '.join(sorted(TASK_NAMES))
        raise data_fault(Reason.MISSING_KEY, field=f'{where}: taskname', got=task, allowed=allowed)
    source, target = _bare(line.get('source_lang') or line.get(language) or ''), _bare(line.get('target_lang') or '')
    translates = _translates(spec, line)
    if translates and not target:
        raise data_fault(Reason.MISSING_KEY, field=f'{where}: target_lang', got=target, allowed='a language')
    if line.get('decodercontext'):
        raise data_fault(
            Reason.UNREAD_PART, field=f'{where}: decodercontext', got=line['decodercontext'], allowed='an empty text',
            remedy='write the text before into `context`, with the instruction',
        )  # fmt: skip
    words = {
        'source_lang': LANGUAGES.get(source, source or 'the spoken language'),
        'target_lang': LANGUAGES.get(target, target or 'the spoken language'),
        'style': _style({**line, 'pnc': 'no'} if spec.options.get('pnc') is False else line, where),
    }
    prompts = spec.options.get('prompt')
    if prompts is None:
        prompts = 'Translate the speech to {target_lang}' if translates else 'Transcribe the speech'
        prompts += ' {style}.' if words['style'] else '.'
    chosen = str(pick_prompt(prompts, f'{line.get("audio_filepath")}:{line.get("offset")}'))
    for name, said in words.items():
        chosen = chosen.replace(f'{{{name}}}', said)
    return [chosen.strip()]


def _read_text(spec: 'SourceSpec', line: Mapping[str, Any], base: str, where: str) -> Conversation:
    """Plain text: an answer, as in NeMo; behind one of the source's prompts, where it has some."""
    said = line.get(name := spec.options.get('text_field', 'text'))
    if not isinstance(said, str) or not said.strip():
        hint = layout_hint(line)
        raise data_fault(Reason.MISSING_KEY, field=f'{where}: {name}', got=said, allowed='a text', remedy=hint)
    id_ = str(line.get('id') or where)
    answer = {'from': 'Assistant', 'type': 'text', 'value': said}
    if prompts := spec.options.get('prompt'):
        asked = pick_prompt(prompts, said)
        turns = [{'from': 'User', 'type': 'text', 'value': str(asked)}, answer]
        return conversation_from_dict({'id': id_, 'conversations': turns}, kind='text', source=spec.name, where=where)
    for field, value in ((name, said), ('id', id_)):
        if not is_unicode(value):
            raise data_fault(Reason.NOT_UNICODE, field=f'{where}: {field}', got=ascii(value))
    return Conversation(id_, (Turn('assistant', (Text(said),)),), spec.kind or 'text', spec.name)


def _read_messages(spec: 'SourceSpec', line: Mapping[str, Any], base: str, where: str) -> Conversation:
    options: dict[str, Any] = {'source': spec.name, 'base_dir': base, 'where': where, 'allowed': spec.allowed}
    return conversation_of_chat(line, kind=spec.kind or None, **options)


def _read_parquet(spec: 'SourceSpec', line: Mapping[str, Any], base: str, where: str) -> Conversation:
    """A row with a recording and its text; or a chat, by the column that it stands in."""
    chat = next((read for name, read in _CHATS.items() if name in line), None)
    return (chat or _read_manifest)(spec, line, base, where)


_CHATS = {'messages': _read_messages, 'conversations': _read_share_gpt}

Reader = Callable[['SourceSpec', Mapping[str, Any], str, str], Conversation]

SOURCE_TYPES: dict[str, Reader] = {
    'multimodal_conversation': _read_conversation,
    'nemo_sft_jsonl': _read_conversation,
    'share_gpt': _read_share_gpt,
    'nemo': _read_manifest,
    'nemo_tarred': _read_manifest,
    'lhotse': _read_lhotse,
    'lhotse_as_conversation': _read_lhotse,
    'lhotse_shar': _read_lhotse,
    'openai_messages': _read_messages,
    'parquet': _read_parquet,
    's2s_as_conversation': _read_dialogue,
    'share_gpt_webdataset': _read_share_gpt,
    'sqa_as_conversation': _read_lhotse,
    'txt': _read_text,
    'txt_jsonl': _read_text,
    'txt_pair': _read_conversation,
}
"""Types of `input_cfg` that can be read; add your own reader here (a function that loader processes can import)."""
