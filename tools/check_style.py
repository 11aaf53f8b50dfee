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
"""House rules that no ordinary linter knows: sizes, headers, docstrings, type hints, forbidden calls.

Usage: python tools/check_style.py [PATH ...]     (default: everything that is ours)
Prints one line per finding and ends with exit code 1 if there is any.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ('benchmarks', 'examples', 'nemo_vtb', 'tests', 'tools')
MAX_FILE_LINES = 900
MAX_FUNCTION_LINES = 75
HEADER = '# Copyright (c) 2026, The nemo_vtb authors. All rights reserved.'
LICENCE = '# Licensed under the Apache License, Version 2.0 (the "License");'
FORBIDDEN_NAMES = ('eval', 'exec')
FORBIDDEN_CALLS = ('marshal.loads', 'os.popen', 'os.system', 'pickle.load', 'yaml.load', 'yaml.unsafe_load')

Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_files(root: Path = ROOT) -> list[Path]:
    """Returns every Python file of the project, sorted."""
    files = [path for folder in FOLDERS for path in (root / folder).rglob('*.py')]
    return sorted([*files, *root.glob('*.py')])


def findings(path: Path, root: Path = ROOT) -> Iterator[str]:
    """Yields one line per rule that the file breaks, as `path:line: what`."""
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
    text = path.read_text(encoding='utf-8')
    if not text.strip():
        return
    lines = text.splitlines()
    # a script's first line is its interpreter
    if HEADER not in lines[:2] or LICENCE not in lines[:5]:
        yield f'{name}:1: the Apache-2.0 header is missing'
    if len(lines) > MAX_FILE_LINES:
        yield f'{name}:1: {len(lines)} lines, allowed are {MAX_FILE_LINES}'
    tree = ast.parse(text, filename=str(path))
    library = name.startswith('nemo_vtb/')
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield from (f'{name}:{node.lineno}: {what}' for what in _function(node, library))
        elif isinstance(node, ast.Call):
            yield from (f'{name}:{node.lineno}: {what}' for what in _call(node))
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f'{name}:{node.lineno}: bare except'
    yield from (f'{name}:{line}: {what}' for line, what in _exports(tree))
    if library:
        yield from (f'{name}:{line}: {what}' for line, what in _docstrings(tree))


def _function(node: Function, library: bool) -> Iterator[str]:
    assert node.end_lineno is not None
    length = node.end_lineno - node.lineno + 1
    if length > MAX_FUNCTION_LINES:
        yield f'{node.name} has {length} lines, allowed are {MAX_FUNCTION_LINES}'
    if not library or node.name.startswith('_'):
        return
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ('self', 'cls')]
    if untyped:
        yield f'{node.name} has arguments without a type: {", ".join(untyped)}'
    if node.returns is None:
        yield f'{node.name} has no return type'


def _call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    keywords = {k.arg: k.value for k in node.keywords if k.arg}
    if isinstance(node.func, ast.Name) and name in FORBIDDEN_NAMES or name in FORBIDDEN_CALLS:
        yield f'{name}() is forbidden'
    shell = keywords.get('shell')
    if isinstance(shell, ast.Constant) and shell.value:
        yield 'shell=True is forbidden'
    weights_only = keywords.get('weights_only')
    if name == 'torch.load' and not (isinstance(weights_only, ast.Constant) and weights_only.value is True):
        yield 'torch.load needs weights_only=True'


def _exports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in tree.body:
        if not (isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ['__all__']):
            continue
        if not isinstance(node.value, ast.List | ast.Tuple):
            continue
        names = [item.value for item in node.value.elts if isinstance(item, ast.Constant)]
        if len(names) != len(node.value.elts):
            yield node.lineno, '__all__ holds something other than strings'
        elif names != sorted(names, key=export_order):
            yield node.lineno, '__all__ is not sorted (constants, classes, then the rest)'


def export_order(name: object) -> tuple[int, str]:
    """Sorts as ruff's RUF022 does: CONSTANTS, Classes, then functions and modules."""
    text = str(name)
    if text.isupper() and len(text) > 1:
        return 0, text
    return (1 if text[:1].isupper() else 2), text


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    # a file with nothing but the licence has nothing to explain
    if tree.body and not ast.get_docstring(tree):
        yield 1, 'the module has no docstring'
    for node in _public(tree.body):
        if not ast.get_docstring(node):
            yield node.lineno, f'{node.name} has no docstring'


def _public(body: list[ast.stmt]) -> Iterator[ast.ClassDef | Function]:
    for node in body:
        if not isinstance(node, ast.ClassDef | Function) or node.name.startswith('_'):
            continue
        decorators = [ast.unparse(d) for d in node.decorator_list]
        # an overload's and a setter's documentation stands at the function itself
        if not any(d.endswith(('overload', '.setter', 'override')) for d in decorators):
            yield node
        if isinstance(node, ast.ClassDef):
            yield from _public(node.body)


def main(arguments: list[str]) -> int:
    """Checks the files named, or all of them, and returns the exit code."""
    files = [Path(a).resolve() for a in arguments] or python_files()
    found = [line for path in files for line in findings(path)]
    for line in found:
        print(line)
    print(f'check_style: {len(files)} files, {len(found)} findings')
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
