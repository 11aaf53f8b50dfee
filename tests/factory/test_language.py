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
"""What language a text is in."""

import pytest

from nemo_vtb.factory.language import guess_language, is_language, script_of

TEXTS = {
    'en': 'The leaves turn yellow because the tree takes back what is useful in them before the winter.',
    'de': 'Die Blätter werden gelb, weil der Baum vor dem Winter das aus ihnen zurückholt, was er noch braucht.',
    'es': 'Las hojas se ponen amarillas porque el árbol recupera lo que es útil en ellas antes del frío.',
    'fr': "Les feuilles deviennent jaunes parce que l'arbre reprend ce qui est utile en elles avant le froid.",
    'it': 'Le foglie diventano gialle perché la pianta riprende quello che è utile in loro prima del freddo.',
}


@pytest.mark.parametrize('lang', TEXTS)
def test_sentences_are_recognised(lang):
    assert guess_language(TEXTS[lang]) == lang
    assert [other for other in TEXTS if is_language(TEXTS[lang], other)] == [lang]


def test_unsure_is_no_reason():
    assert guess_language('Jazz.') is None and is_language('Jazz.', 'en') and is_language('Jazz.', 'de')
    assert is_language('Нет, это не так.', 'ru') and not is_language('Нет, это не так.', 'en')
    assert (script_of('東京です'), script_of('123'), script_of('abc')) == ('CJK', '', 'LATIN')
