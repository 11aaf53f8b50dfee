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
"""The public test doubles are real in kind: every family loads, every line is read, every recording is speech-like."""

from pathlib import Path

import pytest
import soundfile
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_vtb.constants import KINDS
from nemo_vtb.data.conversation import conversation_from_dict, read_jsonl
from nemo_vtb.data.template import ChatRenderer
from nemo_vtb.errors import VtbConfigError
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.testing import TINY_FAMILIES, tiny_corpus, tiny_llm, tiny_model_cfg


@pytest.mark.parametrize('family', TINY_FAMILIES)
def test_every_family_loads_and_renders(family: str, tiny_root: Path, corpus: object) -> None:
    folder = tiny_llm(tiny_root / f'family-{family}', family)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.model_type == family and model.config.num_hidden_layers == 2
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) <= model.config.vocab_size
    for kind in KINDS:
        for _, _, line in read_jsonl(corpus.path(kind)):
            rendered = ChatRenderer(tokenizer).render(conversation_from_dict(line, base_dir=corpus.folder))
            assert rendered.num_supervised > 0


def test_same_seed_same_weights_and_folder_is_kept(tmp_path: Path) -> None:
    one, two = (tiny_llm(tmp_path / name) for name in 'ab')
    weights = one / 'model.safetensors'
    assert weights.read_bytes() == (two / 'model.safetensors').read_bytes()
    before = weights.stat().st_mtime_ns
    assert tiny_llm(one) == one and weights.stat().st_mtime_ns == before


def test_padding_may_be_the_end_of_turn(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm(tmp_path, template='llama3', pad_is_end_of_turn=True))
    assert tokenizer.pad_token == tokenizer.eos_token == '<|eot_id|>'


@pytest.mark.parametrize('encoder', ['fastconformer', 'whisper'])
@pytest.mark.parametrize('lora', [True, False])
def test_model_answers(encoder: str, lora: bool, tiny_root: Path, corpus: object) -> None:
    model = VoiceTextBlender(tiny_model_cfg(tiny_root / 'double', lora, encoder=encoder))
    _, _, line = next(read_jsonl(corpus.path('speech_qa')))
    prompt = conversation_from_dict(line, base_dir=corpus.folder).prompt
    assert isinstance(model.answer([prompt], max_new_tokens=3)[0], str)
    assert any('.lora_' in name for name, _ in model.named_parameters()) == lora


def test_corpus_is_reproducible_and_its_durations_true(tmp_path: Path) -> None:
    one, two = tiny_corpus(tmp_path / 'a', 2), tiny_corpus(tmp_path / 'b', 2)
    for kind in KINDS:
        assert one.path(kind, 'test').read_bytes() == two.path(kind, 'test').read_bytes()
        for _, _, line in read_jsonl(one.path(kind)):
            for audio in conversation_from_dict(line, base_dir=one.folder).audios:
                info = soundfile.info(audio.path)
                assert info.samplerate == 16000 and info.duration == pytest.approx(audio.duration_s)
    wavs = [sorted((c.folder / 'wav').iterdir())[0].read_bytes() for c in (one, two)]
    assert wavs[0] == wavs[1]
    assert [entry['kind'] for entry in one.input_cfg()] == list(KINDS)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    for call in (
        lambda: tiny_llm(tmp_path, 'gpt9'),
        lambda: tiny_llm(tmp_path, template='x'),
        lambda: tiny_model_cfg(tmp_path, encoder='x'),
    ):
        with pytest.raises(VtbConfigError, match='no such test double'):
            call()
