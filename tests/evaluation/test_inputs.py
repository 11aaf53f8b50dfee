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
"""Finding data and models, asking about recordings, and the two scripts in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console

from nemo_vtb.config import check_config
from nemo_vtb.config.keys import keys_of
from nemo_vtb.config.schema import EvalConfig, GenerateConfig
from nemo_vtb.data.conversation import Audio, Text
from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.evaluation.inputs import (
    conversations_from_audio,
    conversations_from_manifest,
    find_datasets,
    print_answers,
)
from nemo_vtb.evaluation.result import Evaluation
from nemo_vtb.testing import TinyCorpus

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def nemo_file(tiny_model: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('nemo') / 'tiny.nemo'
    tiny_model.save_to(str(path))
    return path


def test_folder_gives_its_test_files(corpus: TinyCorpus) -> None:
    found = find_datasets([str(corpus.folder)])
    assert sorted(found) == ['asr_ast', 'mixed_modal', 'speech_qa', 'text']
    assert found['text'] == corpus.path('text', 'test')
    assert list(find_datasets([str(corpus.path('text', 'train'))])) == ['text.train']


def test_folder_without_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VtbDataError, match='no data to evaluate'):
        find_datasets([str(tmp_path)])


def test_recording_stands_at_the_mark_or_at_the_end(corpus: TinyCorpus) -> None:
    wav = str(next((corpus.folder / 'wav').iterdir()))
    (end,), (middle,) = (conversations_from_audio([wav], p) for p in ('Write it down.', 'In {audio} who speaks?'))
    assert [type(p) for p in end.turns[0].parts] == [Text, Audio]
    assert [type(p) for p in middle.turns[0].parts] == [Text, Audio, Text]
    assert middle.turns[0].text == 'In who speaks?' and middle.audios[0].duration_s > 0.3


def test_bad_recordings_and_prompts_are_refused(tmp_path: Path) -> None:
    (tmp_path / 'a.wav').write_bytes(b'RIFF nonsense')
    with pytest.raises(VtbConfigError, match='stands once'):
        conversations_from_audio(['a.wav'], '{audio} {audio}')
    with pytest.raises(VtbDataError, match='does not exist'):
        conversations_from_audio([str(tmp_path / 'b.wav')], 'x')
    with pytest.raises(VtbDataError):
        conversations_from_audio([str(tmp_path / 'a.wav')], 'x')
    with pytest.raises(VtbDataError, match='nothing to answer'):
        conversations_from_audio([], 'x')


def test_manifests_of_both_sorts(corpus: TinyCorpus, tmp_path: Path) -> None:
    conversations, references = conversations_from_manifest(corpus.path('speech_qa', 'test'), 'unused')
    assert len(conversations) == 6 and all(r.startswith('The ') for r in references)
    assert all(c.turns[-1].role == 'user' for c in conversations)
    wav = next((corpus.folder / 'wav').iterdir())
    manifest = tmp_path / 'asr.jsonl'
    manifest.write_text(json.dumps({'audio_filepath': str(wav), 'duration': 1.0, 'text': 'hello'}) + '\n')
    (conversation,), references = conversations_from_manifest(manifest, 'Write it down.')
    assert references == ['hello'] and conversation.turns[0].text == 'Write it down.'


def test_answers_are_shown_and_written(corpus: TinyCorpus, tmp_path: Path) -> None:
    wav = str(next((corpus.folder / 'wav').iterdir()))
    conversations = conversations_from_audio([wav], 'What?')
    console = Console(width=120, record=True, file=open(os.devnull, 'w'))
    print_answers(conversations, ['[b]hi'], ['ho'], console=console, output=tmp_path / 'a.jsonl')
    assert '[b]hi' in console.export_text()
    line = json.loads((tmp_path / 'a.jsonl').read_text())
    assert line == {'id': Path(wav).stem, 'audio': [wav], 'answer': '[b]hi', 'reference': 'ho'}


@pytest.mark.parametrize(('name', 'schema'), [('speechllm_eval', EvalConfig), ('speechllm_generate', GenerateConfig)])
def test_yaml_has_known_keys_and_a_comment_for_each(name: str, schema: type) -> None:
    with initialize_config_dir(str(ROOT / 'conf' / 'eval'), version_base=None):
        cfg = compose(name)
    check_config(cfg, schema)
    assert set(cfg) == {item.name for item, _ in keys_of(schema)}
    lines = (ROOT / 'conf' / 'eval' / f'{name}.yaml').read_text().splitlines()
    for before, line in zip(lines, lines[1:], strict=False):
        if line and line[0].isalpha():
            assert before.startswith('#'), line


def test_misspelt_setting_names_the_nearest() -> None:
    with pytest.raises(VtbConfigError, match="did you mean 'limit'"):
        check_config({'limt': 3}, EvalConfig)


@pytest.mark.integration
def test_scripts_run(nemo_file: Path, corpus: TinyCorpus, tmp_path: Path) -> None:
    wavs = ','.join(str(p) for p in sorted((corpus.folder / 'wav').glob('test-asr_ast-*.wav'))[:2])
    commands = {
        'eval': [f'data=[{corpus.folder}]', 'limit=2', f'output={tmp_path}/e.jsonl'],
        'generate': [f'audio=[{wavs}]', 'prompt=Transcribe the recording.', f'output={tmp_path}/a.jsonl'],
    }
    for name, overrides in commands.items():
        command = [sys.executable, str(ROOT / 'examples' / f'speechllm_{name}.py'), f'model={nemo_file}']
        done = subprocess.run(
            [*command, 'max_new_tokens=4', *overrides], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert ('Held-out data' if name == 'eval' else 'Answers') in done.stdout
    assert len((tmp_path / 'a.jsonl').read_text().splitlines()) == 2
    assert Evaluation.read(tmp_path / 'e.jsonl').of('speech')


@pytest.mark.slow
@pytest.mark.integration
def test_script_ends_with_the_remedy_and_status_2(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / 'examples' / 'speechllm_generate.py'), 'audio=[absent.wav]']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert 'does not exist' in done.stderr and 'Traceback' not in done.stderr


def test_a_broken_line_of_a_manifest_costs_itself(corpus: TinyCorpus, tmp_path: Path) -> None:
    wav = str(next((corpus.folder / 'wav').iterdir()))
    lines = [{'audio_filepath': path, 'text': 'x'} for path in (wav, 'absent.wav', str(tmp_path / 'a.wav'), 7)]
    (tmp_path / 'a.wav').write_bytes(b'RIFF nonsense')
    (tmp_path / 'm.jsonl').write_text('\n'.join(['[', *(json.dumps(line) for line in lines), '{"id": 1}']) + '\n')
    conversations, references = conversations_from_manifest(tmp_path / 'm.jsonl', 'Write it down.')
    assert [c.audios[0].path for c in conversations] == [wav] and references == ['x']
    (tmp_path / 'm.jsonl').write_text('{"id": 1}\n')
    with pytest.raises(VtbDataError, match='no usable line'):
        conversations_from_manifest(tmp_path / 'm.jsonl', 'Write it down.')
