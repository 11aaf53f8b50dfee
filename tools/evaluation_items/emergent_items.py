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
"""Items of the suite `emergent`: tasks that no training data of the package teaches."""

import json
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any

import emergent_banks as banks

PER_TASK = 20
CONTROL = 'names_not_given'
"""The recordings of `names_given`, asked without the names: what the names in the prompt change."""

_SEED = 7
_MAX_WER = 30.0
_MIN_CHRF = 40.0
_CAST = {
    'en': ('en-US@0.9', 'en-GB@1.1', 'en-US@1.15', 'en-GB@0.85'),
    'de': ('de-DE@1.05', 'de-DE@0.9'),
    'fr': ('fr-FR@1.05', 'fr-FR@0.9'),
}
_DEEP, _HIGH = 'en-GB@0.75', 'en-US@1.25'
_LANGUAGES = {'de': 'German', 'es': 'Spanish', 'fr': 'French', 'it': 'Italian'}
_JSON = 'Reply with nothing but a JSON object; its keys are "thing" and "place", as told in this clip.'
_UPPER = 'Write the sentence of this clip with each letter a capital.'
_BULLETS = 'Enumerate the things named in this clip: a bullet point for each, one a line.'
_WITH_NAMES = 'These names may occur: {}. Write the sentence of this clip, with its name spelt as here.'
_WITHOUT_NAMES = 'Write the sentence of this clip.'
_FILLERS = (
    ('Are you still there?', 'Yes, I am.'),
    ('Good. Let us go on.', 'With pleasure.'),
    ('It rains outside.', 'Then stay inside.'),
)

Item = dict[str, Any]
Parts = list[dict[str, Any]]


def make_emergent(seed: int = _SEED) -> list[Item]:
    """Items `{id, task, turns, constraints, right, wrong}`, 20 of each task.

    A turn is `{role, parts}`; a part is `{text}` (typed), `{say: [{text, voice}], lang, typed}` (spoken by voices one
    after the other in one recording) or `{asset, key, typed}` (a real recording); both have `said`, the transcript.
    `typed` is what the base LLM reads in its place. `right` keeps the constraints, `wrong` does not.
    """
    items = []
    for task, make in TASKS.items():
        # the control draws as the task does that it belongs to
        made = list(make(Random(f'{seed}:{"names_given" if task == CONTROL else task}')))
        assert len(made) == PER_TASK, task
        items += [{'id': f'{task}-{number:02d}', 'task': task} | item for number, item in enumerate(made)]
    return items


def _bank(text: str) -> list[list[str]]:
    lines = text.strip().replace('\n|', ' |').splitlines()
    return [[cell.strip() for cell in line.split('|')] for line in lines]


def _say(text: str, number: int, lang: str = 'en') -> dict[str, Any]:
    voices = _CAST[lang]
    utterance = {'text': text, 'voice': voices[number % len(voices)]}
    return {'say': [utterance], 'lang': lang, 'said': text, 'typed': text}


def _clip(recording: dict[str, Any]) -> dict[str, Any]:
    """A recording that an instruction speaks of: the reader is told what is the recording and what the instruction."""
    return recording | {'typed': f'The clip says: "{recording["said"]}"'}


def _item(parts: Parts, constraints: list[dict[str, Any]], right: str, wrong: str) -> Item:
    return _dialogue([('user', parts)], constraints, right, wrong)


def _dialogue(turns: list[tuple[str, Parts]], constraints: list[dict[str, Any]], right: str, wrong: str) -> Item:
    told = [{'role': role, 'parts': parts} for role, parts in turns]
    return {'turns': told, 'constraints': constraints, 'right': right, 'wrong': wrong}


def _heard(text: str) -> dict[str, Any]:
    return {'kind': 'wer', 'text': text, 'at_most': _MAX_WER}


def _only(right: str, other: str) -> list[dict[str, Any]]:
    """One of the right words, and not the other one: an echo of all that was said is no answer."""
    return [{'kind': 'one_of', 'texts': right.split()}, {'kind': 'excludes', 'text': other.split()[0]}]


