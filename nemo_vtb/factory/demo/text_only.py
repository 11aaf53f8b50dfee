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
"""Text-only conversations: a bank of prompts, and answers to them by the base language model."""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

from nemo_vtb.errors import VtbModelError
from nemo_vtb.factory.text_generation import load_causal_lm

_SPLIT_SHARES = (('train', 0.74), ('validation', 0.1), ('test', 0.16))
_FOLLOW_UP_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class PromptChat:
    """A text-only conversation.

    Args:
        prompts: What the user types, turn by turn.
        answers: What is answered, turn by turn; empty until generated.
        complete: Whether every answer ended by itself rather than at the limit of tokens.
    """

    prompts: tuple[str, ...]
    answers: tuple[str, ...] = ()
    complete: bool = True


def chat_prompts(seed: int = 0) -> dict[str, list[PromptChat]]:
    """All prompts of the bank by split, shuffled; a topic is in one split only.

    Args:
        seed: Seed of the split and of the order.
    """
    splits: dict[str, list[PromptChat]] = {name: [] for name, _ in _SPLIT_SHARES}
    for number, (templates, topics) in enumerate(TOPIC_GROUPS):
        shuffled = list(topics)
        Random(f'{seed}:topics:{number}').shuffle(shuffled)
        start = 0
        for name, share in _SPLIT_SHARES:
            end = len(shuffled) if name == 'test' else start + round(share * len(shuffled))
            splits[name] += [PromptChat((t.format(topic),)) for topic in shuffled[start:end] for t in templates]
            start = end
    for name, chats in splits.items():
        rng = Random(f'{seed}:chats:{name}')
        rng.shuffle(chats)
        splits[name] = [_with_follow_up(chat, rng) for chat in chats]
    return splits


def reference_chats() -> list[PromptChat]:
    """Chats whose answers a person wrote."""
    return [PromptChat(turns[0::2], turns[1::2]) for turns in REFERENCE_CHATS]


def generate_text_chats(
    llm_dir: Path,
    prompts: Sequence[PromptChat],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 16,
) -> list[PromptChat]:
    """Let the base language model answer by plain sampling (seeded): its own distribution, so that training keeps it.

    Args:
        llm_dir: Folder of a Hugging Face causal language model with a chat template.
        prompts: Chats without answers; a later prompt sees the earlier answers.
        max_new_tokens: Limit of each answer; an answer that reaches it is cut after its last sentence.
        batch_size: Chats answered at once.

    Returns:
        The chats with answers, in the order given.

    Raises:
        VtbModelError: The folder cannot be loaded or its tokenizer has no chat template.
    """
    import torch

    tokenizer, model = load_causal_lm(llm_dir, 'llm', torch.float32)
    if not tokenizer.chat_template:
        raise VtbModelError('The tokenizer has no chat template.', field='llm', got=Path(llm_dir).name)
    chats = list(prompts)
    with _one_thread():
        for turn in range(max((len(chat.prompts) for chat in chats), default=0)):
            waiting = [i for i, chat in enumerate(chats) if len(chat.prompts) > turn]
            rendered = {i: _render(tokenizer, chats[i], turn) for i in waiting}
            # equal lengths together: less padding, and the order does not depend on anything but the prompts
            waiting.sort(key=lambda i: (len(rendered[i]), i))
            for start in range(0, len(waiting), batch_size):
                group = waiting[start : start + batch_size]
                answers = _answer(tokenizer, model, [rendered[i] for i in group], max_new_tokens)
                for i, (answer, complete) in zip(group, answers, strict=True):
                    chat = chats[i]
                    chats[i] = PromptChat(chat.prompts, (*chat.answers, answer), chat.complete and complete)
    return chats


@contextmanager
def _one_thread() -> Iterator[None]:
    # steps of a small model are so short that waiting threads cost five times the work on a busy machine (measured)
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _with_follow_up(chat: PromptChat, rng: Random) -> PromptChat:
    if rng.random() >= _FOLLOW_UP_SHARE:
        return chat
    return PromptChat((*chat.prompts, rng.choice(FOLLOW_UPS)))


