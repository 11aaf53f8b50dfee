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
"""What a step costs, counted on paper, against what torch counts while it really runs."""

from dataclasses import replace
from pathlib import Path

import pytest
import step_costs
import torch
from torch.utils.flop_counter import FlopCounterMode

from nemo_vtb.training.step_cost import Machine, Sizes, Workload, sizes_of, step_cost

pytestmark = pytest.mark.unit
TINY = Sizes(layers=4, hidden=8, query=8, vocab=16, layer=1000, lora=100, encoder=10_000, adapter=500)
WORK = Workload(tokens=64, rows=2)


def test_products_of_an_llm_with_lora_are_those_that_torch_counts() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=512, attn_implementation='eager',
    )  # fmt: skip
    lora = LoraConfig(
        r=8, target_modules=['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']
    )
    llm = get_peft_model(AutoModelForCausalLM.from_config(config), lora)
    weights = sum(p.numel() for p in llm.parameters() if p.requires_grad)
    tokens = 32
    with FlopCounterMode(display=False) as counter:
        embeds = torch.randn(1, tokens, 128, requires_grad=True)
        llm(inputs_embeds=embeds).logits.sum().backward()
    counts = counter.get_flop_counts()['Global']
    attention = sum(count for op, count in counts.items() if 'bmm' in str(op))
    products = sum(counts.values()) - attention
    parts = {'encoder': 0, 'adapter': 0, 'projection': 0, 'lora': weights}
    # here every position reaches the vocabulary, and its logits are made once
    work = Workload(tokens=tokens, conversation=tokens, targets=4 / 6, audio=0.0)
    cost = step_cost(sizes_of(config, parts), replace(work, conversation=0))
    assert cost.llm_tflop * 1e12 == pytest.approx(products, rel=1e-6)
    # torch multiplies whole squares, of which half is masked
    both = step_cost(sizes_of(config, parts), work)
    assert (both.llm_tflop - cost.llm_tflop) * 1e12 == pytest.approx(attention / 2, rel=1e-6)


def test_what_is_sent_is_what_the_strategies_send() -> None:
    alone = step_cost(TINY, WORK)
    assert alone.tensor_gb == alone.gradient_gb == alone.gather_gb == 0
    assert alone.tensor_messages == alone.gradient_messages == alone.gather_messages == 0
    two = step_cost(replace(TINY, tensor=2), WORK)
    # two sums forward and two backward in each layer, one byte sent for each over two ranks
    assert two.tensor_gb * 1e9 == pytest.approx(4 * 4 * 64 * 2 * 8 * 2)
    assert two.tensor_messages == 2 * 4 * 4 * 2
    assert two.llm_tflop == pytest.approx(alone.llm_tflop / 2) and two.speech_tflop == alone.speech_tflop / 2
    eight = step_cost(replace(TINY, data=8), WORK)
    assert eight.gradient_gb * 1e9 == pytest.approx(4 * (100 + 10_000 + 500) * 2 * 7 / 8)
    assert eight.gradient_messages == 1 and eight.llm_tflop == alone.llm_tflop
    sharded = step_cost(replace(TINY, data=8, sharded=True), WORK)
    # forward and backward of each row: what the others hold of every layer
    assert sharded.gather_gb * 1e9 == pytest.approx(2 * 2 * 4 * 1000 * 2 * 7 / 8)
    assert sharded.gather_messages == 2 * 4 * 2
    frozen = step_cost(replace(TINY, data=8, train_encoder=False), WORK)
    assert frozen.gradient_gb * 1e9 == pytest.approx(4 * 600 * 2 * 7 / 8)
    assert frozen.speech_tflop < alone.speech_tflop


def test_time_follows_from_rates() -> None:
    cost = step_cost(replace(TINY, data=64), WORK)
    machine = Machine(tflops=100, share=0.5, message_us=0)
    spent = cost.seconds(machine)
    assert spent['compute'] == pytest.approx((cost.llm_tflop + cost.speech_tflop) / 50)
    assert spent['gradients'] == pytest.approx(cost.gradient_gb / machine.network_gb_s)
    within = step_cost(replace(TINY, data=8), WORK).seconds(machine)
    assert within['gradients'] < spent['gradients']  # a node has NVLink
    assert cost.predicted_s(machine) == pytest.approx(spent['compute'] + spent['gradients'])
    assert cost.bound_by(Machine(tflops=1e9)) == 'gradients'


def test_the_documentation_has_the_table_of_today() -> None:
    text = (Path(step_costs.__file__).parents[1] / 'docs' / 'step_costs.md').read_text(encoding='utf-8')
    for line in step_costs.table():
        assert line in text, line
    hidden = step_costs.rows_to_hide_the_gathers()
    for tokens in hidden.values():
        assert f'{tokens:,}' in text
