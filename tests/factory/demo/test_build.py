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
"""The demonstration corpus in small: complete, checked, continued after a kill."""

import json
import subprocess
import sys
import time

import pytest
from factory_helpers import digest, read_lines

from nemo_vtb.factory.demo.corpus import check_corpus

WORDS = (
    'commands=[6,3,3] speech_qa=[5,5,5] mixed_modal=[8,8,8] text=[4,2,2] max_new_tokens=8 chunk=4 bank_share=0.5'
).split()


def make(out, *words):
    return [sys.executable, '-m', 'nemo_vtb.cli', 'data', 'make', 'demo', str(out), *WORDS, *words, '--workers', '1']


@pytest.mark.slow
@pytest.mark.real_weights
@pytest.mark.integration
def test_the_corpus_is_complete_and_survives_a_kill(tmp_path, assets):
    assets('asterisk-en', 'minimind2-small', 'whisper-tiny.en')
    subprocess.run(make(tmp_path / 'a'), check=True)
    process = subprocess.Popen(make(tmp_path / 'b'))
    journal = tmp_path / 'b' / '.work' / 'journal.0-of-1.jsonl'
    while process.poll() is None and not (journal.exists() and journal.stat().st_size):
        time.sleep(0.05)
    process.kill()
    process.wait()
    subprocess.run(make(tmp_path / 'b'), check=True)
    assert digest(tmp_path / 'a') == digest(tmp_path / 'b')
    counts = check_corpus(tmp_path / 'a')['files']
    for kind in ('text', 'asr_ast', 'speech_qa', 'mixed_modal', 'spoken_chat'):
        for split in ('train', 'validation', 'test'):
            assert (tmp_path / 'a' / f'{kind}.{split}.jsonl').exists()
    assert counts['text.train']['conversations'] == 4 and counts['asr_ast.train']['conversations'] > 200
    card = json.loads((tmp_path / 'a' / 'card.json').read_text())
    assert card['spans'] - card['spans_rejected'] >= 0.8 * card['spans'] and card['wer']['p50'] <= 0.1
    assert card['licences']['voices'].startswith('Apache')


@pytest.mark.real_weights
def test_without_asr_and_llm_it_takes_seconds(tmp_path, assets):
    assets('asterisk-en')
    subprocess.run(make(tmp_path, 'verify.asr=null', 'llm=null'), check=True)
    first = digest(tmp_path)
    subprocess.run(make(tmp_path, 'verify.asr=null', 'llm=null'), check=True)
    assert digest(tmp_path) == first
    lines = read_lines(tmp_path / 'asr_ast.train.jsonl')
    asked = {entry['value'] for line in lines for entry in line['conversations'] if entry['type'] == 'text'}
    assert 'Transcribe the speech.' in asked and 'Give me the transcript.' in asked
    again = make(tmp_path, 'verify.asr=null', 'llm=null', 'seed=1')
    assert subprocess.run(again, capture_output=True, text=True).returncode == 2
