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
"""The suite of instructions: form and topic are checked, a deaf model gets nothing, nothing is asked twice."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_helpers import ask
from rich.console import Console

from nemo_vtb.data.audio import read_audio
from nemo_vtb.data.conversation import Audio
from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.evaluation.answers import AnswerCache
from nemo_vtb.evaluation.constraints import follows
from nemo_vtb.evaluation.recorder import Recorder
from nemo_vtb.evaluation.result import Evaluation
from nemo_vtb.evaluation.runner import Plan, run_suites
from nemo_vtb.evaluation.tables import show
from nemo_vtb.evaluation.task import Context, Example
from nemo_vtb.evaluation.tasks.instructions import Instructions
from nemo_vtb.model.blender import VoiceTextBlender

# one right answer of each form with {topic}, and one that misses the form
ANSWERS = {
    'form0': ('People like {topic}.', 'I like {topic}. You do not.'),
    'form1': ('PEOPLE LIKE {TOPIC}.', 'People like {topic}.'),
    'form2': ('people like {topic}.', 'People like {topic}.'),
    'form3': ('- {topic}\n- one\n- two', '{topic}\n- one\n- two'),
    'form4': ('{{"text": "People like {topic}."}}', '{{"words": "People like {topic}."}}'),
    'form5': ('People like {topic}.', 'People like {topic} and so they talk about it all day and night.'),
    'form6': ('All people like {topic} very much.', 'All people, I guess, like {topic} very much.'),
    'form7': ('A green thought about {topic}.', 'A red thought about {topic}.'),
    'form8': ('In my view {topic} will stay.', 'In your view {topic} will stay.'),
    'form9': ('I like {topic}. ' * 12, 'I like {topic}. ' * 3),
}
DEAF = ('Turn off the television in the bathroom at midnight.', 'The kitchen.', 'Yes.', '')


def instruct_items(folder: Path, limit: int | None = None) -> list[Example]:
    context = Context(folder=folder, limit=limit)
    return [e for form in ('typed', 'spoken') for e in Instructions(form).examples(context)]


def answer_of(prompt: str, id: str, which: int) -> str:
    topics = 'the sea|a cat|the moon|bread|winter|a bicycle|music|trees|a city|the rain'.split('|')
    topic = next(t for t in topics if t in prompt)
    return ANSWERS[id.partition('-')[0]][which].format(topic=topic, TOPIC=topic.upper())


@pytest.fixture(scope='module')
def items(tmp_path_factory: pytest.TempPathFactory) -> list:
    return instruct_items(tmp_path_factory.mktemp('instruct'))


def test_the_same_fifty_instructions_are_typed_and_spoken(items: list) -> None:
    typed, spoken = items[:50], items[50:]
    assert [i.id for i in typed] == [i.id for i in spoken] and len({i.id for i in typed}) == 50
    for one, other in zip(typed, spoken, strict=True):
        assert one.prompt == one.base == other.base and one.prompt.is_text_only
        [turn] = other.prompt.turns
        [part] = turn.parts
        assert isinstance(part, Audio) and part.text == one.prompt.turns[0].text


def test_every_form_has_right_and_wrong_answers(items: list) -> None:
    for item in items[:50]:
        prompt = item.base.turns[0].text
        assert follows(answer_of(prompt, item.id, 0), item.extra['constraints']), item
        assert not follows(answer_of(prompt, item.id, 1), item.extra['constraints']), item


def test_a_deaf_model_gets_nothing(items: list) -> None:
    for answer in (*DEAF, answer_of('about nothing but bread', 'form0', 0).replace('bread', 'the weather')):
        assert not any(follows(answer, item.extra['constraints']) for item in items)


def test_recordings_are_loud_and_as_long_as_speech(items: list) -> None:
    for item in items[50:]:
        [audio] = item.prompt.audios
        samples = read_audio(audio, 16000)
        assert len(samples) == round(audio.duration_s * 16000)
        assert 2.0 < len(audio.text) / audio.duration_s < 30.0, item.id  # letters in a second
        assert np.sqrt(np.mean(samples**2)) > 0.01


@pytest.mark.real_weights
def test_a_recogniser_hears_the_instructions(items: list, assets: Any) -> None:
    from nemo_vtb.factory.speech_models import load_transcriber
    from nemo_vtb.factory.synthesis import span_wer

    assets('whisper-tiny.en')
    audios = [item.prompt.audios[0] for item in items[50::7]]
    heard = load_transcriber('asset:whisper-tiny.en').transcribe([read_audio(a, 16000) for a in audios], 'en')
    errors = [span_wer(a.text, h.text, 'en') for a, h in zip(audios, heard, strict=True)]
    assert np.mean(errors) < 0.25, errors


def test_recordings_are_the_same_each_time_and_not_made_twice(tmp_path: Path) -> None:
    first = instruct_items(tmp_path / 'a', limit=2)[-1].prompt.audios[0]
    before = Path(first.path).stat().st_mtime_ns
    assert Path(first.path).name.startswith(f'{instruct_items(tmp_path / "a", limit=2)[-1].id}-')
    assert Path(first.path).stat().st_mtime_ns == before
    other = instruct_items(tmp_path / 'b', limit=2)[-1].prompt.audios[0]
    assert Path(first.path).read_bytes() == Path(other.path).read_bytes()
    assert not list(tmp_path.rglob('*.part'))


def test_a_silent_voice_is_refused(tmp_path: Path) -> None:
    class Silent:
        def say(self, utterances: Any) -> list:
            return [np.zeros(32000, dtype=np.float32) for _ in utterances]

    recorder = Recorder(tmp_path, Silent())  # type: ignore[arg-type]
    with pytest.raises(VtbDataError, match='silent'):
        recorder.say([{'text': 'Hello there.', 'voice': 'x'}], 'en', 'one', 'Hello there.')
    assert not list(tmp_path.iterdir())


# ---- asking


def test_a_tiny_model_runs_through_and_a_second_run_asks_nothing(
    tiny_model: VoiceTextBlender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    first = ask(
        tiny_model, 'instruct', AnswerCache(tmp_path / 'j.jsonl'), told.append, folder=tmp_path / 'wav', limit=3
    )
    assert told == ['instruct: typed', 'instruct: spoken']
    figures = first.of('instruct')
    assert [m.task for m in figures] == ['typed', 'spoken', 'spoken_minus_typed'] and len(first.samples) == 6
    for m in figures[:2]:
        items = [s.scores['followed'][0] for s in first.scores if s.task == m.task]
        assert m.n == 3 and m.value == 100 * np.mean(items) and 0 <= m.p <= 1 and m.base is not None
    # LoRA without training is the base LLM
    assert [s.hypothesis for s in first.samples[:3]] == [s.base for s in first.samples[:3]]
    assert [s.base for s in first.samples[:3]] == [s.base for s in first.samples[3:]]

    def nobody(*args: Any, **kwargs: Any) -> None:
        raise AssertionError('asked again')

    monkeypatch.setattr(tiny_model, 'answer', nobody)
    cache = AnswerCache(tmp_path / 'j.jsonl')
    assert cache.resumed == 9  # typed by both, spoken by one
    again = ask(tiny_model, 'instruct', cache, folder=tmp_path / 'wav', limit=3)
    assert (again.metrics, again.samples) == (first.metrics, first.samples)


def test_one_that_hears_and_follows_has_all_and_the_deaf_one_nothing(
    tiny_model: VoiceTextBlender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def good(prompts: list, use_lora: bool = True, **kwargs: Any) -> list[str]:
        said = [p.turns[0].text or p.audios[0].text for p in prompts]
        return [answer_of(t, p.id, 0) if use_lora else DEAF[0] for t, p in zip(said, prompts, strict=True)]

    monkeypatch.setattr(tiny_model, 'answer', good)
    found = ask(tiny_model, 'instruct', folder=tmp_path, limit=10)
    assert len({s.id.partition('-')[0] for s in found.samples}) == 10  # one of each form
    *forms, difference = found.of('instruct')
    for m in forms:
        assert m.value == 100.0 and m.base == 0.0 and m.p < 0.01
    assert (difference.value, difference.interval, difference.p) == (0.0, (0.0, 0.0), 1.0)

    def deaf(prompts: list, **kwargs: Any) -> list[str]:
        return [answer_of(p.turns[0].text, p.id, 0) if p.is_text_only else DEAF[0] for p in prompts]

    monkeypatch.setattr(tiny_model, 'answer', deaf)
    typed, spoken, difference = ask(tiny_model, 'instruct', folder=tmp_path, limit=10).of('instruct')
    assert typed.value == 100.0 and spoken.value == 0.0
    assert difference.value == -100.0 and difference.p < 0.01


def test_it_is_part_of_the_evaluation_and_its_table(tiny_model: VoiceTextBlender, tmp_path: Path) -> None:
    result = run_suites(tiny_model, Plan(('instruct',), limit=1, folder=tmp_path / 'audio'))
    back = Evaluation.read(result.write(tmp_path / 'eval.jsonl'))
    assert {m.task for m in back.of('instruct')} == {'typed', 'spoken', 'spoken_minus_typed'}
    assert list((tmp_path / 'audio' / 'instruct').glob('*.wav'))
    console = Console(file=io.StringIO(), width=120)
    show(result, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert 'spoken' in shown and 'followed' in shown
    with pytest.raises(VtbConfigError, match='folder'):
        run_suites(tiny_model, Plan(('instruct',), limit=1))
