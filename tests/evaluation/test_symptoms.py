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
"""Models that are ill in one way each: their scores show it, and the report says it in its first line."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nemo_vtb.data.conversation import Conversation
from nemo_vtb.evaluation.report.collect import Subject, make_report, write_report
from nemo_vtb.evaluation.result import Evaluation
from nemo_vtb.evaluation.runner import evaluate
from nemo_vtb.evaluation.symptoms import is_endless
from nemo_vtb.evaluation.tables import show
from nemo_vtb.evaluation.verdict import verdict_of
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.testing import TinyCorpus

FRENCH = "C'est la lampe qui est dans la cuisine, et je ne sais pas pourquoi elle est là."


def said(prompt: Conversation) -> str:
    return ' '.join(a.text or '' for a in prompt.audios) or 'nothing'


MODELS: dict[str, Callable[[Conversation], str]] = {
    'deaf': lambda prompt: 'Thank you.',
    'parrot': lambda prompt: prompt.turns[-1].text or said(prompt),
    'French': lambda prompt: FRENCH,
    'mute': lambda prompt: '  ',
    'endless': lambda prompt: f'{said(prompt)} and so on' + ' and so on' * 9,
}
SENTENCES = {
    'deaf': 'It gives different recordings one answer',
    'parrot': 'It repeats the prompt',
    'French': 'It answers in another language',
    'mute': 'It answers nothing',
    'endless': 'It repeats itself without end',
}


@pytest.fixture
def asked(
    tiny_model: VoiceTextBlender, corpus: TinyCorpus, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[Conversation], str]], Evaluation]:
    """The evaluation of a model that answers by a rule; all else is real."""

    def run(rule: Callable[[Conversation], str]) -> Evaluation:
        def answer(prompts: list[Conversation], **_: Any) -> list[str]:
            return [rule(p) for p in prompts]

        monkeypatch.setattr(tiny_model, 'answer', answer)
        return evaluate(tiny_model, {kind: corpus.path(kind, 'test') for kind in ('asr_ast', 'speech_qa')})

    return run


@pytest.mark.parametrize('name', list(MODELS))
def test_an_ill_model_is_red_and_named_first(name: str, asked: Any, tmp_path: Path) -> None:
    result = asked(MODELS[name])
    asr = [m.value for m in result.of('speech', 'asr')]
    assert min(asr) > 60
    assert all(m.value < 50 for m in result.of('speech', 'speech_qa'))
    found = verdict_of(result)
    assert found.level == 'red' and found.sentence.startswith(SENTENCES[name]), found
    shown = io.StringIO()
    show(result, Console(file=shown, width=200))
    assert 'Answers that no score should hide' in shown.getvalue()
    paths = write_report(make_report([Subject('m', result)]), tmp_path)
    assert f'<h1>{SENTENCES[name]}' in paths['html'].read_text()
    assert f'RED.** {SENTENCES[name]}' in paths['md'].read_text()


def test_a_model_that_hears_has_no_symptom(asked: Any, corpus: TinyCorpus) -> None:
    result = asked(said)
    assert not [m for m in result.of('symptoms') if m.task == 'asr']
    assert all(m.value == 0 for m in result.of('speech', 'asr'))


@pytest.mark.parametrize(
    ('text', 'endless'),
    [
        ('no no no no no no no no no', True),
        ('The lamp is on. ' * 5, True),
        ('a' * 30, True),
        ('你好' * 12, True),
        ('No, no, no.', False),
        ('It is what it is, and it is what it was, and so it will be what it is.', False),
        ('ha ha ha ha', False),
        ('', False),
    ],
)
def test_endless(text: str, endless: bool) -> None:
    assert is_endless(text) is endless