# ---- the tasks


def _unseen_prompts(rng: Random) -> Iterator[Item]:
    """Questions and wordings for a transcript in turn; the transcripts of real and of synthesised speech in turn."""
    wordings = [line for (line,) in _bank(banks.TRANSCRIBE)]
    rng.shuffle(wordings)
    real = [{'asset': asset, 'key': key, 'said': read} for asset, key, read in _bank(banks.READ)]
    commands = [_say(said, number) for number, (said,) in enumerate(_bank(banks.COMMANDS))]
    recordings = [recording for pair in zip(commands, real, strict=True) for recording in pair]
    pairs = zip(_bank(banks.QUESTIONS), recordings, wordings, strict=True)
    for number, ((said, question, right, echo), recording, wording) in enumerate(pairs):
        first = right.split()[0]
        brief = {'kind': 'words', 'at_most': 8}
        parts: Parts = [_clip(_say(said, number)), {'text': question}]
        yield _item(parts, [*_only(right, echo), brief], f'{first.capitalize()}.', said)
        parts = [_clip(recording), {'text': wording}]
        parts = parts[::-1] if number % 4 < 2 else parts
        read = recording['said']
        yield _item(parts, [_heard(read)], read, f'Someone talks about {read.split()[-1]}')


def _formats(rng: Random) -> Iterator[Item]:
    """JSON, capitals, bullet points, in turn."""
    makers = (_json_items(), _upper_items(), _bullet_items())
    for number in range(PER_TASK):
        yield next(makers[number % 3])


def _json_items() -> Iterator[Item]:
    for number, (said, thing, place) in enumerate(_bank(banks.PLACES)):
        constraints: list[dict[str, Any]] = [{'kind': 'json', 'keys': ['thing', 'place']}]
        constraints += [{'kind': 'includes', 'text': word} for word in (thing, place)]
        yield _item(
            [{'text': _JSON}, _clip(_say(said, number))],
            constraints,
            json.dumps({'thing': thing, 'place': place}),
            said,
        )


def _upper_items() -> Iterator[Item]:
    for number, (said,) in enumerate(_bank(banks.ALOUD)):
        yield _item(
            [{'text': _UPPER}, _clip(_say(said, number))], [{'kind': 'upper'}, _heard(said)], said.upper(), said
        )


def _bullet_items() -> Iterator[Item]:
    for number, (said, *things) in enumerate(_bank(banks.LISTS)):
        constraints: list[dict[str, Any]] = [{'kind': 'bullets', 'at_least': 3, 'at_most': 3}]
        constraints += [{'kind': 'includes', 'text': thing} for thing in things]
        right = '\n'.join(f'- {thing}' for thing in things)
        yield _item([_clip(_say(said, number)), {'text': _BULLETS}], constraints, right, ', '.join(things))


def _names(rng: Random, given: bool) -> Iterator[Item]:
    names = _bank(banks.NAMES)
    sentences = [line for (line,) in _bank(banks.NAME_SENTENCES)]
    for number, (name, sound) in enumerate(names):
        listed = [name, *rng.sample([other for other, _ in names if other != name], 4)]
        rng.shuffle(listed)
        text = sentences[number % len(sentences)]
        right, said = text.format(name), text.format(sound)
        instruction = _WITH_NAMES.format(', '.join(listed)) if given else _WITHOUT_NAMES
        # typed as it sounds, too: the base LLM must use the names as well
        spoken = _clip(_say(said, number))
        yield _item([{'text': instruction}, spoken], [{'kind': 'includes', 'text': name}, _heard(right)], right, said)


