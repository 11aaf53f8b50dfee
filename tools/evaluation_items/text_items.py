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
"""Items of the text suite: multiple-choice questions, and instructions whose answers a program checks."""

from collections.abc import Iterator
from random import Random
from typing import Any

import text_banks as banks

PARTS = ('facts', 'commonsense', 'language', 'arithmetic', 'reading')
"""Parts of the multiple-choice items; each is a task of lm-eval, `vtb_PART`."""

PER_PART = 40
_SEED = 7
_NAMES = 'Anna Tom Clara David Maria Peter Julia Sam'.split()
_THINGS = 'bag hat coat car ball cup'.split()
_COLOURS = 'red blue green yellow black white'.split()
_PLACES = 'kitchen garden office garage bedroom bathroom'.split()
_DAYS = 'Monday Tuesday Wednesday Thursday Friday Saturday Sunday'.split()
_ANIMALS = 'dog cat horse bird rabbit'.split()

Item = tuple[str, str, list[str]]


def make_choices(seed: int = _SEED) -> list[dict[str, Any]]:
    """Multiple-choice items `{id, part, question, choices, answer}`, 40 of each part, the answer at a random place."""
    lines = []
    for part in PARTS:
        rng = Random(f'{seed}:{part}')
        items = list(_MAKERS[part](rng))
        assert len(items) == PER_PART and len({i[0] + i[1] for i in items}) == PER_PART, part
        for number, (question, right, wrong) in enumerate(items):
            choices = [right, *wrong]
            assert len(set(choices)) == 4, (question, choices)
            rng.shuffle(choices)
            lines.append(
                {
                    'id': f'{part}-{number:02d}',
                    'part': part,
                    'question': question,
                    'choices': choices,
                    'answer': choices.index(right),
                }
            )
    return lines


def _bank(text: str) -> Iterator[Item]:
    for line in text.strip().splitlines():
        question, right, *wrong = (cell.strip() for cell in line.split('|'))
        yield question, right, wrong


def _language(rng: Random) -> Iterator[Item]:
    pairs = [pair.split() for pair in banks.OPPOSITES.replace('\n', ' ').split('|')]
    words = [word for pair in pairs for word in pair]
    for word, opposite in pairs:
        others = [w for w in words if w not in (word, opposite)]
        yield f'What is the opposite of "{word}"?', opposite, rng.sample(others, 3)
    names = list(banks.CATEGORIES)
    for place in (0, 1):
        for name in names:
            others = rng.sample([n for n in names if n != name], 3)
            wrong = [rng.choice(banks.CATEGORIES[other]) for other in others]
            yield f'Which of these is {name}?', banks.CATEGORIES[name][place], wrong
    for bank, what in ((banks.PLURALS, 'plural'), (banks.PAST, 'past tense')):
        for line in bank.split('|'):
            word, right, *wrong = line.split()
            yield f'What is the {what} of "{word}"?', right, wrong
    for word in ('apple', 'house', 'table', 'garden', 'water'):
        wrong = rng.sample([c for c in 'bcdfjkmnqrs' if c != word[0]], 3)
        yield f'With which letter does the word "{word}" begin?', word[0], wrong


def _near(rng: Random, right: int) -> list[str]:
    return [str(n) for n in rng.sample([n for n in range(max(0, right - 6), right + 7) if n != right], 3)]


