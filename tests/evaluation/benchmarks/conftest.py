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

from collections.abc import Callable
from pathlib import Path

import pytest
from benchmark_folders import ALIGN, BBH, HARM, JUDGE, LLM_EVALUATION, MCQ, SCORE_CHAT, Clip, write

from nemo_vtb.io import read_json_lines


@pytest.fixture(scope='session')
def clips(assets: Callable[..., dict[str, Path]]) -> list[Clip]:
    """Four short recordings."""
    folder = assets('ljspeech')['ljspeech']
    lines = sorted(read_json_lines(folder / 'manifest.jsonl'), key=lambda line: line['duration'])
    return [Clip(folder / line['audio_filepath'], line['text']) for line in lines[:4]]


@pytest.fixture(scope='session')
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the files that are read of VoiceBench, Speech-IFEval and AIR-Bench."""
    folder = tmp_path_factory.mktemp('protocols')
    for name, text in {
        'src/evaluator/mcq.py': MCQ, 'src/evaluator/bbh.py': BBH, 'src/evaluator/harm.py': HARM, 'api_judge.py': JUDGE,
        'script/llm_evaluation.py': LLM_EVALUATION, 'score_chat.py': SCORE_CHAT, 'align_in_foundation.py': ALIGN,
        'Inference_Foundation.py': "question_prompts = 'Take one.'",
    }.items():  # fmt: skip
        write(folder / name, text)
    return folder
