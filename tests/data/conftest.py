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
"""Fixtures of the data engine's tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_helpers import count_frames, data_cfg, make_corpus

from nemo_vtb.data.index import Meter
from nemo_vtb.data.template import ChatRenderer


@pytest.fixture(scope='session')
def renderer(tiny_llm_dir: Path) -> ChatRenderer:
    """A ChatML renderer."""
    from transformers import AutoTokenizer

    return ChatRenderer(AutoTokenizer.from_pretrained(tiny_llm_dir))


@pytest.fixture(scope='session')
def meter(renderer: ChatRenderer) -> Meter:
    """Counts with 80 ms frames."""
    return Meter(renderer, count_frames)


@pytest.fixture(scope='session')
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four kinds, 184 conversations; read only, its index is built once."""
    return make_corpus(tmp_path_factory.mktemp('small'))


@pytest.fixture
def module(small: Path, renderer: ChatRenderer, tmp_path: Path) -> Callable[..., Any]:
    """Make a data module over `small`: `module(num_batches=10, num_workers=2)`."""
    from nemo_vtb.data.datamodule import VtbDataModule

    def make(num_batches: int | None = 10, folder: Path = small, **keys: Any) -> Any:
        data = VtbDataModule(
            data_cfg(folder, **keys), renderer, count_frames, run_dir=tmp_path / 'run', num_batches=num_batches
        )
        data.setup('fit')
        return data

    return make
