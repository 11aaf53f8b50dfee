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
"""Adds `nemo_vtb.` to the targets that NeMo may instantiate from a config or a `.nemo` file.

NeMo 3.0 refuses every `target` outside `nemo.core.classes.common.ALLOWED_TARGET_PREFIXES`, so without this a saved
model of ours cannot be restored. Importing that module costs seconds (it loads torch), whereas `import nemo_vtb` has
to stay cheap. Therefore the prefix is added at once where NeMo is loaded already, and otherwise by an import hook
that waits for that one module, runs once and removes itself.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

NEMO_MODULE = 'nemo.core.classes.common'
# with the dot, so that another package's `nemo_vtb_evil.X` is not admitted
PREFIX = 'nemo_vtb.'
# NeMo also looks at the base class, and knows strategies of Lightning's and its own alone
STRATEGIES = (
    'nemo_vtb.parallel.strategies.MegatronStrategy',
    'nemo_vtb.parallel.strategies.FullyShardedStrategy',
)
# callbacks of a test run, which change numbers alone
POISONS = tuple(f'nemo_vtb.testing.poison.Poison{what}' for what in ('Gradient', 'Loss', 'Sound', 'Targets'))

ASSET_PROVIDERS: list[Callable[[], None]] = []
"""Called when `nemo_vtb.assets` is first imported: packages above it register assets of their own."""


def register() -> None:
    """Admits `nemo_vtb.` targets now, or as soon as NeMo is imported. Safe to call any number of times."""
    module = sys.modules.get(NEMO_MODULE)
    if module is not None and hasattr(module, 'ALLOWED_TARGET_PREFIXES'):
        _add_prefix(module)
    elif not any(isinstance(finder, _NemoFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _NemoFinder())


def is_registered() -> bool:
    """Tells whether NeMo is loaded and admits our targets."""
    module = sys.modules.get(NEMO_MODULE)
    return module is not None and PREFIX in getattr(module, 'ALLOWED_TARGET_PREFIXES', ())


def _add_prefix(module: ModuleType) -> None:
    prefixes = getattr(module, 'ALLOWED_TARGET_PREFIXES', None)
    # a NeMo without the list (before 3.0) checks nothing by prefix, so there is nothing to add
    if isinstance(prefixes, list) and PREFIX not in prefixes:
        prefixes.append(PREFIX)
    exact = getattr(module, 'ALLOWED_EXACT_CLASS_TARGETS', None)
    if isinstance(exact, set):
        exact.update(STRATEGIES + POISONS)


class _NemoFinder(MetaPathFinder):
    """Finds only `nemo.core.classes.common`, and only by asking the ordinary finders for it."""

    def __init__(self) -> None:
        self._busy = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns the ordinary spec, whose loader registers once it has run, or None for every other module."""
        if fullname != NEMO_MODULE or self._busy:
            return None
        self._busy = True
        try:
            spec = find_spec(fullname)
        finally:
            self._busy = False
        if spec is None or spec.loader is None:
            return None
        loader = spec.loader
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.__dict__['exec_module']
            run(module)
            _add_prefix(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)

        # on this loader alone, which belongs to this one module
        loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