def _render(tokenizer: Any, chat: PromptChat, turn: int) -> str:
    pairs = zip(chat.prompts, chat.answers, strict=False)
    history = chain.from_iterable(
        ({'role': 'user', 'content': prompt}, {'role': 'assistant', 'content': answer})
        for prompt, answer in list(pairs)[:turn]
    )
    messages = [*history, {'role': 'user', 'content': chat.prompts[turn]}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _answer(tokenizer: Any, model: Any, texts: list[str], max_new_tokens: int) -> list[tuple[str, bool]]:
    import torch

    batch = tokenizer(texts, return_tensors='pt', padding=True, add_special_tokens=False)
    width = batch['input_ids'].shape[1]
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32('\0'.join(texts).encode()))
        output = model.generate(
            input_ids=batch['input_ids'],
            attention_mask=batch['attention_mask'],
            max_new_tokens=max_new_tokens,
            # samples of the model's own distribution hold it where it is; greedy answers would sharpen it, which
            # costs it every text that it has not written itself (docs/experiments.md, 3)
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    answers = []
    for row in output[:, width:]:
        ended = bool((row == tokenizer.eos_token_id).any())
        text = tokenizer.decode(row, skip_special_tokens=True).strip()
        answers.append((text if ended else _cut(text), ended))
    return answers


def _cut(text: str) -> str:
    # an answer that ran into the limit is ended after its last whole sentence
    end = max(text.rfind(stop) for stop in ('. ', '! ', '? ', '.\n', '!\n', '?\n', '。'))
    return text[: end + 1].strip() if end > 0 else text


# (templates, topics): every template is asked of every topic; a topic belongs to one split
TOPIC_GROUPS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ('What is {}?', 'Explain {} in simple words.', 'Why is {} important?', 'Tell me something about {}.'),
        (
            'photosynthesis', 'gravity', 'evaporation', 'electricity', 'a volcano', 'a rainbow', 'the moon',
            'an earthquake', 'oxygen', 'a computer program', 'the internet', 'a battery', 'recycling', 'democracy',
            'inflation', 'a budget', 'the water cycle', 'friction', 'magnetism', 'a vaccine', 'sleep',
            'a healthy diet',
            'exercise', 'the heart', 'the brain', 'a telescope', 'a microscope', 'solar energy', 'wind power',
            'a river',
            'a glacier', 'a desert', 'the rain forest', 'a bee', 'a whale', 'an oak tree', 'soil', 'the alphabet',
            'a library', 'a museum', 'music', 'painting', 'poetry', 'a bridge', 'a bicycle', 'a steam engine',
            'a compass', 'a map', 'a clock', 'the calendar', 'the scientific method', 'a hypothesis', 'statistics',
            'probability', 'a prime number', 'a triangle', 'machine learning', 'speech recognition', 'a translator',
            'a contract', 'insurance', 'a train timetable', 'friendship', 'patience', 'curiosity', 'teamwork',
        ),
    ),
    (
        ('How do I {}?', 'Give me a tip to {}.', 'What do I need to {}?'),
        (
            'boil an egg', 'bake bread', 'make tea', 'cook rice', 'plant tomatoes', 'water house plants',
            'clean a window',
            'wash a wool sweater', 'iron a shirt', 'repair a flat tire', 'learn to swim', 'learn a new language',
            'remember names', 'study for an exam', 'write a letter', 'give a short speech', 'save money',
            'plan a trip',
            'pack a suitcase', 'fall asleep faster', 'wake up early', 'stay calm', 'make new friends', 'train a puppy',
            'feed birds in winter', 'take better photos', 'draw a face', 'play the guitar', 'choose a good book',
            'start a garden', 'keep a diary', 'organize my desk', 'paint a wall', 'hang a picture', 'sew on a button',
            'protect my password', 'back up my files', 'ride a bike safely', 'run five kilometers', 'read a map',
        ),
    ),
    (
        ('What is the capital of {}?', 'Name one famous place in {}.', 'Which language do people speak in {}?'),
        (
            'France', 'Italy', 'Spain', 'Germany', 'Russia', 'Japan', 'China', 'Canada', 'Brazil', 'Egypt', 'India',
            'Mexico', 'Greece', 'Norway', 'Portugal', 'Poland', 'Kenya', 'Australia', 'Argentina', 'Turkey',
        ),
    ),
    (
        ('Write one sentence about {}.', 'Write a short poem about {}.', 'Describe {} to a child.'),
        (
            'the sea', 'a snowy morning', 'an old dog', 'my grandmother', 'a busy market', 'a quiet street', 'spring',
            'autumn leaves', 'a thunderstorm', 'a night train', 'a birthday party', 'a lost key', 'a kind teacher',
            'a cup of coffee', 'a small boat', 'the city at night', 'a field of flowers', 'a broken toy',
            'a long walk',
            'the first day of school', 'a red balloon', 'an empty house', 'a football match', 'a letter from a friend',
        ),
    ),
    (
        ('What is the difference between {}?', 'Which do you prefer, and why: {}?'),
        (
            'a cat and a dog', 'tea and coffee', 'a lake and a river', 'a town and a city', 'a novel and a poem',
            'a star and a planet', 'summer and winter', 'a bus and a train', 'butter and oil', 'a frog and a toad',
            'fear and courage', 'weather and climate', 'a lawyer and a judge', 'a guitar and a violin',
            'an apple and a pear', 'a doctor and a nurse', 'speaking and writing', 'work and play',
        ),
    ),
    (
        ('{}',),
        (
            'Hello, how are you?', 'Good morning!', 'Who are you?', 'What can you do?', 'Tell me a joke.',
            'Tell me a very short story.', 'I am bored. What can I do?', 'I feel tired today.',
            'Thank you for your help.',
            'Give me three words that rhyme with light.', 'Name three fruits.', 'Name three colors.',
            'Name two animals that can fly.', 'Count from one to five.', 'What day comes after Monday?',
            'How many days are in a week?', 'How many months are in a year?', 'What is two plus two?',
            'What is ten minus three?', 'Is ice hot or cold?', 'What color is the sky?', 'What do cows drink?',
            'Spell the word house.', 'Give me another word for happy.', 'What is the opposite of big?',
            'Say good night politely.', 'Finish the sentence: The early bird', 'Finish the sentence: Once upon a time',
            'Suggest a name for a cat.', 'Suggest a title for a book about rain.', 'What should I cook tonight?',
            'What is a good gift for a friend?', 'My plant is dry. What should I do?', 'It rains. What should I wear?',
            'I have lost my phone. What now?', 'Should I take a break?', 'Wish me luck for my exam.',
            'Apologize for being late.', 'Invite Anna to dinner on Friday.', 'Write a headline about a new bridge.',
        ),
    ),
)  # fmt: skip

