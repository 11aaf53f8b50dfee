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
"""Building an index: what was counted once is not counted again, whoever was killed and whatever was added."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from data_helpers import count_frames, spoken, text, write_jsonl

from nemo_vtb.data import index_build
from nemo_vtb.data.counting import Meter
from nemo_vtb.data.index import SourceIndex, index_path, open_index
from nemo_vtb.data.index_build import COLUMNS, count_shard
from nemo_vtb.data.sources import SourceSpec, parse_input_cfg
from nemo_vtb.testing.failpoints import damage

ROOT = Path(__file__).resolve().parents[2]


def chat(name: str) -> dict[str, Any]:
    return {'id': name, 'conversations': [spoken(f'{name}.wav', duration=0.5), text('Assistant', f'yes {name}')]}


@pytest.fixture(autouse=True)
def small_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_build, '_CHUNK_BYTES', 700)


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The stretches that are counted: number of the file, first byte."""
    seen: list[tuple[int, int]] = []
    scan = index_build._scan

    def noted(spec: SourceSpec, meter: Meter, task: Any) -> Any:
        seen.append((task.file, task.start))
        return scan(spec, meter, task)

    monkeypatch.setattr(index_build, '_scan', noted)
    return seen


def files(folder: Path, names: str, lines: int = 20) -> list[str]:
    made = []
    for name in names:
        content = [chat(f'{name}{n}') if n % 7 else '{broken' for n in range(lines)]
        path = folder / f'{name}.jsonl'
        made.append(str(path if path.exists() else write_jsonl(path, content)))
    return made


def source(paths: list[str], durations: str = 'trust') -> SourceSpec:
    entry = {'type': 'multimodal_conversation', 'kind': 'speech_qa', 'source': 's', 'durations': durations}
    return parse_input_cfg([entry | {'manifest_filepath': paths}])[0]


def contents(index: SourceIndex) -> Any:
    faults = [{k: fault[k] for k in ('file', 'line', 'byte_offset', 'reason')} for fault in index.quarantined()]
    return {name: index.column(name).tolist() for name in COLUMNS}, faults, index.digest, index.meta['lines']


def test_an_added_file_is_counted_alone(tmp_path: Path, meter: Meter, scanned: list[Any]) -> None:
    first = open_index(source(files(tmp_path, 'bd')), meter, tmp_path / 'index', quiet=True)
    assert {file for file, _ in scanned} == {0, 1}
    scanned.clear()
    paths = files(tmp_path, 'abcd')
    grown = open_index(source(paths), meter, tmp_path / 'index', quiet=True)
    assert {file for file, _ in scanned} == {0, 2} and len(grown) == 2 * len(first)
    assert contents(grown) == contents(open_index(source(paths), meter, tmp_path / 'other', quiet=True))


def test_a_changed_file_is_counted_anew(tmp_path: Path, meter: Meter, scanned: list[Any]) -> None:
    paths = files(tmp_path, 'ab')
    open_index(source(paths), meter, tmp_path / 'index', quiet=True)
    scanned.clear()
    write_jsonl(tmp_path / 'b.jsonl', [chat(f'new{n}') for n in range(9)])
    changed = open_index(source(paths), meter, tmp_path / 'index', quiet=True)
    assert {file for file, _ in scanned} == {1}
    assert contents(changed) == contents(open_index(source(paths), meter, tmp_path / 'other', quiet=True))


@pytest.mark.parametrize('change', ['meter', 'durations'])
def test_what_was_counted_otherwise_is_not_taken(
    tmp_path: Path, meter: Meter, scanned: list[Any], change: str
) -> None:
    paths = files(tmp_path, 'ab')
    open_index(source(paths), meter, tmp_path / 'index', quiet=True)
    before = len(scanned)
    other = Meter(meter.renderer, lambda n: count_frames(n) + 1) if change == 'meter' else meter
    open_index(source(paths, 'trust' if change == 'meter' else 'probe'), other, tmp_path / 'index', quiet=True)
    assert len(scanned) == 2 * before


def test_shards_are_put_together(tmp_path: Path, meter: Meter, scanned: list[Any]) -> None:
    spec = source(files(tmp_path, 'abc'), 'probe')
    path, _ = index_path(spec, meter, tmp_path / 'index')
    counts = [count_shard(spec, meter, path, (n, 4), workers=1, quiet=True) for n in range(4)]
    assert sum(mine for mine, _ in counts) == counts[0][1] == len(scanned) == len(set(scanned))
    scanned.clear()
    index = open_index(spec, meter, tmp_path / 'index', quiet=True)
    assert not scanned
    assert contents(index) == contents(open_index(spec, meter, tmp_path / 'other', quiet=True))
    assert not list((tmp_path / 'index').glob('.*')) and not (index.folder / 'parts').exists()


@pytest.mark.parametrize('how', ['flip', 'cut'])
def test_a_damaged_part_is_counted_anew(tmp_path: Path, meter: Meter, scanned: list[Any], how: str) -> None:
    spec = source(files(tmp_path, 'abc'))
    path, _ = index_path(spec, meter, tmp_path / 'index')
    for number in range(2):
        count_shard(spec, meter, path, (number, 2), workers=1, quiet=True)
    stored = sorted(path.with_name(f'.{path.name}.parts').iterdir())
    for part in stored[::3]:
        damage(part, how)
    scanned.clear()
    index = open_index(spec, meter, tmp_path / 'index', quiet=True)
    assert len(scanned) == len(stored[::3])
    assert contents(index) == contents(open_index(spec, meter, tmp_path / 'other', quiet=True))


@pytest.mark.integration
def test_a_killed_build_goes_on(tmp_path: Path, meter: Meter, tiny_llm_dir: Path, scanned: list[Any]) -> None:
    """Killed by KILL behind the third stretch; nothing of it is left in the end."""
    paths = files(tmp_path, 'abc', 60)
    code = f'''
import os, signal, sys
sys.path.insert(0, {str(ROOT / 'tests')!r})
from data_helpers import count_frames
from transformers import AutoTokenizer
from nemo_vtb.data import index_build
from nemo_vtb.data.counting import Meter
from nemo_vtb.data.index import open_index
from nemo_vtb.data.sources import parse_input_cfg
from nemo_vtb.data.template import ChatRenderer
index_build._CHUNK_BYTES = 700
scan, seen = index_build._scan, []
def noted(*arguments):
    seen.append(1)
    if len(seen) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return scan(*arguments)
index_build._scan = noted
entry = {{'type': 'multimodal_conversation', 'kind': 'speech_qa', 'source': 's', 'durations': 'trust'}}
spec = parse_input_cfg([entry | {{'manifest_filepath': {paths!r}}}])[0]
meter = Meter(ChatRenderer(AutoTokenizer.from_pretrained({str(tiny_llm_dir)!r})), count_frames)
open_index(spec, meter, {str(tmp_path / 'index')!r}, quiet=True)
'''
    done = subprocess.run([sys.executable, '-c', code], env=os.environ | {'PYTHONPATH': str(ROOT)}, timeout=300)
    assert done.returncode == -signal.SIGKILL
    spec = source(paths)
    index = open_index(spec, meter, tmp_path / 'index', quiet=True)
    tasks = len(index_build._tasks(spec, meter))
    assert len(scanned) == tasks - 3
    assert contents(index) == contents(open_index(spec, meter, tmp_path / 'other', quiet=True))
    assert not list((tmp_path / 'index').glob('.*'))
