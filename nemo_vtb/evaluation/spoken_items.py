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
"""Items in typed and spoken form, each checked by a program: what the suites `instruct` and `emergent` share."""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nemo_vtb.assets.recordings import write_wav
from nemo_vtb.assets.store import ensure
from nemo_vtb.data.audio import probe
from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn, read_jsonl
from nemo_vtb.errors import VtbDataError
from nemo_vtb.evaluation.answers import AnswerCache
from nemo_vtb.evaluation.constraints import follows
from nemo_vtb.evaluation.metrics import paired_interval, paired_p_value
from nemo_vtb.evaluation.result import readable
from nemo_vtb.evaluation.speech_suite import answer_all, evaluating
from nemo_vtb.evaluation.text_suite import compare, result_of
from nemo_vtb.factory.language import spoken_form
from nemo_vtb.factory.settings import Verify
from nemo_vtb.factory.speech_models import PicoVoices, Utterance, Voices
from nemo_vtb.factory.synthesis import check_sound
from nemo_vtb.io import atomic_replace

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender

ANSWER_TOKENS = 64
"""Longest answer, as in the task `vtb_instructions` of the text suite."""

_PAUSE = np.zeros(6400, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Item:
    """One question.

    Args:
        id: The same for the same question in another form.
        task: Where it counts.
        prompt: The prompt for the model.
        typed: The prompt for its base LLM: the same, with the transcript in place of each recording.
        constraints: What the answer must satisfy.
        reference: A correct answer, '' where there are many.
    """

    id: str
    task: str
    prompt: Conversation
    typed: Conversation
    constraints: Sequence[Mapping[str, Any]]
    reference: str = ''


class Recorder:
    """Turns the parts of an item into recordings, synthesised ones as 16 kHz WAV files of a folder.

    Args:
        folder: Where they go; existing ones are not synthesised again.
        voices: The engine; None is the embedded one.
    """

    def __init__(self, folder: str | Path, voices: Voices | None = None) -> None:
        self.folder = Path(folder)
        self._voices = PicoVoices() if voices is None else voices
        self.folder.mkdir(parents=True, exist_ok=True)

    def turns(self, turns: Sequence[Mapping[str, Any]], name: str) -> tuple[Turn, ...]:
        """Turns of a data file as those of a conversation.

        Args:
            turns: As in `items/emergent.jsonl`.
            name: Prefix of the names of the recordings.

        Raises:
            VtbAssetError: A voice or an asset is missing.
            VtbDataError: A recording holds no speech, or an asset lacks it.
        """
        made = []
        for number, turn in enumerate(turns):
            parts = (self._part(p, f'{name}-{number}{i}') for i, p in enumerate(turn['parts']))
            made.append(Turn(turn['role'], tuple(parts)))
        return tuple(made)

    def _part(self, part: Mapping[str, Any], name: str) -> Text | Audio:
        if 'text' in part:
            return Text(part['text'])
        if 'asset' in part:
            return _recording(part['asset'], part['key'])
        return self.say(part['say'], part['lang'], name, part['said'])

    def say(self, lines: Sequence[Mapping[str, str]], lang: str, name: str, said: str) -> Audio:
        """Synthesise lines one after the other, each by its voice, in one recording.

        Args:
            lines: `text` and `voice` of each.
            lang: Of all of them.
            name: Prefix of the file name.
            said: The transcript.

        Raises:
            VtbAssetError: The voice is missing.
            VtbDataError: The recording holds no speech.
        """
        spoken = [Utterance(spoken_form(line['text'], lang), line['voice']) for line in lines]
        # a changed text is another file: a recording of an earlier version is never reused for it
        digest = hashlib.sha256(json.dumps([[u.text, u.voice] for u in spoken]).encode()).hexdigest()[:8]
        path = self.folder / f'{name}-{digest}.wav'
        if not path.exists():
            sounds = self._voices.say(spoken)
            pieces = [piece for sound in sounds if sound is not None for piece in (_PAUSE, sound)][1:]
            clip = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.float32)  # (S,)
            reason = 'no_sound' if len(pieces) < 2 * len(lines) - 1 else check_sound(clip, Verify(asr=None))
            if reason is not None:
                raise VtbDataError(
                    'The synthesised recording holds no speech.', field=name, got=f'{reason}: {spoken}',
                    allowed='speech', remedy='install the voices again: pip install --force-reinstall py-nanotts',
                )  # fmt: skip
            with atomic_replace(path) as temporary:
                write_wav(temporary, clip)
        return Audio(str(path), probe(path).duration_s, text=said)


