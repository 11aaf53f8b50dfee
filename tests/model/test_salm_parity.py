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
"""In fp32 ours computes what NeMo's real SALM computes: loss, gradients, answers; weights and configs go both ways."""

from pathlib import Path

import pytest
import torch
from nemo.collections.speechlm2 import SALM
from omegaconf import OmegaConf
from salm_peer import build_pair, salm_batch, salm_loss, spoken_conversation

from nemo_vtb.data.collate import Collator
from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.testing import tiny_llm

pytestmark = pytest.mark.unit
Pair = tuple[VoiceTextBlender, SALM]
TAG = '<|audioplaceholder|>'


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_state_dicts_load_strictly_both_ways(pair: Pair) -> None:
    ours, salm = pair
    assert ours.state_dict().keys() == salm.state_dict().keys()
    ours.load_state_dict(salm.state_dict(), strict=True)
    salm.load_state_dict(ours.state_dict(), strict=True)
    assert {n for n, p in ours.named_parameters() if p.requires_grad} >= {
        n for n, _ in salm.named_parameters() if '.lora_' in n or n.startswith('perception.')
    }


@pytest.mark.parametrize('spans', [0, 1, 3])
def test_loss_of_one_conversation_equals_salm(pair: Pair, tones: list[str], spans: int) -> None:
    ours, salm = pair
    conversation = spoken_conversation(tones[:spans])
    expected = salm_loss(salm, salm_batch(ours, [conversation])).detach()
    sums, counts = ours.batch_nll(Collator(ours.renderer, ours.frames)([conversation]))
    assert counts.sum() > 10
    assert abs(float(sums.sum() / counts.sum()) - float(expected)) <= 1e-5


def test_loss_of_a_packed_row_equals_salm_on_a_padded_batch(pair: Pair, tones: list[str]) -> None:
    ours, salm = pair
    conversations = [spoken_conversation(tones[:n]) for n in (3, 1, 0, 2)]
    expected = salm_loss(salm, salm_batch(ours, conversations)).detach()
    sums, counts = ours.batch_nll(Collator(ours.renderer, ours.frames)(conversations))
    # SALM left-pads without position ids; with rotary positions a common shift leaves attention as it is
    assert abs(float(sums.sum() / counts.sum()) - float(expected)) <= 1e-5


@pytest.mark.parametrize('spans', [0, 1, 3])
def test_gradients_equal_salm(pair: Pair, tones: list[str], spans: int) -> None:
    ours, salm = pair
    conversation = spoken_conversation(tones[:spans])
    batch = Collator(ours.renderer, ours.frames)([conversation])
    ours.zero_grad(), salm.zero_grad()
    list(salm.configure_optimizers()['optimizer'].param_groups)  # freezes as NeMo does
    salm_loss(salm, salm_batch(ours, [conversation])).backward()
    ours.training_step(batch, 0)['loss'].backward()
    scale = 100.0 / float((batch.labels != -100).sum())  # ours is the sum over 100 until the optimizer steps
    mine, theirs = gradients(ours), gradients(salm)
    assert any('.lora_A.' in n for n in theirs) and any(n.startswith('perception.') for n in theirs) == (spans > 0)
    for name, expected in theirs.items():
        torch.testing.assert_close(mine[name] * scale, expected, atol=2e-6, rtol=1e-4, msg=name)
    assert not {n for n in mine if n.startswith(('embed_tokens', 'llm.')) and '.lora_' not in n}


def test_generate_equals_salm_for_prompts_with_files(pair: Pair, tones: list[str]) -> None:
    ours, salm = pair
    prompts = [
        [{'role': 'user', 'content': f'Transcribe {TAG}', 'audio': [tones[0]]}],
        [{'role': 'user', 'content': f'{TAG} or {TAG} which is first?', 'audio': [tones[1], tones[2]]}],
    ]
    for prompt in prompts:
        expected = salm.generate(prompts=[prompt], max_new_tokens=8, do_sample=False)
        assert torch.equal(ours.generate(prompts=[prompt], max_new_tokens=8, do_sample=False), expected)
    expected = salm.generate(prompts=prompts, max_new_tokens=8, do_sample=False)
    assert torch.equal(ours.generate(prompts=prompts, max_new_tokens=8, do_sample=False), expected)


