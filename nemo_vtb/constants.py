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
"""Values that several packages must agree on."""

KINDS = ('text', 'asr_ast', 'speech_qa', 'mixed_modal')
"""The four kinds of data that are trained jointly (VoiceTextBlender, section 3: data)."""

IGNORE_INDEX = -100
"""The label of a position that is not supervised; the `ignore_index` of torch's cross-entropy."""

SAMPLE_RATE = 16000
"""Rate in Hz at which every encoder of the project reads."""

KIND_COLOURS = {'text': '#4C72B0', 'asr_ast': '#DD8452', 'speech_qa': '#55A868', 'mixed_modal': '#8172B3'}
"""Colour of each kind in every plot."""

LANGUAGES = {
    'ar': 'Arabic',
    'de': 'German',
    'en': 'English',
    'es': 'Spanish',
    'fr': 'French',
    'hi': 'Hindi',
    'it': 'Italian',
    'ja': 'Japanese',
    'ko': 'Korean',
    'nl': 'Dutch',
    'pl': 'Polish',
    'pt': 'Portuguese',
    'ru': 'Russian',
    'uk': 'Ukrainian',
    'zh': 'Chinese',
}
"""English name of each language code, for instructions."""
