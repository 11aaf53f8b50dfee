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

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch.nn import functional as F

from nemo_vtb.data.collate import Collator, PackedRow
from nemo_vtb.data.conversation import Conversation, conversation_from_dict
from nemo_vtb.errors import VtbConfigError
from nemo_vtb.model.aligned_adapter import AlignedAdapter, AlignedAdapterFile, embeddings_digest, encoder_digest
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.model.ctc import CtcObjective, Scores, spoken_ids
from nemo_vtb.model.perception import build_encoder
from nemo_vtb.testing import TinyCorpus, tiny_model_cfg

pytestmark = pytest.mark.unit
FROZEN = [r'^llm\..+$', r'^perception\.encoder\..+$']


class Letters:
    """A tokenizer whose tokens are characters."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [ord(c) for c in text]


def objective(*pieces: str) -> CtcObjective:
    made = AlignedAdapter(4, 3, len(pieces), hidden=4)
    made.set_pieces([ord(piece) for piece in pieces], torch.zeros(len(pieces), 3) + torch.arange(3.0))
    return CtcObjective(made, Letters())


def test_it_is_the_sum_over_the_clips_of_a_row() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 6, 4), torch.randn(1, 5, 4)
    heard = [Scores([2, 0], first, torch.tensor([6, 4])), Scores([1], second, torch.tensor([5]))]
    total, tokens = objective(' ', 'a', 'b')(heard, ['ab', None, 'b a'])
    expected = torch.tensor(0.0)
    for logits, frames, classes in ((first[0], 6, [1, 3, 1, 2]), (first[1], 4, [1, 2, 3])):
        scores = logits[:frames].log_softmax(-1)[:, None]
        expected += F.ctc_loss(scores, torch.tensor([classes]), (frames,), (len(classes),), reduction='sum')
    torch.testing.assert_close(total, expected)
    assert tokens == 7


@pytest.mark.parametrize(
    ('text', 'frames', 'expected'),
    [
        ('ab', 3, [1, 2, 3]),
        ('ab', 2, []),  # more tokens than frames
        ('aa', 3, []),  # a blank must stand between two equal ones
        ('aa', 4, [1, 2, 2]),
        ('ac', 9, []),  # a token that the adapter does not have
        ('a1', 9, []),
        ('', 9, []),
        (None, 9, []),
    ],
)
def test_what_can_be_learned(text: str | None, frames: int, expected: list[int]) -> None:
    assert objective(' ', 'a', 'b').targets(text, frames) == expected


def test_a_clip_that_was_encoded_in_pieces_is_left_out() -> None:
    heard = [Scores([0, 1, 1], torch.randn(3, 6, 4), torch.tensor([6, 6, 6]))]
    assert objective(' ', 'a', 'b')(heard, ['ab', 'ab'])[1] == 3


# ---- in the joint stage


@pytest.fixture(scope='module')
def conversations(corpus: TinyCorpus) -> list[Conversation]:
    lines = corpus.path('asr_ast').read_text().splitlines()[:3]
    return [conversation_from_dict(json.loads(line), kind='asr_ast', base_dir=corpus.folder) for line in lines]


@pytest.fixture(scope='module')
def cfg(tiny_root: Path, conversations: list[Conversation]) -> dict[str, Any]:
    """A model that takes an untrained adapter, for the pieces of these conversations, from a file."""
    cfg = tiny_model_cfg(tiny_root / 'ctc', encoder='whisper') | {'pretrained_weights': True}
    llm = VoiceTextBlender(cfg)
    texts = [text for each in conversations for text in Collator(llm.renderer, llm.frames).prepare(each).transcripts]
    assert all(texts)
    pieces = sorted({piece for text in texts for piece in spoken_ids(llm.tokenizer.tokenizer, text or '')})
    table = llm.backbone.embed(torch.tensor(pieces)).detach()
    torch.manual_seed(0)
    # two encoder frames to one: the recordings are short
    sizes = {'feat_in': 32, 'output_dim': table.shape[1], 'num_pieces': len(pieces), 'hidden': 12}
    made = AlignedAdapter(**sizes, subsampling_factor=1, dropout=0.5)
    made.set_pieces(pieces, table)
    manifest = {
        'adapter': sizes | {'subsampling_factor': 1, 'dropout': 0.5},
        'llm': {'name': 'tiny', 'digest': embeddings_digest(table)},
        'encoder': {'name': 'tiny', 'digest': encoder_digest(build_encoder(OmegaConf.create(cfg)))},
    }
    path = tiny_root / 'ctc' / 'adapter.safetensors'
    AlignedAdapterFile.write(path, made, manifest)
    perception = cfg['perception'] | {'adapter_init': 'aligned', 'init_adapter': str(path)}
    return cfg | {'perception': perception, 'freeze_params': FROZEN}


def row_of(model: VoiceTextBlender, conversations: list[Conversation]) -> PackedRow:
    return Collator(model.renderer, model.frames)(conversations)


def test_the_step_adds_it_and_the_adapter_learns_from_it(
    cfg: dict[str, Any], conversations: list[Conversation], tmp_path: Path
) -> None:
    losses, gradients = [], []
    for weight in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        model = VoiceTextBlender(cfg | {'ctc_weight': weight})
        if weight == 1.0:  # restored, as a warm start is: the pieces come after the model was built
            model.save_to(str(tmp_path / 'm.nemo'))
            model = VoiceTextBlender.restore_from(str(tmp_path / 'm.nemo'))
        adapter = model.perception.modality_adapter
        loss = model.eval().training_step(row_of(model, conversations), 0)['loss']
        loss.backward()
        losses.append(float(loss))
        gradients.append(adapter.blank.grad.norm())
        assert adapter.last_scores is None
    assert losses[1] > losses[0] + 0.01
    assert losses[2] - losses[0] == pytest.approx(2 * (losses[1] - losses[0]), rel=1e-3)
    assert gradients[1] > 2 * gradients[0]


@pytest.mark.parametrize('case', ['another adapter', 'frozen'])
def test_an_adapter_that_cannot_learn_by_it_is_refused(case: str, cfg: dict[str, Any], tiny_root: Path) -> None:
    if case == 'frozen':
        changed = cfg | {'freeze_params': [*FROZEN, r'^perception\..+$']}
    else:
        changed = tiny_model_cfg(tiny_root / 'ctc-mlp')
    with pytest.raises(VtbConfigError) as caught:
        VoiceTextBlender(changed | {'ctc_weight': 0.3})
    assert caught.value.field == 'model.ctc_weight'


def test_a_frozen_adapter_hears_in_training_as_it_will_later(
    cfg: dict[str, Any], conversations: list[Conversation]
) -> None:
    model = VoiceTextBlender(cfg | {'freeze_params': [r'^llm\..+$', r'^perception\..+$']}).train()
    row = row_of(model, conversations)
    losses = {float(model.training_step(row, 0)['loss']) for _ in range(3)}
    assert len(losses) == 1
    trained = VoiceTextBlender(cfg).train()
    assert len({float(trained.training_step(row, 0)['loss']) for _ in range(3)}) == 3
