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
"""The items that the package ships are what their generators make, byte by byte."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def generators(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, which also holds the generators."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools' / 'evaluation_items'))
    for name in ('write', 'text_items', 'emergent_items'):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import write

    return write


def test_shipped_files_are_what_the_generators_make(generators: ModuleType) -> None:
    contents = generators.contents()
    assert len(contents) == 3
    for path, text in contents.items():
        assert path.read_text(encoding='utf-8') == text, path


def test_another_seed_makes_other_items(generators: ModuleType) -> None:
    for make in (generators.make_choices, generators.make_instructions, generators.make_emergent):
        assert make(8) != make()


def test_the_package_imports_no_generator() -> None:
    for file in (ROOT / 'nemo_vtb').rglob('*.py'):
        text = file.read_text(encoding='utf-8')
        assert 'evaluation_items' not in text.replace('tools/evaluation_items/write.py', ''), file
