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
"""Mixed-modal conversations: user turns partly typed and partly spoken, where the answer needs both parts."""

from collections.abc import Callable, Sequence
from random import Random

from nemo_vtb.factory.demo.chats import Chat
from nemo_vtb.factory.demo.dialogues import Clip, Parts, Pool, Recorder, SpokenCommand, Turns, conversation
from nemo_vtb.factory.demo.domain import NUMBERS, ROOMS, TIMES, Command, sentence

_PEOPLE = ('Anna', 'Ben', 'Clara', 'David', 'Emma')
_THINGS = ('bread', 'milk', 'eggs', 'rice', 'apples', 'soap', 'tea', 'butter', 'paper', 'honey')

Say = Callable[[str], Clip]


def mixed_lines(rng: Random, pool: Pool, recorder: Recorder, count: int, chats: Sequence[Chat] = ()) -> list[dict]:
    """Mixed-modal conversations, the tasks in turn.

    Args:
        rng: Source of randomness.
        pool: Recordings of the split.
        recorder: Speaks what is not in the pool.
        count: How many conversations.
        chats: Answered typed chats; one conversation in four is such a chat with a part of its question spoken.
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
    things = rng.sample(_THINGS, 4)
    clip = say(f'{things[2]} and {things[3]}.')
    return _ask([f'My list: {things[0]}, {things[1]},', clip, 'Repeat the list.'], sentence(', '.join(things)))


def _where(rng: Random, pool: Pool, say: Say) -> Turns:
    people, rooms = rng.sample(_PEOPLE, 2), rng.sample(ROOMS, 2)
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
    person = rng.choice(_PEOPLE)
    turns = _ask([clip, f'Who will do it? {person}.'], f'{person} will {_plain(clip.command)}.')
    change = f'Make it the {other.room}.'
    return [*turns, *_ask([say(change) if rng.random() < 0.5 else change], f'{person} will {_plain(other)}.')]


def _chat(rng: Random, chat: Chat, say: Say) -> Turns:
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
