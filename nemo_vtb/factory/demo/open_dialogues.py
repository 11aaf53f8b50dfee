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
"""Open conversations: recognition, questions and mixed turns about sentences that no closed grammar holds.

The speech is that of `open_speech.py`. Facts are put together from lists of values; a kind of question is a fact and
the value that is asked for. Some kinds are never asked in training, and the test asks them alone.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import soundfile

from nemo_vtb.assets.catalog import Job
from nemo_vtb.constants import SAMPLE_RATE
from nemo_vtb.factory.demo.dialogues import Clip, Parts, Turns, asr_line, conversation
from nemo_vtb.factory.demo.open_speech import LONGEST_S, groups_of, read_sentences, speak_clip, start_engine
from nemo_vtb.io import json_line, parse_json_lines, read_yaml

_BANK = read_yaml(Path(__file__).with_suffix('.yaml'))
_VALUES: dict[str, list[str]] = _BANK['values']
_FACTS: list[dict[str, Any]] = _BANK['facts']
KINDS_OF_QUESTION = tuple((number, slot) for number, fact in enumerate(_FACTS) for slot in fact['ask'])
HELD_OUT_KINDS = frozenset((int(n), slot) for slot, n in (text.split() for text in _BANK['held_out']))
_PEOPLE = ('ljspeech', 'librivox', 'jfk')
_SECONDS_A_WORD = 0.42
_CHUNK = 50


def build_open_dialogues(job: Job) -> None:
    """Make the corpus: recognition, questions and mixed turns for each split, text for training, and `card.json`.

    Args:
        job: Packages `wordnet-base` and `dict-gcide`; assets `flite-voices` and, for the test, recordings of people;
            parameters `seed`, `asr_hours`, `common`, `text`, and the counts of `speech_qa` and `mixed_modal` for the
            three splits.
    """
    seed = int(str(job.params['seed']))
    sentences = read_sentences(job.packages['wordnet-base'], job.packages['dict-gcide'])
    sentences = of_common_words(sentences, int(str(job.params['common'])))
    Random(seed).shuffle(sentences)
    (job.into / 'audio').mkdir()
    files: dict[str, list[dict]] = {}
    spans: dict[str, list[str]] = {}
    for number, split in enumerate(('train', 'validation', 'test')):
        script = Script(split, sentences[number::3], Random(f'{seed}:{split}'))
        if split != 'test':
            hours = float(str(job.params['asr_hours'])) * (1.0 if split == 'train' else 0.03)
            files[f'asr_ast.{split}'] = script.recognition(hours)
        if split == 'train':
            files['text.train'] = script.typed(int(str(job.params['text'])))
        counts: Any = job.params
        files[f'speech_qa.{split}'] = script.questions(counts['speech_qa'][number])
        files[f'mixed_modal.{split}'] = script.mixed(counts['mixed_modal'][number])
        spans |= script.spans
    seconds = _speak_all(job, spans, seed)
    files['asr_ast.test'] = [line for name in _PEOPLE for line in _people(job, name)]
    card: dict[str, Any] = {'kinds of questions': len(KINDS_OF_QUESTION), 'held out': len(HELD_OUT_KINDS)}
    for name, lines in files.items():
        kept = [line for line in lines if _fill(line, seconds)]
        (job.into / f'{name}.jsonl').write_text(''.join(map(json_line, kept)), encoding='utf-8')
        heard = [entry['duration'] for line in kept for entry in line['conversations'] if entry['type'] == 'audio']
        card[name] = {'conversations': len(kept), 'hours': round(sum(heard) / 3600, 3)}
    (job.into / 'card.json').write_text(json.dumps(card, indent=2) + '\n', encoding='utf-8')


def of_common_words(sentences: Sequence[str], least: int) -> list[str]:
    """The sentences without a word that occurs in fewer than `least` places in all of them.

    An adapter mishears rare words most: an LLM that reads them learns to guess, and not to write down what it gets.
    """
    words = [re.findall(r"[a-z']+", text.lower()) for text in sentences]
    count = Counter(word for some in words for word in some)
    return [text for text, some in zip(sentences, words, strict=True) if all(count[word] >= least for word in some)]


# ---- facts


@dataclass(frozen=True, slots=True)
class Fact:
    """A sentence with known values.

    Args:
        number: Its place in the bank.
        values: Slot -> value.
    """

    number: int
    values: dict[str, str]

    @classmethod
    def draw(cls, rng: Random, number: int) -> 'Fact':
        """One with values drawn at random, no value twice."""
        values: dict[str, str] = {}
        for slot in re.findall(r'{(\w+)}', _FACTS[number]['say']):
            known = [value for value in _VALUES[slot.rstrip('2')] if value not in values.values()]
            values.setdefault(slot, rng.choice(known))
        return cls(number, values)

    @property
    def text(self) -> str:
        """The sentence."""
        return self._filled(_FACTS[self.number]['say'])

    def question(self, slot: str) -> str:
        """The question for a value."""
        return self._filled(_FACTS[self.number]['ask'][slot])

    def answer(self, slot: str) -> str:
        """The value as a sentence."""
        return as_sentence(self.said(slot))

    def said(self, slot: str) -> str:
        """The value as the fact has it, in singular or plural."""
        return self.values[slot] + ('s' if f'{{{slot}}}s' in _FACTS[self.number]['say'] else '')

    def but(self, slot: str, value: str) -> 'Fact':
        """The same with another value."""
        return Fact(self.number, {**self.values, slot: value})

    def _filled(self, text: str) -> str:
        # an engineer, a doctor
        return re.sub(r'\b([Aa]) (?=[aeiouAEIOU])', r'\1n ', text.format(**self.values))


def as_sentence(text: str) -> str:
    """With a capital letter and a full stop, so that one sentence has one spelling."""
    text = text.strip(' ,;:')
    return text[0].upper() + text[1:] + ('' if text[-1] in '.!?' else '.')


# ---- conversations


class Script:
    """The conversations of a split, and what is to be spoken for them.

    Args:
        split: 'train', 'validation' or 'test'; the test asks the held-out kinds alone.
        sentences: Of this split.
        rng: Source of randomness.
    """

    def __init__(self, split: str, sentences: Sequence[str], rng: Random) -> None:
        self.split, self.rng = split, rng
        self.spans: dict[str, list[str]] = {}
        self._groups = iter(groups_of(sentences, rng.randrange(2**32)))
        self._kinds = [kind for kind in KINDS_OF_QUESTION if (kind in HELD_OUT_KINDS) == (split == 'test')]
        self._sentences = [text for text in sentences if 5 <= len(text.split()) <= 12]

    def recognition(self, hours: float) -> list[dict]:
        """Recordings of one to four sentences each, to be written down."""
        lines: list[dict] = []
        words = 0
        while words * _SECONDS_A_WORD < hours * 3600:
            clip = self._say('asr', next(self._groups))
            words += len(clip.text.split())
            lines.append(asr_line(self.rng, f'open-asr-{self.split}-{len(lines):05d}', clip, 'open-speech'))
        return lines

    def questions(self, count: int) -> list[dict]:
        """Questions about one or two facts, and in one of four about the words of a sentence."""
        lines = []
        for number in range(count):
            makers: list[Callable[[], tuple[str, Turns]]] = [self._about_facts] * 3 + [self._about_words]
            task, turns = makers[number % 4]()
            name = f'open-qa-{self.split}-{number:05d}'
            source = 'open-words' if number % 4 == 3 else 'open-facts'
            lines.append(conversation(name, 'speech_qa', turns, lang='en', source=source, task=task))
        return lines

    def mixed(self, count: int) -> list[dict]:
        """Turns of text and speech whose answer needs both."""
        forms = [self._two_facts, self._asked_aloud, self._topic, self._spoken_question, self._which, self._exchange]
        lines = []
        for number in range(count):
            task, turns = forms[number % len(forms)]()
            name = f'open-mixed-{self.split}-{number:05d}'
            lines.append(conversation(name, 'mixed_modal', turns, lang='en', source='open-mixed', task=task))
        return lines

    def typed(self, count: int) -> list[dict]:
        """Text-only conversations of sentences, for the text anchor alone: their answers answer nothing."""
        rng = Random(f'{self.split}:typed')  # the spoken ones stay as they are
        lines = []
        for number in range(count):
            turns: Turns = []
            for _ in range(rng.choice((1, 1, 2))):
                said = [as_sentence(text) for text in rng.sample(self._sentences, rng.randint(2, 4))]
                turns += _turns([rng.choice(_BANK['typed']).format(said[0])], ' '.join(said[1:]))
            lines.append(conversation(f'open-text-{number:05d}', 'text', turns, lang='en', source='sentences'))
        return lines

    def _say(self, name: str, sentences: Sequence[str]) -> Clip:
        path = f'audio/{self.split}-{name}-{len(self.spans):05d}.flac'
        self.spans[path] = [as_sentence(text) for text in sentences]
        return Clip(path, 0.0, ' '.join(self.spans[path]))

    def _fact(self) -> tuple[Fact, str]:
        number, slot = self.rng.choice(self._kinds)
        return Fact.draw(self.rng, number), slot

    def _other(self, fact: Fact) -> Fact:
        """Another fact whose values are all different."""
        while True:
            other = Fact.draw(self.rng, self.rng.choice([n for n in range(len(_FACTS)) if n != fact.number]))
            if not set(other.values.values()) & set(fact.values.values()):
                return other

    def _about_facts(self) -> tuple[str, Turns]:
        fact, slot = self._fact()
        said = [fact.text, self._other(fact).text] if self.rng.random() < 0.4 else [fact.text]
        self.rng.shuffle(said)
        clip, question = self._say('fact', said), fact.question(slot)
        user: Parts = [clip, question] if self.rng.random() < 0.6 else [question, clip]
        return f'{slot} {fact.number}', _turns(user, fact.answer(slot))

    def _about_words(self) -> tuple[str, Turns]:
        text = self.rng.choice(self._sentences)
        words = re.findall(r"[A-Za-z']+", text)
        once = [i for i, word in enumerate(words[:-1]) if i and [w.lower() for w in words].count(word.lower()) == 1]
        held_out = set(_BANK['words_held_out'])
        kinds = [k for k in _BANK['words'] if (k in held_out) == (self.split == 'test')]
        kind = self.rng.choice(kinds if once else [k for k in kinds if k not in ('after', 'before')])
        place = self.rng.choice(once) if once else 0
        word = words[place]
        answers = {
            'first': words[0], 'last': words[-1], 'first_two': ' '.join(words[:2]), 'last_two': ' '.join(words[-2:]),
            'after': words[place + 1], 'before': words[place - 1], 'said': 'yes',
        }  # fmt: skip
        answer = answers[kind]
        if kind == 'said' and self.rng.random() < 0.5:
            word, answer = self._missing(words), 'no'
        clip = self._say('words', [text])
        return kind, _turns([clip, _BANK['words'][kind].format(word)], as_sentence(answer))

    def _missing(self, words: Sequence[str]) -> str:
        while True:
            other = self.rng.choice(re.findall(r'[a-z]{4,}', self.rng.choice(self._sentences)) or ['nothing'])
            if other not in {word.lower() for word in words}:
                return other

    def _two_facts(self) -> tuple[str, Turns]:
        fact, slot = self._fact()
        other = self._other(fact)
        # what is asked for is spoken or typed: neither can be left aside
        typed, spoken = (other, fact) if self.rng.random() < 0.7 else (fact, other)
        user: Parts = [typed.text, self._say('mixed', [spoken.text]), fact.question(slot)]
        return f'two_facts {slot} {fact.number}', _turns(user, fact.answer(slot))

    def _asked_aloud(self) -> tuple[str, Turns]:
        fact, slot = self._fact()
        other = self._other(fact)
        typed = [fact.text, other.text]
        self.rng.shuffle(typed)
        user: Parts = [' '.join(typed), self._say('mixed', [fact.question(slot)])]
        return f'asked_aloud {slot} {fact.number}', _turns(user, fact.answer(slot))

    def _spoken_question(self) -> tuple[str, Turns]:
        fact, slot = self._fact()
        user: Parts = [f'Answer from this text: {fact.text}', self._say('mixed', [fact.question(slot)])]
        return f'spoken_question {slot} {fact.number}', _turns(user, fact.answer(slot))

    def _topic(self) -> tuple[str, Turns]:
        fact, slot = self._fact()
        topic = _BANK['topics'][slot.rstrip('2')]
        if f'{slot.rstrip("2")}2' in fact.values:  # two of them: the topic would not say which
            return self._which()
        return f'topic {slot} {fact.number}', _turns(
            [f'Name the {topic}:', self._say('mixed', [fact.text])], fact.answer(slot)
        )

    def _which(self) -> tuple[str, Turns]:
        fact, slot = self._fact()
        others = [v for v in _VALUES[slot.rstrip('2')] if v not in fact.values.values()]
        choices = [fact, fact.but(slot, self.rng.choice(others))]
        self.rng.shuffle(choices)
        first, second = (choice.said(slot) for choice in choices)
        user: Parts = [f'Which is said, {first} or {second}?', self._say('mixed', [fact.text])]
        return f'which {slot} {fact.number}', _turns(user, fact.answer(slot))

    def _exchange(self) -> tuple[str, Turns]:
        fact, slot = self._fact()
        others = [v for v in _VALUES[slot.rstrip('2')] if v not in fact.values.values()]
        changed = fact.but(slot, self.rng.choice(others))
        typed = f'Say it with "{changed.values[slot]}" instead of "{fact.values[slot]}":'
        return f'exchange {slot} {fact.number}', _turns([typed, self._say('mixed', [fact.text])], changed.text)


def _turns(user: Parts, answer: str) -> Turns:
    return [('User', user), ('Assistant', [answer])]


# ---- recordings


def _speak_all(job: Job, spans: dict[str, list[str]], seed: int) -> dict[str, float]:
    """Speak everything; returns the seconds of each recording that is of a sensible length."""
    seconds: dict[str, float] = {}
    items = list(spans.items())
    chunks = [items[begin : begin + _CHUNK] for begin in range(0, len(items), _CHUNK)]
    with ProcessPoolExecutor(os.cpu_count(), initializer=start_engine, initargs=(job.assets['flite-voices'],)) as pool:
        for number, made in enumerate(pool.map(_speak, chunks, [job.into] * len(chunks), [seed] * len(chunks))):
            seconds |= made
            if number % 5 == 4 or number == len(chunks) - 1:
                job.say(f'{len(seconds)} of {len(items)} recordings, {sum(seconds.values()) / 3600:.2f} h')
    return seconds


def _speak(spans: Sequence[tuple[str, list[str]]], into: Path, seed: int) -> dict[str, float]:
    seconds = {}
    for path, sentences in spans:
        sound, _ = speak_clip(sentences, Random(f'{seed}:{path}'))
        if 0.3 <= len(sound) / SAMPLE_RATE <= LONGEST_S:
            soundfile.write(into / path, sound, SAMPLE_RATE, subtype='PCM_16')
            seconds[path] = len(sound) / SAMPLE_RATE
    return seconds


def _fill(line: dict, seconds: dict[str, float]) -> bool:
    """Put the durations into a line; False if a recording of it is too long."""
    for entry in line['conversations']:
        if entry['type'] == 'audio' and not entry['duration']:
            entry['duration'] = seconds.get(entry['value'], 0.0)
    return all(entry['duration'] for entry in line['conversations'] if entry['type'] == 'audio')


def _people(job: Job, name: str) -> Iterator[dict]:
    """Sentences that people read, none of which any corpus of ours trains on: they are for the test alone."""
    folder = job.assets[name]
    for row in parse_json_lines((folder / 'manifest.jsonl').read_bytes()):
        path = f'audio/{Path(row["audio_filepath"]).name}'
        (job.into / path).write_bytes((folder / row['audio_filepath']).read_bytes())
        clip = Clip(path, row['duration'], row['text'], key=row['key'])
        yield conversation(
            f'{name}-{clip.key}', 'asr_ast', _turns(['Transcribe the speech.', clip], clip.text),
            lang='en', source=name, task='asr',
        )  # fmt: skip
