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
"""Fixtures of the tests that hold NeMo's real SALM beside our model."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from nemo.collections.speechlm2 import SALM

    from nemo_vtb.model.blender import VoiceTextBlender


@pytest.fixture(scope='module')
def pair(tmp_path_factory: pytest.TempPathFactory) -> 'tuple[VoiceTextBlender, SALM]':
    """Our model and SALM with the same weights."""
    from salm_peer import build_pair

    return build_pair(tmp_path_factory.mktemp('pair'))


@pytest.fixture(scope='module')
def tones(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Paths of recordings."""
    from salm_peer import write_tones

    return write_tones(tmp_path_factory.mktemp('tones'))
