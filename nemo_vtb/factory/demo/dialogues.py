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
"""Conversations of the demonstration corpus as NeMo multimodal_conversation lines: ASR, AST, QA, mixed-modal."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from nemo_vtb.assets.voices import random_style
from nemo_vtb.factory.demo.household import (
    ASR_INSTRUCTIONS,
    NUMBERS,
    PEOPLE,
    ROOMS,
    THINGS,
    TIMES,
    Command,
    ask_both,
    ask_command,
    ask_mention,
    sentence,
    translate_instructions,
)
from nemo_vtb.factory.demo.text_only import PromptChat
from nemo_vtb.factory.stage import audio_turn, text_turn
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
        voice, speed, pitch = HELD_OUT_STYLE if split == 'test' else random_style(rng)
        stem = f'{name}-{split}'
        self._count[stem] = number = self._count.get(stem, 0) + 1
        path = f'wav/{stem}-{number:05d}.wav'
        self.spans.append((Path(path).stem, text, f'{voice}@{pitch}', speed))
        return Clip(path, 0.0, text)

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
        turns: (role, parts) each; a part is text or a recording.
        custom: Further facts, such as source, lang and task.
    """
    entries = [
        audio_turn(part.path, part.duration, part.text) if isinstance(part, Clip) else text_turn(role, part)
        for role, parts in turns
        for part in parts
    ]
    return {'id': name, 'conversations': entries, 'custom': {'kind': kind, **custom}}


def asr_line(rng: Random, name: str, clip: Clip, source: str) -> dict:
    """Transcription of a recording, the instruction before or after it."""
    turns = _instructed(rng, ASR_INSTRUCTIONS, clip, clip.text)
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
    turns = _instructed(rng, translate_instructions(lang), clip, target)
    facts = {'lang': clip.lang, 'target_lang': lang, 'source': 'asterisk-ast', 'task': 'ast', **_key(clip)}
    return conversation(name, 'asr_ast', turns, **facts)


def _instructed(rng: Random, instructions: Sequence[str], clip: Clip, answer: str) -> Turns:
    instruction = rng.choice(instructions)
    user: Parts = [instruction, clip] if instruction.endswith(':') or rng.random() < 0.6 else [clip, instruction]
    return _ask(user, answer)


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
        turns += _ask(first if number == 0 else [question], answer)
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
    return conversation(
        name, 'speech_qa', _ask(user, answer), lang='en', source='commands-qa', task=task, tasks=[task]
    )


def _qa_prompt(rng: Random, name: str, pool: Pool) -> dict:
    clip, *others = rng.sample(list(pool.prompts), min(9, len(pool.prompts)))
    task, question, answer = ask_mention(rng, clip.text, [other.text for other in others])
    facts = {'lang': 'en', 'source': 'asterisk-qa', 'task': task, 'tasks': [task], **_key(clip)}
    return conversation(name, 'speech_qa', _ask([clip, question], answer), **facts)


def _key(clip: Clip) -> dict[str, str]:
    return {'key': clip.key} if clip.key else {}


# ---- mixed-modal: user turns of text and speech, whose answer needs both

Say = Callable[[str], Clip]


