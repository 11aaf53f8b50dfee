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
"""Whisper's own vocabulary (a tiktoken file) -> the tokenizer files of a Hugging Face folder.

The weight files carry no merges, so text can be read with them but not be written; OpenAI's package has them.
"""

import base64
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import WhisperTokenizer

_NUM_LANGUAGES = 99
_NUM_TIMES = 1501
_TIME_STEP_S = 0.02
# what OpenAI's decoder suppresses, to keep speaker tags and sound descriptions out of a transcript
_SYMBOLS = [*'"#()*+/:;<=>@[\\]^_`{|}~「」『』', '<<', '>>', '<<<', '>>>', '--', '---', '-(', '-[', "('", '("']
_SYMBOLS += ['((', '))', '(((', ')))', '[[', ']]', '{{', '}}', '♪♪', '♪♪♪']
_NOTES = '♩♪♫♬♭♮♯'


def save_tokenizer(tiktoken_file: Path, into: Path) -> 'WhisperTokenizer':
    """Write tokenizer.json and tokenizer_config.json into a folder.

    Args:
        tiktoken_file: gpt2.tiktoken (English models) or multilingual.tiktoken.
        into: An existing folder.

    Returns:
        The tokenizer.
    """
    from tokenizers import AddedToken
    from transformers import WhisperTokenizer
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    ranks = read_tiktoken(tiktoken_file)
    letters = byte_letters()
    vocabulary = {_spell(token, letters): rank for token, rank in ranks.items()}
    languages = [f'<|{code}|>' for code in list(LANGUAGES)[:_NUM_LANGUAGES]]
    special = ['<|endoftext|>', '<|startoftranscript|>', *languages, '<|translate|>', '<|transcribe|>']
    special += ['<|startoflm|>', '<|startofprev|>', '<|nospeech|>', '<|notimestamps|>']
    # all special ids stand in the model's vocabulary already, else their order would be left to chance
    vocabulary.update({token: len(ranks) + index for index, token in enumerate(special)})
    times = [f'<|{index * _TIME_STEP_S:.2f}|>' for index in range(_NUM_TIMES)]
    vocabulary.update({token: len(ranks) + len(special) + index for index, token in enumerate(times)})
    tokenizer = WhisperTokenizer(
        vocab=vocabulary,
        merges=[(_spell(left, letters), _spell(right, letters)) for left, right in _merges(ranks)],
        additional_special_tokens=special[1:],
        pad_token='<|endoftext|>',
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in times])
    tokenizer.save_pretrained(into)
    return tokenizer


def read_tiktoken(path: Path) -> dict[bytes, int]:
    """Bytes of each token -> rank, which is its id."""
    lines = path.read_text(encoding='ascii').splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}


def byte_letters() -> dict[int, str]:
    """GPT-2's letter for each of the 256 bytes: printable ones stand for themselves."""
    printable = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + i) for i, byte in enumerate(others)}}


def non_speech_ids(tokenizer: 'WhisperTokenizer') -> list[int]:
    """Ids that OpenAI's decoder never samples: symbols that are no speech, and tokens that only steer the decoder."""

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    found = {encode(' -')[0], encode(" '")[0]}
    for symbol in [*_SYMBOLS, *_NOTES]:
        for ids in (encode(symbol), encode(f' {symbol}')):
            if len(ids) == 1 or symbol in _NOTES:
                found.add(ids[0])
    steering = ['startoftranscript', 'translate', 'transcribe', 'startoflm', 'startofprev', 'nospeech']
    found.update(tokenizer.convert_tokens_to_ids([f'<|{name}|>' for name in steering]))
    return sorted(found)


def _spell(token: bytes, letters: dict[int, str]) -> str:
    return ''.join(letters[byte] for byte in token)


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every split of a token into two others, in the order of the token's rank, as tiktoken merges."""
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        splits = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [
            (ranks[left], ranks[right], left, right) for left, right in splits if left in ranks and right in ranks
        ]
        merges += [(left, right) for _, _, left, right in sorted(known)]
    return merges
