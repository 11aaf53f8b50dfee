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
"""What NeMo's users and scripts do with models and checkpoints works with ours."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from salm_yaml import tiny_asr

from nemo_vtb.errors import VtbDataError

pytestmark = pytest.mark.integration


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model whose trained weights are not those that its parts begin with, and a checkpoint of it."""
    from lightning.pytorch import Trainer

    from nemo_vtb import VoiceTextBlender
    from nemo_vtb.checkpoint.checkpoint_io import AtomicCheckpointIO
    from nemo_vtb.testing import tiny_model_cfg

    folder = tmp_path_factory.mktemp('tools')
    cfg = tiny_model_cfg(folder / 'models')
    cfg['pretrained_weights'] = True
    cfg['pretrained_asr'] = str(tiny_asr(folder / 'asr.nemo'))
    del cfg['perception']['encoder'], cfg['perception']['preprocessor']
    cfg['perception']['modality_adapter']['feat_in'] = 32
    model = VoiceTextBlender(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.25)
    trainer = Trainer(accelerator='cpu', logger=False, barebones=True, plugins=[AtomicCheckpointIO()])
    trainer.strategy.connect(model)
    trainer.save_checkpoint(folder / 'run.ckpt')
    model.save_to(folder / 'run.nemo')
    return model, folder, cfg


def check_equal(one: Any, two: Any) -> None:
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_load_from_checkpoint(made: Any) -> None:
    from nemo_vtb import VoiceTextBlender

    model, folder, _ = made
    check_equal(VoiceTextBlender.load_from_checkpoint(folder / 'run.ckpt').state_dict(), model.state_dict())


def test_a_plain_state_dict_of_a_checkpoint_is_completed(made: Any) -> None:
    """As NeMo's to_hf.py loads it; what lacks a part of the LLM is still refused."""
    from nemo_vtb import VoiceTextBlender

    model, folder, cfg = made
    state = torch.load(folder / 'run.ckpt', map_location='cpu', weights_only=True)['state_dict']
    assert not [name for name in state if name.startswith('llm.') and '.lora_' not in name]
    other = VoiceTextBlender(cfg)
    other.load_state_dict(state)
    check_equal(other.state_dict(), model.state_dict())
    whole = dict(model.state_dict())
    del whole[next(name for name in whole if name.startswith('llm.') and '.lora_' not in name)]
    with pytest.raises(RuntimeError, match='Missing key'):
        other.load_state_dict(whole)


def test_checkpoints_are_averaged_as_nemos_script_does(made: Any, tmp_path: Path) -> None:
    """Restore the `.nemo`, average state dicts, load strictly, save."""
    from nemo.core import ModelPT

    from nemo_vtb import restore

    model, folder, _ = made
    nemo_model = ModelPT.restore_from(str(folder / 'run.nemo'), map_location='cpu')
    states = [torch.load(folder / 'run.ckpt', map_location='cpu', weights_only=True)['state_dict'] for _ in range(2)]
    mean = {k: v if not v.is_floating_point() else (v + states[1][k] * 3) / 2 for k, v in states[0].items()}
    nemo_model.load_state_dict(mean, strict=True)
    nemo_model.save_to(tmp_path / 'averaged.nemo')
    averaged, name = restore(tmp_path / 'averaged.nemo', 'cpu').state_dict(), 'perception.proj.weight'
    assert torch.allclose(averaged[name], 2 * model.state_dict()[name])
    assert torch.equal(averaged['embed_tokens.weight'], model.state_dict()['embed_tokens.weight'])


@pytest.mark.parametrize('split', [False, True])
def test_extract_state_dict_from(made: Any, tmp_path: Path, split: bool) -> None:
    from nemo_vtb import VoiceTextBlender

    model, folder, _ = made
    state = VoiceTextBlender.extract_state_dict_from(str(folder / 'run.nemo'), str(tmp_path), split_by_module=split)
    check_equal(state, model.state_dict())
    if split:
        model.perception.load_state_dict(torch.load(tmp_path / 'perception.ckpt', weights_only=True))
    else:
        check_equal(torch.load(tmp_path / 'model_weights.ckpt', weights_only=True), state)


