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
"""What language a text is in, as far as its commonest words and its script tell; unsure is a normal answer."""

import re
import unicodedata
from collections import Counter

_COMMON = {
    'en': (
        'the of and to in is that it was for on are with as his they be at this have from or had by but what some '
        'we can out other were all there when your how an which their if will each about many then them would so '
        'these her'
    ),
    'de': (
        'der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er '
        'hat dass sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder aber vor '
        'zur bis mehr'
    ),
    'es': (
        'de la que el en y a los del se las por un para con no una su al lo como más pero sus le ya o este sí '
        'porque esta entre cuando muy sin sobre también me hasta hay donde quien desde todo nos durante todos uno '
        'les ni contra'
    ),
    'fr': (
        'de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont avec mais '
        'on où ou sa son aux cette ces comme nous vous elle leur était été fait être deux même tout bien peut sans '
        'je'
    ),
    'it': (
        'di e il la che in un a per è una sono con non del da le si dei al come della i più ma lo nel gli alla '
        'anche ha ed o delle se dal suo questo ai quando questa molto essere sua perché tra dopo tutti stato nella '
        'ci cosa'
    ),
}
_WORDS = {lang: frozenset(words.split()) for lang, words in _COMMON.items()}
_SCRIPTS = {'ru': 'CYRILLIC', 'uk': 'CYRILLIC', 'zh': 'CJK', 'ja': 'CJK', 'ko': 'HANGUL', 'ar': 'ARABIC'}
_SCRIPTS |= {'hi': 'DEVANAGARI', 'el': 'GREEK', 'he': 'HEBREW', 'th': 'THAI'}
_MARGIN = 1.3


def script_of(text: str) -> str:
    """The script of most letters: 'LATIN', 'CYRILLIC', 'CJK' ...; '' without letters."""
    counts: Counter[str] = Counter()
    for character in text:
        if character.isalpha():
            name = unicodedata.name(character, '').split(' ')[0]
            counts['CJK' if name in ('HIRAGANA', 'KATAKANA') else name] += 1
    return counts.most_common(1)[0][0] if counts else ''


def guess_language(text: str) -> str | None:
    """Two-letter code among en, de, es, fr and it; None where the words do not tell."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    hits = {lang: sum(word in common for word in words) for lang, common in _WORDS.items()}
    (best, most), (_, second) = Counter(hits).most_common(2)
    return best if most >= 3 and most >= _MARGIN * second else None


def is_language(text: str, lang: str) -> bool:
    """Whether a text may be in a language: false for another script, or where another language is surely meant."""
    script = script_of(text)
    if script and script != _SCRIPTS.get(lang, 'LATIN'):
        return False
    guess = guess_language(text)
    return guess is None or guess == lang or lang not in _WORDS
