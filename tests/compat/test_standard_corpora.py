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
"""A corpus in LibriSpeech's published layout: lhotse's recipe, `vtb data make`, two steps of training."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import soundfile
from data_helpers import write_librispeech
from ranks import train, write_config

from nemo_vtb import cli
from nemo_vtb.factory.pipeline import make_stage
from nemo_vtb.training.run_state import RunState

pytestmark = [pytest.mark.integration, pytest.mark.real_weights]


@pytest.fixture(scope='module')
def librispeech(tmp_path_factory: pytest.TempPathFactory, assets: Any) -> Path:
    return write_librispeech(tmp_path_factory.mktemp('published') / 'LibriSpeech', assets)


@pytest.fixture(scope='module')
def made(librispeech: Path) -> Path:
    from lhotse.recipes import prepare_librispeech

    manifests = librispeech.parent / 'manifests'
    prepare_librispeech(librispeech, output_dir=manifests, normalize_text='lower')
    out = librispeech.parent / 'made'
    assert cli.main(['data', 'make', 'asr_ast', str(out), str(manifests), '--workers', '1']) == 0
    return out


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]


def test_every_utterance_is_taken_and_its_part_decides_the_split(made: Path, librispeech: Path) -> None:
    train_lines, held_out = lines(made / 'asr_ast.train.jsonl'), lines(made / 'asr_ast.validation.jsonl')
    assert not lines(made / 'rejected.jsonl')
    for part, found in (('train-clean-5', train_lines), ('dev-clean-2', held_out)):
        published = {path.stem: path for path in (librispeech / part).rglob('*.flac')}
        assert {line['id'] for line in found} == {f'asr-{name}' for name in published}
        for line in found:
            (audio,) = [turn for turn in line['conversations'] if turn['type'] == 'audio']
            path = published[line['id'].removeprefix('asr-')]
            assert audio['value'] == str(path) and audio['duration'] == soundfile.info(path).duration
            assert audio['text'] == audio['text'].lower() and line['custom']['lang'] == 'en'
            assert line['custom']['source'] == f'librispeech_{part}'


def test_a_model_trains_on_it(made: Path, tmp_path: Path) -> None:
    entry = {'type': 'multimodal_conversation', 'kind': 'asr_ast', 'source': 'librispeech'}
    cfg = write_config(tmp_path)
    cfg['trainer'] = {**cfg['trainer'], 'max_steps': 2, 'limit_val_batches': 1.0, 'val_check_interval': 2}
    cfg['data']['train_ds']['input_cfg'] = [{**entry, 'manifest_filepath': str(made / 'asr_ast.train.jsonl')}]
    held_out = {'input_cfg': [{**entry, 'manifest_filepath': str(made / 'asr_ast.validation.jsonl')}]}
    cfg['data'] |= {'validation_ds': {'sample_rate': 16000, 'datasets': {'dev-clean': held_out}}, 'max_tokens': 1024}
    trainer, _ = train(cfg)
    assert trainer.global_step == 2 and math.isfinite(trainer.callback_metrics['val_loss'])
    (state,) = (callback for callback in trainer.callbacks if isinstance(callback, RunState))
    (account,) = state.ledger.accounts.values()
    assert account.conversations > 5 and account.audio_s > 20 and not account.skips


def write_mls(folder: Path, clips: list[tuple[str, Path]]) -> None:
    """`mls_LANGUAGE/PART/audio/SPEAKER/BOOK/*.opus`, transcripts.txt and metainfo.txt."""
    parts = {'train': clips[:-4], 'dev': clips[-4:-2], 'test': clips[-2:]}
    for part, found in parts.items():
        place, lines = folder / 'mls_italian' / part / 'audio' / '1595' / '1192', []
        place.mkdir(parents=True)
        for number, (text, path) in enumerate(found):
            samples, rate = soundfile.read(path)
            soundfile.write(place / f'1595_1192_{part}{number}.opus', samples, rate, format='OGG', subtype='OPUS')
            lines.append(f'1595_1192_{part}{number}\t{text.lower()}\n')
        (folder / 'mls_italian' / part / 'transcripts.txt').write_text(''.join(lines), encoding='utf-8')
    (folder / 'mls_italian' / 'metainfo.txt').write_text('1595 | F | train | 1 | 1192 | Title\n')


def write_fleurs(folder: Path, clips: list[tuple[str, Path]]) -> None:
    """`LANGUAGE/PART/*.wav` and `metadata/LANGUAGE/PART.tsv`."""
    parts = {'train': clips[:-4], 'dev': clips[-4:-2], 'test': clips[-2:]}
    (folder / 'metadata' / 'it_it').mkdir(parents=True)
    for part, found in parts.items():
        (folder / 'it_it' / part).mkdir(parents=True)
        lines = []
        for number, (text, path) in enumerate(found):
            (folder / 'it_it' / part / f'{part}{number}.wav').write_bytes(path.read_bytes())
            count, low = soundfile.info(path).frames, text.lower()
            lines.append(f'{number}\t{part}{number}.wav\t{text}\t{low}\t{" ".join(low)}\t{count}\tFEMALE\n')
        (folder / 'metadata' / 'it_it' / f'{part}.tsv').write_text(''.join(lines), encoding='utf-8')


@pytest.mark.parametrize('name', ['mls', 'fleurs'])
def test_other_layouts_through_their_own_recipes(name: str, tmp_path: Path, assets: Any) -> None:
    from lhotse.recipes import prepare_fleurs, prepare_mls

    source = assets('asterisk-it')['asterisk-it']
    rows = [json.loads(line) for line in (source / 'manifest.jsonl').open(encoding='utf-8')]
    clips = [(row['text'], source / row['audio_filepath']) for row in rows if row['duration'] > 1][:24]
    {'mls': write_mls, 'fleurs': write_fleurs}[name](tmp_path / 'published', clips)
    if name == 'mls':
        prepare_mls(tmp_path / 'published', tmp_path / 'manifests', opus=True)
    else:
        prepare_fleurs(tmp_path / 'published', tmp_path / 'manifests', languages='it_it')
    out = tmp_path / 'made'
    assert cli.main(['data', 'make', 'asr_ast', str(out), str(tmp_path / 'manifests'), '--workers', '1']) == 0
    counts = {split: len(lines(out / f'asr_ast.{split}.jsonl')) for split in ('train', 'validation', 'test')}
    assert counts == {'train': 20, 'validation': 2, 'test': 2} and not lines(out / 'rejected.jsonl')
    first = lines(out / 'asr_ast.train.jsonl')[0]
    assert first['custom']['lang'] == 'it' and first['custom']['source'].startswith(f'{name}-it')


def test_a_prepared_corpus_needs_both_files(made: Path, librispeech: Path, tmp_path: Path, capsys: Any) -> None:
    name = 'librispeech_supervisions_train-clean-5.jsonl.gz'
    (tmp_path / name).write_bytes((librispeech.parent / 'manifests' / name).read_bytes())
    assert cli.main(['data', 'make', 'asr_ast', str(tmp_path / 'out'), str(tmp_path / name)]) == cli.USER_ERROR
    assert 'librispeech_recordings_train-clean-5.jsonl.gz' in capsys.readouterr().err


def test_questions_are_made_of_the_same_folder(librispeech: Path, made: Path) -> None:
    """Of all parts, each in its own split; what a language model makes of them: tests/factory/test_speech_qa.py."""
    stage = make_stage('speech_qa', [str(librispeech.parent / 'manifests')], {'questions': 1})
    splits = Counter(item.data.get('split') for item in stage.items())
    assert splits == {'validation': 5, None: 32}
    assert stage.settings.validation_share == 0.0, 'the corpus has a part for it'
    own = make_stage('speech_qa', [str(librispeech.parent / 'manifests')], {'validation_share': 0.1})
    assert own.settings.validation_share == 0.1
