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
"""The house itself: every import of `nemo_vtb` points downwards, and there is no circle, lazy imports included."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'nemo_vtb'

# lowest first; packages of one row do not import one another. docs/architecture.md has the same table
LAYERS = (
    ('constants', 'errors', 'package_info', 'registry'),
    ('io',),
    ('config',),
    ('assets',),
    ('backbone',),
    ('parallel',),
    ('data',),
    ('checkpoint',),
    ('model',),
    ('training',),
    ('factory',),
    ('evaluation', 'export'),
    ('serving',),
    ('scripts',),
    ('commands',),
    ('cli',),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# the package's own public names are lazy, and its test doubles are for users of every layer
OUTSIDE = ('', 'testing')

MODULES = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
    for path in sorted(PACKAGE.rglob('*.py'))
}


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """(module of nemo_vtb, line) of every import that runs, also inside functions; names in strings too."""
    parts = path.relative_to(ROOT).parent.parts

    def walk(node: ast.AST) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and 'TYPE_CHECKING' in ast.unparse(child.test):
                yield from (found for other in child.orelse for found in walk(other))
                continue
            if isinstance(child, ast.ImportFrom):
                base = child.module or ''
                if child.level:
                    base = '.'.join([*parts[: len(parts) - child.level + 1], base]).strip('.')
                for alias in child.names:
                    full = f'{base}.{alias.name}'
                    yield (full if full in MODULES else base), child.lineno
            elif isinstance(child, ast.Import):
                yield from ((alias.name, child.lineno) for alias in child.names)
            elif isinstance(child, ast.Constant) and isinstance(child.value, str):
                name = child.value.split(':')[0]
                if name in MODULES:
                    yield name, child.lineno
            yield from walk(child)

    for module, line in walk(ast.parse(path.read_text(encoding='utf-8'))):
        # the package itself loads nothing: its public names are lazy
        if module.startswith('nemo_vtb.'):
            yield module, line


def package_of(module: str) -> str:
    return module.split('.')[1] if '.' in module else ''


EDGES = {
    module: sorted({(found, line) for found, line in imports_of(path) if found != module})
    for module, path in MODULES.items()
}


def test_every_package_has_a_layer() -> None:
    assert {package_of(module) for module in MODULES} - {*LEVEL, *OUTSIDE} == set()


@pytest.mark.parametrize('package', [name for names in LAYERS for name in names])
def test_imports_point_downwards(package: str) -> None:
    upwards = []
    for module, edges in EDGES.items():
        if package_of(module) != package:
            continue
        for found, line in edges:
            other = package_of(found)
            if other != package and (other in OUTSIDE or LEVEL[other] >= LEVEL[package]):
                upwards.append(f'{MODULES[module].relative_to(ROOT)}:{line} imports {found}')
    assert not upwards, '\n'.join(upwards)


def test_there_is_no_circle() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for module, edges in EDGES.items():
        # a package that a module stands in is no import of it
        graph[module] = {found for found, _ in edges if found in MODULES and not module.startswith(f'{found}.')}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, ' -> '.join([*path[path.index(module) :], module])
        if module in done:
            return
        for found in sorted(graph[module]):
            visit(found, (*path, module))
        done.add(module)

    for module in sorted(graph):
        if module != 'nemo_vtb':
            visit(module, ())


def test_megatron_and_transformer_engine_stay_in_one_room() -> None:
    strangers = []
    for module, path in MODULES.items():
        if module.startswith('nemo_vtb.backbone.megatron'):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            names = (
                [node.module or '']
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            if any(name.split('.')[0] in ('megatron', 'transformer_engine') for name in names):
                strangers.append(f'{path.relative_to(ROOT)}:{node.lineno}')
    assert not strangers


def test_nobody_outside_parallel_asks_which_strategy_runs() -> None:
    import re

    asks = re.compile(r'is_split|is_sharded|isinstance\(.*[Ss]trategy')
    found = [
        f'{path.relative_to(ROOT)}:{number}'
        for path in MODULES.values()
        if 'parallel' not in path.parts
        for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), start=1)
        if asks.search(line)
    ]
    assert not found


def test_the_module_has_two_bases_and_no_class_is_a_mixin() -> None:
    tree = ast.parse((PACKAGE / 'model' / 'blender.py').read_text(encoding='utf-8'))
    [blender] = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == 'VoiceTextBlender']
    assert [ast.unparse(base) for base in blender.bases] == ['SALM', 'ModelPT']
    assert blender.end_lineno is not None and blender.end_lineno - blender.lineno < 350