def test_a_checkpoint_becomes_a_nemo_file(made: Any, tmp_path: Path) -> None:
    from nemo_vtb import restore
    from nemo_vtb.commands.import_ import main

    model, folder, _ = made
    assert main([str(folder / 'run.ckpt'), str(tmp_path / 'out.nemo')]) == 0
    check_equal(restore(tmp_path / 'out.nemo', 'cpu').state_dict(), model.state_dict())


def test_the_encoder_is_exported_into_the_asr_model_that_it_came_from(made: Any, corpus: Any, tmp_path: Path) -> None:
    from nemo.collections.asr.models import ASRModel

    from nemo_vtb.export.asr import write_asr

    model, folder, _ = made
    write_asr(model, tmp_path / 'out.nemo', folder / 'asr.nemo')
    asr = ASRModel.restore_from(str(tmp_path / 'out.nemo'), map_location='cpu')
    assert list(asr.cfg.labels) == [' ', 'a', 'b']  # the decoder is the source's
    check_equal(asr.encoder.state_dict(), model.perception.encoder.state_dict())
    said = asr.eval().transcribe([str(next((corpus.folder / 'wav').glob('*.wav')))], batch_size=1, verbose=False)
    assert len(said) == 1 and set(said[0].text) <= {' ', 'a', 'b'}  # as transcribe_speech.py asks


def test_to_hf_writes_what_stock_salm_opens(made: Any, tmp_path: Path) -> None:
    """The calls of NeMo's to_hf.py: our class by its path, the state dict of a `.ckpt`, half precision."""
    from nemo.collections.speechlm2 import SALM
    from nemo.utils.model_utils import import_class_by_path

    model, folder, cfg = made
    ours = import_class_by_path('nemo_vtb.VoiceTextBlender')(cfg | {'init_configure_model': True})
    ours.load_state_dict(torch.load(folder / 'run.ckpt', map_location='cpu', weights_only=True)['state_dict'])
    ours = ours.to(torch.bfloat16)
    config = ours.cfg if isinstance(ours.cfg, dict) else OmegaConf.to_container(ours.cfg)
    ours.save_pretrained(tmp_path / 'hf', config=config | {'dtype': 'bfloat16', 'torch_dtype': 'bfloat16'})
    ours.llm.config.save_pretrained(tmp_path / 'hf' / 'llm_backbone')
    ours.tokenizer.tokenizer.save_pretrained(tmp_path / 'hf')
    theirs = SALM.from_pretrained(str(tmp_path / 'hf')).state_dict()
    own = {n: v.to(torch.bfloat16) if v.is_floating_point() else v for n, v in model.state_dict().items()}
    assert [n for n, v in theirs.items() if n in own and not torch.equal(v.to(own[n]), own[n])] == []
    assert theirs.keys() == own.keys()


