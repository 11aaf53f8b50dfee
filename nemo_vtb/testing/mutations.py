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
"""Kinds of fault that a seed draws: a value of a wrong class in a place of a line, or damage to its bytes.

Every place of every format says what must become of each class of value: the outcome is known before it is tried.
"""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

from nemo_vtb.testing.faulty_lines import Fault, Line, chat, spoken, write_wav

Place = tuple[str | int, ...]

VALUES: Mapping[str, Callable[[Random], Any]] = {
    'a number': lambda rng: rng.choice([rng.randint(1, 10**6), round(rng.uniform(0.1, 9.0), 3)]),
    'a negative number': lambda rng: -rng.uniform(0.1, 1e6),
    'true': lambda rng: True,
    'null': lambda rng: None,
    'an empty text': lambda rng: '',
    'a text': lambda rng: rng.choice(['left', 'none', '1.0', 'x y']),
    'nested lists': lambda rng: _nested(rng, lambda inner: [inner]),
    'nested objects': lambda rng: _nested(rng, lambda inner: {rng.choice('abc'): inner}),
    '400 digits': lambda rng: 10**399 + rng.randint(0, 10**9),
    '1e308': lambda rng: rng.uniform(0.9, 1.0) * 1e308,
    'half a surrogate pair': lambda rng: f'a {chr(rng.randint(0xD800, 0xDFFF))} b',
}
"""Class of value -> one of it."""

_NO_TEXT = ('a number', 'true', 'nested lists', 'nested objects', '400 digits', '1e308')
_NO_NUMBER = ('a negative number', 'true', 'a text', 'nested lists', 'nested objects', '400 digits')


def _nested(rng: Random, wrap: Callable[[Any], Any]) -> Any:
    value: Any = 'x'
    for _ in range(rng.randint(1, 30)):
        value = wrap(value)
    return value


def _rule(reason: str, *classes: str, **more: str) -> dict[str, str]:
    """Class of value -> outcome; keys of `more` have underscores for blanks."""
    return dict.fromkeys(classes, reason) | {name.replace('_', ' '): other for name, other in more.items()}


_NEEDED = _rule('missing_key', *_NO_TEXT, 'null', 'an empty text')
_TEXT = _NEEDED | {'half a surrogate pair': 'not_unicode'}
_OPTIONAL = _rule('missing_key', *_NO_TEXT)
_DURATION = _rule('bad_span', *_NO_NUMBER, 'an empty text') | {'1e308': 'duration_mismatch'}
_OFFSET = _rule('bad_span', *_NO_NUMBER, 'an empty text', '1e308')
_CUSTOM = _rule('bad_custom', 'a number', 'true', 'a text', 'nested lists', '400 digits', '1e308')
_ID = {'half a surrogate pair': 'not_unicode'}
_UNREAD = _rule('unread_part', 'a number', 'true', 'a text', 'nested lists', 'nested objects')
_NO_OBJECT = ('a number', 'true', 'a text', 'nested lists')

