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
"""Speech QA: the filters, and whole productions against a real server with faults and kills."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from factory_helpers import digest, openai_server, read_lines, write_manifest

from nemo_vtb.config import read_settings
from nemo_vtb.data.conversation import Audio, conversation_from_dict
from nemo_vtb.factory.dataset_files import finish
from nemo_vtb.factory.pipeline import produce
from nemo_vtb.factory.settings import SpeechQa
from nemo_vtb.factory.speech_qa import QUESTION_TYPES, REFUSALS, SpeechQaStage, overlap, pair_reason, question_request

TEXT = 'The train to Berlin leaves at nine from platform four, so please be there ten minutes early.'
ROW = {'text': TEXT, 'lang': 'en', 'type': 'factual'}


@pytest.mark.parametrize(
    'question, answer, reason',
    [
        ('When does the train leave?', 'At nine.', None),
        ('none', 'none', 'no_question'),
        ('', 'At nine.', 'no_question'),
        ('It leaves at nine', 'Yes.', 'no_question'),
        ('When does the train leave?', ' ', 'no_answer'),
        ('When does the train leave?', 'N/A', 'no_answer'),
        ('When does the train leave?', 'The answer is:', 'no_answer'),
        ('When does the train leave?', 'When does the train leave?', 'copy'),
        (f'{TEXT[:-1]}?', 'At nine.', 'copy'),
        ('What is said?', TEXT, 'copy'),
        ('What does the transcript say?', 'At nine.', 'mentions_transcript'),
        ('When?', 'The answer is short, a few words or one sentence.', 'echoes_instructions'),
        ('Wann ist das und was ist es für ein Zug?', 'Es ist der Zug und er ist nicht in Berlin.', 'wrong_language'),
        ('When ' + 'or when ' * 30 + '?', 'At nine.', 'pair_too_long'),
    ],
)
def test_pairs_are_left_out_for_a_reason(question, answer, reason):
    assert pair_reason(question, answer, ROW, SpeechQa()) == reason


def test_overlap_counts_words_of_content():
    assert overlap('Platform four.', TEXT) == 1.0
    assert overlap('It leaves from platform seven.', TEXT) == 0.75
    assert overlap('A blue whale', TEXT) == 0.0 == overlap('', TEXT)


@pytest.mark.parametrize('type_', QUESTION_TYPES)
def test_requests_hold_the_transcript_and_the_task(type_):
    ask = question_request({'text': TEXT, 'lang': 'de'}, type_, 5)
    assert TEXT in ask.user and QUESTION_TYPES[type_] in ask.user and 'German' in ask.user
    assert ask.fields == ('question', 'answer') and ask.seed == 5


def test_types_are_drawn_without_repetition_and_by_share(tmp_path):
    manifest = write_manifest(tmp_path, [TEXT] * 40)
    settings = read_settings(SpeechQa, {'questions': 4})
    items = list(SpeechQaStage(settings, (str(manifest),)).items())
    assert len({item.id for item in items}) == 160 and len({item.group for item in items}) == 40
    for number in range(40):
        types = [item.data['type'] for item in items[4 * number : 4 * number + 4]]
        assert sorted(types) == sorted(QUESTION_TYPES)
    one = Counter(item.data['type'] for item in SpeechQaStage(read_settings(SpeechQa), (str(manifest),)).items())
    assert one['factual'] > one['summary']


TEXTS = [f'The {what} in the {where} is open from {when}, and everybody may come in.' for what, where, when in (
    ('museum', 'old town', 'nine to five'), ('bakery', 'station', 'six to noon'), ('garden', 'park', 'April to May'),
    ('library', 'school', 'one to four'), ('market', 'square', 'Monday to Friday'), ('pool', 'hotel', 'ten to eight'),
)]  # fmt: skip
WORDS = {'chunk': 3, 'judge': 'none', 'validation_share': 0.3, 'min_words': 4}
LLM = {'model': 'minimind2-small', 'temperature': 0, 'concurrency': 2, 'timeout_s': 15, 'max_tokens': 24}


@pytest.mark.real_weights
@pytest.mark.integration
def test_a_production_against_a_server_with_faults(tmp_path, assets):
    """Every item gets its outcome through 429, 500, a hang, a cut connection and junk; what it cost is counted."""
    assets('minimind2-small')
    manifest = write_manifest(tmp_path, [*TEXTS, 'No.'])
    # the last item is asked twice in vain: junk both times
    faults = '429 500 ok junk cut hang ok'
    with openai_server(tmp_path / 'server', faults, 'model') as url:
        settings = read_settings(SpeechQa, {**WORDS, 'llm': {**LLM, 'url': url, 'price_prompt': 2.0}})
        stage = SpeechQaStage(settings, (str(manifest),))
        assert produce(stage, tmp_path / 'out').left == 0
        card = finish(stage, settings, tmp_path / 'out').to_json()
        log = read_lines(tmp_path / 'server' / 'requests.jsonl')
    assert card['outcomes'] == len(TEXTS) + 1 and card['reasons']['too_few_words'] == 1
    # what becomes of a model of 26 M: some pairs pass the filters
    assert card['kept'] >= 1, card['reasons']
    answered = Counter(row['key'] for row in log if row['got'] == 'answered')
    assert len(answered) == len(TEXTS) and set(answered.values()) == {1}
    model = card['language_model']
    assert (model['retries'], model['invalid'], model['requests']) == (4, 1, len(TEXTS) + 1)
    assert model['prompt_tokens'] > 300 and model['cost'] == pytest.approx(2e-6 * model['prompt_tokens'], abs=1e-4)
    for path in (tmp_path / 'out').glob('speech_qa.*.jsonl'):
        for line in read_lines(path):
            found = conversation_from_dict(line)
            assert [isinstance(part, Audio) for part in found.turns[0].parts].count(True) == 1
            assert found.answer in REFUSALS['en'] or line['custom']['task'] != 'unanswerable'


@pytest.mark.real_weights
@pytest.mark.integration
def test_junk_alone_is_an_outcome_and_no_error(tmp_path, assets):
    manifest = write_manifest(tmp_path, TEXTS[:1])
    with openai_server(tmp_path / 'server', 'junk junk') as url:
        settings = read_settings(SpeechQa, {**WORDS, 'llm': {**LLM, 'url': url}})
        (outcome,) = SpeechQaStage(settings, (str(manifest),)).make(
            list(SpeechQaStage(settings, (str(manifest),)).items()), tmp_path / 'out'
        )
    assert outcome.reason == 'invalid_json' and outcome.facts['raw'] == 'I would rather talk about bees.'
    assert (outcome.facts['requests'], outcome.facts['invalid'], outcome.facts['completion_tokens']) == (2, 2, 14)


@pytest.mark.real_weights
@pytest.mark.integration
def test_no_answer_is_paid_for_twice_after_a_kill(tmp_path, assets):
    assets('minimind2-small')
    manifest, out = write_manifest(tmp_path, TEXTS), tmp_path / 'out'
    with openai_server(tmp_path / 'server', ready='model') as url:
        words = ['chunk=6', 'judge=none', 'llm.max_tokens=24', 'llm.temperature=0', 'llm.concurrency=1']
        words += [f'llm.url={url}', 'llm.model=m', 'min_words=4', '--workers', '1']
        command = [sys.executable, '-m', 'nemo_vtb.cli', 'data', 'make', 'speech_qa', str(out), str(manifest), *words]
        log = tmp_path / 'server' / 'requests.jsonl'
        process = subprocess.Popen(command)
        while process.poll() is None and (not log.exists() or log.read_text().count('answered') < 3):
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert subprocess.run(command).returncode == 0
        first = digest(out)
        assert subprocess.run(command).returncode == 0
        assert digest(out) == first
        answered = Counter(row['key'] for row in read_lines(log) if row['got'] == 'answered')
    # one request may have been on the way when the process was killed
    assert len(answered) == len(TEXTS) and sum(answered.values()) <= len(TEXTS) + 1
