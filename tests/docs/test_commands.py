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
"""Every block of commands that is marked `bash run` runs, page by page, in the order of the page.

`bash run` blocks are cheap and part of `make test`; `bash run slow` blocks train and belong to `make test-all`. They
run in a folder like a checkout, word for word: a run is short there as its YAML files say so.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from data_helpers import write_librispeech

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
_BLOCK = re.compile(r'^```bash run(?P<slow> slow)?\n(?P<text>.*?)^```', re.MULTILINE | re.DOTALL)
# the default trains 240 steps on two ranks; four steps on one show that every command does its work
_SHORT = {
    'conf/trainer/cpu_quick.yaml': {'devices: 2': 'devices: 1', 'max_steps: 240': 'max_steps: 4'}
    | {'val_check_interval: 120': 'val_check_interval: 4', 'limit_val_batches: 1.0': 'limit_val_batches: 1'},
    'conf/quickstart.yaml': {'max_steps: 600': 'max_steps: 4', 'val_check_interval: 200': 'val_check_interval: 4'},
    'conf/speechllm_joint_sft.yaml': {'items: 200': 'items: 8'},
    'conf/eval/speechllm_eval.yaml': {'limit: null': 'limit: 2'},
}


def blocks(page: Path, *, slow: bool) -> list[str]:
    """The marked blocks; where slow ones are wanted, the cheap ones before them belong to the story."""
    found = [(match['slow'] is not None, match['text']) for match in _BLOCK.finditer(page.read_text(encoding='utf-8'))]
    return [text for is_slow, text in found if slow or not is_slow] if any(s == slow for s, _ in found) else []


def pages(*, slow: bool) -> list[Path]:
    return [page for page in PAGES if blocks(page, slow=slow)]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the commands need of a checkout, with YAML files of a short run."""
    for name in ('conf', 'examples'):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('__pycache__'))
    for file, changes in _SHORT.items():
        text = (tmp_path / file).read_text(encoding='utf-8')
        for before, after in changes.items():
            assert text.count(f'\n{before}') + text.count(f'\n  {before}') == 1, f'{file}: {before}'
            text = text.replace(before, after)
        (tmp_path / file).write_text(text, encoding='utf-8')
    (tmp_path / '.venv').symlink_to(sys.prefix)
    return tmp_path


def prepare_asr_corpus(folder: Path, assets: Callable[..., dict[str, Path]]) -> None:
    """LibriSpeech's layout, chats, and the YAML file that the page shows."""
    write_librispeech(folder / 'LibriSpeech', assets)
    chats = [{'instruction': f'What is {n} and {n}?', 'output': f'{n} and {n} is {2 * n}.'} for n in range(40)]
    (folder / 'chats.jsonl').write_text(''.join(json.dumps(chat) + '\n' for chat in chats))
    page = (ROOT / 'docs' / 'asr_corpus.md').read_text(encoding='utf-8')
    (shown,) = re.findall(r'^```yaml\n(.*?)^```', page, re.MULTILINE | re.DOTALL)
    (folder / 'conf' / 'data' / 'my_corpus.yaml').write_text(shown, encoding='utf-8')


_PREPARE = {'asr_corpus.md': prepare_asr_corpus}


def run_page(page: Path, folder: Path, *, slow: bool) -> None:
    own = {
        'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
        'PYTHONPATH': str(ROOT),
        'HF_HUB_OFFLINE': '1',
    }
    script = 'set -euo pipefail\n' + '\n'.join(f'(\n{text})' for text in blocks(page, slow=slow))
    done = subprocess.run(
        ['bash', '-c', script],
        cwd=folder,
        env=os.environ | own,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f'{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'


@pytest.mark.integration
@pytest.mark.parametrize('page', pages(slow=False), ids=lambda page: page.name)
def test_cheap_commands_run(page: Path, checkout: Path) -> None:
    run_page(page, checkout, slow=False)


@pytest.mark.slow
@pytest.mark.real_weights
@pytest.mark.parametrize('page', pages(slow=True), ids=lambda page: page.name)
def test_all_commands_run(page: Path, checkout: Path, assets: Callable[..., dict[str, Path]]) -> None:
    assets('minimind2-small', 'whisper-tiny.en', 'demo-corpus', 'minimind2-small.whisper-tiny.en', 'open-dialogues')
    if page.name in _PREPARE:
        _PREPARE[page.name](checkout, assets)
    run_page(page, checkout, slow=True)


def test_what_is_marked() -> None:
    assert {page.name for page in pages(slow=False)} >= {'install.md'}
    assert {page.name for page in pages(slow=True)} >= {'guide.md', 'asr_corpus.md'}
    marks = sum(len(re.findall(r'^```bash run', page.read_text(encoding='utf-8'), re.MULTILINE)) for page in PAGES)
    assert marks == sum(len(_BLOCK.findall(page.read_text(encoding='utf-8'))) for page in PAGES), 'a mark is misspelt'
