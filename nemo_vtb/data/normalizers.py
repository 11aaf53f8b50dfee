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
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    return {
        'basic': BasicTextNormalizer(),
        'characters': BasicTextNormalizer(split_letters=True),
        'english': EnglishTextNormalizer(),
        'none': str.strip,
    }


NORMALIZERS = ('basic', 'characters', 'english', 'none')
"""Names that `get_normalizer` takes: Whisper's for English, for any language, for any language by letters; none."""


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