def mixed_lines(
    rng: Random, pool: Pool, recorder: Recorder, count: int, chats: Sequence[PromptChat] = ()
) -> list[dict]:
    """Mixed-modal conversations, the tasks in turn.

    Args:
        rng: Source of randomness.
        pool: Recordings of the split.
        recorder: Speaks what is not in the pool.
        count: How many conversations.
        chats: Answered text-only conversations; one line in four is such a one with a part of its question spoken.
    """
    tasks = list(MIXED_TASKS.items())
    lines: list[dict] = []
    spoken_chats = [chat for chat in chats if len(chat.prompts[0].split()) > 3]
    rng.shuffle(spoken_chats)
    for number in range(count):
        name = f'mixed-{pool.split}-{number:05d}'

        def say(text: str) -> Clip:
            return recorder.say(text, 'mixed', pool.split, rng)

        if number % 4 == 3 and spoken_chats:
            task, source = 'chat', 'spoken-chat'
            turns = _chat(rng, spoken_chats[number // 4 % len(spoken_chats)], say)
        else:
            (task, make), source = tasks[len(lines) % len(tasks)], 'commands-mixed'
            turns = make(rng, pool, say)
        lines.append(conversation(name, 'mixed_modal', turns, lang='en', source=source, task=task))
    return lines


def _rewrite_room(rng: Random, pool: Pool, say: Say) -> Turns:
    clip, other = _changed(rng, pool, 'room', ROOMS)
    typed = rng.choice(('Rewrite this command for the {}:', 'The same for the {}, please:')).format(other.room)
    return _ask([typed, clip], other.text)


def _rewrite_time(rng: Random, pool: Pool, say: Say) -> Turns:
    clip, other = _changed(rng, pool, 'time', TIMES)
    when = other.time
    user: Parts = [f'Change the time to "{when}":', clip] if rng.random() < 0.5 else [clip, f'But do it {when}.']
    return _ask(user, other.text)


def _rule(rng: Random, pool: Pool, say: Say) -> Turns:
    clip = rng.choice(pool.commands)
    allowed = rng.random() < 0.5
    others = [room for room in ROOMS if room != clip.command.room]
    room = rng.choice(others) if allowed else clip.command.room
    user: Parts = [f'Rule: nothing in the {room} may be changed.', clip, 'Is this allowed?']
    return _ask(user, 'Yes.' if allowed else 'No.')


def _sum(rng: Random, pool: Pool, say: Say) -> Turns:
    first, second = rng.randint(1, 9), rng.randint(1, 9)
    # a lone word is hard to recognise: the spoken part is at least a short phrase
    clip = say(f'plus {NUMBERS[second]}.')
    return _ask([f'What is {NUMBERS[first]}', clip], sentence(NUMBERS[first + second]))


def _shopping(rng: Random, pool: Pool, say: Say) -> Turns:
    things = rng.sample(THINGS, 4)
    clip = say(f'{things[2]} and {things[3]}.')
    return _ask([f'My list: {things[0]}, {things[1]},', clip, 'Repeat the list.'], sentence(', '.join(things)))


def _where(rng: Random, pool: Pool, say: Say) -> Turns:
    people, rooms = rng.sample(PEOPLE, 2), rng.sample(ROOMS, 2)
    typed = ' '.join(f'{person} is in the {room}.' for person, room in zip(people, rooms, strict=True))
    asked = rng.randrange(2)
    return _ask([typed, say(f'Tell me where {people[asked]} is.')], f'{people[asked]} is in the {rooms[asked]}.')


def _order(rng: Random, pool: Pool, say: Say) -> Turns:
    clips = rng.sample(list(pool.commands), 2)
    asked = rng.randrange(2)
    part = rng.choice(('object', 'room'))
    value = clips[asked].command.item if part == 'object' else clips[asked].command.room
    typed = f'Which {part} comes {("first", "second")[asked]}?'
    return _ask(['First:', clips[0], 'Then:', clips[1], typed], f'The {value}.')


def _merge(rng: Random, pool: Pool, say: Say) -> Turns:
    first, second = rng.sample(list(pool.commands), 2)
    user: Parts = ['Take the object from', first, 'and the room from', second]
    return _ask(user, f'The {first.command.item} in the {second.command.room}.')


def _who(rng: Random, pool: Pool, say: Say) -> Turns:
    clip, other = _changed(rng, pool, 'room', ROOMS)
    person = rng.choice(PEOPLE)
    turns = _ask([clip, f'Who will do it? {person}.'], f'{person} will {_plain(clip.command)}.')
    change = f'Make it the {other.room}.'
    return [*turns, *_ask([say(change) if rng.random() < 0.5 else change], f'{person} will {_plain(other)}.')]


def _chat(rng: Random, chat: PromptChat, say: Say) -> Turns:
    words = chat.prompts[0].split()
    cut = rng.randint(1, len(words) - 2)
    # at least two spoken words: single ones are hard to recognise even for people
    end = len(words) if rng.random() < 0.5 else rng.randint(cut + 2, len(words))
    parts: Parts = [' '.join(words[:cut]), say(' '.join(words[cut:end])), ' '.join(words[end:])]
    turns = _ask([part for part in parts if part], chat.answers[0])
    for prompt, answer in zip(chat.prompts[1:], chat.answers[1:], strict=True):
        turns += _ask([say(prompt) if rng.random() < 0.5 else prompt], answer)
    return turns


MIXED_TASKS: dict[str, Callable[[Random, Pool, Say], Turns]] = {
    'rewrite_room': _rewrite_room,
    'where': _where,
    'rule': _rule,
    'order': _order,
    'rewrite_time': _rewrite_time,
    'sum': _sum,
    'who': _who,
    'merge': _merge,
    'shopping': _shopping,
}


def _plain(command: Command) -> str:
    return command.but(prefix='').body


def _ask(user: Parts, answer: str) -> Turns:
    return [('User', user), ('Assistant', [answer])]


def _changed(rng: Random, pool: Pool, part: str, values: Sequence[str]) -> tuple[SpokenCommand, Command]:
    """A recording, and its command with another part whose text belongs to this split."""
    clips = list(pool.commands)
    for clip in rng.sample(clips, len(clips)):
        command = clip.command
        others = [command.but(**{part: value}) for value in values if value != getattr(command, part)]
        others = [other for other in others if other.but(prefix='') in pool.sentences]
        if others:
            return clip, rng.choice(others)
    # a split of a handful of sentences may hold no pair; a repetition of the command is then still a true answer
    return clips[0], clips[0].command
