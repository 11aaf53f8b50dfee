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
"""The suite of emergent abilities: 20 items of each sort, every check can fail, nothing is in a training bank."""

import ast
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_helpers import ask

import nemo_vtb
from nemo_vtb.assets.voices import speak
from nemo_vtb.data.audio import read_audio
from nemo_vtb.data.conversation import Text
from nemo_vtb.errors import VtbDataError
from nemo_vtb.evaluation import recorder
from nemo_vtb.evaluation.answers import AnswerCache
from nemo_vtb.evaluation.constraints import follows
from nemo_vtb.evaluation.items import read_items
from nemo_vtb.evaluation.task import Context
from nemo_vtb.evaluation.tasks.emergent import EMERGENT_TASKS, Emergent
from nemo_vtb.factory.demo.corpus import split_commands
from nemo_vtb.factory.demo.household import all_commands
from nemo_vtb.model.blender import VoiceTextBlender

LINES = read_items('emergent')
SPEECH = [task for task in EMERGENT_TASKS if task != 'names_not_given']


# ---- the items


def test_there_are_twenty_items_of_each_task() -> None:
    assert list(dict.fromkeys(line['task'] for line in LINES)) == list(EMERGENT_TASKS)
    assert Counter(line['task'] for line in LINES) == dict.fromkeys(EMERGENT_TASKS, 20)
    assert len({line['id'] for line in LINES}) == 160 and len(SPEECH) == 7


@pytest.mark.parametrize('line', LINES, ids=lambda line: line['id'])
def test_right_answers_pass_and_wrong_ones_fail(line: dict[str, Any]) -> None:
    assert follows(line['right'], line['constraints'])
    assert not follows(line['wrong'], line['constraints'])
    if line['task'] in ('formats', 'names_given', 'direction', 'two_speakers', 'maths'):
        said = ' '.join(p['said'] for turn in line['turns'] for p in turn['parts'] if 'said' in p)
        assert not follows(said, line['constraints'])  # an echo is no answer


@pytest.mark.parametrize('task', EMERGENT_TASKS)
def test_no_answer_is_right_everywhere(task: str) -> None:
    mine = [line for line in LINES if line['task'] == task]
    for answer in (*(line['right'] for line in mine), 'Turn on the lamp in the kitchen at seven.', 'Yes.', ''):
        # each answer may be right for its own item and for one of the like
        assert sum(follows(answer, line['constraints']) for line in mine) <= 2, answer


def test_every_item_is_spoken_and_what_is_asked_in_two_ways_is_balanced() -> None:
    for line in LINES:
        last = line['turns'][-1]['parts']
        spoken = [p for turn in line['turns'] for p in turn['parts'] if 'said' in p]
        assert spoken and line['turns'][-1]['role'] == 'user'
        for part in spoken:
            lines = [u['text'] for u in part.get('say', ())] or [part['said']]
            assert part['said'] == ' '.join(lines) and all(text in part['typed'] for text in lines)
        if line['task'] == 'multi_turn':
            first = line['turns'][0]['parts']
            # both a typed and a spoken fact; the question comes in the other way than what it asks for
            assert ['text' in p for p in first] == [True, False]
            assert ('text' in last[0]) == (int(line['id'][-2:]) % 2 == 1)
    directions = Counter(line['turns'][0]['parts'][0]['text'] for line in LINES if line['task'] == 'direction')
    assert sorted(directions.values()) == [5, 5, 5, 5]


def test_the_control_has_the_same_recordings_and_no_names() -> None:
    given, control = ([line for line in LINES if line['task'] == t] for t in ('names_given', 'names_not_given'))
    for one, other in zip(given, control, strict=True):
        name = one['constraints'][0]['text']
        assert one['turns'][0]['parts'][1] == other['turns'][0]['parts'][1]
        assert one['constraints'] == other['constraints'] and name in one['turns'][0]['parts'][0]['text']
        # neither the voice nor the transcript for the base LLM gives the spelling away
        assert name not in json.dumps(other['turns']) and name not in json.dumps(one['turns'][0]['parts'][1])


