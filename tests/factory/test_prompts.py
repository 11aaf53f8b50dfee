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
"""The banks of instructions, and drawing from them."""

from collections import Counter
from random import Random

import pytest

from nemo_vtb.errors import VtbConfigError
from nemo_vtb.factory.prompts import BANK_LANGUAGES, draw, load_bank


@pytest.mark.parametrize('lang', BANK_LANGUAGES)
@pytest.mark.parametrize('task', ['asr', 'ast'])
def test_each_task_has_thirty_different_phrasings(lang, task):
    phrases = load_bank(lang).phrases
    both = (*phrases[task], *phrases[f'{task}_named'])
    assert len(set(both)) == len(both) >= 30
    assert all('{source}' in phrase for phrase in phrases[f'{task}_named'])
    assert not any('{source}' in phrase for phrase in phrases[task])
    target = [phrase for phrase in (*phrases['ast'], *phrases['ast_named']) if '{target}' not in phrase]
    assert target == []


@pytest.mark.parametrize('lang', BANK_LANGUAGES)
def test_nothing_is_left_to_be_filled(lang):
    bank = load_bank(lang)
    values = {'source': bank.names['de'], 'target': bank.names['en'], 'key': 'transcript'}
    for purpose in bank.phrases:
        for seed in range(60):
            text = bank.pick(Random(seed), purpose, **values)
            assert not any(f'{{{name}}}' in text for name in values) and text == text.strip() and text


def test_draws_follow_the_shares():
    rng = Random(0)
    counts = Counter(draw(rng, {'a': 3, 'b': 1, 'c': 0}, 'x') for _ in range(4000))
    assert set(counts) == {'a', 'b'} and abs(counts['a'] / 4000 - 0.75) < 0.03
    with pytest.raises(VtbConfigError, match='zero'):
        draw(rng, {'a': 0.0}, 'forms')


def test_own_bank_replaces_what_it_names(tmp_path):
    (tmp_path / 'en.yaml').write_text('asr: ["Write, robot."]\n')
    bank = load_bank('en', str(tmp_path))
    assert bank.phrases['asr'] == ('Write, robot.',) and len(bank.phrases['ast']) > 10
    file = tmp_path / 'polish.yaml'
    file.write_text('asr: ["Zapisz {x}"]\nnames: {pl: polski}\n')
    assert load_bank('pl', str(file)).pick(Random(0), 'asr') == 'Zapisz {x}'


@pytest.mark.parametrize(
    'content, named', [('asrr: [a]', 'asrr'), ('asr: []', 'asr'), ('- a', 'list'), ('a: [', 'YAML')]
)
def test_a_bank_with_mistakes(tmp_path, content, named):
    file = tmp_path / 'bank.yaml'
    file.write_text(content)
    with pytest.raises(VtbConfigError, match=named):
        load_bank('en', str(file))
    with pytest.raises(VtbConfigError, match='no bank'):
        load_bank('xx')
