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
"""The demonstration corpora, registered as assets; what makes them is loaded when one is built."""

from pathlib import Path

from nemo_vtb.assets.catalog import Job, register_file


def _build(job: Job) -> None:
    from nemo_vtb.factory.demo.build import build_demo_corpus

    build_demo_corpus(job)


def _build_open_speech(job: Job) -> None:
    from nemo_vtb.factory.demo.open_speech import build_open_speech

    build_open_speech(job)


def _build_open_dialogues(job: Job) -> None:
    from nemo_vtb.factory.demo.open_dialogues import build_open_dialogues

    build_open_dialogues(job)


register_file(
    Path(__file__).with_name('corpora.yaml'),
    {'demo': _build, 'open_speech': _build_open_speech, 'open_dialogues': _build_open_dialogues},
)
