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
"""Evaluation data that stand in the training data of the model are found."""

import io
import json
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console

from nemo_vtb.evaluation.contamination import training_data, warnings_of
from nemo_vtb.evaluation.result import Sample
from nemo_vtb.evaluation.runner import Plan, evaluate_file
from nemo_vtb.testing import TinyCorpus, tiny_model_cfg
from nemo_vtb.training.run import build_model

SAID = 'the green lamp stands behind the old door'


def config(*files: Path) -> dict:
    entries = [{'type': 'multimodal_conversation', 'manifest_filepath': str(f), 'weight': 1} for f in files]
    return {'data': {'train_ds': {'input_cfg': [{'type': 'group', 'input_cfg': entries}]}}}


def manifest(path: Path, **line: str) -> Path:
    path.write_text(json.dumps(line) + '\n')
    return path


def sample(path: Path, said: str = SAID) -> Sample:
    return Sample('a#1', 'asr', 's', 'p', said, 'x', (str(path),), (said,))


def test_recordings_are_known_by_place_or_bytes_and_transcripts_by_words(tmp_path: Path) -> None:
    (tmp_path / 'other').mkdir()
    for folder, content in (('.', b'one'), ('other', b'one')):
        (tmp_path / folder / 'a.wav').write_bytes(content)
    train = manifest(tmp_path / 'train.jsonl', audio_filepath='other/a.wav', text='Something else was said here.')
    files = training_data(config(train, tmp_path / 'absent.jsonl'))
    assert files == [train]
    [told] = warnings_of(files, [sample(tmp_path / 'a.wav')])
    assert told.startswith('1 of 1 evaluation recordings stand in the training data') and str(train) in told
    (tmp_path / 'other' / 'a.wav').write_bytes(b'two')
    assert warnings_of(files, [sample(tmp_path / 'a.wav')]) == []
    manifest(train, audio_filepath='b.wav', text='The green lamp stands behind the old door.')
    [told] = warnings_of(files, [sample(tmp_path / 'a.wav')])
    assert told.startswith('1 of 1 evaluation transcripts stand in the training data')
    # so few words are in every set
    manifest(train, audio_filepath='b.wav', text='Tell me where the lamp is.')
    assert warnings_of(files, [sample(tmp_path / 'a.wav', 'tell me where the lamp is')]) == []


def test_vtb_eval_warns(corpus: TinyCorpus, tmp_path: Path) -> None:
    cfg = {'model': tiny_model_cfg(tmp_path / 'm'), **config(corpus.path('speech_qa', 'test'))}
    model = build_model(OmegaConf.create(cfg))
    model.save_to(str(tmp_path / 'm.nemo'))
    shown = io.StringIO()
    plan = Plan(('speech',), {'speech_qa': corpus.path('speech_qa', 'test')}, limit=2, max_new_tokens=2)
    console = Console(file=shown, width=400)
    result, _ = evaluate_file(tmp_path / 'm.nemo', plan, None, device='cpu', console=console)
    [told, *_] = result.info['contamination']
    assert 'evaluation recordings stand in the training data' in told and told in shown.getvalue()
    plan = Plan(('speech',), {'asr_ast': corpus.path('asr_ast', 'test')}, limit=2, max_new_tokens=2)
    result, _ = evaluate_file(tmp_path / 'm.nemo', plan, None, device='cpu')
    assert not [t for t in result.info['contamination'] if 'recordings' in t]
