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
"""What language a text is in, which of its sentences can be spoken, and what a voice is given for them.

What is known of each language stands in `languages.yaml`.
"""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_vtb.io import read_yaml

LANGUAGES: dict[str, dict[str, Any]] = read_yaml(Path(__file__).with_name('languages.yaml'))
_COMMON, _ABBREVIATIONS = (
    {lang: frozenset(facts[name].split()) for lang, facts in LANGUAGES.items()}
    for name in ('common_words', 'abbreviations')
)
_SCRIPTS = {'ru': 'CYRILLIC', 'uk': 'CYRILLIC', 'zh': 'CJK', 'ja': 'CJK', 'ko': 'HANGUL', 'ar': 'ARABIC'}
_SCRIPTS |= {'hi': 'DEVANAGARI', 'el': 'GREEK', 'he': 'HEBREW', 'th': 'THAI'}
_MARGIN = 1.3
# an end of a sentence: stop, closing marks, space, and something that begins one
_BOUNDARY = re.compile(r'(?<=[.!?…])["”’»)\]]*\s+(?=["“‘«(\[¿¡]*[^\W_a-z])|(?<=[。！？])')
_FENCE = re.compile(r'```.*?(?:```|\Z)', re.DOTALL)
_UNSPEAKABLE = re.compile(
    r'https?://|www\.|\S+@\S+\.\w|`|\\[a-zA-Z(\[]|\$[^$\s][^$]*\$|</?\w+[^>]*>|\{\{?\w*\}?\}|[<>]=?\s*\d'
    r'|[_^]\{|\w+\(\)|[A-Za-z]:\\|(?:/[\w.-]+){2,}|[=≤≥≈≠∑∫√∞±×÷→←]|\w\s*[*^]\s*\w\s*[-+*/=]|\d\s*[-+*/]\s*\d\s*=|::|#\w{3,}'
)  # fmt: skip
_MARKDOWN = re.compile(r'^\s*(?:#{1,6}\s+|>\s*|[-*+•]\s+|\d{1,2}[.)]\s+)|\*{1,3}|__|~~', re.MULTILINE)
_PLAIN = str.maketrans({'“': '"', '”': '"', '„': '"', '«': '"', '»': '"', '’': "'", '‘': "'", '–': '-', '—': ', '})


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a turn.

    Args:
        text: As in the source.
        speakable: Whether it can be spoken.
    """

    text: str
    speakable: bool


def pieces_of(text: str, lang: str, max_words: int = 60) -> list[Piece]:
    """Split a turn into sentences and pieces that must stay text, in order.

    Args:
        text: The turn.
        lang: Two-letter code of its language.
        max_words: Longer sentences stay text.

    Returns:
        Pieces; neighbours that stay text are one piece. Joined by spaces and line breaks they are the turn.
    """
    pieces: list[Piece] = []
    place = 0
    for fence in _FENCE.finditer(text):
        pieces += _prose(text[place : fence.start()], lang, max_words)
        pieces.append(Piece(fence[0], False))
        place = fence.end()
    pieces += _prose(text[place:], lang, max_words)
    merged: list[Piece] = []
    for piece in pieces:
        if merged and not piece.speakable and not merged[-1].speakable:
            merged[-1] = Piece(f'{merged[-1].text}\n{piece.text}', False)
        else:
            merged.append(piece)
    return merged


def _prose(text: str, lang: str, max_words: int) -> list[Piece]:
    found = []
    for line in text.splitlines():
        if not line.strip():
            continue
        if line.count('|') >= 2 or '\t' in line.strip() or re.fullmatch(r'[\s|:=+*_-]{3,}', line):
            found.append(Piece(line.strip(), False))  # a row of a table, or a rule
            continue
        for sentence in sentences_of(line, lang):
            found.append(Piece(sentence, is_speakable(sentence, lang, max_words)))
    return found


def sentences_of(text: str, lang: str) -> list[str]:
    """Split a paragraph into sentences; abbreviations, initials and decimals of the language are no ends."""
    known = _ABBREVIATIONS.get(lang, frozenset())
    sentences, begin = [], 0
    for boundary in _BOUNDARY.finditer(text):
        before = text[begin : boundary.start()]
        last = before.rsplit(None, 1)[-1] if before.split() else ''
        word = last.lstrip('("“‘«[').rstrip('.').lower()
        if last.endswith('.') and (word in known or (len(word) == 1 and word.isalpha())):
            continue
        # the number of an item of a list; a German ordinal
        if word.isdigit() and last.endswith('.') and (last == before.strip() or (lang == 'de' and len(word) < 3)):
            continue
        sentences.append(text[begin : boundary.end()].strip())
        begin = boundary.end()
    sentences.append(text[begin:].strip())
    return [sentence for sentence in sentences if sentence]


def is_speakable(text: str, lang: str, max_words: int = 60) -> bool:
    """Whether a person would say this aloud: no code, address, formula or markup, words of the right script."""
    if _UNSPEAKABLE.search(text) or len(text.split()) > max_words:
        return False
    letters = sum(character.isalpha() or character.isspace() for character in text)
    digits = sum(character.isdigit() for character in text)
    if letters < 0.6 * len(text) or digits > 12 or letters - text.count(' ') < 2:
        return False
    # a blank to fill in, or a title in another language, is read and not said
    return '___' not in text and is_language(text, lang)


def spoken_form(text: str, lang: str) -> str:
    """What a voice is given for a text: no markup or emoji, signs and abbreviations in words; numbers stay digits.

    Args:
        text: A speakable piece.
        lang: Two-letter code; signs are put into words for en, de, es, fr and it.
    """
    text = unicodedata.normalize('NFKC', _MARKDOWN.sub('', text).replace('…', '...')).translate(_PLAIN)
    known = LANGUAGES.get(lang, {})
    for short, long in known.get('spoken', {}).items():
        left = r'(?<!\w)' if short[0].isalpha() else ''
        right = r'(?!\w)' if short[-1].isalpha() else ''
        text = re.sub(f'{left}{re.escape(short)}{right}', long, text)
    for sign, name in zip('$€£', known.get('money', ()), strict=False):
        amount = r'(\d[\d.,]*\d|\d)'
        text = re.sub(rf'{re.escape(sign)}\s?{amount}', rf'\1 {name}', text)
        text = re.sub(rf'{amount}\s?{re.escape(sign)}', rf'\1 {name}', text)
    text = ''.join(' ' if unicodedata.category(c) in ('So', 'Sk', 'Cf', 'Co', 'Cs') else c for c in text)
    text = re.sub(r'\s+([,.;:!?])', r'\1', ' '.join(text.split()))
    return text.strip()


def script_of(text: str) -> str:
    """The script of most letters: 'LATIN', 'CYRILLIC', 'CJK' ...; '' without letters."""
    counts: Counter[str] = Counter()
    for character in text:
        if character.isalpha():
            name = unicodedata.name(character, '').split(' ')[0]
            counts['CJK' if name in ('HIRAGANA', 'KATAKANA') else name] += 1
    return counts.most_common(1)[0][0] if counts else ''


def guess_language(text: str) -> str | None:
    """Two-letter code among en, de, es, fr and it; None where its commonest words do not tell: a normal answer."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    hits = {lang: sum(word in common for word in words) for lang, common in _COMMON.items()}
    (best, most), (_, second) = Counter(hits).most_common(2)
    return best if most >= 3 and most >= _MARGIN * second else None


def is_language(text: str, lang: str) -> bool:
    """Whether a text may be in a language: false for another script, or where another language is surely meant."""
    script = script_of(text)
    if script and script != _SCRIPTS.get(lang, 'LATIN'):
        return False
    guess = guess_language(text)
    return guess is None or guess == lang or lang not in _COMMON