def test_salm_eval_and_salm_generate_answer_alike(made: Any, corpus: Any, tmp_path: Path) -> None:
    """The calls of NeMo's two scripts on an exported folder: prompts as messages, and as ids of its own dataset."""
    from functools import partial

    from lhotse import CutSet, SupervisionSegment
    from nemo.collections.common.data.lhotse.cutset import cut_to_conversation
    from nemo.collections.common.data.lhotse.dataloader import tokenize_with_prompt
    from nemo.collections.common.data.lhotse.text_adapters import TextTurn
    from nemo.collections.speechlm2 import SALM, SALMDataset
    from transformers import GenerationConfig

    from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn
    from nemo_vtb.data.cut_sampler import cut_of
    from nemo_vtb.export.salm import write_salm

    model, _, _ = made
    write_salm(model, tmp_path)
    salm = SALM.from_pretrained(str(tmp_path)).eval()
    wavs = sorted((corpus.folder / 'wav').glob('train-asr_ast-*.wav'))[:2]
    cuts = CutSet([cut_of(Audio(str(wav)), wav.stem) for wav in wavs])
    for cut in cuts:
        cut.supervisions = [SupervisionSegment(cut.id, cut.id, 0, cut.duration, text='?')]
    limits = GenerationConfig(
        max_new_tokens=4, bos_token_id=salm.text_bos_id, eos_token_id=[salm.text_eos_id], pad_token_id=salm.text_pad_id
    )
    audios, lens = map(torch.as_tensor, cuts.load_audio(collate=True))
    tag = salm.audio_locator_tag
    prompt = [{'role': 'user', 'content': f'Say it: {tag}'}]
    evaluated = salm.generate(
        prompts=[prompt] * 2,
        audios=torch.as_tensor(audios),
        audio_lens=torch.as_tensor(lens),
        generation_config=limits,
    )
    made_of = partial(
        cut_to_conversation, audio_locator_tag=tag, token_equivalent_duration=salm.token_equivalent_duration
    )
    asked = []
    for conversation in map(made_of, cuts):
        conversation.turns = [each for each in conversation.turns if each.role == 'user']
        conversation.turns.insert(0, TextTurn(role='user', value='Say it:'))
        asked.append(
            tokenize_with_prompt(conversation, tokenizer=salm.tokenizer, prompt_format=salm.cfg['prompt_format'])
        )
    batch = SALMDataset(salm.tokenizer)[CutSet(asked)]
    generated = salm.generate(
        prompts=batch['input_ids'], audios=batch['audios'], audio_lens=batch['audio_lens'], generation_config=limits
    )
    ours = [Conversation('c', (Turn('user', (Text('Say it:'), Audio(str(wav)))),), 'speech_qa') for wav in wavs]
    answers = model.eval().answer(ours, max_new_tokens=4)
    for ids in (evaluated, generated):
        texts = [salm.tokenizer.ids_to_text(parse(each, salm.text_eos_id)).strip() for each in ids.cpu()]
        assert texts == [answer.strip() for answer in answers]


def parse(ids: torch.Tensor, end: int) -> torch.Tensor:
    return ids[: int(found[0])] if len(found := (ids == end).nonzero()) else ids


@pytest.mark.slow
def test_every_option_of_an_export(made: Any, corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import fields

    from nemo_vtb import cli
    from nemo_vtb.config.schema import ExportConfig

    model, folder, cfg = made
    monkeypatch.setenv('NEMO_LOG_LEVEL', 'ERROR')
    (tmp_path / 'm.nemo').write_bytes((folder / 'run.nemo').read_bytes())
    questions = str(corpus.folder / 'speech_qa.validation.jsonl')
    small = [
        '--to',
        'nemo',
        '--without-llm',
        '--base-llm',
        cfg['pretrained_llm'],
        '--output',
        str(tmp_path / 's.nemo'),
    ]
    proof = ['--prompts', questions, '--num-prompts', '1', '--max-new-tokens', '3']
    commands = [
        *(['--to', to, '--no-check'] for to in ('nemo', 'salm', 'vllm', 'hf-merged', 'peft')),
        ['--to', 'asr', '--asr', str(folder / 'asr.nemo'), '--no-check'],
        [*small, *proof],
        [*small, '--overwrite', '--no-check'],
    ]
    for command in commands:
        assert cli.main(['export', str(tmp_path / 'm.nemo'), *command]) == 0, command
    assert cli.main(['export', str(tmp_path / 'm.nemo'), *small, '--no-check']) == 2  # it stands there
    made_files = {path.name for path in tmp_path.iterdir()}
    assert made_files >= {'m-export.nemo', 'm-salm', 'm-vllm', 'm-hf', 'm-peft', 'm-asr.nemo', 's.nemo'}
    assert (tmp_path / 's.nemo').stat().st_size < 0.7 * (tmp_path / 'm-export.nemo').stat().st_size
    used = {word.removeprefix('--no-').removeprefix('--').replace('-', '_') for c in commands for word in c}
    assert {field.name for field in fields(ExportConfig)} - used - {'model'} == set()


@pytest.mark.parametrize('hook', ['training_step', 'validation_step'])
def test_a_batch_of_salms_dataset_is_named(made: Any, hook: str) -> None:
    batch = {key: torch.zeros(1) for key in ('audios', 'audio_lens', 'input_ids', 'loss_mask')}
    with pytest.raises(VtbDataError) as caught:
        getattr(made[0], hook)(batch, 0)
    assert caught.value.field == 'batch' and 'VtbDataModule' in str(caught.value.remedy)
