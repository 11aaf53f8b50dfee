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
"""NeMo's real SALM beside ours: built with the same weights, fed with the same conversations."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from nemo.collections.speechlm2 import SALM
from nemo.collections.speechlm2.models import salm as salm_module
from torch import Tensor
from torch.nn.functional import cross_entropy

from nemo_vtb.data.collate import Collator
from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn
from nemo_vtb.data.template import AUDIO_SLOT
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.testing import tiny_model_cfg


def salm_cfg(cfg: dict[str, Any], prompt_format: str = 'qwen') -> dict[str, Any]:
    """Our config with the one key that SALM wants besides: the name of a prompt formatter."""
    return {**copy.deepcopy(cfg), 'prompt_format': prompt_format}


def build_pair(root: Path, **options: Any) -> tuple[VoiceTextBlender, SALM]:
    """Ours and SALM with the same weights, in evaluation mode; LoRA is far from zero, so that it counts."""
    cfg = tiny_model_cfg(root, **options)
    torch.manual_seed(0)
    ours, salm = VoiceTextBlender(copy.deepcopy(cfg)), SALM(salm_cfg(cfg))
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if '.lora_B.' in name:
                parameter.normal_(std=0.1)
    salm.load_state_dict(ours.state_dict(), strict=True)
    return ours.eval(), salm.eval()


def write_tones(folder: Path, seconds: Sequence[float] = (1.0, 1.7, 0.6)) -> list[str]:
    """Recordings that differ in pitch and length."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, duration in enumerate(seconds):
        time = np.arange(int(16000 * duration)) / 16000
        rng = np.random.default_rng(number)
        signal = 0.2 * np.sin(2 * np.pi * (200 + 130 * number) * time) + 0.02 * rng.standard_normal(len(time))
        paths.append(str(folder / f'tone{number}.wav'))
        soundfile.write(paths[-1], signal.astype(np.float32), 16000)
    return paths


def spoken_conversation(paths: Sequence[str], id: str = 'c') -> Conversation:
    """A conversation of two turns or more with the recordings spread over its user turns."""
    first: list[Text | Audio] = [Text('Listen to')]
    first += [part for path in paths[:2] for part in (Audio(path), Text('and this'))]
    second: list[Text | Audio] = [Text('Which room is it about?')] + [Audio(path) for path in paths[2:]]
    turns = (
        Turn('user', tuple(first)),
        Turn('assistant', (Text('The kitchen, at noon.'),)),
        Turn('user', tuple(second)),
        Turn('assistant', (Text('A green lamp and a fan.'),)),
    )
    return Conversation(id, turns, 'mixed_modal' if paths else 'text')


def salm_batch(model: VoiceTextBlender, conversations: Sequence[Conversation]) -> dict[str, Any]:
    """The batch that SALM takes, left-padded, with the tokens and the mask of our renderer."""
    rendered = [model.renderer.render(c) for c in conversations]
    longest = max(len(r.ids) for r in rendered)
    ids = torch.full((len(rendered), longest), model.text_pad_id)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, r in enumerate(rendered):
        ids[row, longest - len(r.ids) :] = torch.tensor(r.ids)
        mask[row, longest - len(r.ids) :] = torch.tensor(r.supervised)
    ids[ids == AUDIO_SLOT] = model.audio_locator_tag_id
    packed = Collator(model.renderer, model.frames)(conversations)
    return {'input_ids': ids, 'loss_mask': mask, 'audios': packed.audios, 'audio_lens': packed.audio_lens}


@contextmanager
def text_guard() -> Iterator[None]:
    """Keep SALM alive on batches without audio, where stock NeMo 3.0 crashes."""
    original = salm_module.encode_audio_with_optional_chunking

    def guarded(perception: Any, audios: Tensor, lens: Tensor, **kwargs: Any) -> list[Tensor]:
        return original(perception, audios, lens, **kwargs) if audios.numel() else []

    salm_module.encode_audio_with_optional_chunking = guarded
    try:
        yield
    finally:
        salm_module.encode_audio_with_optional_chunking = original


def salm_loss(salm: SALM, batch: dict[str, Any]) -> Tensor:
    """SALM's loss as its training_step computes it, here without logging: a scalar with its graph."""
    with text_guard():
        inputs = salm.prepare_inputs(batch)
    logits = salm(inputs['input_embeds'], attention_mask=inputs['attention_mask'])['logits']
    targets = inputs['target_ids'].flatten()
    return cross_entropy(logits.flatten(0, 1), targets, reduction='sum', ignore_index=-100) / (targets != -100).sum()
