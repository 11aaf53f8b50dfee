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
"""Fixtures for all tests: one thread, fixed seeds, no hub; tiny models and the embedded assets once per session."""

import os

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TRANSFORMERS_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MPLBACKEND', 'Agg')

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def steady() -> Iterator[None]:
    """Seed every generator before each test, and leave torch's global state as it was found."""
    import numpy as np

    random.seed(0)
    np.random.seed(0)
    # the light tests (command line, assets) must not pay for importing torch
    torch = sys.modules.get('torch')
    if torch is not None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        dtype = torch.get_default_dtype()
    yield
    if torch is not None:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(True)


@pytest.fixture(scope='session')
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the session's tiny models."""
    return tmp_path_factory.mktemp('tiny')


@pytest.fixture(scope='session')
def tiny_llm_dir(tiny_root: Path) -> Path:
    """A Hugging Face folder of a two-layer Llama with ChatML; read only."""
    from nemo_vtb.testing import tiny_llm

    return tiny_llm(tiny_root / 'llm')


@pytest.fixture(scope='session')
def corpus(tiny_root: Path) -> Any:
    """Six conversations of each kind and split; read only."""
    from nemo_vtb.testing import tiny_corpus

    return tiny_corpus(tiny_root / 'corpus', 6)


@pytest.fixture(scope='session')
def tiny_model(tiny_root: Path) -> Any:
    """A random VoiceTextBlender in evaluation mode: shared, so a test that changes it must build its own."""
    import torch

    from nemo_vtb.model.blender import VoiceTextBlender
    from nemo_vtb.testing import tiny_model_cfg

    torch.manual_seed(0)
    return VoiceTextBlender(tiny_model_cfg(tiny_root / 'model')).eval()


@pytest.fixture(scope='session')
def assets() -> Callable[..., dict[str, Path]]:
    """Fetch embedded assets: `assets("minimind2-small")`; skips the test where they cannot be had."""
    from nemo_vtb.assets import ensure
    from nemo_vtb.errors import VtbAssetError

    def get(*names: str) -> dict[str, Path]:
        try:
            return ensure(*names, quiet=True)
        except VtbAssetError as error:
            pytest.skip(f'the embedded assets cannot be had here: {error}')

    return get
