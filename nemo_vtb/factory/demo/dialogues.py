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
"""Lines of the demonstration corpus: recordings, NeMo multimodal_conversation lines, and the ASR, AST and QA kinds."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from nemo_vtb.assets.voices import random_style
from nemo_vtb.factory.demo.domain import (
    ASR_INSTRUCTIONS,
    Command,
    ask_both,
    ask_command,
    ask_mention,
    translate_instructions,
)
from nemo_vtb.io import atomic_replace

HELD_OUT_STYLE = ('en-US', 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording of the corpus.

    Args:
        path: Path relative to the corpus folder.
        duration: Seconds.
        text: What is said.
        lang: Two-letter language code.
        key: Name of the message, for real prompts.
    """

    path: str
    duration: float
    text: str
    lang: str = 'en'
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokenCommand(Clip):
    """A recording of a command of the demonstration domain.

    Args:
        command: The command that is said.
    """

    command: Command


Part = str | Clip
Parts = Sequence[Part]
Turns = list[tuple[str, Parts]]


@dataclass(frozen=True, slots=True)
class Pool:
    """What the conversations of one split are made of.

    Args:
        split: "train", "validation" or "test".
        commands: Recordings of commands.
        sentences: Every command whose text may appear in this split.
        prompts: Recordings of real English prompts.
    """

    split: str
    commands: Sequence[SpokenCommand]
    sentences: frozenset[Command]
    prompts: Sequence[Clip] = ()


