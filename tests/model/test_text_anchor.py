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
"""The text anchor: by hand, against a plain computation, and on a model that drifts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from nemo_vtb.constants import KINDS
from nemo_vtb.data.collate import Collator, PackedRow, pack_row
from nemo_vtb.data.conversation import Conversation, conversation_from_dict, read_jsonl
from nemo_vtb.errors import VtbConfigError
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.model.loss import TEXT, anchored_loss, base_hidden, text_divergence
from nemo_vtb.testing import TinyCorpus, tiny_model_cfg

pytestmark = pytest.mark.unit


def build(root: Path, lora_std: float, **changes: Any) -> VoiceTextBlender:
    torch.manual_seed(0)
    model = VoiceTextBlender(tiny_model_cfg(root) | changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if '.lora_B.' in name:
                parameter.normal_(std=lora_std) if lora_std else parameter.zero_()
    return model


def row_of(model: VoiceTextBlender, conversations: Sequence[Conversation]) -> PackedRow:
    return Collator(model.renderer, model.frames)(conversations)


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('anchor')


@pytest.fixture(scope='module')
def conversations(corpus: TinyCorpus) -> list[Conversation]:
    """Typed chats in between the other kinds, so that positions in the row are no positions among the chats."""
    order = ('asr_ast', 'text', 'mixed_modal', 'text', 'speech_qa')
    taken = {kind: iter(read_jsonl(corpus.path(kind))) for kind in KINDS}
    return [conversation_from_dict(next(taken[kind])[2], kind=kind, base_dir=corpus.folder) for kind in order]


def divergence_of(model: VoiceTextBlender, row: PackedRow, **options: Any) -> Tensor:
    _, hidden = model.hidden_states(row)
    return text_divergence(base_hidden(model.backbone, row), hidden, row, model.backbone, **options)


class Identity(nn.Module):
    """A backbone whose logits are its hidden states."""

    def head(self, hidden: Tensor) -> Tensor:
        return hidden


def test_by_hand() -> None:
    borders = torch.tensor([0, 2, 5], dtype=torch.int32)
    row = replace(pack_row([]), kinds=['asr_ast', 'text'], cu_seqlens=borders)
    hidden = torch.zeros(5, 2)  # the model: one half each
    base = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5]]))  # of the three positions of the chat
    expected = 0.25 * torch.log(torch.tensor(0.25 / 0.5)) + 0.75 * torch.log(torch.tensor(0.75 / 0.5))
    found = text_divergence(base, hidden, row, Identity())  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.stack([torch.tensor(0.0), expected, torch.tensor(0.0)]))


def test_equals_the_divergence_of_each_chat_alone(root: Path, conversations: list[Conversation]) -> None:
    model = build(root, 0.1).eval()
    expected = []
    for chat in (c for c in conversations if c.kind == 'text'):
        row = row_of(model, [chat])
        logits = [model.backbone.head(model.hidden_states(row)[1])]
        with model.backbone.without_lora():
            logits.append(model.backbone.head(model.hidden_states(row)[1]))
        student, teacher = (log_softmax(x, -1) for x in logits)
        expected.append(kl_div(student, teacher, reduction='none', log_target=True).sum(-1))
    found = divergence_of(model, row_of(model, conversations))
    assert float(found.detach().mean()) > 1e-4
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-6, rtol=1e-3)


def test_chunks_change_neither_value_nor_gradient(root: Path, conversations: list[Conversation]) -> None:
    model = build(root, 0.1).eval()
    row = row_of(model, conversations)
    weights = [p for n, p in model.named_parameters() if '.lora_' in n]
    results = []
    for chunk in (10_000, 3):
        found = divergence_of(model, row, chunk=chunk)
        results.append([found.detach(), *torch.autograd.grad(found.sum(), weights)])
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-4)


def test_an_untouched_llm_feels_nothing(root: Path, conversations: list[Conversation]) -> None:
    model = build(root, 0.0, text_anchor=1.0).eval()
    chats = [c for c in conversations if c.kind == 'text']
    model.training_step(row_of(model, chats), 0)['loss'].backward()
    largest = max(
        float(p.grad.abs().max()) for n, p in model.named_parameters() if '.lora_' in n and p.grad is not None
    )
    assert largest < 1e-6


def test_a_row_without_chats_is_trained_as_before(root: Path, conversations: list[Conversation]) -> None:
    spoken = [c for c in conversations if c.kind != 'text']
    losses = []
    for anchor in (None, 1.0):
        model = build(root, 0.1, text_anchor=anchor).eval()
        losses.append(model.training_step(row_of(model, spoken), 0)['loss'])
    assert torch.equal(*losses)


def test_the_weight_mixes_likelihood_and_divergence() -> None:
    kinds = torch.tensor([1, TEXT, TEXT, 2])
    nll, divergence = torch.tensor([1.0, 10.0, 20.0, 2.0]), torch.tensor([3.0, 5.0, 4.0])  # mean 4
    assert float(anchored_loss(nll, divergence, kinds, 0.0)) == 33
    assert float(anchored_loss(nll, divergence, kinds, 0.25)) == 3 + 0.75 * 30 + 0.25 * 2 * 4
    assert float(anchored_loss(nll, divergence, kinds, 1.0)) == 3 + 2 * 4
    assert float(anchored_loss(nll, divergence, kinds, 5.0)) == 3 + 5 * 2 * 4


def test_steps_bring_a_drifted_llm_back(root: Path, conversations: list[Conversation]) -> None:
    model = build(root, 0.1, text_anchor=1.0).eval()
    row = row_of(model, [c for c in conversations if c.kind == 'text'])
    optimizer = torch.optim.Adam([p for n, p in model.named_parameters() if '.lora_' in n], lr=5e-3)
    before = float(divergence_of(model, row).detach().mean())
    for _ in range(40):
        optimizer.zero_grad()
        model.training_step(row, 0)['loss'].backward()
        optimizer.step()
    assert float(divergence_of(model, row).detach().mean()) < 0.2 * before


def test_the_logged_loss_of_chats_stays_their_likelihood(
    root: Path, conversations: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[dict[str, float]] = []
    for anchor in (None, 1.0):
        model = build(root, 0.1, text_anchor=anchor).eval()
        values: dict[str, float] = {}
        monkeypatch.setattr(model, 'log', lambda name, value, into=values, **_: into.update({name: float(value)}))
        model.training_step(row_of(model, conversations), 0)
        logged.append(values)
    assert logged[0]['loss/text'] == logged[1]['loss/text']
    assert logged[1].keys() - logged[0].keys() == {'text_divergence'}


def test_an_llm_without_lora_cannot_be_anchored(root: Path) -> None:
    with pytest.raises(VtbConfigError, match='text_anchor') as caught:
        VoiceTextBlender(tiny_model_cfg(root) | {'lora': None, 'text_anchor': 1.0})
    assert 'model.lora' in str(caught.value)
