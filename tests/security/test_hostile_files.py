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
"""Files from strangers run no code, hang nowhere, and are refused by name: the corpus through each door."""

from itertools import islice
from pathlib import Path

import pytest

from nemo_vtb.testing.hostile import DOORS, hostile_cases, try_case, try_cases
from nemo_vtb.testing.hostile_files import SoundFiles

KINDS_IN_ALL = 460


@pytest.fixture(scope='module')
def sound(tmp_path_factory: pytest.TempPathFactory) -> SoundFiles:
    return SoundFiles.make(tmp_path_factory.mktemp('sound'))


def failed(results: dict[str, str]) -> dict[str, str]:
    return {name: result for name, result in results.items() if result not in ('refused', 'harmless')}


def test_a_part_of_the_corpus_is_refused_or_harmless(tmp_path: Path, sound: SoundFiles) -> None:
    results = try_cases(hostile_cases(tmp_path, 0, every=7, sound=sound), limit_s=120)
    assert not failed(results)
    assert len(results) > KINDS_IN_ALL // 10
    assert {name.rpartition(' (')[2].removesuffix(')') for name in results} == set(DOORS)
    assert list(results.values()).count('refused') > 0.8 * len(results)


@pytest.mark.slow
def test_the_whole_corpus_is_refused_or_harmless(tmp_path: Path, sound: SoundFiles) -> None:
    results = try_cases(hostile_cases(tmp_path, 1, sound=sound), limit_s=120)
    assert not failed(results)
    assert len(results) >= KINDS_IN_ALL


def test_the_corpus_can_fail(tmp_path: Path, sound: SoundFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('nemo_vtb.checkpoint.nemo_file.check_model', lambda *_, **__: None)
    wanted = 'write_manifest as argument of encoder', 'write_manifest as augmentation'
    found = {}
    for case in hostile_cases(tmp_path, 0, sound=sound):
        if case.name in wanted and case.door == 'restore':
            found[case.name] = try_case(case)
        if len(found) == len(wanted):
            break
    assert set(found.values()) == {'sentinel'}


def test_one_file_that_hangs_costs_itself_alone(
    tmp_path: Path, sound: SoundFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    doors = dict(DOORS)
    doors['info'] = lambda case: next(iter(iter(case.path.open('rb').read, b'x')))  # a pipe: it waits
    monkeypatch.setattr('nemo_vtb.testing.hostile.DOORS', doors)
    made = hostile_cases(tmp_path, 0, sound=sound)
    cases = (case for case in made if case.name == 'a pipe' and case.door in ('info', 'restore'))
    assert try_cases(islice(cases, 2), limit_s=3) == {'a pipe (info)': 'hang', 'a pipe (restore)': 'refused'}
