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
"""Version and metadata of the package; read by `setup.py` without importing anything."""

MAJOR = 0
MINOR = 1
PATCH = 0
PRE_RELEASE = ''

# PEP 440, as in NeMo's package_info: 0.1.0 or 0.1.0rc0
VERSION = (MAJOR, MINOR, PATCH, PRE_RELEASE)

__shortversion__ = '.'.join(map(str, VERSION[:3]))
__version__ = __shortversion__ + PRE_RELEASE

__package_name__ = 'nemo_vtb'
__contact_names__ = 'The nemo_vtb authors'
__description__ = 'Joint speech-text supervised fine-tuning of speech LLMs (VoiceTextBlender) on NeMo'
__license__ = 'Apache-2.0'