# format -> place in its line -> class of value -> what must become of the line
RULES: Mapping[str, Mapping[Place, Mapping[str, str]]] = {
    'multimodal_conversation': {
        ('id',): _ID,
        ('system',): _OPTIONAL,
        ('custom',): _CUSTOM,
        ('audios',): _UNREAD,
        ('images',): _UNREAD,
        ('conversations',): _rule('missing_key', *_NO_TEXT[:2], 'null', 'an empty text', 'a text', 'nested objects'),
        ('conversations', 0): _rule('missing_key', *_NO_OBJECT, 'null'),
        ('conversations', 0, 'from'): _rule('unknown_role', *VALUES),
        ('conversations', 0, 'value'): _TEXT,
        ('conversations', 0, 'type'): _rule('unknown_turn_type', *VALUES),
        ('conversations', 1, 'value'): _TEXT,
        ('conversations', 1, 'duration'): _DURATION,
        ('conversations', 1, 'offset'): _OFFSET,
        ('conversations', 1, 'text'): _OPTIONAL,
        ('conversations', 2, 'value'): _TEXT,
        ('conversations', 2, 'from'): _rule('unknown_role', *VALUES),
    },
    'share_gpt': {
        ('id',): _ID,
        ('system',): _OPTIONAL,
        ('custom',): _CUSTOM,
        ('audios',): _rule('placeholder_mismatch', 'a number', 'true', 'nested objects', '400 digits'),
        ('conversations',): _rule('missing_key', 'a number', 'true', 'null', 'a text', 'nested objects'),
        ('conversations', 0): _rule('missing_key', *_NO_OBJECT, 'null'),
        ('conversations', 0, 'value'): _rule('missing_key', *_NO_TEXT, 'null'),
        ('conversations', 1, 'value'): _TEXT,
        ('conversations', 1, 'from'): _rule('unknown_role', *VALUES),
    },
    'nemo': {
        ('id',): _ID,
        ('custom',): _CUSTOM,
        ('audio_filepath',): _TEXT,
        ('text',): _TEXT,
        ('lang',): _OPTIONAL,
        ('source_lang',): _OPTIONAL,
        ('target_lang',): _OPTIONAL,
        ('context',): _OPTIONAL,
        ('answer',): _OPTIONAL,
        ('system_prompt',): _OPTIONAL,
        ('duration',): _DURATION,
        ('offset',): _OFFSET,
    },
    'lhotse': {
        ('id',): _ID,
        ('recording',): _rule('missing_key', *_NO_OBJECT, null='unsupported_cut'),
        ('recording', 'sources'): _rule('missing_key', *_NO_OBJECT, 'nested objects', 'null'),
        ('recording', 'sources', 0): _rule('missing_key', *_NO_OBJECT, 'null'),
        ('recording', 'sources', 0, 'type'): _rule('refused_path', *VALUES),
        ('recording', 'sources', 0, 'source'): _TEXT,
        ('recording', 'transforms'): _rule(
            'unsupported_cut', 'a text', 'nested lists', a_number='other', true='other'
        ),
        ('channel',): _rule('unsupported_cut', 'true', 'null', 'a text', 'nested objects', '1e308'),
        ('type',): _rule('unsupported_cut', *VALUES),
        ('start',): _OFFSET,
        ('duration',): _DURATION,
        ('supervisions',): _rule('missing_key', 'a number', 'true', 'a text', 'nested objects'),
        ('supervisions', 0): _rule('missing_key', *_NO_OBJECT, 'null'),
        ('supervisions', 0, 'text'): _TEXT,
        ('supervisions', 0, 'language'): _OPTIONAL,
        ('supervisions', 0, 'custom'): _rule('other', 'a number', 'true', 'a text', 'nested lists'),
    },
}

_BYTES: Mapping[str, tuple[str, Callable[[Random, bytes], bytes]]] = {
    'cut anywhere': ('not_json', lambda rng, raw: raw[: rng.randint(1, len(raw) - 1)]),
    'a byte that is not UTF-8': ('not_json', lambda rng, raw: _put(rng, raw, bytes([rng.randint(0x80, 0xFF), 0x20]))),
    'a zero byte': ('not_json', lambda rng, raw: _put(rng, raw, b'\0')),
    'a second value behind it': ('not_json', lambda rng, raw: raw + b' ' + raw),
    'another brace': ('not_json', lambda rng, raw: raw + b'}'),
    'quotes of Python': ('not_json', lambda rng, raw: raw.replace(b'"', b"'")),
    'NaN': (
        'not_json',
        lambda rng, raw: raw[:-1] + b', "snr": ' + rng.choice([b'NaN', b'-Infinity', b'Infinity']) + b'}',
    ),
    'a list around it': ('not_an_object', lambda rng, raw: b'[' + raw + b']'),
    'a text around it': ('not_an_object', lambda rng, raw: json.dumps(raw.decode()).encode()),
    'UTF-16': ('not_json', lambda rng, raw: raw.decode().encode('utf-16-be')),
}


