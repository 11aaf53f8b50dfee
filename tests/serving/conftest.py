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
"""A tiny model that listens, with LoRA that says something else than the base LLM."""

from typing import Any

import numpy as np
import pytest
import soundfile
from serving_helpers import make_model


@pytest.fixture(scope='session')
def spoken_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Read only."""
    return make_model(tmp_path_factory.mktemp('serving'))


@pytest.fixture(scope='session')
def engine(spoken_model: Any) -> Any:
    """The engine of that model."""
    from nemo_vtb.serving.engine import Engine

    return Engine(spoken_model)


@pytest.fixture(scope='session')
def wavs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Five recordings of different pitch, length and form."""
    folder = tmp_path_factory.mktemp('wavs')
    paths = []
    for number, (form, rate) in enumerate(
        (('wav', 16000), ('flac', 16000), ('wav', 44100), ('mp3', 16000), ('wav', 8000))
    ):
        time = np.arange(int((0.6 + 0.3 * number) * rate)) / rate
        signal = 0.3 * np.sin(2 * np.pi * 200 * 2 ** (number / 2) * time) * np.sin(2 * np.pi * 3 * time)
        paths.append(str(folder / f'{number}.{form}'))
        soundfile.write(paths[-1], np.stack([signal, signal], 1) if number == 2 else signal, rate)
    return paths
