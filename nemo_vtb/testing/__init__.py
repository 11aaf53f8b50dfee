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
"""For tests of users and our own: tiny models and data, made on the spot.

>>> from nemo_vtb.testing import tiny_model_cfg
>>> from nemo_vtb.model.blender import VoiceTextBlender
>>> model = VoiceTextBlender(tiny_model_cfg(tmp_path))  # doctest: +SKIP
"""

from nemo_vtb.testing.tiny import (
    AUDIO_TAG,
    CHATML,
    GEMMA,
    LLAMA3,
    TINY_FAMILIES,
    TinyCorpus,
    tiny_corpus,
    tiny_llm,
    tiny_model_cfg,
    tiny_perception_cfg,
)

__all__ = [
    'AUDIO_TAG',
    'CHATML',
    'GEMMA',
    'LLAMA3',
    'TINY_FAMILIES',
    'TinyCorpus',
    'tiny_corpus',
    'tiny_llm',
    'tiny_model_cfg',
    'tiny_perception_cfg',
]