FOLLOW_UPS = (
    'Can you say that in fewer words?',
    'Give me an example, please.',
    'Why is that so?',
    'Thank you. What else should I know?',
    'Is that always true?',
    'What should I remember most?',
)

# questions with an answer written by a person: text that no model made, so a fair yardstick of text ability
REFERENCE_CHATS: tuple[tuple[str, ...], ...] = (
    ('How many legs does a spider have?', 'A spider has eight legs.'),
    ('What is the largest ocean on Earth?', 'The Pacific Ocean is the largest ocean on Earth.'),
    ('Why do leaves turn yellow in autumn?', 'They stop making green pigment, so the yellow pigment becomes visible.'),
    ('What do bees make?', 'Bees make honey and wax.'),
    ('How many minutes are in an hour?', 'There are sixty minutes in an hour.'),
    ('What is the freezing point of water?', 'Water freezes at zero degrees Celsius.'),
    ('Which planet is closest to the sun?', 'Mercury is the planet closest to the sun.'),
    ('What is a baby cat called?', 'A baby cat is called a kitten.'),
    ('Who wrote Romeo and Juliet?', 'William Shakespeare wrote Romeo and Juliet.'),
    ('What is the opposite of early?', 'The opposite of early is late.'),
    (
        'How can I keep bread fresh?',
        'Keep it in a closed bag or box at room temperature, and freeze what you do not need.',
    ),
    ('Give me a synonym for quick.', 'Fast is a synonym for quick.'),
    ('What is the past tense of go?', 'The past tense of go is went.'),
    ('Where do penguins live?', 'Most penguins live in the southern half of the world, many of them in Antarctica.'),
    ('What is a dictionary for?', 'A dictionary tells you what words mean and how to spell them.'),
    ('Why do we brush our teeth?', 'We brush our teeth to remove food and bacteria that would damage them.'),
    ('How many sides does a square have?', 'A square has four equal sides.'),
    ('What is the color of snow?', 'Snow is white.'),
    ('What is the main language of Brazil?', 'The main language of Brazil is Portuguese.'),
    ('Name a musical instrument with keys.', 'The piano is a musical instrument with keys.'),
    ('What do you call a person who bakes bread?', 'A person who bakes bread is called a baker.'),
    ('What is half of twenty?', 'Half of twenty is ten.'),
    ('Which is heavier, a stone or a feather?', 'A stone is heavier than a feather.'),
    ('Why is the sea salty?', 'Rivers carry salt from rocks into the sea, and it stays there when water evaporates.'),
    ('When do owls hunt?', 'Most owls hunt at night.'),
    ('What is a week end for?', 'Many people rest, meet friends or do things they enjoy on the weekend.'),
    ('How should I store milk?', 'Store milk in the refrigerator and close it well.'),
    ('What is the first month of the year?', 'January is the first month of the year.'),
    ('Give me a sentence with the word river.', 'The river runs slowly past the old mill.'),
    ('What does a thermometer measure?', 'A thermometer measures temperature.'),
    ('What is the tallest animal?', 'The giraffe is the tallest animal.'),
    ('Can fish breathe air?', 'Most fish cannot; they take oxygen from the water with their gills.'),
    ('What is a synonym for sad?', 'Unhappy is a synonym for sad.'),
    ('How do birds stay warm?', 'They fluff up their feathers, which keeps warm air close to the body.'),
    ('What is paper made of?', 'Paper is made mostly of wood fibers.'),
    ('Which season comes after winter?', 'Spring comes after winter.'),
    ('What is the plural of mouse?', 'The plural of mouse is mice.'),
    ('Why should I drink water?', 'Your body needs water to cool itself and to move food and waste.'),
    ('What is the square of three?', 'The square of three is nine.'),
    ('Who teaches at a school?', 'Teachers teach at a school.'),
    ('What is a yard sale?', 'It is a sale of used things, held in front of a house.'),
    ('What do I say when I meet someone?', 'You can say hello and tell them your name.'),
    ('How long is a marathon?', 'A marathon is about forty-two kilometers long.'),
    ('What is a shadow?', 'A shadow is a dark area where an object blocks the light.'),
    ('Is a tomato a fruit?', 'Yes, to a botanist a tomato is a fruit, because it holds seeds.'),
    ('What is the center of an atom called?', 'The center of an atom is called the nucleus.'),
    ('What can I do with old newspapers?', 'You can recycle them, wrap things in them or clean windows with them.'),
    ('Translate cat into Spanish.', 'Cat is gato in Spanish.'),
    ('Which animal says moo?', 'A cow says moo.'),
    ('What is the boiling point of water?', 'Water boils at one hundred degrees Celsius at sea level.'),
    ('What is a weekday?', 'A weekday is any day from Monday to Friday.'),
    ('How do plants drink?', 'Plants take up water through their roots.'),
    ('Should I look at the sun?', 'No, looking at the sun can damage your eyes.'),
    ('What is a good breakfast?', 'Bread, fruit and yogurt make a good breakfast.'),
    ('Tell me the three primary colors.', 'The three primary colors are red, yellow and blue.'),
    ('What is an island?', 'An island is land with water all around it.', 'Name one.', 'Iceland is an island.'),
    ('What is a verb?', 'A verb is a word for an action.', 'Give me one.', 'Run is a verb.'),
    ('I am hungry.', 'Then you should eat something.', 'What, for example?', 'How about an apple or some bread?'),
    ('What is a mammal?', 'A mammal is an animal that feeds its young with milk.', 'Is a dog one?', 'Yes, it is.'),
    ('It is late.', 'Then it may be time to sleep.', 'But I am not tired.', 'Reading a book may help you to relax.'),
    ('What is frost?', 'Frost is a thin layer of ice.', 'When does it form?', 'It forms on cold, clear nights.'),
    ('My bike is dirty.', 'You can wash it with water and soap.', 'And then?', 'Then dry it and oil the chain.'),
    ('Is glass hard?', 'Yes, glass is hard.', 'Does it bend?', 'No, it breaks when you bend it.'),
    ('I like music.', 'What kind of music do you like?', 'Jazz.', 'Jazz is a good choice for a quiet evening.'),
)
