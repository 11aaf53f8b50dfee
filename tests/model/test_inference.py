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
"""Answers: batched as alone, whatever the padding; prompts of SALM's form; what does not match is refused."""

import copy

import pytest
import torch
from salm_peer import spoken_conversation, write_tones
from transformers import GenerationConfig

from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn
from nemo_vtb.errors import VtbDataError, VtbTemplateError
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.model.inference import generation_defaults, load_clip
from nemo_vtb.testing import tiny_model_cfg

pytestmark = pytest.mark.unit
TAG = '<|audioplaceholder|>'


@pytest.fixture(scope='module')
def model(tmp_path_factory: pytest.TempPathFactory) -> VoiceTextBlender:
    torch.manual_seed(0)
    model = VoiceTextBlender(tiny_model_cfg(tmp_path_factory.mktemp('generation'))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if '.lora_B.' in name:
                parameter.normal_(std=0.1)
    return model


@pytest.fixture(scope='module')
def tones(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_tones(tmp_path_factory.mktemp('tones'))


@pytest.fixture(scope='module')
def asked(tones: list[str]) -> list[Conversation]:
    """Prompts of very different lengths: text alone, one recording, three in two turns, after a system turn."""
    texts = ['Open the door.', 'Tell me a long story of the sea and the mountain in the rain at midnight, please.']
    prompts = [Conversation(t, (Turn('user', (Text(t),)),)) for t in texts]
    prompts.append(Conversation('spoken', (Turn('user', (Audio(tones[0]),)),)))
    prompts.append(spoken_conversation(tones).prompt)
    prompts.append(Conversation('sys', (Turn('system', (Text('Be brief.'),)), Turn('user', (Audio(tones[2]),)))))
    return prompts


def test_batched_answers_equal_single_ones(model: VoiceTextBlender, asked: list[Conversation]) -> None:
    single = [model.answer([c], max_new_tokens=8)[0] for c in asked]
    assert len(set(single)) > 2  # the model does listen
    for batch_size in (2, 5, 8):
        assert model.answer(asked, max_new_tokens=8, batch_size=batch_size) == single
    assert model.answer(asked[::-1], max_new_tokens=8) == single[::-1]
    assert model.answer([]) == []


def test_left_padding_does_not_matter(model: VoiceTextBlender, asked: list[Conversation]) -> None:
    ids = model.renderer.render_prompt(asked[0]).ids
    padded = torch.full((1, len(ids) + 9), model.text_pad_id)
    padded[0, 9:] = torch.tensor(ids)
    plain = model.generate(prompts=torch.tensor([ids]), max_new_tokens=6, do_sample=False)
    assert torch.equal(model.generate(prompts=padded, max_new_tokens=6, do_sample=False), plain)


def test_the_base_llm_answers_without_lora(model: VoiceTextBlender, asked: list[Conversation]) -> None:
    text = asked[:2]
    plain = VoiceTextBlender({k: v for k, v in copy.deepcopy(model.cfg).items() if k != 'lora'}).eval()
    with torch.no_grad():
        for name, value in plain.state_dict().items():
            wrapped = name.replace('llm.', 'llm.base_model.model.', 1)
            source = model.state_dict()
            value.copy_(source.get(name, source.get(wrapped, source.get(base_layer(wrapped)))))
    expected = plain.answer(text, max_new_tokens=8)
    with_lora = model.answer(text, max_new_tokens=8)
    assert model.answer(text, max_new_tokens=8, use_lora=False) == expected != with_lora
    assert model.answer(text, max_new_tokens=8) == with_lora  # LoRA is back


def base_layer(name: str) -> str:
    module, _, leaf = name.rpartition('.')
    return f'{module}.base_layer.{leaf}'


def test_training_goes_on_as_before(model: VoiceTextBlender, asked: list[Conversation]) -> None:
    model.train()
    model.perception.encoder.eval()
    try:
        model.answer(asked[:1], max_new_tokens=1)
        assert model.training and model.llm.training
        assert not model.perception.encoder.training, 'a frozen encoder must stay in evaluation mode'
    finally:
        model.eval()
    assert not any('embed_tokens' in name for name, _ in model.llm.named_modules())


def test_generation_ends_with_the_turn(model: VoiceTextBlender) -> None:
    stops = generation_defaults(model)['eos_token_id']
    assert model.tokenizer.token_to_id('<|im_end|>') in stops


def test_a_generation_config_replaces_the_default(model: VoiceTextBlender, asked: list[Conversation]) -> None:
    prompts = [[{'role': 'user', 'content': 'Open the door.'}]]
    config = GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=model.text_pad_id)
    assert model.generate(prompts=prompts, generation_config=config).shape == (1, 3)


def test_files_and_tensors_give_the_same_answer(model: VoiceTextBlender, tones: list[str]) -> None:
    samples = load_clip(model, Audio(tones[0]))
    with_file = [[{'role': 'user', 'content': f'Say {TAG}', 'audio': [tones[0]]}]]
    with_tensor = [[{'role': 'user', 'content': f'Say {TAG}'}]]
    options = {'max_new_tokens': 5, 'do_sample': False}
    lens = torch.tensor([len(samples)])
    given = model.generate(prompts=with_tensor, audios=samples[None], audio_lens=lens, **options)
    assert torch.equal(model.generate(prompts=with_file, **options), given)


def test_a_tag_without_any_recording_is_text(model: VoiceTextBlender) -> None:
    out = model.generate(prompts=[[{'role': 'user', 'content': f'What is {TAG}?'}]], max_new_tokens=2)
    assert out.shape[0] == 1


@pytest.mark.parametrize(('tags', 'recordings'), [(1, 2), (3, 2)])
def test_tags_and_tensors_that_do_not_match(model: VoiceTextBlender, tags: int, recordings: int) -> None:
    prompts = [[{'role': 'user', 'content': ' '.join(['Say', *[TAG] * tags])}]]
    audios, lens = torch.zeros(recordings, 8000), torch.tensor([8000] * recordings)
    with pytest.raises(VtbDataError, match=f'{tags} placeholders for {recordings} recordings'):
        model.generate(prompts=prompts, audios=audios, audio_lens=lens, max_new_tokens=1)


def test_tags_and_files_that_do_not_match(model: VoiceTextBlender, tones: list[str]) -> None:
    prompts = [[{'role': 'user', 'content': f'{TAG} {TAG}', 'audio': [tones[0]]}]]
    with pytest.raises(VtbDataError, match='for 1 recordings'):
        model.generate(prompts=prompts, max_new_tokens=1)


def test_token_ids_and_recordings_that_do_not_match(model: VoiceTextBlender) -> None:
    ids = torch.tensor([[20, 21, 22]])
    with pytest.raises(VtbDataError, match='0 placeholders for 1 recordings'):
        model.generate(prompts=ids, audios=torch.zeros(1, 8000), audio_lens=torch.tensor([8000]), max_new_tokens=1)


def test_a_conversation_that_ends_with_an_answer_is_no_question(model: VoiceTextBlender) -> None:
    with pytest.raises(VtbTemplateError, match='must end with a user turn'):
        model.answer([spoken_conversation([])])
