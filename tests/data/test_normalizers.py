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
