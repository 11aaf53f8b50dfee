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
"""The package's front door: cheap to import, complete, and known to NeMo whatever is imported first."""

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import nemo_vtb
from nemo_vtb import registry

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ('lhotse', 'lightning', 'nemo', 'numpy', 'omegaconf', 'peft', 'torch', 'transformers')


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


def test_import_loads_nothing_heavy() -> None:
    code = (
        f'import json, sys, nemo_vtb, nemo_vtb.errors; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))'
    )
    assert json.loads(run_python(code)) == []


def test_public_names_have_been_given_a_home_once() -> None:
    assert set(nemo_vtb.__all__) == {*nemo_vtb._LAZY, '__version__', 'register'}


@pytest.mark.parametrize('path', sorted((ROOT / 'examples').glob('*.py')), ids=lambda p: p.stem)
def test_examples_are_short_and_use_public_names_alone(path: Path) -> None:
    text = path.read_text(encoding='utf-8')
    assert len(text.splitlines()) <= 60
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert not str(node.module).startswith('nemo_vtb')
        elif isinstance(node, ast.Import):
            assert all(alias.name == 'nemo_vtb' or 'nemo_vtb' not in alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == 'vtb':
            assert node.attr in nemo_vtb.__all__


def test_import_costs_three_small_files_and_some_of_the_standard_library() -> None:
    """What an import takes is what it reads and runs: that can be counted, whatever else the machine does."""
    code = (
        'import json, sys; before = set(sys.modules); import nemo_vtb; new = set(sys.modules) - before\n'
        "print(json.dumps([[m, getattr(sys.modules[m], '__file__', None)] for m in sorted(new)]))"
    )
    files = dict(json.loads(run_python(code)))
    strangers = {name for name in files if name.partition('.')[0] not in sys.stdlib_module_names}
    assert strangers == {'nemo_vtb', 'nemo_vtb.package_info', 'nemo_vtb.registry'}
    assert len(files) < 100 and sum(Path(files[name]).stat().st_size for name in strangers) < 50_000


REGISTERED = "print('nemo_vtb.' in c.ALLOWED_TARGET_PREFIXES, c.ALLOWED_TARGET_PREFIXES.count('nemo_vtb.'))"
CHECKS = """
import inspect, sys
from nemo_vtb import registry
assert registry.is_registered()
assert not [f for f in sys.meta_path if type(f).__module__ == 'nemo_vtb.registry'], 'the import hook is still there'
assert type(c.__spec__.loader).__module__ != 'nemo_vtb.registry' and c.__spec__.loader is c.__loader__
assert 'ALLOWED_TARGET_PREFIXES' in inspect.getsource(c)
"""


@pytest.mark.integration
def test_targets_are_admitted_when_we_come_first() -> None:
    imports = (
        'import nemo_vtb\nnemo_vtb.register()\nnemo_vtb.register()\n'
        # the first import of the module is somebody else's, deep inside NeMo
        'from nemo.core import ModelPT\nimport nemo.core.classes.common as c\nnemo_vtb.register()'
    )
    assert run_python(f'{imports}\n{CHECKS}\n{REGISTERED}') == 'True 1'


@pytest.mark.integration
def test_targets_are_admitted_when_nemo_comes_first_and_strangers_never() -> None:
    imports = (
        'import nemo.core.classes.common as c\n'
        "assert not any('nemo_vtb.x.Y'.startswith(p) for p in c.ALLOWED_TARGET_PREFIXES)\n"
        'from nemo_vtb import *\n'
        'assert Conversation.__name__ == "Conversation"\n'
        "assert not any('nemo_vtb_evil.Y'.startswith(p) for p in c.ALLOWED_TARGET_PREFIXES)\n"
    )
    assert run_python(f'{imports}\n{CHECKS}\n{REGISTERED}') == 'True 1'


@pytest.mark.slow
def test_a_failing_nemo_import_leaves_the_hook_for_the_next_try() -> None:
    code = (
        'import sys, nemo_vtb\n'
        "sys.modules['nemo.core.classes'] = None\n"
        'try:\n    import nemo.core.classes.common\nexcept ImportError:\n    pass\n'
        "for name in [m for m in sys.modules if m.startswith('nemo.')]:\n    del sys.modules[name]\n"
        'import nemo.core.classes.common as c\n'
        f'{REGISTERED}'
    )
    assert run_python(code) == 'True 1'


def test_register_is_idempotent_on_a_loaded_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)(registry.NEMO_MODULE)
    module.ALLOWED_TARGET_PREFIXES = ['nemo.']  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, registry.NEMO_MODULE, module)
    registry.register()
    registry.register()
    assert module.ALLOWED_TARGET_PREFIXES == ['nemo.', 'nemo_vtb.']  # type: ignore[attr-defined]


@pytest.mark.parametrize('name', nemo_vtb.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(nemo_vtb, name)
    assert name in dir(nemo_vtb)
    if callable(value):
        assert value.__doc__


def test_lazy_names_are_the_originals() -> None:
    for name, target in nemo_vtb._LAZY.items():
        module, original = target.split(':')
        assert getattr(nemo_vtb, name) is getattr(import_module(module), original)


def test_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(AttributeError, match='VoiceTextBlender'):
        _ = nemo_vtb.VoiceBlender