def _arithmetic(rng: Random) -> Iterator[Item]:
    seen: set[tuple[str, int, int]] = set()
    while len(seen) < 24:
        sign = '+-*'[len(seen) // 8]
        a, b = rng.randint(2, 12), rng.randint(1, 9)
        a, b = (max(a, b) + 1, min(a, b)) if sign == '-' else (a, b)
        if (sign, a, b) in seen:
            continue
        seen.add((sign, a, b))
        right = a + b if sign == '+' else a - b if sign == '-' else a * b
        yield f'What is {a} {sign} {b}?', str(right), _near(rng, right)
    for number in range(8):
        name, other = rng.sample(_NAMES, 2)
        a, b = rng.randint(3, 9), rng.randint(1, 2) + number % 2
        question = f'{name} has {a} apples and gets {b} more from {other}. How many apples does {name} have now?'
        yield question, str(a + b), _near(rng, a + b)
    for _ in range(8):
        numbers = rng.sample(range(1, 100), 4)
        right = max(numbers)
        listed = ', '.join(map(str, numbers))
        yield f'Which number is the largest: {listed}?', str(right), [str(n) for n in numbers if n != right]


def _reading(rng: Random) -> Iterator[Item]:
    for _ in range(14):
        (a, b), (x, y), (c, d) = rng.sample(_NAMES, 2), rng.sample(_THINGS, 2), rng.sample(_COLOURS, 2)
        rest = [colour for colour in _COLOURS if colour not in (c, d)]
        text = f'{a} has a {c} {x}. {b} has a {d} {y}.'
        yield f'{text} What colour is the {y} of {b}?', d, [c, *rng.sample(rest, 2)]
    for _ in range(14):
        names, places = rng.sample(_NAMES, 3), rng.sample(_PLACES, 4)
        text = ' '.join(f'{n} is in the {p}.' for n, p in zip(names, places[:3], strict=True))
        asked = rng.randrange(3)
        right = places[asked]
        yield f'{text} Where is {names[asked]}?', f'in the {right}', [f'in the {p}' for p in places if p != right]
    for _ in range(12):
        name, day, animal = rng.choice(_NAMES), rng.choice(_DAYS), rng.choice(_ANIMALS)
        text = f'On {day} {name} went to the market and bought a {animal}.'
        if rng.random() < 0.5:
            yield f'{text} What did {name} buy?', f'a {animal}', [f'a {x}' for x in _ANIMALS if x != animal][:3]
        else:
            yield f'{text} On which day was that?', day, rng.sample([d for d in _DAYS if d != day], 3)


_MAKERS = {
    'facts': lambda rng: _bank(banks.FACTS),
    'commonsense': lambda rng: _bank(banks.COMMONSENSE),
    'language': _language,
    'arithmetic': _arithmetic,
    'reading': _reading,
}


def make_instructions(seed: int = _SEED) -> list[dict[str, Any]]:
    """Instructions `{id, prompt, constraints, topic_words}` with checkable answers: ten forms of five topics each."""
    rng = Random(f'{seed}:instructions')
    lines: list[dict[str, Any]] = []
    for form, (text, constraints) in enumerate(_FORMS):
        for topic in rng.sample(banks.INSTRUCTION_TOPICS, 5):
            lines.append(
                {
                    'id': f'form{form}-{len(lines):02d}',
                    'prompt': text.format(topic=topic),
                    'constraints': constraints,
                    'topic_words': banks.TOPIC_WORDS[topic].split(),
                }
            )
    return lines


_FORMS: tuple[tuple[str, list[dict[str, Any]]], ...] = (
    ('Write one sentence about {topic}.', [{'kind': 'sentences', 'at_least': 1, 'at_most': 1}]),
    ('Write one sentence about {topic}, all in capital letters.', [{'kind': 'upper'}]),
    ('Write about {topic} in small letters only, without any capital letter.', [{'kind': 'lower'}]),
    ('Write three bullet points about {topic}.', [{'kind': 'bullets', 'at_least': 3, 'at_most': 3}]),
    ('Answer with JSON only: an object with the key "text", about {topic}.', [{'kind': 'json', 'keys': ['text']}]),
    ('Describe {topic} in at most ten words.', [{'kind': 'words', 'at_least': 2, 'at_most': 10}]),
    ('Describe {topic} without using any comma.', [{'kind': 'no_commas'}, {'kind': 'words', 'at_least': 5}]),
    ('Write about {topic} and use the word "green".', [{'kind': 'includes', 'text': 'green'}]),
    ('Write about {topic}. Begin with the words "In my view".', [{'kind': 'starts', 'text': 'In my view'}]),
    ('Write at least thirty words about {topic}.', [{'kind': 'words', 'at_least': 30}]),
)  # fmt: skip
