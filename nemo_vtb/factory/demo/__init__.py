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

from nemo_vtb.assets.catalog import Asset, Job, register


def _build(job: Job) -> None:
    from nemo_vtb.factory.demo.build import build_demo_corpus

    build_demo_corpus(job)


_CORPUS_FILES = tuple(
    f'{kind}.{split}.jsonl'
    for kind in ('text', 'asr_ast', 'speech_qa', 'mixed_modal')
    for split in ('train', 'validation', 'test')
)

_CORPORA = (
    Asset(
        'demo-corpus',
        'corpus',
        'Demonstration corpus of all four kinds of data, English, for MiniMind2-Small (NeMo multimodal_conversation)',
        'The nemo_vtb authors, from the recordings above and SVOX Pico voices',
        'CC-BY-SA-3.0 (recordings); Apache-2.0 (texts and synthetic voices)',
        (),
        _build,
        needs=('asterisk-en', 'minimind2-small', 'whisper-tiny.en'),
        outputs=(*_CORPUS_FILES, 'card.json'),
        params={'size': 'quick', 'llm': 'minimind2-small'},
        size_mb=120,
        build_s=280,
        revision=7,
    ),
    Asset(
        'demo-corpus-smollm2',
        'corpus',
        'Demonstration corpus of all four kinds of data, five languages, larger, for SmolLM2-135M-Instruct',
        'The nemo_vtb authors, from the recordings above and SVOX Pico voices',
        'CC-BY-SA-3.0 (recordings); Apache-2.0 (texts and synthetic voices)',
        (),
        _build,
        needs=('asterisk-en', 'smollm2-135m-instruct', 'whisper-tiny.en'),
        optional_needs=('asterisk-es', 'asterisk-fr', 'asterisk-it', 'asterisk-ru'),
        outputs=(*_CORPUS_FILES, 'card.json'),
        params={'size': 'long', 'llm': 'smollm2-135m-instruct'},
        size_mb=525,
        build_s=1900,
        revision=6,
    ),
)

register(_CORPORA)
