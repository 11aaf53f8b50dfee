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
"""OpenAI's vocabulary becomes a tokenizer with the same ids."""

import base64

import pytest
from transformers import AutoTokenizer

from nemo_vtb.assets.converters.whisper_tokenizer import byte_letters, non_speech_ids, read_tiktoken, save_tokenizer


def tiny_vocabulary(path):
    tokens = [bytes([byte]) for byte in range(256)] + [b'he', b'll', b'hell', b' hell', b'hello']
    lines = [f'{base64.b64encode(token).decode()} {rank}' for rank, token in enumerate(tokens)]
    path.write_text('\n'.join(lines) + '\n')
    return path


def test_every_byte_has_a_letter_of_its_own():
    letters = byte_letters()
    assert sorted(letters) == list(range(256)) and len(set(letters.values())) == 256
    assert letters[ord('a')] == 'a' and letters[ord(' ')] == 'Ġ' and letters[ord('\n')] == 'Ċ'


def test_a_tiny_vocabulary(tmp_path):
    path = tiny_vocabulary(tmp_path / 'tiny.tiktoken')
    assert read_tiktoken(path)[b'hell'] == 258
    save_tokenizer(path, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode('hello hell', add_special_tokens=False) == [260, 259]
    text = 'Été, 漢字\n 12'
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    names = ['<|endoftext|>', '<|startoftranscript|>', '<|en|>', '<|transcribe|>', '<|notimestamps|>', '<|0.00|>']
    assert tokenizer.convert_tokens_to_ids(names) == [261, 262, 263, 363, 367, 368]
    assert len(tokenizer) == 261 + 1608
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 261


@pytest.mark.real_weights
@pytest.mark.parametrize(('name', 'end'), [('whisper-tiny.en', 50256), ('whisper-base', 50257)])
def test_the_real_vocabularies(assets, name, end):
    tokenizer = AutoTokenizer.from_pretrained(assets(name)[name])
    assert tokenizer.eos_token_id == end
    names = ['<|startoftranscript|>', '<|translate|>', '<|notimestamps|>', '<|30.00|>']
    assert tokenizer.convert_tokens_to_ids(names) == [end + 1, end + 101, end + 106, end + 1607]
    # ids of GPT-2 and of OpenAI's multilingual vocabulary
    words = {50256: [843, 523, 616, 5891, 3399], 50257: [400, 370, 452, 7177, 6280]}
    assert tokenizer.encode(' And so my fellow Americans', add_special_tokens=False) == words[end]
    suppressed = non_speech_ids(tokenizer)
    assert len(suppressed) in (87, 88, 89, 90) and suppressed[:6] == [1, 2, 7, 8, 9, 10]