class Recorder:
    """Takes real recordings into the folder ``wav/`` and writes down what is to be spoken there.

    No two files share a stem, by which NeMo keys recordings. Durations of what is to be spoken are 0 until it is.

    Args:
        out: The corpus folder.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._count: dict[str, int] = {}
        self.spans: list[tuple[str, str, str, float]] = []  # stem, text, voice@pitch, speed
        (out / 'wav').mkdir(parents=True, exist_ok=True)

    def say(self, text: str, name: str, split: str, rng: Random) -> Clip:
        """Have a text spoken: held-out speech in one fixed voice, all other in voices drawn at random.

        Args:
            text: What to say.
            name: Begins the file name.
            split: Split the recording belongs to.
            rng: Source of the voice.
        """
        style = HELD_OUT_STYLE if split == 'test' else random_style(rng)
        stem = f'{name}-{split}'
        self._count[stem] = number = self._count.get(stem, 0) + 1
        path = f'wav/{stem}-{number:05d}.wav'
        return Clip(path, self._note(path, text, style), text)

    def _note(self, path: str, text: str, style: tuple[str, float, float]) -> float:
        voice, speed, pitch = style
        self.spans.append((Path(path).stem, text, f'{voice}@{pitch}', speed))
        return 0.0

    def say_command(self, command: Command, split: str, rng: Random) -> SpokenCommand:
        """Have a command spoken; see `say`."""
        clip = self.say(command.text, 'command', split, rng)
        return SpokenCommand(clip.path, clip.duration, clip.text, command=command)

    def take(self, folder: Path, row: Mapping) -> Clip:
        """Copy a real recording.

        Args:
            folder: Folder of the recordings.
            row: Line of its manifest.
        """
        path = f'wav/{Path(row["audio_filepath"]).name}'
        if not (self.out / path).exists():
            with atomic_replace(self.out / path) as temporary:
                shutil.copyfile(folder / row['audio_filepath'], temporary)
        return Clip(path, row['duration'], row['text'], row['lang'], key=row['key'])


def conversation(name: str, kind: str, turns: Turns, **custom: object) -> dict:
    """One line in NeMo's multimodal_conversation format.

    Args:
        name: Identity of the conversation.
        kind: One of the four kinds.
        turns: (role, parts) each; a part is typed text or a recording.
        custom: Further facts, such as source, lang and task.
    """
    entries: list[dict] = []
    for role, parts in turns:
        for part in parts:
            if isinstance(part, Clip):
                entry = {'type': 'audio', 'from': role, 'value': part.path, 'duration': part.duration}
                entries.append({**entry, 'text': part.text})
            else:
                entries.append({'type': 'text', 'from': role, 'value': part})
    return {'id': name, 'conversations': entries, 'custom': {'kind': kind, **custom}}


def asr_line(rng: Random, name: str, clip: Clip, source: str) -> dict:
    """Transcription of a recording, the instruction before or after it."""
    instruction = rng.choice(ASR_INSTRUCTIONS)
    user: Parts = [instruction, clip] if instruction.endswith(':') or rng.random() < 0.6 else [clip, instruction]
    turns: Turns = [('User', user), ('Assistant', [clip.text])]
    return conversation(name, 'asr_ast', turns, lang=clip.lang, source=source, task='asr', **_key(clip))


def ast_line(rng: Random, name: str, clip: Clip, target: str, lang: str) -> dict:
    """Translation of a recording.

    Args:
        rng: Source of the wording.
        name: Identity of the line.
        clip: What is translated.
        target: The translation.
        lang: Language of the translation.
    """
    instruction = rng.choice(translate_instructions(lang))
    user: Parts = [instruction, clip] if instruction.endswith(':') or rng.random() < 0.6 else [clip, instruction]
    turns: Turns = [('User', user), ('Assistant', [target])]
    facts = {'lang': clip.lang, 'target_lang': lang, 'source': 'asterisk-ast', 'task': 'ast', **_key(clip)}
    return conversation(name, 'asr_ast', turns, **facts)


def qa_lines(rng: Random, pool: Pool, count: int) -> list[dict]:
    """Questions about recordings: three in five on one command, one in five on two commands or on a real prompt.

    Args:
        rng: Source of randomness.
        pool: Recordings of the split.
        count: How many conversations.
    """
    makers = [_qa_command] * 3 + [_qa_both] + ([_qa_prompt] if len(pool.prompts) > 1 else [])
    return [makers[i % len(makers)](rng, f'qa-{pool.split}-{i:05d}', pool) for i in range(count)]


def _qa_command(rng: Random, name: str, pool: Pool) -> dict:
    clip = rng.choice(pool.commands)
    asked = ask_command(rng, clip.command, rng.choice((1, 1, 2, 3)))
    turns: Turns = []
    for number, (_, question, answer) in enumerate(asked):
        first: Parts = [clip, question] if rng.random() < 0.6 else [question, clip]
        turns += [('User', first if number == 0 else [question]), ('Assistant', [answer])]
    tasks = [task for task, _, _ in asked]
    return conversation(name, 'speech_qa', turns, lang='en', source='commands-qa', task=tasks[0], tasks=tasks)


def _qa_both(rng: Random, name: str, pool: Pool) -> dict:
    first, second = rng.sample(list(pool.commands), 2)
    same = [c for c in pool.commands if c is not first and c.command.room == first.command.room]
    if same and rng.random() < 0.15:
        # two rooms drawn at random are rarely the same, and "No." would become a safe guess
        second = rng.choice(same)
    task, question, answer = ask_both(rng, first.command, second.command)
    user: Parts = [first, second, question] if rng.random() < 0.5 else [question, first, 'and', second]
    turns: Turns = [('User', user), ('Assistant', [answer])]
    return conversation(name, 'speech_qa', turns, lang='en', source='commands-qa', task=task, tasks=[task])


def _qa_prompt(rng: Random, name: str, pool: Pool) -> dict:
    clip, *others = rng.sample(list(pool.prompts), min(9, len(pool.prompts)))
    task, question, answer = ask_mention(rng, clip.text, [other.text for other in others])
    turns: Turns = [('User', [clip, question]), ('Assistant', [answer])]
    return conversation(
        name, 'speech_qa', turns, lang='en', source='asterisk-qa', task=task, tasks=[task], **_key(clip)
    )


def _key(clip: Clip) -> dict[str, str]:
    return {'key': clip.key} if clip.key else {}
