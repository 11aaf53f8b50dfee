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
"""Contents of the demonstration corpus: conversations of all four kinds, split by recording; and the check of it."""

import hashlib
import json
import wave
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from nemo_vtb.assets.voices import VOICE_LICENCE
from nemo_vtb.constants import SAMPLE_RATE
from nemo_vtb.errors import VtbAssetError, VtbDataError
from nemo_vtb.factory.demo.dialogues import (
    Clip,
    Pool,
    Recorder,
    SpokenCommand,
    Turns,
    asr_line,
    ast_line,
    conversation,
    mixed_lines,
    qa_lines,
)
from nemo_vtb.factory.demo.household import Command, all_commands
from nemo_vtb.factory.demo.text_only import PromptChat, reference_chats
from nemo_vtb.io import parse_json_lines

SPLITS = ('train', 'validation', 'test')
MAX_SECONDS = 20.0
MIN_WORDS = 2
_TOLERANCE_S = 1e-6
_ROLES = ('System', 'User', 'Assistant')


@dataclass(frozen=True, slots=True)
class CorpusSize:
    """How many lines of each kind, for (train, validation, test).

    Args:
        commands: Recordings of spoken commands.
        speech_qa: Conversations with questions about recordings.
        mixed_modal: Conversations with text and speech in one user turn.
        text: Text-only conversations.
        prefixes: Polite openings that commands may have.
    """

    commands: tuple[int, int, int]
    speech_qa: tuple[int, int, int]
    mixed_modal: tuple[int, int, int]
    text: tuple[int, int, int]
    prefixes: tuple[str, ...] = ('',)


def split_commands(prefixes: Sequence[str], seed: int) -> dict[str, list[Command]]:
    """All commands by split, shuffled: a sentence is in one split only, whatever its polite opening.

    Args:
        prefixes: Openings to combine with each sentence.
        seed: Seed of the split.
    """
    plain = all_commands()
    Random(f'{seed}:commands').shuffle(plain)
    held = len(plain) // 10
    parts = {'test': plain[:held], 'validation': plain[held : 2 * held], 'train': plain[2 * held :]}
    splits = {}
    for split, commands in parts.items():
        variants = [command.but(prefix=prefix) for prefix in prefixes for command in commands]
        Random(f'{seed}:commands:{split}').shuffle(variants)
        splits[split] = variants
    return splits