@functools.cache
def _manifest(asset: str) -> dict[str, Audio]:
    folder = ensure(asset)[asset]
    return {
        str(line['key']): Audio(str(folder / line['audio_filepath']), line['duration'], text=line['text'])
        for _, _, line in read_jsonl(folder / 'manifest.jsonl')
    }


def _recording(asset: str, key: str) -> Audio:
    found = _manifest(asset)
    if key not in found:
        raise VtbDataError(
            'An asset lacks a recording.', field=asset, got=key, allowed=f'{len(found)} other keys',
            remedy=f'build it again: vtb assets {asset} --rebuild',
        )  # fmt: skip
    return found[key]


def typed_turns(turns: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """The same turns with the transcript in place of each recording."""
    return tuple(
        Turn(turn['role'], tuple(Text(part['text'] if 'text' in part else part['typed']) for part in turn['parts']))
        for turn in turns
    )


# ---- prompting


def measure(
    model: 'VoiceTextBlender',
    items: Sequence[Item],
    *,
    suite: str,
    metric: str,
    batch_size: int = 8,
    cache: AnswerCache | None = None,
    on_task: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Prompt the model with each item and its base LLM (LoRA off) with the typed form, and check every answer.

    Args:
        model: The speech LLM.
        items: Those of one task in a row.
        suite: Name of the suite; part of the cache keys.
        metric: Name of the share of items whose answer passes.
        batch_size: Prompts in one batch.
        cache: Keeps answers, so that a killed run resumes.
        on_task: Called with the name of each task before it starts.

    Returns:
        `tasks`: name -> metric, value (0 to 1), interval, n, items (0 or 1), base (value, interval, items), change,
        p_value; `samples`: one record for each item.
    """
    cache = AnswerCache(None) if cache is None else cache
    tasks: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []
    options: dict[str, Any] = {'batch_size': batch_size, 'max_new_tokens': ANSWER_TOKENS, 'cache': cache}
    with evaluating(model):
        for task in dict.fromkeys(item.task for item in items):
            if on_task:
                on_task(f'{suite}: {task}')
            mine = [item for item in items if item.task == task]
            # not by task: a question that two tasks type alike is answered once
            ours = answer_all(model, [(i.id, i.prompt) for i in mine], label=suite, **options)
            base = answer_all(model, [(i.id, i.typed) for i in mine], label=suite, use_lora=False, **options)
            passed, base_passed = _passed(mine, ours), _passed(mine, base)
            tasks[task] = compare(result_of(metric, passed), result_of(metric, base_passed))
            samples += [_record(*row) for row in zip(mine, ours, base, passed, base_passed, strict=True)]
    return {'tasks': tasks, 'samples': samples}


def difference(tasks: Mapping[str, Mapping[str, Any]], one: str, other: str) -> dict[str, Any] | None:
    """Mean difference of task `one` minus `other`, item by item: value, interval, p_value; None without both."""
    if one not in tasks or other not in tasks:
        return None
    first, second = tasks[one]['items'], tasks[other]['items']
    return {
        'value': float(np.mean(first) - np.mean(second)),
        'interval': list(paired_interval(first, second)),
        'p_value': paired_p_value(first, second),
    }


def _passed(items: Sequence[Item], answers: Sequence[str]) -> list[float]:
    return [float(follows(answer, item.constraints)) for item, answer in zip(items, answers, strict=True)]


def _record(item: Item, answer: str, base: str, passed: float, base_passed: float) -> dict[str, Any]:
    return {
        'id': item.id,
        'task': item.task,
        'prompt': readable(item.prompt),
        'said': [audio.text or '' for audio in item.prompt.audios],
        'audios': [audio.path for audio in item.prompt.audios],
        'constraints': [dict(constraint) for constraint in item.constraints],
        'reference': item.reference,
        'answer': answer,
        'right': bool(passed),
        'base_prompt': readable(item.typed),
        'base_answer': base,
        'base_right': bool(base_passed),
    }
