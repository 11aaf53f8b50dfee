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
"""The suite `ladder`: the same questions typed, in spoken form, spoken, with noise, half spoken, and a turn later."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nemo_vtb.constants import SAMPLE_RATE
from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn
from nemo_vtb.errors import VtbDataError
from nemo_vtb.evaluation import metrics
from nemo_vtb.evaluation.answers import AnswerCache
from nemo_vtb.evaluation.speech_suite import answer_all, evaluating
from nemo_vtb.evaluation.text_suite import compare, result_of

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender

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


def make_rungs(
    questions: Sequence[LadderQuestion], folder: str | Path, speak: Callable[[str, str], np.ndarray] | None = None
) -> dict[str, list[Conversation]]:
    """Every question on every rung, as prompts; recordings are written as WAV files.

    Args:
        questions: The questions.
        folder: Where the recordings go.
        speak: (text, language) -> samples in [-1, 1], (S,) at 16 kHz; None: the embedded voices, in the one style that
            no training data has.

    Raises:
        VtbAssetError: The embedded voices are not installed.
    """
    speak = speak or _embedded_voice
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rungs: dict[str, list[Conversation]] = {name: [] for name in RUNGS}
    for number, q in enumerate(questions):
        statement = speak(q.statement, q.lang)
        both = np.concatenate([statement, np.zeros(int(0.3 * SAMPLE_RATE), np.float32), speak(q.question, q.lang)])
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


def run_ladder(
    model: 'VoiceTextBlender',
    questions: Sequence[LadderQuestion],
    folder: str | Path,
    *,
    batch_size: int = 8,
    max_new_tokens: int = 24,
    cache: AnswerCache | None = None,
    speak: Callable[[str, str], np.ndarray] | None = None,
    on_task: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run the same questions on all rungs.

    Args:
        model: The model.
        questions: From `ladder_questions`.
        folder: Where the recordings go.
        batch_size: Prompts in one batch.
        max_new_tokens: Longest answer.
        cache: Keeps answers.
        speak: As in `make_rungs`.
        on_task: Called with the name of each rung before it starts.

    Returns:
        `tasks`: rung -> title, metric, value (0 to 1), interval, n, items, answers; on the typed rungs base, change
        and p_value too, as the base LLM can read those.
    """
    cache = AnswerCache(None) if cache is None else cache
    has_base = bool(model.backbone.lora_state())
    found: dict[str, Any] = {}
    with evaluating(model):
        for rung, prompts in make_rungs(questions, folder, speak).items():
            if on_task:
                on_task(f'ladder: {RUNGS[rung]}')
            identified = [(p.id, p) for p in prompts]
            results, answers = {}, {}
            for who in ('ours', 'base') if has_base and rung in _TYPED else ('ours',):
                answers[who] = answer_all(
                    model, identified, batch_size=batch_size, max_new_tokens=max_new_tokens, cache=cache,
                    use_lora=who == 'ours', label=f'ladder, {rung}',
                )  # fmt: skip
                results[who] = _scored(questions, answers[who])
            found[rung] = {'title': RUNGS[rung]} | compare(results['ours'], results.get('base'))
            found[rung]['answers'] = [
                {'id': q.id, 'reference': q.answer, 'answer': a}
                for q, a in zip(questions, answers['ours'], strict=True)
            ]
    return {'tasks': found}


def _scored(questions: Sequence[LadderQuestion], answers: Sequence[str]) -> dict[str, Any]:
    """Exact match of every answer, or F1 where the references are whole sentences."""
    references = [q.answer for q in questions]
    score = metrics.f1 if metrics.is_long(references) else metrics.exact_match
    items = [score([r], [a]).value / 100 for r, a in zip(references, answers, strict=True)]
    return result_of(score(references, list(answers)).metric, items)


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


def _embedded_voice(text: str, lang: str) -> np.ndarray:
    from nemo_vtb.assets.voices import speak, voice_for

    return speak(text, voice_for(lang)[0])