def split_prompts(rows: Sequence[Mapping], seed: int) -> dict[str, str]:
    """Split of each message key: 80, 10 and 10 percent; keys that share a text in any language stay together.

    Args:
        rows: Manifest lines of all languages.
        seed: Seed of the split.

    Returns:
        Split by key.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    first: dict[tuple[str, str], str] = {}
    for row in rows:
        words = ''.join(c if c.isalnum() else ' ' for c in row['text'].lower()).split()
        group = root(row['key'])
        parent[group] = root(first.setdefault((row['lang'], ' '.join(words)), row['key']))
    groups = sorted({root(key) for key in parent})
    Random(f'{seed}:prompts').shuffle(groups)
    tenth = max(1, len(groups) // 10)
    split_of = {
        group: 'test' if i < tenth else 'validation' if i < 2 * tenth else 'train' for i, group in enumerate(groups)
    }
    return {key: split_of[root(key)] for key in parent}


class CorpusMaker:
    """Writes the conversations of the corpus before anything is synthesised (`demo/build.py` does that).

    Args:
        size: How many lines of each kind.
        recordings: Folders of real prompts by language; with more than English, `asr_ast_multilingual` is made too.
        seed: Seed of all splits and draws.
        recorder: Notes what is to be spoken.

    Raises:
        VtbAssetError: The manifest of a folder cannot be read.
    """

    def __init__(self, size: CorpusSize, recordings: Mapping[str, Path], seed: int, recorder: Recorder) -> None:
        self._size, self._folders, self._seed, self._recorder = size, recordings, seed, recorder
        self.lines: dict[str, list[dict[str, Any]]] = {}
        self.left_out = {'prompts of one word': 0, f'prompts above {MAX_SECONDS:.0f} s': 0}
        rows = [row for lang in sorted(recordings) for row in _manifest(recordings[lang])]
        self._rows = [row for row in rows if self._is_usable(row)]
        self._split_of_key = split_prompts(self._rows, seed)
        self._sentences = split_commands(size.prefixes, seed)

    def reference_chats(self) -> dict[str, list[PromptChat]]:
        """The conversations with human-written answers, by split."""
        chats = reference_chats()
        Random(f'{self._seed}:reference').shuffle(chats)
        held = len(chats) // 5
        parts = {'test': chats[:held], 'validation': chats[held : 2 * held], 'train': chats[2 * held :]}
        return {split: parts[split][:wanted] for split, wanted in zip(SPLITS, self._size.text, strict=True)}

    def write_split(self, number: int, split: str, chats: list[PromptChat]) -> None:
        """Write the files of all kinds for one split."""
        size, rng = self._size, Random(f'{self._seed}:{split}')
        commands = self._speak_commands(size.commands[number], split)
        sentences = frozenset(command.but(prefix='') for command in self._sentences[split])
        prompts = self._prompts('en', split)
        pool = Pool(split, commands, sentences, [clip for clip in prompts if len(clip.text.split()) > 3])
        lines = [asr_line(rng, f'cmd-{split}-{i:05d}', clip, 'commands') for i, clip in enumerate(commands)]
        lines += [asr_line(rng, f'asr-{clip.lang}-{clip.key}', clip, 'asterisk-asr') for clip in prompts]
        rng.shuffle(lines)
        self.write(f'asr_ast.{split}', lines)
        self.write(f'speech_qa.{split}', qa_lines(rng, pool, size.speech_qa[number]))
        mixed = mixed_lines(rng, pool, self._recorder, size.mixed_modal[number], chats)
        chatting = [line for line in mixed if line['custom']['source'] == 'spoken-chat']
        self.write(f'mixed_modal.{split}', [line for line in mixed if line not in chatting])
        # in a file of their own: answers that a small LLM samples are mostly noise, which the quick run cannot afford
        self.write(f'spoken_chat.{split}', chatting)
        texts = [text_line(f'text-{split}-{i:05d}', chat, 'typed-chat') for i, chat in enumerate(chats)]
        rng.shuffle(texts)
        self.write(f'text.{split}', texts)
        if set(self._folders) - {'en'}:
            self.write(f'asr_ast_multilingual.{split}', self._multilingual(rng, split))

    def write(self, name: str, lines: Sequence[dict]) -> None:
        """Keep the lines of a file."""
        self.lines[name] = [dict(line) for line in lines]

    def licences(self) -> dict[str, str]:
        """Licence and attribution of everything in the corpus."""
        licences = {
            'texts': 'Apache-2.0 (written for nemo_vtb; chat answers by the language model)',
            'voices': VOICE_LICENCE,
        }
        for lang, folder in self._folders.items():
            card = json.loads((folder / 'card.json').read_text(encoding='utf-8'))
            licences[f'prompts {lang}'] = f'{card["licence"]}, {card["credit"]}; {card["source"]}'
        return licences

    def _speak_commands(self, count: int, split: str) -> list[SpokenCommand]:
        sentences, rng = self._sentences[split], Random(f'{self._seed}:voices:{split}')
        return [self._recorder.say_command(sentences[i % len(sentences)], split, rng) for i in range(count)]

    def _is_usable(self, row: Mapping) -> bool:
        if len(row['text'].split()) < MIN_WORDS:
            self.left_out['prompts of one word'] += 1
            return False
        if row['duration'] > MAX_SECONDS:
            self.left_out[f'prompts above {MAX_SECONDS:.0f} s'] += 1
            return False
        return True

    def _prompts(self, lang: str, split: str) -> list[Clip]:
        rows = [row for row in self._rows if row['lang'] == lang and self._split_of_key[row['key']] == split]
        return [self._recorder.take(self._folders[lang], row) for row in rows]

    def _multilingual(self, rng: Random, split: str) -> list[dict]:
        clips = {lang: {clip.key: clip for clip in self._prompts(lang, split)} for lang in sorted(self._folders)}
        lines = []
        for lang in sorted(set(clips) - {'en'}):
            for key, clip in clips[lang].items():
                lines.append(asr_line(rng, f'asr-{lang}-{key}', clip, 'asterisk-asr'))
                english = clips.get('en', {}).get(key)
                if english is not None:
                    lines.append(ast_line(rng, f'ast-{lang}-en-{key}', clip, english.text, 'en'))
                    lines.append(ast_line(rng, f'ast-en-{lang}-{key}', english, clip.text, lang))
        rng.shuffle(lines)
        return lines


def best_chats(answered: Sequence[PromptChat], wanted: int) -> list[PromptChat]:
    """The first chats that have all answers: those that ended by themselves before those that ran into the limit.

    Args:
        answered: Chats in the order of the bank.
        wanted: How many.
    """
    # sorting is stable: else in the order of the bank
    return sorted((chat for chat in answered if all(chat.answers)), key=lambda chat: not chat.complete)[:wanted]


def text_line(name: str, chat: PromptChat, source: str) -> dict:
    """One line of a text-only conversation.

    Args:
        name: Identity of the line.
        chat: Prompts and answers.
        source: What to call where it comes from.
    """
    turns: Turns = []
    for prompt, answer in zip(chat.prompts, chat.answers, strict=True):
        turns += [('User', [prompt]), ('Assistant', [answer])]
    return conversation(name, 'text', turns, lang='en', source=source, task='chat', complete=chat.complete)


def _manifest(folder: Path) -> list[dict]:
    try:
        return parse_json_lines((folder / 'manifest.jsonl').read_bytes())
    except (OSError, ValueError) as error:
        raise VtbAssetError(
            'The manifest of the recordings cannot be read.', field=folder.name, got=str(error),
            remedy=f'vtb assets {folder.name}',
        ) from error  # fmt: skip


# ---- the check of a corpus that was made


@dataclass(slots=True)
class _Seen:
    """What has been met so far, to find the same thing in two places."""

    ids: set[str] = field(default_factory=set)
    files: dict[str, tuple[str, float]] = field(default_factory=dict)
    split_of: dict[tuple[str, str], str] = field(default_factory=dict)
    stems: dict[str, str] = field(default_factory=dict)

    def claim(self, what: str, value: str, split: str) -> None:
        """Note that a value belongs to a split. Raises VtbDataError when it belongs to another already."""
        owner = self.split_of.setdefault((what, value), split)
        if owner != split:
            raise VtbDataError(f'A {what} is in two splits.', field=what, got=f'{value}: {owner} and {split}')


def check_corpus(folder: Path) -> dict:
    """Check a corpus and count it.

    Args:
        folder: Folder with ``<kind>.<split>.jsonl`` files and ``wav/``.

    Returns:
        ``files``: counts for each file; ``splits``: distinct recordings and their seconds for each split.

    Raises:
        VtbDataError: A line is broken, a recording is missing or not as long as written, an identity is used twice,
            or a recording (by name or by content), a message or a command is in two splits.
    """
    seen, files = _Seen(), {}
    for path in sorted(folder.glob('*.*.jsonl')):
        name, split = path.stem.rsplit('.', 1)
        count: dict[str, float] = defaultdict(int)
        sources: Counter = Counter()
        for place, line in _lines(path):
            _check_line(folder, place, line, split, seen, count)
            sources[line['custom']['source']] += 1
        files[f'{name}.{split}'] = {**_rounded(count), 'sources': dict(sorted(sources.items()))}
    splits: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(int))
    for split, seconds in seen.files.values():
        _add(splits[split], recordings=1, seconds=seconds)
    return {'files': files, 'splits': {split: _rounded(count) for split, count in sorted(splits.items())}}


def _lines(path: Path) -> Iterator[tuple[str, dict]]:
    with path.open(encoding='utf-8') as file:
        for number, text in enumerate(file, 1):
            place = f'{path.name}:{number}'
            try:
                yield place, json.loads(text)
            except ValueError as error:
                raise VtbDataError('A line is not JSON.', field=place, got=text, allowed=str(error)) from error


def _check_line(folder: Path, place: str, line: dict, split: str, seen: _Seen, count: dict[str, float]) -> None:
    entries, custom = line['conversations'], line['custom']
    if line['id'] in seen.ids:
        raise VtbDataError('An identity is used twice.', field=place, got=line['id'])
    seen.ids.add(line['id'])
    _check_roles(place, entries)
    _add(count, conversations=1)
    if 'key' in custom:
        seen.claim('message key', custom['key'], split)
    for entry in entries:
        if entry['type'] == 'audio':
            seconds = _check_audio(folder, place, entry, split, seen)
            _add(count, audios=1, seconds=seconds, spoken_words=len(entry['text'].split()))
        elif entry['from'] == 'User':
            _add(count, typed_words=len(entry['value'].split()))
        else:
            _add(count, answer_words=len(entry['value'].split()))
    _add(count, answers=sum(entry['from'] == 'Assistant' for entry in entries))
    if custom['source'] == 'commands':
        seen.claim('command', entries[-1]['value'], split)


def _check_roles(place: str, entries: list[dict]) -> None:
    roles = [entry['from'] for entry in entries]
    known = all(role in _ROLES for role in roles)
    if not known or not roles or roles[0] == 'Assistant' or roles[-1] != 'Assistant':
        raise VtbDataError('Turns are not in order.', field=place, got=roles, allowed='User ... Assistant')
    for entry in entries:
        if not entry['value'].strip() or (entry['type'] == 'audio' and entry['from'] != 'User'):
            raise VtbDataError('A turn is empty or spoken by the assistant.', field=place, got=entry)


def _check_audio(folder: Path, place: str, entry: dict, split: str, seen: _Seen) -> float:
    value = entry['value']
    if value not in seen.files:
        path = folder / value
        try:
            with wave.open(str(path), 'rb') as file:
                rate, frames = file.getframerate(), file.getnframes()
                digest = hashlib.sha256(file.readframes(frames)).hexdigest()
        except (OSError, EOFError, wave.Error) as error:
            raise VtbDataError('A recording cannot be read.', field=place, got=value) from error
        if rate != SAMPLE_RATE or frames == 0:
            raise VtbDataError('A recording is empty or of a wrong rate.', field=place, got=(value, rate, frames))
        if seen.stems.setdefault(path.stem, value) != value:
            raise VtbDataError('Two recordings share a file stem.', field=place, got=(value, seen.stems[path.stem]))
        seen.claim('recording', digest, split)
        seen.files[value] = (split, frames / rate)
    owner, seconds = seen.files[value]
    if owner != split:
        raise VtbDataError('A recording is in two splits.', field=place, got=f'{value}: {owner} and {split}')
    if abs(seconds - entry['duration']) > _TOLERANCE_S:
        raise VtbDataError('A duration is wrong.', field=place, got=entry['duration'], allowed=seconds)
    return seconds


def _add(count: dict[str, float], **numbers: float) -> None:
    for key, value in numbers.items():
        count[key] += value


def _rounded(count: dict[str, float]) -> dict[str, float]:
    numbers = {key: round(value, 3) for key, value in count.items()}
    return {**numbers, 'hours': round(count.get('seconds', 0.0) / 3600, 4)}