def test_generate_equals_salm_for_prompts_with_tensors(pair: Pair) -> None:
    ours, salm = pair
    audios, lens = 0.1 * torch.randn(2, 20000), torch.tensor([20000, 13000])
    prompts = [[{'role': 'user', 'content': f'Transcribe {TAG}'}], [{'role': 'user', 'content': f'{TAG} now'}]]
    options = {'audios': audios, 'audio_lens': lens, 'max_new_tokens': 6, 'do_sample': False}
    assert torch.equal(ours.generate(prompts=prompts, **options), salm.generate(prompts=prompts, **options))
    ids = [ours.renderer.render_prompt(Conversation('', (Turn('user', (Text('Say'), Audio('x'))),))).ids]
    tokens = torch.tensor([[ours.audio_locator_tag_id if i < 0 else i for i in row] for row in ids]).repeat(2, 1)
    assert torch.equal(ours.generate(prompts=tokens, **options), salm.generate(prompts=tokens, **options))


# the sections of NeMo's examples/speechlm2/conf/salm.yaml that describe a model, smaller and with local names
SALM_YAML = r"""
model:
  pretrained_llm: ???
  pretrained_asr: null
  pretrained_weights: false
  freeze_params:
    - '^llm\..+$'
    - '^embed_tokens\..+$'
    - '^perception\.preprocessor\..+$'
    - '^perception\.encoder\..+$'
  prevent_freeze_params: []
  prompt_format: qwen
  audio_locator_tag: "<|audioplaceholder|>"
  lora: {task_type: CAUSAL_LM, r: 8, lora_alpha: 32, lora_dropout: 0.1}
  perception:
    target: nemo.collections.speechlm2.modules.perception.AudioPerceptionModule
    output_dim: 64
    preprocessor:
      _target_: nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor
      features: 80
    encoder:
      _target_: nemo.collections.asr.modules.ConformerEncoder
      feat_in: 80
      n_layers: 1
      d_model: 32
      n_heads: 4
      subsampling: dw_striding
      subsampling_factor: 8
      subsampling_conv_channels: 8
    modality_adapter:
      _target_: nemo.collections.asr.modules.ConformerEncoder
      feat_in: 32
      feat_out: -1
      n_layers: 1
      d_model: 32
      subsampling: dw_striding
      subsampling_factor: 1
      n_heads: 4
      att_context_size: [-1, -1]
      conv_norm_type: batch_norm
    spec_augment:
      _target_: nemo.collections.asr.modules.SpectrogramAugmentation
      freq_masks: 2
      time_masks: 2
      freq_width: 27
      time_width: 5
  optimizer: {_target_: torch.optim.AdamW, lr: 3e-4, betas: [0.9, 0.98], weight_decay: 1e-3, foreach: true}
  lr_scheduler:
    _target_: nemo.core.optim.lr_scheduler.CosineAnnealing
    warmup_steps: 0
    min_lr: 1e-6
    max_steps: 100
"""


def test_a_salm_yaml_builds_our_model(tmp_path: Path, tones: list[str]) -> None:
    cfg = OmegaConf.create(SALM_YAML).model
    cfg.pretrained_llm = str(tiny_llm(tmp_path / 'llm'))
    salm = SALM(OmegaConf.to_container(cfg, resolve=True))
    ours = VoiceTextBlender(OmegaConf.to_container(cfg, resolve=True))
    salm.configure_optimizers(), ours.configure_optimizers()
    ours.load_state_dict(salm.state_dict(), strict=True)
    trained = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (ours, salm)]
    assert trained[0] == trained[1]
    assert not any(n.startswith('perception.encoder') for n in trained[0])
    row = Collator(ours.renderer, ours.frames)([spoken_conversation(tones[:1])])
    assert ours.train().training_step(row, 0)['loss'].isfinite()


def test_encoder_chunk_size_means_what_it_means_to_salm(tmp_path: Path, tones: list[str]) -> None:
    ours, salm = build_pair(tmp_path)
    chunked = {'encoder_chunk_size_seconds': 0.5}
    salm.cfg.update(chunked)
    config = OmegaConf.to_container(ours.cfg) | chunked
    ours_chunked = VoiceTextBlender(config).eval()
    ours_chunked.load_state_dict(ours.state_dict(), strict=True)
    conversation = spoken_conversation(tones)
    expected = salm_loss(salm, salm_batch(ours_chunked, [conversation])).detach()
    batch = Collator(ours_chunked.renderer, ours_chunked.frames)([conversation])
    sums, counts = ours_chunked.batch_nll(batch)
    assert abs(float(sums.sum() / counts.sum()) - float(expected)) <= 1e-5
    whole, _ = ours.batch_nll(Collator(ours.renderer, ours.frames)([conversation]))
    assert not torch.allclose(whole.sum(), sums.sum())
