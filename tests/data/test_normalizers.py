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
"""Which normaliser a language takes, and the form of short answers."""

import pytest

from nemo_vtb.data.normalizers import NORMALIZERS, get_normalizer, normalize_answer, normalizer_for
from nemo_vtb.errors import VtbConfigError
from nemo_vtb.evaluation.metrics import error_rate


@pytest.mark.parametrize(
    ('lang', 'name'),
    [('en', 'english'), ('en-GB', 'english'), ('es', 'basic'), ('ru', 'basic'), ('zh', 'characters'), ('xx', 'basic')],
)
def test_language_decides_the_normaliser(lang: str, name: str) -> None:
    assert normalizer_for(lang) == name


def test_unknown_normaliser_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(VtbConfigError) as caught:
        get_normalizer('whisper')
    assert caught.value.got == 'whisper' and all(name in str(caught.value.allowed) for name in NORMALIZERS)


def test_answers_are_compared_without_case_marks_and_articles() -> None:
    assert normalize_answer('The  lamp, in a "kitchen"!') == 'lamp in kitchen'
    assert normalize_answer("Don\u2019t") == normalize_answer("don't") == 'dont'


@pytest.mark.parametrize(('lang', 'reference', 'wrong'), [
    ('th', 'ฉันจะไปบ้านพรุ่งนี้', 'ฉันจะไปบานพรุงนี'),
    ('hi', 'मैं कल घर जाऊँगा', 'मैं काल घर जाऊंगी'),
    ('ta', 'நான் வீட்டுக்குப் போகிறேன்', 'நான் வீட்டில் போகிறான்'),
])  # fmt: skip
def test_a_wrong_mark_is_a_mistake(lang: str, reference: str, wrong: str) -> None:
    assert error_rate(lang, metric='CER').of(reference, wrong) > 5
    assert error_rate(lang, metric='CER').of(reference, reference) == 0


def test_words_are_counted_whole_where_they_hold_marks() -> None:
    assert error_rate('hi').of('मैं कल घर जाऊँगा', 'मैं काल घर जाऊंगी') == 50.0


def test_arabic_is_the_same_with_and_without_its_marks() -> None:
    assert error_rate('ar').of('ذَهَبَ الوَلَدُ', 'ذهب الولد') == 0.0
    assert error_rate('ar').of('ذهب الولد', 'ذهب البنت') == 50.0


def test_letters_with_accents_are_one_letter_however_they_are_written() -> None:
    assert get_normalizer('basic')('Cafe\u0301 [noise] (um) <unk>!') == 'caf\u00e9'
