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

import logging
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
from data_helpers import count_frames, data_cfg, make_corpus

from nemo_vtb.scripts import keep_compiled_code_apart

keep_compiled_code_apart()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that fork ranks come first: a rank hangs where the process that it is forked from once had a group."""
    items.sort(key=lambda item: item.get_closest_marker('forks') is None)


@pytest.fixture(autouse=True)
def steady() -> Iterator[None]:
    """Seed every generator before each test, and leave torch's global state, and logs, as they were found."""
    import numpy as np

    levels, disabled = {handler: handler.level for handler in logging.root.handlers}, logging.root.manager.disable

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
    logging.disable(disabled)
    for handler, level in levels.items():  # a library that quiets itself quiets the handlers of everybody
        handler.setLevel(level)


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
def teach() -> Callable[[Any, Path], None]:
    """`teach(model, chats)` lets the LLM itself, LoRA left out, learn typed chats by heart.

    A random LLM reads no better than a broken one, so that breaking it may help. From one that gives the chats nearly
    all of the probability (at most 0.01 nats are lost on a token) there is next to nothing to gain, and all to lose.
    """

    def run(model: Any, chats: Path) -> None:
        import torch

        from nemo_vtb.data.collate import Collator
        from nemo_vtb.evaluation.tasks.held_out import load_conversations
        from nemo_vtb.model.loss import row_nll

        row = Collator(model.renderer, model.frames)(list(load_conversations(chats, 'text')))
        llm = [p for n, p in model.named_parameters() if n.startswith(('llm.', 'embed_tokens.')) and '.lora_' not in n]
        optimizer = torch.optim.Adam([p.requires_grad_() for p in llm], lr=3e-3)
        for _ in range(300):  # a tenth of them is enough
            loss = row_nll(model.hidden_states(row)[1], row.labels, model.backbone.nll).mean()
            if loss < 0.01:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss < 0.01, 'the chats were not learnt'
        for p in llm:
            p.requires_grad_(False)
        model.zero_grad()

    return run


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


# ---- the data engine


@pytest.fixture(scope='session')
def renderer(tiny_llm_dir: Path) -> Any:
    """A ChatML renderer of the session's tiny LLM."""
    from transformers import AutoTokenizer

    from nemo_vtb.data.template import ChatRenderer

    return ChatRenderer(AutoTokenizer.from_pretrained(tiny_llm_dir))


@pytest.fixture(scope='session')
def meter(renderer: Any) -> Any:
    """Counts with 80 ms frames."""
    from nemo_vtb.data.counting import Meter

    return Meter(renderer, count_frames)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """An S3 server on loopback, asked again at once; `put_folder` of `data_helpers` fills it."""
    from nemo_vtb.data import audio, object_files, stores
    from nemo_vtb.testing.s3_server import serve_s3

    def forget() -> None:
        stores.forget_facts()
        stores._client_of.cache_clear()
        object_files.forget_ranges()
        audio._probe.cache_clear()
        audio._members.cache_clear()

    monkeypatch.setattr(stores, 'BACKOFF_S', 0.001)
    monkeypatch.setattr(object_files, '_cache', None)
    monkeypatch.setenv('NEMO_VTB_CACHE', str(tmp_path / 'cache'))
    with serve_s3() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        server.forget = forget
        forget()
        yield server
        forget()


@pytest.fixture(scope='session')
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four kinds, 184 conversations; read only, its index is built once."""
    return make_corpus(tmp_path_factory.mktemp('small'))


@pytest.fixture
def module(small: Path, renderer: Any) -> Callable[..., Any]:
    """Make a data module over `small`: `module(num_batches=10, num_workers=2)`."""
    from nemo_vtb.data.datamodule import VtbDataModule

    def make(num_batches: int | None = 10, folder: Path = small, **keys: Any) -> Any:
        data = VtbDataModule(data_cfg(folder, **keys), renderer, count_frames, num_batches=num_batches)
        data.setup('fit')
        return data

    return make
