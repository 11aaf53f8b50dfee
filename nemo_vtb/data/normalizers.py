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
"""Text normalisers: the form in which transcripts and short answers are compared."""

import re
import unicodedata
from collections.abc import Callable
from functools import cache

from nemo_vtb.errors import VtbConfigError

# languages written without spaces between words
_UNSPACED = ('ja', 'lo', 'my', 'th', 'yue', 'zh')


@cache
def _normalizers() -> dict[str, Callable[[str], str]]:
    from whisper_normalizer.english import EnglishTextNormalizer

    return {
        'basic': _basic,
        'characters': _characters,
        'english': EnglishTextNormalizer(),
        'none': str.strip,
    }


# optional in writing: short vowels, Koranic signs, and the stroke that only lengthens a word
_ARABIC_MARKS = re.compile('[\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed]')


def _basic(text: str) -> str:
    """Whisper's normaliser for any language, but combining marks stay: they are vowels and tones of Hindi, Thai ..."""
    text = re.sub(r'[<\[][^>\]]*[>\]]', '', text.lower())  # words in brackets
    text = re.sub(r'\(([^)]+?)\)', '', text)
    text = _ARABIC_MARKS.sub('', unicodedata.normalize('NFKC', text))
    text = ''.join(' ' if unicodedata.category(c)[0] in 'SP' else c for c in text)
    return ' '.join(text.lower().split())


def _characters(text: str) -> str:
    import regex

    return ' '.join(' '.join(regex.findall(r'\X', _basic(text))).split())


NORMALIZERS = ('basic', 'characters', 'english', 'none')
"""Names that `get_normalizer` takes: Whisper's for English; for any language, also by letters; none."""


def get_normalizer(name: str) -> Callable[[str], str]:
    """Return a text normaliser by name.

    Raises:
        VtbConfigError: The name is unknown (NeMo's evaluation then goes on without one, and the WER shifts silently).
    """
    if name not in NORMALIZERS:
        raise VtbConfigError(
            'Unknown text normaliser.',
            field='normalizer',
            got=name,
            allowed=', '.join(NORMALIZERS),
            remedy="leave it out: the language decides ('en' takes english)",
        )
    return _normalizers()[name]


def normalizer_for(lang: str) -> str:
    """Name of the normaliser of a language code such as 'en', 'pt-BR' or 'zh'."""
    code = re.split(r'[-_]', lang.lower())[0]
    if code in ('en', 'english'):
        return 'english'
    return 'characters' if code in _UNSPACED else 'basic'


def normalize_answer(text: str) -> str:
    """SQuAD's form of an answer: lower case, no punctuation, no English articles, single spaces."""
    text = re.sub("['\u2019]", '', text.lower())
    text = ''.join(' ' if unicodedata.category(c)[0] in 'PS' else c for c in text)
    return ' '.join(word for word in text.split() if word not in ('a', 'an', 'the'))
