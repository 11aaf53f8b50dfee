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
"""ASR and AST manifests to conversations."""

import json

import pytest
from factory_helpers import write_jsonl, write_manifest

from nemo_vtb.config import read_settings
from nemo_vtb.data.conversation import Audio, conversation_from_dict
from nemo_vtb.errors import VtbDataError
from nemo_vtb.factory.asr_ast import AsrAstStage, manifest_rows, strip_punctuation
from nemo_vtb.factory.dataset_files import finish
from nemo_vtb.factory.pipeline import produce
from nemo_vtb.factory.settings import AsrAst
from nemo_vtb.io import parse_json_lines


def make(path, **changes):
    stage = AsrAstStage(read_settings(AsrAst, changes), (str(path),))
    return [outcome for item in stage.items() for outcome in stage.make([item], path.parent)]


def parts(outcome):
    """'A' for the recording and the texts, of the user; then the answer."""
    found = conversation_from_dict(outcome.line)
    return ['A' if isinstance(p, Audio) else p.text for p in found.turns[0].parts], found.answer


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
    words = [{'word': 'Hello,', 'start': 0.0, 'end': 0.4}, {'word': 'Anna.', 'start': 0.45, 'end': 0.9}]
    return write_manifest(tmp_path_factory.mktemp('m'), ['Hello, Anna.'] * 60, words=words)


def test_recordings_stay_where_they_are_and_are_found(rows):
    (found,) = conversation_from_dict(make(rows)[0].line).audios
    assert found.path == str(rows.parent / 'rec-0.wav') and found.duration_s == 1.0 and found.text == 'Hello, Anna.'


def test_equal_seeds_word_equally_and_others_do_not(rows):
    assert make(rows) == make(rows)
    assert [o.line for o in make(rows)] != [o.line for o in make(rows, seed=1)]


@pytest.mark.parametrize('position, places', [('before', (1,)), ('after', (0,)), ('around', (1,))])
def test_positions(rows, position, places):
    shares = {name: float(name == position) for name in ('before', 'after', 'around')}
    for outcome in make(rows, positions=shares, forms={'plain': 1, 'json': 0, 'timestamps': 0}):
        user, answer = parts(outcome)
        expected = {'before': 2, 'after': 2, 'around': 3}[outcome.facts['position']]
        assert len(user) == expected and user.count('A') == 1
        # a phrase that ends with a colon can only stand before
        assert outcome.facts['position'] == position or user[0].endswith(':')
        assert user[-1] == 'A' or not user[-1].endswith(':')


def test_forms(rows):
    for outcome in make(rows, forms={'plain': 0, 'json': 1, 'timestamps': 0}, punctuation_share=0):
        assert json.loads(parts(outcome)[1]) == {'transcript': 'Hello, Anna.'}
        assert 'transcript' in ' '.join(parts(outcome)[0])
    for outcome in make(rows, forms={'plain': 0, 'json': 0, 'timestamps': 1}):
        assert parts(outcome)[1] == '[0.00 0.40] Hello, [0.45 0.90] Anna.'


def test_punctuation_is_as_asked(rows):
    answers = {parts(outcome)[1] for outcome in make(rows, punctuation_share=1, forms={'json': 0, 'timestamps': 0})}
    assert answers == {'Hello, Anna.', 'hello anna'}
    for outcome in make(rows, punctuation_share=1, forms={'json': 0, 'timestamps': 0}):
        user, answer = parts(outcome)
        wants_none = any(word in ' '.join(user) for word in ('Do not use', 'Without', 'no punctuation'))
        assert wants_none == (answer == 'hello anna')


def test_translations_and_languages(tmp_path):
    more = {'source_lang': 'de', 'target_lang': 'en', 'translation': 'Good day.'}
    path = write_manifest(tmp_path, ['Guten Tag.'] * 20, **more)
    outcomes = make(path, forms={'json': 0, 'timestamps': 0}, punctuation_share=0, named_share=1)
    tasks = [outcome.facts['task'] for outcome in outcomes]
    assert tasks.count('asr') == tasks.count('ast') == 20
    for outcome in outcomes:
        user, answer = parts(outcome)
        assert answer == {'asr': 'Guten Tag.', 'ast': 'Good day.'}[outcome.facts['task']]
        assert 'Deutsch' in ' '.join(user) or 'Englisch' in ' '.join(user)
    english = make(path, instruction_lang='en', named_share=1, tasks=['ast'])
    assert all('German' in ' '.join(parts(o)[0]) and 'English' in ' '.join(parts(o)[0]) for o in english)


def test_what_does_not_fit_is_left_out_with_a_reason(tmp_path):
    path = write_manifest(tmp_path, ['one', 'two words', 'three words here'])
    reasons = [o.reason for o in make(path, min_words=2, max_s=1.15)]
    assert reasons == ['too_few_words', 'kept', 'too_long']
    bad = write_jsonl(tmp_path / 'bad.jsonl', [{'audio_filepath': 'a.wav', 'text': ' '}])
    with pytest.raises(VtbDataError, match='bad.jsonl:1'):
        list(manifest_rows([str(bad)], 'en'))


def test_strip_punctuation():
    assert strip_punctuation("Don't STOP, Mr. O'Neil – it's a 5-year-old!") == "don't stop mr o'neil it's a 5-year-old"
    assert strip_punctuation('¿Qué? «Sí»…') == 'qué sí'


def test_a_broken_row_costs_itself_and_is_listed(tmp_path):
    path = write_manifest(tmp_path, ['Hello, Anna.', 'Good day.'])
    good = path.read_text(encoding='utf-8').splitlines()
    row = json.loads(good[0])
    broken = {
        'missing_key': [row | {'text': ''}, row | {'text': 7}, row | {'audio_filepath': None}],
        'bad_span': [row | {'duration': '1.0'}, row | {'offset': 10**400}, row | {'offset': 99.0}],
        'audio_missing': [row | {'audio_filepath': 'no.wav'}, row | {'audio_filepath': 'a.wav', 'shard_id': 0}],
        'not_unicode': [row | {'text': '\ud800'}],
        'other': [row | {'words': [3]}],
    }
    lines = [good[0], 'no JSON', *(json.dumps(row) for rows in broken.values() for row in rows), good[1]]
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    stage = AsrAstStage(AsrAst(form='jsonl', validation_share=0.0), (str(path),))
    out = tmp_path / 'out'
    produce(stage, out)
    card = finish(stage, stage.settings, out)
    assert card.reasons == {'kept': 2, 'not_json': 1, **{reason: len(rows) for reason, rows in broken.items()}}
    listed = parse_json_lines((out / 'rejected.jsonl').read_bytes())
    assert sum(line['reason'] != 'kept' for line in listed) == 1 + sum(map(len, broken.values()))
    assert any('tar -xf' in line.get('detail', '') for line in listed)
