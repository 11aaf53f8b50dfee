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
"""The demonstration domain: a closed grammar of household commands, and questions whose answers it knows."""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from random import Random

from nemo_vtb.factory.prompts import load_bank
from nemo_vtb.io import read_yaml

_BANK = read_yaml(Path(__file__).with_suffix('.yaml'))
ROOMS, TIMES, PREFIXES, NUMBERS, PEOPLE, THINGS = (
    tuple(_BANK[name]) for name in ('rooms', 'times', 'prefixes', 'numbers', 'people', 'things')
)
_SWITCHED, _HINGED = tuple(_BANK['switched']), tuple(_BANK['hinged'])
ACTIONS = {'turn on': _SWITCHED, 'turn off': _SWITCHED, 'open': _HINGED, 'close': _HINGED}
ASR_INSTRUCTIONS = tuple(_BANK['transcribe'])
_QUESTIONS = _BANK['questions']

QuestionAnswer = tuple[str, str, str]  # task, question, answer


@dataclass(frozen=True, slots=True)
class Command:
    """One command of the domain, such as "Turn on the lamp in the kitchen at noon."

    Args:
        action: Key of ``ACTIONS``.
        item: What is acted on; one of ``ACTIONS[action]``.
        room: One of ``ROOMS``.
        time: One of ``TIMES``.
        prefix: One of ``PREFIXES``.
    """

    action: str
    item: str
    room: str
    time: str
    prefix: str = ''

    @property
    def body(self) -> str:
        """The command without capital letter and full stop."""
        return f'{self.prefix} {self.action} the {self.item} in the {self.room} {self.time}'.strip()

    @property
    def text(self) -> str:
        """The command as a sentence."""
        return sentence(self.body, '?' if self.prefix == 'could you' else '.')

    @property
    def state(self) -> str:
        """What becomes of the item: "on", "off", "opened" or "closed"."""
        return _BANK['states'][self.action]

    def but(self, **changes: str) -> 'Command':
        """The same command with other parts."""
        return replace(self, **changes)


def sentence(text: str, stop: str = '.') -> str:
    """The text with a capital letter and a full stop."""
    return f'{text[0].upper()}{text[1:]}{stop}'


def all_commands(prefixes: tuple[str, ...] = ('',)) -> list[Command]:
    """Every command of the grammar, in a fixed order: 960 for each prefix.

    Args:
        prefixes: Polite openings to combine with the rest.
    """
    pairs = [(action, item) for action, items in ACTIONS.items() for item in items]
    return [
        Command(action, item, room, time, prefix)
        for prefix, (action, item), room, time in product(prefixes, pairs, ROOMS, TIMES)
    ]


def translate_instructions(lang: str) -> tuple[str, ...]:
    """Ways to ask for a translation into a language.

    Args:
        lang: Two-letter code of the target language.
    """
    name = load_bank('en').names[lang]
    return tuple(text.format(name) for text in _BANK['translate'])


def ask_command(rng: Random, command: Command, count: int) -> list[QuestionAnswer]:
    """Different questions about one command.

    Args:
        rng: Source of randomness.
        command: What was said.
        count: How many questions.

    Returns:
        (task, question, answer) each; answers are one to four words with capital letter and full stop.
    """
    # the count of words is asked less often: it is a riddle even for large models
    tasks = ['room', 'item', 'time', 'state', 'mention']
    if rng.random() < 0.15:
        tasks.append('words')
    return [_ask(rng, command, task) for task in rng.sample(tasks, count)]


def ask_mention(rng: Random, text: str, others: list[str]) -> QuestionAnswer:
    """Ask whether a word is said in a real prompt; yes and no are equally likely.

    Args:
        rng: Source of randomness.
        text: What is said.
        others: Texts to take words from that are not said.
    """
    said = _content_words(text)
    truth = bool(said) and rng.random() < 0.5
    if truth:
        word = rng.choice(said)
    else:
        spoken = set(_words(text))
        word = rng.choice(sorted({w for other in others for w in _content_words(other)} - spoken))
    return 'mention', rng.choice(_QUESTIONS['mention']).format(word), 'Yes.' if truth else 'No.'


def ask_both(rng: Random, first: Command, second: Command) -> QuestionAnswer:
    """Ask for a comparison of two recordings.

    Args:
        rng: Source of randomness.
        first: Command of the first recording.
        second: Command of the second recording.
    """
    differing = [name for name in ('room', 'item', 'time') if getattr(first, name) != getattr(second, name)]
    if not differing or rng.random() < (0.2 if first.room != second.room else 0.5):
        question = 'Are both recordings about the same room?'
        return 'same_room', question, 'Yes.' if first.room == second.room else 'No.'
    name = rng.choice(differing)
    wanted = rng.choice(('first', 'second'))
    value = getattr(first if wanted == 'first' else second, name)
    value = value if name == 'time' else f'the {value}'
    return 'which', rng.choice(_QUESTIONS['which']).format(value), f'The {wanted}.'


def _ask(rng: Random, command: Command, task: str) -> QuestionAnswer:
    if task == 'words':
        return task, 'How many words does the speaker say?', sentence(NUMBERS[len(command.body.split())])
    if task == 'mention':
        return _ask_mention_part(rng, command)
    answer = command.state if task == 'state' else getattr(command, task)
    pair = 'turned on or off' if command.state in ('on', 'off') else 'opened or closed'
    question = rng.choice(_QUESTIONS[task]).format(pair)
    return task, question, f'The {answer}.' if task in ('room', 'item') else sentence(answer)


def _ask_mention_part(rng: Random, command: Command) -> QuestionAnswer:
    name, values = rng.choice((('room', ROOMS), ('item', _SWITCHED + _HINGED)))
    said = getattr(command, name)
    word = said if rng.random() < 0.5 else rng.choice([value for value in values if value != said])
    return 'mention', f'Does the speaker mention the {word}?', 'Yes.' if word == said else 'No.'


def _words(text: str) -> list[str]:
    return [word.strip('.,;:!?"\'').lower() for word in text.split()]


def _content_words(text: str) -> list[str]:
    return [word for word in _words(text) if len(word) > 3 and word.isalpha()]
