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
"""nemo_vtb: joint speech-text supervised fine-tuning of speech LLMs (VoiceTextBlender) as a NeMo plugin.

Importing this package loads neither torch nor NeMo: public names are resolved on first use, and the package's
targets are put on NeMo's allow-list as soon as NeMo itself is imported (`registry.py`).
"""

from importlib import import_module
from typing import TYPE_CHECKING

from nemo_vtb.factory import demo as _demo  # noqa: F401  (registers the demonstration corpora as assets)
from nemo_vtb.package_info import __version__
from nemo_vtb.registry import register

if TYPE_CHECKING:
    from nemo_vtb.constants import KINDS
    from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn
    from nemo_vtb.data.template import ChatRenderer
    from nemo_vtb.errors import VtbError
    from nemo_vtb.model.blender import VoiceTextBlender

__all__ = [
    'KINDS',
    'Audio',
    'ChatRenderer',
    'Conversation',
    'Text',
    'Turn',
    'VoiceTextBlender',
    'VtbError',
    '__version__',
    'register',
]

_LAZY = {
    'KINDS': 'nemo_vtb.constants',
    'Audio': 'nemo_vtb.data.conversation',
    'ChatRenderer': 'nemo_vtb.data.template',
    'Conversation': 'nemo_vtb.data.conversation',
    'Text': 'nemo_vtb.data.conversation',
    'Turn': 'nemo_vtb.data.conversation',
    'VoiceTextBlender': 'nemo_vtb.model.blender',
    'VtbError': 'nemo_vtb.errors',
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}; it has: {", ".join(__all__)}')
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY))


register()