def test_no_wording_is_in_a_training_bank() -> None:
    root = Path(nemo_vtb.__file__).parent
    banks = [
        file for name in ('assets', 'factory') for file in (root / name).rglob('*') if file.suffix in ('.py', '.yaml')
    ]
    texts = []
    for file in banks:
        source = file.read_text(encoding='utf-8')
        if file.suffix == '.py':
            nodes = ast.walk(ast.parse(source))
            texts += [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        else:
            texts.append(source)
    bank = '\n'.join(texts).lower()
    assert 'write down what is said' in bank and 'what room does the speaker mean' in bank  # the search finds them
    for line in LINES:
        for part in line['turns'][-1]['parts']:
            text = part.get('text', part.get('said'))
            if 'asset' not in part and text != 'Two people talk.':
                assert text.lower() not in bank, line['id']


def test_household_commands_are_those_that_the_demonstration_corpus_holds_out() -> None:
    said = {u['text'] for line in LINES for t in line['turns'] for p in t['parts'] for u in p.get('say', ())}
    used = said & {command.text for command in all_commands()}
    assert len(used) > 20 and used <= {command.text for command in split_commands(('',), 0)['test']}


def test_recordings_of_training_corpora_are_only_used_in_directions_that_they_do_not_teach() -> None:
    assets = {(line['task'], p['asset']) for line in LINES for p in line['turns'][0]['parts'] if 'asset' in p}
    assert assets == {
        ('unseen_prompts', 'ljspeech'), ('unseen_prompts', 'librivox'),
        ('direction', 'asterisk-es'), ('direction', 'asterisk-it'),
    }  # fmt: skip


# ---- the checks


def test_limits_of_wer_and_chrf() -> None:
    heard = [{'kind': 'wer', 'text': 'red blue green black white pink grey brown gold teal', 'at_most': 30.0}]
    assert follows('Red, blue, green, black, white, pink, grey!', heard)
    assert not follows('red blue green black white pink', heard)
    assert follows(
        'The clip says: "Red blue green black white pink grey brown." Anything else I can do for you?', heard
    )
    assert not follows('The clip says: "I am red." Anything else that I can do for you, my friend?', heard)
    translated = [{'kind': 'chrf', 'text': 'La conferenza è terminata.', 'at_least': 40.0}]
    assert follows('La conferenza è finita.', translated)
    assert not follows('The conference is over.', translated)
    copied = 'La conferencia ha terminado.'
    assert follows(copied, translated)
    assert not follows(copied, [translated[0] | {'unlike': copied}])
    with pytest.raises(VtbDataError, match='wer'):
        follows('one', [{'kind': 'wer', 'text': 'one'}])


@pytest.mark.parametrize(
    ('answer', 'value', 'right'),
    [
        ('It is 21.', 21, True),
        ('Seven times three is twenty-one.', 21, True),
        ('twenty one', 21, True),
        ('21, because 7 x 3 = 21', 21, True),
        ('It is 21 or 22.', 21, False),
        ('twenty', 21, False),
        ('one twenty', 21, False),
        ('many', 21, False),
        ('ninety nine', 99, True),
        ('8.0', 8, True),
    ],
)
def test_last_number(answer: str, value: int, right: bool) -> None:
    assert follows(answer, [{'kind': 'last_number', 'value': value}]) is right


# ---- recordings


@pytest.fixture(scope='module')
def items(tmp_path_factory: pytest.TempPathFactory) -> dict:
    context = Context(folder=tmp_path_factory.mktemp('emergent'), limit=1)
    return {task: Emergent(task).examples(context)[0] for task in EMERGENT_TASKS}


def test_recordings_hold_speech_and_the_base_llm_reads_their_words(items: dict) -> None:
    for item in items.values():
        assert item.prompt.audios and item.base.is_text_only
        for audio in item.prompt.audios:
            samples = read_audio(audio, 16000)
            assert 0.8 < audio.duration_s < 15 and np.sqrt(np.mean(samples**2)) > 0.01
        ours = [[p for p in turn.parts if isinstance(p, Text)] for turn in item.prompt.turns]
        base = [list(turn.parts) for turn in item.base.turns]
        assert all(part in theirs for mine, theirs in zip(ours, base, strict=True) for part in mine)


def test_two_speakers_are_two_voices_in_one_recording(items: dict) -> None:
    [audio] = items['two_speakers'].prompt.audios
    first = speak('I would like a cup of tea.', 'en-US', pitch=1.25)
    second = speak('And I take a glass of juice.', 'en-GB', pitch=0.75)
    expected = np.concatenate([first, np.zeros(6400, dtype=np.float32), second])
    samples = read_audio(audio, 16000)
    assert samples.shape == expected.shape and np.abs(samples - expected).max() < 1e-4


@pytest.mark.real_weights
def test_a_recogniser_hears_the_words(items: dict, assets: Any) -> None:
    from nemo_vtb.factory.speech_models import load_transcriber
    from nemo_vtb.factory.synthesis import span_wer

    assets('whisper-tiny.en')
    wanted = [items[task] for task in ('unseen_prompts', 'formats', 'maths', 'multi_turn')]
    audios = [i.prompt.audios[0] for i in wanted]
    heard = load_transcriber('asset:whisper-tiny.en').transcribe([read_audio(a, 16000) for a in audios], 'en')
    assert np.mean([span_wer(a.text, h.text, 'en') for a, h in zip(audios, heard, strict=True)]) < 0.2


@pytest.mark.real_weights
def test_real_recordings_say_what_the_items_claim(assets: Any) -> None:
    for line in LINES:
        for part in (p for turn in line['turns'] for p in turn['parts'] if 'asset' in p):
            assets(part['asset'])
            audio = recorder._recording(part['asset'], part['key'])
            assert audio.text == part['said'] and Path(audio.path).is_file()
    with pytest.raises(VtbDataError, match='nothing-like-this'):
        recorder._recording('ljspeech', 'nothing-like-this')


# ---- asking


def test_a_tiny_model_runs_through_and_a_killed_run_goes_on(
    tiny_model: VoiceTextBlender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(name: str) -> None:
        if name == 'emergent: names_given':
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(tiny_model, 'emergent', AnswerCache(tmp_path / 'j.jsonl'), stop, folder=tmp_path / 'wav', limit=1)
    cache = AnswerCache(tmp_path / 'j.jsonl')
    assert cache.resumed == 4  # two tasks, by both
    found = ask(tiny_model, 'emergent', cache, folder=tmp_path / 'wav', limit=1)
    assert [m.task for m in found.of('emergent')] == [*EMERGENT_TASKS, 'change_by_names'] and len(found.samples) == 8
    for sample in found.samples:
        assert len(sample.said) == len(sample.audios) and all(Path(a).is_file() for a in sample.audios)
        assert sample.reference and sample.constraints and '▶' in sample.prompt
        assert '▶' not in sample.base_prompt

    def nobody(*args: Any, **kwargs: Any) -> None:
        raise AssertionError('asked again')

    monkeypatch.setattr(tiny_model, 'answer', nobody)
    again = ask(tiny_model, 'emergent', AnswerCache(tmp_path / 'j.jsonl'), folder=tmp_path / 'wav', limit=1)
    assert (again.metrics, again.samples) == (found.metrics, found.samples)


def test_scores_follow_the_answers(
    tiny_model: VoiceTextBlender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rights = {line['id']: line['right'] for line in LINES}
    wrongs = {line['id']: line['wrong'] for line in LINES}

    def good(prompts: list, use_lora: bool = True, **kwargs: Any) -> list[str]:
        chosen = [p.id for p in prompts]
        # who needs the names has none without them
        return [rights[i] if use_lora and not i.startswith('names_not') else wrongs[i] for i in chosen]

    monkeypatch.setattr(tiny_model, 'answer', good)
    found = ask(tiny_model, 'emergent', folder=tmp_path, limit=2)
    *figures, change = found.of('emergent')
    for m in figures:
        assert m.value == (0.0 if m.task == 'names_not_given' else 100.0) and m.base == 0.0
        assert m.n == 2 and m.name == 'right'
    assert change.task == 'change_by_names' and change.value == 100.0
    assert [s.right for s in found.samples] == [s.task != 'names_not_given' for s in found.samples]
