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
"""Alignment of an adapter: what is learned from, that it learns, and that a killed run makes the same adapter."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn
from nemo_vtb.data.transcripts import transcript_of
from nemo_vtb.errors import VtbDataError
from nemo_vtb.model.aligned_adapter import AlignedAdapterFile
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.testing import TinyCorpus, tiny_llm, tiny_model_cfg
from nemo_vtb.testing.tiny import tiny_whisper
from nemo_vtb.training.align import Alignment, align_adapter
from nemo_vtb.training.transcribed_clips import clips_of


@pytest.fixture(scope='module')
def cfg(tiny_root: Path, corpus: TinyCorpus) -> DictConfig:
    model = {
        'pretrained_llm': str(tiny_llm(tiny_root / 'align-llm')),
        'pretrained_asr': str(tiny_whisper(tiny_root / 'align-whisper')),
    }
    held_out = [entry for entry in corpus.input_cfg('validation') if entry['kind'] == 'asr_ast']
    sets = {'asr_ast': {'input_cfg': held_out}}
    data = {'train_ds': {'input_cfg': corpus.input_cfg()}, 'validation_ds': {'datasets': sets}}
    keys = {'hidden': 24, 'num_blocks': 1, 'passes': 4, 'batch_frames': 200, 'check_every': 2}
    return OmegaConf.create({'name': 'x', 'seed': 3, 'model': model, 'data': data, 'align': keys})


def test_the_form_in_which_text_is_learned() -> None:
    assert transcript_of("“Don’t -- stop!”, she said; 'go'.") == "don't stop she said go"
    assert transcript_of('Où es-tu, Été?') == 'où es tu été'
    assert transcript_of('... !?') == ''


@pytest.mark.parametrize(
    ('kind', 'custom', 'own', 'expected'),
    [
        ('asr_ast', {'lang': 'en'}, None, ['yes sir']),
        ('asr_ast', {'taskname': 'Transcription', 'lang': 'en'}, None, ['yes sir']),
        ('asr_ast', {'task': 'diarize'}, None, []),
        ('asr_ast', {'task': 'ast', 'lang': 'en', 'target_lang': 'de'}, None, []),
        ('asr_ast', {'source_lang': 'en', 'target_lang': 'de'}, None, []),
        ('asr_ast', {'task': 'ast', 'lang': 'en', 'target_lang': 'de'}, 'Yes?', ['yes']),
        ('speech_qa', {}, None, []),
        ('speech_qa', {}, 'So it is.', ['so it is']),
    ],
)
def test_whose_transcript_is_known(kind: str, custom: dict[str, str], own: str | None, expected: list[str]) -> None:
    turns = (Turn('user', (Text('?'), Audio('a.wav', text=own))), Turn('assistant', (Text('Yes, sir!'),)))
    assert [clip.text for clip in clips_of(Conversation('c', turns, kind, custom=custom))] == expected


def test_it_learns_and_a_model_takes_it(cfg: DictConfig, tmp_path: Path) -> None:
    changed = OmegaConf.merge(cfg, {'align': {'passes': 40, 'lr': 3e-3, 'check_every': 1000}})
    run = Alignment(changed, tmp_path)
    wer = run.run()
    assert set(wer) == {'asr_ast'}
    # before it has learned anything it hears blanks alone, a loss of several nats a token
    assert sum(run.losses[-5:]) / 5 < 0.6 * sum(run.losses[:5]) / 5
    path = run.write(tmp_path / 'adapter.safetensors', wer)
    manifest = AlignedAdapterFile.read(path).manifest
    assert manifest['data']['clips'] == len(run.clips) and manifest['wer'].keys() == {'asr_ast'}
    model_cfg = tiny_model_cfg(tmp_path / 'm', encoder='whisper') | dict(changed.model)
    model_cfg['perception'] = {
        'target': model_cfg['perception']['target'], 'adapter_init': 'aligned', 'init_adapter': str(path)
    }  # fmt: skip
    model = VoiceTextBlender(model_cfg)
    torch.testing.assert_close(
        model.perception.modality_adapter.stack.weight, run.adapter.stack.weight, atol=1e-3, rtol=1e-2
    )


def test_a_killed_run_makes_the_same_adapter(cfg: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Alignment(cfg, tmp_path / 'whole')
    whole.run()
    killed = Alignment(cfg, tmp_path / 'killed')
    train = killed._train

    def until_step_five(batch: Any, optimizer: Any) -> float:
        if killed.step == 5:
            raise KeyboardInterrupt
        return train(batch, optimizer)

    monkeypatch.setattr(killed, '_train', until_step_five)
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    resumed = Alignment(cfg, tmp_path / 'killed')
    resumed.run()
    assert resumed.losses == whole.losses and len(whole.losses) > 6
    for name, value in whole.adapter.state_dict().items():
        assert torch.equal(resumed.adapter.state_dict()[name], value), name


def test_it_goes_on_from_an_adapter(cfg: DictConfig, tmp_path: Path) -> None:
    first = Alignment(OmegaConf.merge(cfg, {'align': {'passes': 20, 'lr': 3e-3, 'check_every': 1000}}), tmp_path)
    path = first.write(tmp_path / 'first.safetensors', first.run())
    keys = {'init_adapter': str(path), 'hidden': 999, 'passes': 1, 'precision': 'bf16-mixed'}
    more = Alignment(OmegaConf.merge(cfg, {'align': keys}), tmp_path / 'more')
    for name, value in first.adapter.state_dict().items():
        torch.testing.assert_close(more.adapter.state_dict()[name], value, atol=2e-3, rtol=2e-3)
    wer = more.run()
    # from nothing, the first step is at a loss of several nats a token
    assert more.losses[0] < 0.7 * first.losses[0]
    manifest = AlignedAdapterFile.read(more.write(tmp_path / 'more.safetensors', wer)).manifest
    assert manifest['adapter']['hidden'] == 24
    assert manifest['continues']['training']['steps'] == len(first.losses)


def test_recordings_of_a_source_come_more_often(cfg: DictConfig, tmp_path: Path) -> None:
    once = Alignment(cfg, tmp_path)
    source = once.train[once.clips[0]].source
    thrice = Alignment(OmegaConf.merge(cfg, {'align': {'repeats': {source: 3}}}), tmp_path)
    for run, times in ((once, 1), (thrice, 3)):
        heard = Counter(position for batch in run._batches(0) for position in batch)
        for position, index in enumerate(run.clips):
            assert heard[position] == (times if run.train[index].source == source else 1)


@pytest.mark.parametrize(
    ('said', 'reason'),
    [
        ('at 5 o clock', 'digits'),
        ('one after another ' * 200, 'more tokens than frames'),
    ],
    ids=['digits', 'too long'],
)
def test_nothing_to_learn_from_says_why(
    said: str, reason: str, cfg: DictConfig, corpus: TinyCorpus, tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in corpus.path('asr_ast').read_text().splitlines()]
    for line in lines:
        for entry in line['conversations']:
            if entry['type'] == 'audio':
                entry['value'] = str(corpus.folder / entry['value'])
                entry['text'] = said
    path = tmp_path / 'digits.jsonl'
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    entry = {'type': 'multimodal_conversation', 'kind': 'asr_ast', 'manifest_filepath': str(path)}
    changed = OmegaConf.merge(cfg, {'data': {'train_ds': {'input_cfg': [entry]}}})
    with pytest.raises(VtbDataError) as error:
        align_adapter(changed, tmp_path, tmp_path / 'a.safetensors')
    assert error.value.field == 'data.train_ds.input_cfg'
    assert reason in str(error.value.got)