def _put(rng: Random, raw: bytes, what: bytes) -> bytes:
    """Something put into the middle of a line, behind its first brace."""
    place = rng.randint(1, len(raw) - 1)
    return raw[:place] + what + raw[place:]


def good_line(type_: str, folder: Path, number: int) -> dict[str, Any]:
    """A line of a format that would be taken; its recording is written."""
    id_, wav = f'{folder.name}-{number}', f'{folder.name}/a.wav'
    write_wav(folder / 'a.wav')
    match type_:
        case 'multimodal_conversation':
            return chat(id_, spoken(wav, duration=0.5))
        case 'share_gpt':
            turns = [{'from': 'human', 'value': 'What is said? <sound>'}, {'from': 'gpt', 'value': 'the green one'}]
            return {'id': id_, 'audios': [wav], 'conversations': turns}
        case 'nemo':
            return {'id': id_, 'audio_filepath': wav, 'duration': 0.5, 'text': 'the green one', 'lang': 'en'}
        case 'openai_messages':
            asked = [{'type': 'text', 'text': 'What is said?'}, {'type': 'audio', 'audio': wav}]
            answer = {'role': 'assistant', 'content': 'the green one'}
            return {'id': id_, 'messages': [{'role': 'user', 'content': asked}, answer]}
        case 'txt_jsonl':
            return {'id': id_, 'text': 'the green one'}
    source = {'type': 'file', 'channels': [0], 'source': wav}
    recording = {'id': 'a', 'sources': [source], 'sampling_rate': 16000, 'num_samples': 8000, 'duration': 0.5}
    said: list[dict[str, Any]] = [{'id': 's', 'text': 'the green one', 'language': 'en'}]
    if type_ == 's2s_as_conversation':
        said = [
            {'id': who, 'speaker': who, 'start': 0.25 * n, 'duration': 0.25, 'text': 'the green one'}
            for n, who in enumerate(('user', 'agent'))
        ]
    return {
        'id': id_, 'type': 'MonoCut', 'start': 0.0, 'duration': 0.5, 'channel': 0, 'recording': recording,
        'supervisions': said,
    }  # fmt: skip


def mutated_faults(seed: int, count: int) -> list[Fault]:
    """So many kinds of fault, drawn from all places and damages.

    Raises:
        ValueError: There are not so many.
    """
    faults = [
        _fault(seed, type_, f'{".".join(map(str, place))} is {name}', reason, _replaced(place, VALUES[name]))
        for type_, places in RULES.items()
        for place, rules in places.items()
        for name, reason in rules.items()
    ]
    faults += [
        _fault(seed, type_, f'bytes: {name}', reason, _rewritten(change))
        for type_ in RULES
        for name, (reason, change) in _BYTES.items()
    ]
    return Random(seed).sample(faults, count)


def _rewritten(change: Callable[[Random, bytes], bytes]) -> Callable[[Random, dict[str, Any]], Line]:
    return lambda rng, line: change(rng, json.dumps(line).encode())


def _replaced(place: Place, value: Callable[[Random], Any]) -> Callable[[Random, dict[str, Any]], Line]:
    def change(rng: Random, line: dict[str, Any]) -> Line:
        line = copy.deepcopy(line)
        at: Any = line
        for key in place[:-1]:
            at = at[key]
        at[place[-1]] = value(rng)
        return line

    return change


def _fault(seed: int, type_: str, what: str, reason: str, change: Callable[[Random, dict[str, Any]], Line]) -> Fault:
    def make(folder: Path, number: int) -> Line:
        return change(Random(f'{seed}:{folder.name}:{number}'), good_line(type_, folder, number))

    return Fault(type_, f'{type_}: {what}', reason, 'skipped', make, type=type_)
