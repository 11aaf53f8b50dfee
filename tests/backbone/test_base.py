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
"""What holds for every backbone, Hugging Face's or Megatron's: the same tests on the same folders of weights."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nemo_vtb.backbone.base import Backbone
from nemo_vtb.errors import VtbCheckpointError
from nemo_vtb.testing import tiny_llm

pytestmark = pytest.mark.unit

TARGETS = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']
LORA = {'r': 4, 'lora_alpha': 8, 'target_modules': TARGETS}
LENGTHS = (5, 1, 9)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('llm')


def hugging_face(source: Path) -> Backbone:
    from peft import LoraConfig, get_peft_model

    from nemo_vtb.backbone.hf import HFBackbone, load_llm

    llm = load_llm(str(source), pretrained=True)
    return HFBackbone(get_peft_model(llm, LoraConfig(**LORA)).eval(), llm.model.embed_tokens)


def megatron(source: Path) -> Backbone:
    from nemo_vtb.backbone.megatron.model import build_backbone

    return build_backbone(source, lora_config=LORA).eval()


MAKERS = {'hf': hugging_face, 'megatron': megatron}


@pytest.fixture(scope='module', params=['llama', 'qwen2', 'gemma', 'gemma3_text'])
def source(request: pytest.FixtureRequest, folder: Path) -> Path:
    return tiny_llm(folder / request.param, request.param)


@pytest.fixture(params=list(MAKERS))
def backbone(request: pytest.FixtureRequest, source: Path, alone: None) -> Backbone:
    return MAKERS[request.param](source)


@torch.no_grad()
def run(backbone: Backbone, ids: Tensor) -> Tensor:
    """Logits (T, V) of a packed row of LENGTHS."""
    positions = torch.cat([torch.arange(n) for n in LENGTHS])
    borders = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
    return backbone.head(backbone.forward(backbone.embed(ids), positions, borders, max(LENGTHS)))


def other(ids: Tensor, at: int) -> Tensor:
    changed = ids.clone()
    changed[at] += 1
    return changed


def random_lora(backbone: Backbone) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {k: torch.randn(v.shape, generator=generator) * 0.1 for k, v in sorted(backbone.lora_state().items())}


IDS = torch.arange(10, 10 + sum(LENGTHS))


def test_nothing_is_seen_across_borders_or_ahead(backbone: Backbone) -> None:
    assert isinstance(backbone, Backbone) and backbone.hidden_size == 64
    plain = run(backbone, IDS)
    for at, end in ((2, 5), (5, 6), (10, 15)):
        changed = (run(backbone, other(IDS, at)) - plain).abs().amax(1) > 1e-6
        assert changed[at:end].all() and not changed[:at].any() and not changed[end:].any()


def test_lora_is_loaded_given_back_and_left_out(backbone: Backbone) -> None:
    base, state = run(backbone, IDS), random_lora(backbone)
    assert len(state) == 2 * 2 * len(TARGETS)  # factors, layers
    backbone.load_lora(state)
    tuned = run(backbone, IDS)
    assert not torch.allclose(base, tuned, atol=1e-3)
    back = backbone.lora_state()
    assert back.keys() == state.keys() and all(torch.equal(back[k], state[k]) for k in state)
    with backbone.without_lora():
        torch.testing.assert_close(run(backbone, IDS), base)
    assert torch.equal(run(backbone, IDS), tuned)


def test_lora_of_another_model_is_refused(backbone: Backbone) -> None:
    state = random_lora(backbone)
    key = next(iter(state))
    with pytest.raises(VtbCheckpointError, match='do not fit'):
        backbone.load_lora({k: v for k, v in state.items() if k != key})
    with pytest.raises(VtbCheckpointError, match='left over'):
        backbone.load_lora(state | {'base_model.model.other.lora_A.weight': state[key]})


def test_lora_moves_between_backbones(source: Path, alone: None) -> None:
    backbones = [make(source) for make in MAKERS.values()]
    for giver, taker in (backbones, backbones[::-1]):
        giver.load_lora(random_lora(giver))
        taker.load_lora({k: v.clone() for k, v in giver.lora_state().items()})
        torch.testing.assert_close(run(giver, IDS), run(taker, IDS), atol=1e-4, rtol=0)
