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
"""Transcribing held-out recordings: word error rate, by characters in languages without spaces."""

from collections.abc import Sequence

from nemo_vtb.data.normalizers import normalizer_for
from nemo_vtb.evaluation.metrics import Measure, error_rate
from nemo_vtb.evaluation.task import Example
from nemo_vtb.evaluation.tasks.held_out import HeldOut


class Transcribe(HeldOut):
    """Word or character error rate."""

    name, metrics = 'asr', ('WER', 'CER')

    def measures(self, examples: Sequence[Example]) -> Sequence[Measure]:
        """The language decides unit and normaliser."""
        lang = examples[0].lang
        return (error_rate(lang, metric='CER' if normalizer_for(lang) == 'characters' else 'WER'),)
