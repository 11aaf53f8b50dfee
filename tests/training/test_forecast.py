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
"""Large models are counted on the meta device: the paper's sizes, and what one GPU holds of them."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from nemo_vtb.assets.resolve import register_resolvers
from nemo_vtb.errors import VtbConfigError, VtbModelError

CONF = Path(__file__).resolve().parents[2] / 'conf'
pytestmark = pytest.mark.integration


def composed(model: str, trainer: str, *more: str) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base=None):
        return compose(overrides=[f'+model={model}', f'+trainer={trainer}', '+data=paper_blend', *more])


def show(name: str, cfg: DictConfig) -> 'object':
    from rich.console import Console

    from nemo_vtb.training.forecast import forecast, forecast_table

    outlook = forecast(cfg)
    Console(width=100).print(forecast_table(name, outlook))
    return outlook


def test_the_papers_model_has_the_papers_sizes() -> None:
    cfg = composed('gemma2b_canary1b', 'slurm_8x8_h100')
    outlook = show('gemma2b_canary1b, slurm_8x8_h100', cfg)
    millions = {name: part.parameters / 1e6 for name, part in outlook.parts.items()}
    assert millions['encoder'] == pytest.approx(609, abs=1)
    # the paper's 52 M are the adapter; its projection to the LLM comes on top
    assert millions['adapter'] == pytest.approx(52, abs=1)
    assert millions['projection'] == pytest.approx(2.1, abs=0.01)
    assert millions['llm'] == pytest.approx(2506, abs=1)
    # the paper fuses Q, K, V and gate, up, so that they share one A: 35.7 M; PEFT gives each its own
    gate_up, qkv = 32 * 2048, 2 * 32 * 2048
    assert millions['lora'] - 18 * (gate_up + qkv) / 1e6 == pytest.approx(36, abs=0.5)
    assert (outlook.tensor_parallel, outlook.data_parallel) == (1, 64)


@pytest.mark.parametrize(
    'model, llm, encoder', [('llama31_8b_canary1b_flash', 8030, 811), ('qwen3_8b_canary1b_flash', 8191, 811)]
)
def test_larger_models_fit_80_gb_with_tensor_parallelism(model: str, llm: int, encoder: int) -> None:
    outlooks = {
        n: show(f'{model}, megatron_tp{n}', composed(model, f'megatron_tp{n}', 'trainer.precision=bf16-mixed'))
        for n in (1, 2, 4, 8)
    }
    one = outlooks[1].parts
    assert one['llm'].parameters / 1e6 == pytest.approx(llm, abs=1)
    assert one['encoder'].parameters / 1e6 == pytest.approx(encoder, abs=2)
    assert one['llm'].local == one['llm'].parameters
    for n in (2, 4, 8):
        # nothing of the LLM but its norms is held more than once
        assert outlooks[n].parts['llm'].local == pytest.approx(one['llm'].local / n, rel=1e-3)
        assert outlooks[n].parts['encoder'].local == one['encoder'].local
        assert outlooks[n].total_gb < outlooks[n // 2].total_gb
    assert outlooks[2].total_gb < 80


def test_one_kv_head_is_on_every_gpu_and_moments_are_shared() -> None:
    from nemo_vtb.training.forecast import forecast

    one = forecast(composed('gemma2b_canary1b', 'megatron_tp1', 'trainer.devices=8'))
    four = forecast(composed('gemma2b_canary1b', 'megatron_tp4', 'trainer.devices=8'))
    kv = 18 * 2 * 2048 * 256
    norms = 18 * 2 * 2048 + 2048
    assert four.parts['llm'].local == (one.parts['llm'].local - kv - norms) // 4 + kv + norms
    zero = forecast(
        composed('gemma2b_canary1b', 'megatron_tp1', 'trainer.devices=8', 'trainer.strategy.shard_optimizer=true')
    )
    trained = sum(part.local for part in one.parts.values() if part.trained)
    assert one.training_gb == pytest.approx(trained * 12 / 1e9)
    assert zero.training_gb == pytest.approx(trained * (4 + 1) / 1e9)


def test_fsdp2_keeps_a_part_of_each_layer() -> None:
    from nemo_vtb.training.forecast import forecast

    model = 'llama31_8b_canary1b_flash'
    whole, eight = (forecast(composed(model, name, 'trainer.devices=8')) for name in ('megatron_tp1', 'fully_sharded'))
    table = 128256 * 4096  # token embedding, and as much for the head
    layers = whole.parts['llm'].local - 2 * table - 4096
    assert eight.parts['llm'].local == pytest.approx(2 * table + layers / 8 + layers / 32, rel=1e-3)
    assert eight.parts['lora'] == whole.parts['lora']
    by_name = composed(model, 'megatron_tp1', 'trainer.devices=8', 'trainer.strategy=fully_sharded')
    assert forecast(by_name).parts == eight.parts


def test_what_is_not_known_is_named() -> None:
    from nemo_vtb.training.forecast import forecast

    with pytest.raises(VtbModelError, match='pretrained_llm'):
        forecast(composed('gemma2b_canary1b', 'megatron_tp1', 'model.pretrained_llm=nobody/llm'))
    with pytest.raises(VtbModelError, match='pretrained_asr'):
        forecast(composed('gemma2b_canary1b', 'megatron_tp1', 'model.pretrained_asr=nobody/asr'))
    with pytest.raises(VtbConfigError, match='tensor_parallel'):
        forecast(composed('gemma2b_canary1b', 'megatron_tp2', 'trainer.devices=3'))
