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
"""What language a text is in, its sentences, what can be spoken, and how it is given to a voice."""

import pytest

from nemo_vtb.factory.language import (
    guess_language,
    is_language,
    is_speakable,
    pieces_of,
    script_of,
    sentences_of,
    spoken_form,
)

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


@pytest.mark.parametrize(
    'lang, text, expected',
    [
        ('en', 'Hello Dr. Smith. How are you? Fine!', ['Hello Dr. Smith.', 'How are you?', 'Fine!']),
        ('en', 'It costs 3.50 dollars, e.g. in J. R. R. Tolkien books. "Really?" she said. Yes.',
         ['It costs 3.50 dollars, e.g. in J. R. R. Tolkien books.', '"Really?" she said.', 'Yes.']),
        ('en', '1. First this. Then that.', ['1. First this.', 'Then that.']),
        ('en', 'Wait... what? (Yes.) Good.', ['Wait... what?', '(Yes.)', 'Good.']),
        ('de', 'Am 3. Mai kommt Hr. Maier, z.B. um acht. Gut?',
         ['Am 3. Mai kommt Hr. Maier, z.B. um acht.', 'Gut?']),
        ('es', '¿Cómo está el Sr. Pérez? ¡Bien!', ['¿Cómo está el Sr. Pérez?', '¡Bien!']),
        ('fr', 'M. Dupont arrive. Où est-il ?', ['M. Dupont arrive.', 'Où est-il ?']),
        ('it', 'Il sig. Rossi è qui. Bene!', ['Il sig. Rossi è qui.', 'Bene!']),
        ('zh', '你好。再见！', ['你好。', '再见！']),
    ],
)  # fmt: skip
def test_sentences(lang, text, expected):
    assert sentences_of(text, lang) == expected


@pytest.mark.parametrize(
    'text, speakable',
    [
        ('What is the capital of France?', True),
        ('Call me at nine, please.', True),
        ('It costs $5 & is 20% off.', True),
        ('See https://example.org for more.', False),
        ('Write to me@example.org now.', False),
        ('Use `print` here.', False),
        ('Solve $x^2 = 4$ for me.', False),
        ('Solve x + y = 3.', False),
        ('Is 3 > 2 and 1 < 2?', False),
        ('The path /usr/local/bin is wrong.', False),
        ('<b>Bold</b> words', False),
        ('Fill in the ___ here.', False),
        ('1234567890123 4', False),
        ('!!!', False),
        ('这是中文。', False),
        ('word ' * 61, False),
    ],
)
def test_speakable(text, speakable):
    assert is_speakable(text, 'en') == speakable


def test_pieces_keep_the_order_and_all_of_the_text():
    text = (
        'Look at this.\n```python\nprint("a. B.")\n```\nWhat does it do? See www.a.org.\n| a | b |\n|---|---|\nThanks.'
    )
    pieces = pieces_of(text, 'en')
    assert [piece.speakable for piece in pieces] == [True, False, True, False, True]
    assert pieces[1].text == '```python\nprint("a. B.")\n```'
    assert pieces[3].text == 'See www.a.org.\n| a | b |\n|---|---|'
    assert ' '.join(' '.join(piece.text for piece in pieces).split()) == ' '.join(text.split())


@pytest.mark.parametrize(
    'lang, text, expected',
    [
        ('en', '- **Bold** & 5% of $3.50, e.g. “this” 🙂', 'Bold and 5 percent of 3.50 dollars, for example "this"'),
        ('en', '2) Dr. No vs. Mr. Yes', 'Doctor No versus Mister Yes'),
        ('en', 'It is 20°C – warm…', 'It is 20 degrees Celsius - warm...'),
        (
            'de',
            'Das kostet 5 € bzw. 10 %, z.B. hier.',
            'Das kostet 5 Euro beziehungsweise 10 Prozent, zum Beispiel hier.',
        ),
        ('fr', 'Mme Petit & M. Grand', 'Madame Petit et Monsieur Grand'),
        ('es', 'El Sr. Ruiz tiene 3€', 'El señor Ruiz tiene 3 euros'),
        ('it', 'Sig. Rossi, 5%', 'signor Rossi, 5 per cento'),
        ('pl', 'To jest *test*.', 'To jest test.'),
    ],
)
def test_spoken_form(lang, text, expected):
    assert spoken_form(text, lang) == expected
