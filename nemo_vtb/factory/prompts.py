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
"""Banks of instructions for transcription and translation: one YAML file a language, or the user's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from nemo_vtb.errors import VtbConfigError
from nemo_vtb.io import read_yaml

BANK_LANGUAGES = ('en', 'de', 'es', 'fr', 'it')
_LISTS = (
    'lead', 'asr', 'asr_named', 'ast', 'ast_named', 'punctuation_on', 'punctuation_off', 'json', 'timestamps',
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bank:
    """The phrasings of one language.

    Args:
        lang: Two-letter code of the language they are written in.
        names: What that language calls each language.
        phrases: Lists of phrasings by purpose.
    """

    lang: str
    names: Mapping[str, str]
    phrases: Mapping[str, tuple[str, ...]]

    def pick(self, rng: Random, purpose: str, **values: str) -> str:
        """Draw a phrasing and fill its `{...}`."""
        text = rng.choice(self.phrases[purpose])
        for name, value in values.items():
            text = text.replace(f'{{{name}}}', value)
        return text[:1].upper() + text[1:]


@cache
def load_bank(lang: str, path: str | None = None) -> Bank:
    """Read a bank.

    Args:
        lang: Two-letter code of the language.
        path: The user's own: a file that holds one bank, or a folder with `LANG.yaml`. Missing lists are taken
            from the bank of the package.

    Raises:
        VtbConfigError: There is no bank for the language, or it is not laid out as one.
    """
    own = _read(_own_file(path, lang)) if path else {}
    packaged = Path(__file__).parent / 'banks' / f'{lang}.yaml'
    if not own and lang not in BANK_LANGUAGES:
        raise VtbConfigError(
            'There is no bank of instructions in this language.', field='bank', got=lang,
            allowed=', '.join(BANK_LANGUAGES), remedy='write LANG.yaml like those of the package and name its folder',
        )  # fmt: skip
    base = _read(packaged if packaged.is_file() else packaged.with_name('en.yaml'))
    merged = {**base, **own}
    where = path or packaged.name
    phrases = {name: _phrases(merged[name], f'{where}: {name}') for name in _LISTS}
    return Bank(lang, {str(code): str(name) for code, name in merged['names'].items()}, phrases)


def draw(rng: Random, shares: Mapping[str, float], field: str) -> str:
    """Draw a name in proportion to its share.

    Raises:
        VtbConfigError: All shares are zero.
    """
    names = sorted(shares)
    weights = [float(shares[name]) for name in names]
    if not sum(weights) > 0:
        raise VtbConfigError('All shares are zero.', field=field, got=dict(shares), allowed='at least one above zero')
    return rng.choices(names, weights)[0]


def _own_file(path: str, lang: str) -> Path:
    file = Path(path)
    if file.is_dir():
        return file / f'{lang}.yaml'
    if not file.is_file():
        raise VtbConfigError('The bank does not exist.', field='bank', got=path, remedy='correct the path')
    return file


def _read(path: Path) -> dict:
    import yaml

    if not path.is_file():
        return {}
    try:
        content = read_yaml(path)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise VtbConfigError('The bank is not YAML.', field='bank', got=f'{path}: {error}') from error
    unknown = sorted(set(content) - {'names', *_LISTS}) if isinstance(content, dict) else [type(content).__name__]
    if unknown:
        raise VtbConfigError(
            'The bank has an unknown key.', field=f'{path}: {unknown[0]}', allowed=', '.join(('names', *_LISTS))
        )
    return content


def _phrases(value: object, where: str) -> tuple[str, ...]:
    if isinstance(value, Sequence) and not isinstance(value, str) and value and all(isinstance(v, str) for v in value):
        return tuple(value)
    raise VtbConfigError('A list of phrasings is needed.', field=where, got=value, allowed='["...", ...]')
