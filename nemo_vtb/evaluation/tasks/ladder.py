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
"""The same questions typed, in spoken form, spoken, with noise, half spoken, and a turn later."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from nemo_vtb.constants import SAMPLE_RATE
from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn
from nemo_vtb.errors import VtbDataError
from nemo_vtb.evaluation.metrics import EXACT_MATCH, F1, Measure, is_long
from nemo_vtb.evaluation.task import Context, Example, Task
from nemo_vtb.evaluation.tasks.held_out import load_conversations

RUNGS = {
    'typed': 'Typed',
    'spoken_form': 'Typed as one speaks',
    'mixed': 'Statement spoken, question typed',
    'speech': 'All spoken',
    'noisy_speech': 'All spoken, noise at 10 dB',
    'second_turn': 'Asked a turn after the recording',
}
"""The rungs, from what a text LLM can do by itself to what depends most on the audio."""

LADDER_QUESTIONS = 40
"""Questions on every rung, where the data has as many."""

_TYPED = ('typed', 'spoken_form')
_SNR_DB = 10.0


class Rung(Task):
    """One rung: exact match of the answers, or F1 where the references are whole sentences.

    Args:
        name: Out of `RUNGS`.
        questions: From `ladder_questions`.
    """

    suite, metrics, max_new_tokens = 'ladder', ('exact match', 'F1'), 24

    def __init__(self, name: str, questions: 'Sequence[LadderQuestion]') -> None:
        self.name, self.title, self.questions = name, RUNGS[name], questions

    def examples(self, context: Context) -> Sequence[Example]:
        """Every question on this rung; the base LLM is asked where it can read the question.

        Raises:
            VtbAssetError: The embedded voices are missing.
            VtbConfigError: There is no folder for recordings.
        """
        if 'rungs' not in context.keep:
            context.keep['rungs'] = make_rungs(self.questions, context.recordings('ladder'))
        prompts = context.keep['rungs'][self.name]
        return [
            Example(q.id, prompt, (q.answer,), '', prompt if self.name in _TYPED else None, lang=q.lang)
            for q, prompt in zip(self.questions, prompts, strict=True)
        ]

    def measures(self, examples: Sequence[Example]) -> Sequence[Measure]:
        """One of the two."""
        return (F1,) if is_long([q.answer for q in self.questions]) else (EXACT_MATCH,)


def ladder_tasks(context: Context) -> list[Task]:
    """All rungs on the questions of `Context.datasets`.

    Raises:
        VtbDataError: No question can be spoken.
    """
    # broken lines are listed by the suite `speech`
    conversations = chain.from_iterable(
        load_conversations(file, name, lambda *_: None) for name, file in context.datasets.items()
    )
    questions = ladder_questions(conversations, min(LADDER_QUESTIONS, context.limit or LADDER_QUESTIONS))
    return [Rung(name, questions) for name in RUNGS]


@dataclass(frozen=True, slots=True)
class LadderQuestion:
    """A statement that can be typed or spoken, a question about it, and the answer."""

    id: str
    statement: str
    question: str
    answer: str
    lang: str = 'en'


def ladder_questions(conversations: Iterable[Conversation], limit: int = LADDER_QUESTIONS) -> list[LadderQuestion]:
    """The first question of each conversation about one recording with a transcript.

    Args:
        conversations: Held-out conversations of kind `speech_qa`.
        limit: How many are taken, in order.

    Raises:
        VtbDataError: None of them can be used.
    """
    found: list[LadderQuestion] = []
    for conversation in conversations:
        if conversation.kind != 'speech_qa' or len(found) == limit:
            continue
        turns = [turn for turn in conversation.turns if turn.role != 'system'][:2]
        if [turn.role for turn in turns] != ['user', 'assistant']:
            continue
        spoken = [part for part in turns[0].parts if isinstance(part, Audio)]
        if len(spoken) == 1 and spoken[0].text and turns[0].text:
            lang = str(conversation.custom.get('lang') or 'en')
            found.append(LadderQuestion(conversation.id, spoken[0].text, turns[0].text, turns[1].text, lang))
    if not found:
        raise VtbDataError(
            'There is no question for the modality ladder.',
            field='ladder',
            got='no conversation of kind speech_qa with one recording and its transcript',
            allowed='speech_qa conversations whose audio turns have `text`',
        )
    return found


def make_rungs(questions: Sequence[LadderQuestion], folder: Path) -> dict[str, list[Conversation]]:
    """Every question on every rung, as prompts; recordings are written as WAV files of a folder.

    Raises:
        VtbAssetError: The embedded voices are not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rungs: dict[str, list[Conversation]] = {name: [] for name in RUNGS}
    for number, q in enumerate(questions):
        statement = _spoken(q.statement, q.lang)
        both = np.concatenate([statement, np.zeros(int(0.3 * SAMPLE_RATE), np.float32), _spoken(q.question, q.lang)])
        said = f'{q.statement} {q.question}'
        statement_part = _write(folder / f'{number:03d}-statement.wav', statement, q.statement)
        parts: dict[str, tuple[Text | Audio, ...]] = {
            'typed': (Text(said),),
            'spoken_form': (Text(_spoken_form(said)),),
            'mixed': (statement_part, Text(q.question)),
            'speech': (_write(folder / f'{number:03d}-speech.wav', both, said),),
            'noisy_speech': (_write(folder / f'{number:03d}-noisy.wav', _noisy(both, number), said),),
        }
        for rung, prompt in parts.items():
            rungs[rung].append(_conversation(q, rung, (Turn('user', prompt),)))
        later = (
            Turn('user', (statement_part, Text('Listen.'))),
            Turn('assistant', (Text('All right.'),)),
            Turn('user', (Text(q.question),)),
        )
        rungs['second_turn'].append(_conversation(q, 'second_turn', later))
    return rungs


def _conversation(q: LadderQuestion, rung: str, turns: tuple[Turn, ...]) -> Conversation:
    kind = 'text' if rung in _TYPED else 'speech_qa'
    return Conversation(f'{q.id}-{rung}', turns, kind, 'ladder', {'lang': q.lang})


def _spoken_form(text: str) -> str:
    """The words without capitals and punctuation."""
    return ' '.join(''.join(c if c.isalnum() or c in "' " else ' ' for c in text.lower()).split())


def _noisy(samples: np.ndarray, seed: int) -> np.ndarray:
    """White noise at 10 dB below the speech, the same for the same seed."""
    noise = np.random.default_rng(seed).standard_normal(len(samples)).astype(np.float32)
    level = float(np.sqrt(np.mean(samples**2))) / 10 ** (_SNR_DB / 20)
    return np.clip(samples + level * noise, -1, 1)


def _write(path: Path, samples: np.ndarray, said: str) -> Audio:
    import soundfile

    soundfile.write(path, samples, SAMPLE_RATE, subtype='PCM_16')
    return Audio(str(path), len(samples) / SAMPLE_RATE, text=said)


def _spoken(text: str, lang: str) -> np.ndarray:
    """By the embedded voices, in the one style that no training data has: samples in [-1, 1], (S,) at 16 kHz."""
    from nemo_vtb.assets.voices import speak, voice_for

    return speak(text, voice_for(lang)[0])