def _direction(rng: Random) -> Iterator[Item]:
    """Between languages that are never source and target of one example: de-fr, fr-de by voices, es-it, it-es real."""
    synthesised, real = _bank(banks.GERMAN_FRENCH), _bank(banks.SPANISH_ITALIAN)
    for number in range(PER_TASK // 2):
        german, french = synthesised[number]
        first, other = ('de', 'fr') if number % 2 == 0 else ('fr', 'de')
        said, right = (german, french) if first == 'de' else (french, german)
        yield _translation(_say(said, number // 2, first), first, other, right)
        key, spanish, italian = real[number]
        first, other = ('es', 'it') if number % 2 == 0 else ('it', 'es')
        said, right = (spanish, italian) if first == 'es' else (italian, spanish)
        yield _translation({'asset': f'asterisk-{first}', 'key': key, 'said': said}, first, other, right)


def _translation(spoken: dict[str, Any], source: str, target: str, right: str) -> Item:
    instruction = (
        f'Here is {_LANGUAGES[source]} speech. Translate it from {_LANGUAGES[source]} to {_LANGUAGES[target]}.'
    )
    said = spoken['said']
    constraint = {'kind': 'chrf', 'text': right, 'at_least': _MIN_CHRF, 'unlike': said}
    return _item([{'text': instruction}, _clip(spoken)], [constraint], right, said)


def _two_speakers(rng: Random) -> Iterator[Item]:
    for number, (first, second, question, *answers) in enumerate(_bank(banks.DIALOGUES)):
        voices = (_DEEP, _HIGH) if number % 2 else (_HIGH, _DEEP)
        by_voice = number >= 5
        labels = ['first', 'second']
        if by_voice:
            labels = ['deep' if voice == _DEEP else 'high' for voice in voices]
        names = [f'the speaker with the {label} voice' if by_voice else f'the {label} speaker' for label in labels]
        typed = ' '.join(
            f'{name[4:].capitalize()}: "{line}"' for name, line in zip(names, (first, second), strict=True)
        )
        lines = [{'text': t, 'voice': v} for t, v in zip((first, second), voices, strict=True)]
        recording = {'say': lines, 'lang': 'en', 'said': f'{first} {second}', 'typed': typed}
        for asked in (0, 1):
            parts: Parts = [{'text': 'Two people talk.'}, recording, {'text': question.format(names[asked])}]
            right, wrong = answers[asked], answers[1 - asked]
            yield _item(parts, _only(right, wrong), f'{right.capitalize()}.', f'{wrong.capitalize()}.')


def _maths(rng: Random) -> Iterator[Item]:
    for number, (said, result) in enumerate([*_bank(banks.SUMS), *_bank(banks.PROBLEMS)]):
        value = int(result)
        constraints = [{'kind': 'last_number', 'value': value}]
        yield _item([_say(said, number)], constraints, f'It is {value}.', f'It is {value + 1}.')


def _multi_turn(rng: Random) -> Iterator[Item]:
    for number, (typed, said, *asked) in enumerate(_bank(banks.STORIES)):
        answers = (asked[1], asked[3])
        for about_speech in (0, 1):
            question = asked[2 * about_speech]
            # what was typed is asked for by voice, what was said by typing
            last = {'text': question} if about_speech else _say(question, number + 1)
            filler, reply = _FILLERS[number % len(_FILLERS)]
            between = _say(filler, number) if number % 2 else {'text': filler}
            turns: list[tuple[str, Parts]] = [
                ('user', [{'text': typed}, _say(said, number)]),
                ('assistant', [{'text': 'I will remember that.'}]),
                ('user', [between]),
                ('assistant', [{'text': reply}]),
                ('user', [last]),
            ]
            right, wrong = answers[about_speech], answers[1 - about_speech]
            first = right.split()[0]
            yield _dialogue(turns, _only(right, wrong), f'{first.capitalize()}.', f'{wrong.split()[0].capitalize()}.')


TASKS: Mapping[str, Callable[[Random], Iterator[Item]]] = {
    'unseen_prompts': _unseen_prompts,
    'formats': _formats,
    'names_given': lambda rng: _names(rng, given=True),
    CONTROL: lambda rng: _names(rng, given=False),
    'direction': _direction,
    'two_speakers': _two_speakers,
    'maths': _maths,
    'multi_turn': _multi_turn,
}
"""Tasks in the order in which they are reported."""
