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
"""Productions in real processes: workers, shards and kills do not change what is made."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from factory_helpers import digest, read_lines, write_chats

from nemo_vtb.errors import VtbConfigError
from nemo_vtb.factory.dataset_files import finish
from nemo_vtb.factory.pipeline import make_stage, parse_shard, produce

FAST = {'chunk': 2, 'verify': {'asr': None}, 'tts': {'speakers': 4}, 'validation_share': 0.2, 'variants': 3}


def made(chats, out, workers=1, shards=1):
    stage = make_stage('mixed_modal', [str(chats)], FAST)
    for number in reversed(range(shards)):
        done = produce(stage, out, workers=workers, shard=(number, shards))
    assert done.left == 0
    finish(stage, stage.settings, out)
    return digest(out)


@pytest.fixture(scope='module')
def chats(tmp_path_factory):
    return write_chats(tmp_path_factory.mktemp('chats') / 'chats.jsonl', 24)


@pytest.fixture(scope='module')
def whole(chats, tmp_path_factory):
    """What an uninterrupted run in one process makes."""
    return made(chats, tmp_path_factory.mktemp('whole') / 'out')


def test_something_is_made(whole):
    assert 'mixed_modal.train.jsonl' in whole and 'card.md' in whole and 'card.png' in whole
    assert sum(name.endswith('.wav') for name in whole) > 20


def test_workers_make_the_same(chats, whole, tmp_path):
    assert made(chats, tmp_path / 'out', workers=2) == whole


def test_shards_make_the_same(chats, whole, tmp_path):
    assert made(chats, tmp_path / 'out', shards=3) == whole


def test_a_complete_production_is_left_alone(chats, whole, tmp_path):
    out = tmp_path / 'out'
    made(chats, out)
    stage = make_stage('mixed_modal', [str(chats)], FAST)
    (out / '.mixed_modal.train.jsonl.k1ll3d').write_text('half a li')  # as a kill inside the last step leaves it
    assert produce(stage, out).made == 0
    finish(stage, stage.settings, out)
    assert digest(out) == whole


@pytest.mark.integration
def test_kills_change_nothing(chats, whole, tmp_path):
    """kill -9 at random moments, then to the end: all files are those of the uninterrupted run."""
    out, rng, kills = tmp_path / 'out', random.Random(3), 0
    words = ['verify.asr=null', 'chunk=2', 'tts.speakers=4', 'validation_share=0.2', 'variants=3', '--workers', '2']
    command = [sys.executable, '-m', 'nemo_vtb.cli', 'data', 'make', 'mixed_modal', str(out), str(chats), *words]
    journal = out / '.work' / 'journal.0-of-1.jsonl'
    for _ in range(30):
        size = journal.stat().st_size if journal.exists() else 0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not journal.exists() or journal.stat().st_size == size):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.15))
        if process.poll() is not None:
            assert process.returncode == 0
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    assert kills >= 2
    assert digest(out) == whole
    ids = [line['id'] for path in out.glob('*.jsonl') for line in read_lines(path)]
    assert len(ids) == len(set(ids)) == 24 * 3


@pytest.mark.parametrize('text', ['', '1', '3/3', '-1/2', 'a/b', '1/0'])
def test_shards_that_are_none(text):
    with pytest.raises(VtbConfigError, match='--shard'):
        parse_shard(text)
    assert parse_shard('2/3') == (2, 3)
