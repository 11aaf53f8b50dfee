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
"""The words of a protocol (prompts of judges, phrases of a scorer), read from a benchmark's own repository, never run.

Two versions of a benchmark differ in these words alone; so they are the user's copy, and not ours (ADR 0069).
"""

import ast
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from nemo_vtb.errors import VtbDataError


class Protocol:
    """A file of Python of a benchmark's repository, of which only constants are read.

    Args:
        path: The file.
        where: Where the repository is to be had; part of the errors.

    Raises:
        VtbDataError: At the first use: the file is missing, is no Python, or has no such constant.
    """

    def __init__(self, path: Path, where: str) -> None:
        self.path, self.where = path, where

    @cached_property
    def _tree(self) -> ast.Module:
        try:
            return ast.parse(self.path.read_text(encoding='utf-8'))
        except (OSError, SyntaxError, ValueError) as error:
            raise self._error(f'{self.path}: {error}') from error

    def values(self, name: str) -> list[Any]:
        """All constants that `name` is set to, in the order of the file; an f-string keeps its fields as `{field}`."""
        nodes = sorted(ast.walk(self._tree), key=lambda node: getattr(node, 'lineno', 0))  # `walk` is breadth first
        found = [value for node in nodes for value in _assigned(node, name)]
        if not found:
            raise self._error(f'{self.path} sets no {name}')
        return found

    def answer(self, function: str, response: str) -> Any:
        """What the chain of `if` of a scorer's function returns for a response; None if none of them holds.

        Args:
            function: Its name. Known are `==`, `in`, `startswith`, `endswith` and `re.search` on its argument
                `response`, and a call of another such function first, whose answer goes before.
            response: The response.

        Raises:
            VtbDataError: There is no such function, or it asks something else.
        """
        for node in ast.walk(self._tree):
            if isinstance(node, ast.FunctionDef) and node.name == function:
                return self._chain(node.body, response)
        raise self._error(f'{self.path} has no function {function}')

    def _chain(self, body: list[ast.stmt], response: str) -> Any:
        for statement in body:
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call):
                called = statement.value.func
                if isinstance(called, ast.Attribute) and ast.unparse(called).startswith('self.'):
                    if (first := self.answer(called.attr, response)) is not None:
                        return first
            elif isinstance(statement, ast.If) and (value := self._branch(statement, response)) is not None:
                return value
        return None

    def _branch(self, statement: ast.If, response: str) -> Any:
        returned = [part for part in statement.body if isinstance(part, ast.Return)]
        if returned and self._holds(statement.test, response):
            return returned[0].value.value if isinstance(returned[0].value, ast.Constant) else None
        return self._chain(statement.orelse, response)

    def _holds(self, test: ast.expr, response: str) -> bool:
        match test:
            case ast.Compare(left=ast.Constant(value=str(text)), ops=[ast.In()], comparators=[ast.Name('response')]):
                return text in response
            case ast.Compare(left=ast.Name('response'), ops=[ast.Eq()], comparators=[ast.Constant(value=text)]):
                return response == text
            case ast.Call(
                func=ast.Attribute(value=ast.Name('response'), attr=('startswith' | 'endswith') as method),
                args=[ast.Constant(value=str(text))],
            ):
                return bool(getattr(response, method)(text))
            case ast.Call(
                func=ast.Attribute(value=ast.Name('re'), attr='search'), args=[ast.Constant(value=pattern), _]
            ):
                return re.search(str(pattern), response) is not None
            case ast.Compare(ops=[ast.IsNot()]):  # whether the function that was called first had an answer
                return False
        raise self._error(f'{self.path}:{test.lineno} asks {ast.unparse(test)[:80]}')

    def _error(self, got: str) -> VtbDataError:
        return VtbDataError(
            'The protocol of a benchmark cannot be read.', field='data_root', got=got,
            allowed='a checkout of the repository of the benchmark', remedy=f'clone {self.where} there',
        )  # fmt: skip


def _assigned(node: ast.AST, name: str) -> Iterator[Any]:
    """Constants of `name = ...`, `self.name = ...` and `for name in [...]`."""
    targets: list[ast.expr] = node.targets if isinstance(node, ast.Assign) else []
    if isinstance(node, ast.For):
        targets = [node.target]
    for target in targets:
        if (target.id if isinstance(target, ast.Name) else getattr(target, 'attr', None)) == name:
            value = _constant(node.value if isinstance(node, ast.Assign) else node.iter)  # type: ignore[attr-defined]
            if value is not None:
                yield value


def _constant(node: ast.expr) -> Any:
    if isinstance(node, ast.JoinedStr):
        return ''.join(
            str(part.value) if isinstance(part, ast.Constant) else f'{{{ast.unparse(part.value)}}}'  # type: ignore[attr-defined]
            for part in node.values
        )
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == 'strip':
        text = _constant(node.func.value)
        return text.strip() if isinstance(text, str) else None
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
