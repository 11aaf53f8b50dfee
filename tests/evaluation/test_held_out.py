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
"""The evaluation as a whole on a tiny model, and its questions and rows on hand-made conversations."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from nemo_vtb.data.collate import Collator
from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn, task_of
from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.evaluation.answers import AnswerCache
from nemo_vtb.evaluation.result import Evaluation, Metric
from nemo_vtb.evaluation.runner import Plan, evaluate, run_suites
from nemo_vtb.evaluation.scoring import record_of
from nemo_vtb.evaluation.tables import show_table
from nemo_vtb.evaluation.task import Example, Task
from nemo_vtb.evaluation.tasks.asr import Transcribe
from nemo_vtb.evaluation.tasks.held_out import by_direction, examples_of, load_conversations
from nemo_vtb.evaluation.tasks.mixed_modal import MixedModal
from nemo_vtb.io import parse_json_lines
from nemo_vtb.testing import TinyCorpus


def figures(task: Task, examples: list[Example], answers: list[str]) -> list[Metric]:
    return list(record_of(task, examples, answers, [None] * len(answers)).metrics)


def turn(role: str, *parts: str | Audio) -> Turn:
    return Turn(role, tuple(Text(p) if isinstance(p, str) else p for p in parts))


CLIP = Audio('a.wav', 1.0)
DIALOGUE = Conversation(
    'd',
    (turn('user', 'Who?', CLIP), turn('assistant', 'Anna.'), turn('user', 'Where?'), turn('assistant', 'Here.')),
    'mixed_modal',
    's',
)


def test_every_turn_is_asked_behind_the_reference_history() -> None:
    first, second = examples_of(DIALOGUE)
    assert (first.references, second.references) == (('Anna.',), ('Here.',))
    assert first.prompt.turns == DIALOGUE.turns[:1]
    assert second.prompt.turns == DIALOGUE.turns[:3]


@pytest.mark.parametrize(
    ('custom', 'task', 'direction'),
    [
        ({}, 'asr', 'en'),
        ({'task': 'asr', 'lang': 'es'}, 'asr', 'es'),
        ({'task': 'ast', 'lang': 'es', 'target_lang': 'en'}, 'ast', 'es-en'),
        ({'taskname': 's2t_translation', 'source_lang': 'de', 'target_lang': 'en'}, 'ast', 'de-en'),
        ({'source_lang': 'de', 'target_lang': 'en'}, 'ast', 'de-en'),
        ({'source_lang': 'de', 'target_lang': 'de'}, 'asr', 'de'),
    ],
)
def test_task_and_direction_come_from_custom(custom: dict, task: str, direction: str) -> None:
    c = Conversation('c', (turn('user', CLIP), turn('assistant', 'x')), 'asr_ast', 's', custom)
    assert task_of(c) == task
    assert examples_of(c)[0].extra['direction'] == direction


def test_unknown_task_is_refused() -> None:
    c = Conversation('c', (turn('user', CLIP), turn('assistant', 'x')), 'asr_ast', 's', {'task': 'sing'})
    with pytest.raises(VtbDataError, match='Unknown task'):
        task_of(c)


def test_a_source_with_several_languages_has_a_row_for_each() -> None:
    questions = [
        q
        for lang, said in (('en', 'one'), ('es', 'uno'), ('en', 'two'))
        for q in examples_of(
            Conversation(
                lang + said,
                (turn('user', CLIP), turn('assistant', said)),
                'asr_ast',
                'real',
                {'task': 'asr', 'lang': lang},
            )
        )
    ]
    rows = figures(Transcribe(), by_direction(questions), ['one', 'dos', 'too'])
    assert [(r.source, r.n, r.value) for r in rows] == [('real (en)', 2, 50.0), ('real (es)', 1, 100.0)]
    assert ['english' in r.signature for r in rows] == [True, False]


def test_long_free_answers_have_no_exact_match() -> None:
    c = Conversation('c', (turn('user', 'q'), turn('assistant', ' '.join(['word'] * 30))), 'mixed_modal', 's')
    assert [r.name for r in figures(MixedModal(), examples_of(c), ['word'])] == ['F1']


def test_whole_evaluation(tiny_model: object, corpus: TinyCorpus, tmp_path: Path) -> None:
    result = evaluate(tiny_model, corpus.paths('test'), batch_size=4, max_new_tokens=4)
    found = [(r.task, r.source, r.name, r.n) for r in result.of('speech')]
    assert found == [
        ('asr', 'tiny-commands', 'WER', 2),
        ('asr', 'tiny-real', 'WER', 2),
        ('ast', 'tiny-ast', 'BLEU', 2),
        ('ast', 'tiny-ast', 'chrF', 2),
        ('speech_qa', 'tiny-qa', 'exact match', 6),
        ('speech_qa', 'tiny-qa', 'F1', 6),
        ('mixed_modal', 'tiny-mixed', 'exact match', 15),
        ('mixed_modal', 'tiny-mixed', 'F1', 15),
        ('text', 'tiny-chats', 'perplexity', 6),
    ]
    assert all(r.base is None for r in result.of('speech') if r.task != 'text')
    saved = Evaluation.read(result.write(tmp_path / 'e.jsonl'))
    assert len(saved.samples) == 6 + 6 + 15 + 1 and len(saved.metrics) == len(result.metrics)
    assert len(saved.scores) == 6 + 6 + 15 + 6


def test_answers_are_those_of_the_model_in_their_order(tiny_model: object, corpus: TinyCorpus) -> None:
    result = evaluate(tiny_model, {'speech_qa': corpus.path('speech_qa', 'test')}, batch_size=4, max_new_tokens=4)
    conversations = list(load_conversations(corpus.path('speech_qa', 'test'), 'speech_qa'))
    alone = [tiny_model.answer([c.prompt], max_new_tokens=4)[0] for c in conversations]
    assert [s.hypothesis for s in result.samples] == alone
    assert len(set(alone)) > 1


def test_answers_by_beam_search_are_those_of_the_model_and_cached_by_themselves(
    tiny_model: object, corpus: TinyCorpus
) -> None:
    data = {'speech_qa': corpus.path('speech_qa', 'test')}
    cache, search = AnswerCache(None), {'num_beams': 3, 'no_repeat_ngram_size': 2}
    plan = Plan(('speech',), data, batch_size=4, max_new_tokens=8)
    greedy = run_suites(tiny_model, plan, cache=cache)
    beams = run_suites(tiny_model, replace(plan, **search), cache=cache)
    conversations = list(load_conversations(data['speech_qa'], 'speech_qa'))
    alone = [tiny_model.answer([c.prompt], max_new_tokens=8, **search)[0] for c in conversations]
    assert [s.hypothesis for s in beams.samples] == alone != [s.hypothesis for s in greedy.samples]
    assert {name: beams.info[name] for name in search} == search and not search.keys() & greedy.info.keys()
    with pytest.raises(VtbConfigError) as caught:
        run_suites(tiny_model, replace(plan, num_beams=0))
    assert caught.value.field == 'num_beams'


def test_perplexity_of_base_and_model_are_equal_before_training_and_differ_after(
    tiny_model: object, corpus: TinyCorpus
) -> None:
    data = {'text': corpus.path('text', 'test')}
    row = evaluate(tiny_model, data, max_new_tokens=2).metric('text', 'perplexity')
    assert row.base == pytest.approx(row.value, rel=1e-6) and row.change_percent == pytest.approx(0, abs=1e-4)

    batch = Collator(tiny_model.renderer, tiny_model.frames)(list(load_conversations(data['text'], 'text')))
    with torch.no_grad():
        nll, targets = tiny_model.batch_nll(batch)
    assert row.value == pytest.approx(math.exp(float(nll.sum() / targets.sum())), rel=1e-4)

    weights = [p for name, p in tiny_model.named_parameters() if 'lora_B' in name]
    try:
        for weight in weights:
            torch.nn.init.normal_(weight, std=0.5)
        moved = evaluate(tiny_model, data, max_new_tokens=2).metric('text', 'perplexity')
    finally:
        for weight in weights:
            torch.nn.init.zeros_(weight)
    assert moved.base == pytest.approx(row.base, rel=1e-6)
    assert abs(moved.change_percent) > 1


def test_limit_counts_per_source_and_mode_is_restored(tiny_model: object, corpus: TinyCorpus) -> None:
    tiny_model.train()
    try:
        result = evaluate(tiny_model, {'asr_ast': corpus.path('asr_ast', 'test')}, limit=1, max_new_tokens=2)
        assert tiny_model.training
    finally:
        tiny_model.eval()
    assert {(r.source, r.n) for r in result.of('speech')} == {('tiny-commands', 1), ('tiny-real', 1), ('tiny-ast', 1)}


@pytest.mark.parametrize('name', ['limit', 'batch_size', 'max_new_tokens'])
def test_counts_must_be_positive(tiny_model: object, corpus: TinyCorpus, name: str) -> None:
    with pytest.raises(VtbConfigError, match='at least 1'):
        evaluate(tiny_model, corpus.paths('test'), **{name: 0})


def test_nothing_to_evaluate_is_an_error(tiny_model: object, tmp_path: Path) -> None:
    (tmp_path / 'empty.jsonl').touch()
    with pytest.raises(VtbDataError, match='nothing to evaluate'):
        evaluate(tiny_model, {'text': tmp_path / 'empty.jsonl'})
    with pytest.raises(VtbDataError, match='does not exist'):
        evaluate(tiny_model, {'text': tmp_path / 'absent.jsonl'})


def test_broken_conversations_cost_themselves_and_are_listed(
    tiny_model: object, corpus: TinyCorpus, tmp_path: Path
) -> None:
    good = parse_json_lines(corpus.path('asr_ast', 'test').read_bytes())[0]
    audio = next(part for part in good['conversations'] if part['type'] == 'audio')
    audio['value'] = str(corpus.path('asr_ast', 'test').parent / audio['value'])
    (tmp_path / 'bad.wav').write_bytes(b'RIFF nonsense')
    deaf = json.loads(json.dumps(good).replace(audio['value'], str(tmp_path / 'bad.wav')))
    broken = [deaf, good | {'custom': 'x'}, good | {'conversations': 3}, good | {'custom': {'task': 'sing'}}]
    lines = [json.dumps(line) for line in broken]
    (tmp_path / 'asr_ast.jsonl').write_text('\n'.join(['{', *lines, json.dumps(good)]) + '\n')
    result = evaluate(tiny_model, {'asr_ast': tmp_path / 'asr_ast.jsonl'}, max_new_tokens=2, limit=1)
    reasons = [fault['reason'] for fault in result.info['skipped']]
    assert reasons == ['not_json', 'audio_unreadable', 'bad_custom', 'missing_key', 'other']
    assert [row.n for row in result.of('speech')] == [1]
    (tmp_path / 'asr_ast.jsonl').write_text('\n'.join(lines) + '\n')
    with pytest.raises(VtbDataError, match='audio_unreadable'):
        evaluate(tiny_model, {'asr_ast': tmp_path / 'asr_ast.jsonl'}, max_new_tokens=2)


def test_a_row_that_cannot_be_scored_leaves_the_others_their_numbers() -> None:
    prompt = Conversation('c', (turn('user', CLIP),), 'asr_ast', 's')
    questions = [
        Example(f'{s}#1', prompt, (text,), s, extra={'task': 'asr', 'direction': 'en'})
        for s, text in (('a', '[noise]'), ('b', 'hello'))
    ]
    rows = figures(Transcribe(), questions, ['x', 'hello'])
    assert [(row.source, row.name, row.value) for row in rows] == [('a', 'n/a', None), ('b', 'WER', 0.0)]
    assert 'empty after normalisation' in rows[0].signature
    evaluation = Evaluation(tuple(rows))
    console = Console(record=True, width=200)
    show_table(evaluation, 'speech', console)
    assert 'n/a' in console.export_text()
