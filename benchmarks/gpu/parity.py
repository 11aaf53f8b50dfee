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
"""Step `parity`: the Megatron backbone with each set of kernels against Hugging Face and PEFT in float32."""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import megatron_cases
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from gpu.results import BEGAN, DEVICE, GPU, HALF, attempt, error_of, note

FAMILIES = ('llama', 'gemma_mqa', 'qwen3', 'gemma2', 'gemma3', 'mistral', 'qwen2', 'llama3_rope', 'smollm_uneven')
FULL = {'recompute_granularity': 'full', 'recompute_method': 'uniform', 'recompute_num_layers': 1}
Case = tuple[str, torch.dtype, str, dict[str, Any]]


def build(name: str, dtype: torch.dtype, kernels: str, model: Any, p: float, options: Mapping[str, Any]) -> Any:
    """The backbone of a tiny family with the weights of `model`, LoRA on all linears."""
    from nemo_vtb.backbone.megatron import convert, lora
    from nemo_vtb.backbone.megatron.model import MegatronBackbone

    backbone = MegatronBackbone(megatron_cases.tiny_config(name), dtype=dtype, kernels=kernels, **options)
    weights = model.state_dict()
    convert.load_weights(
        backbone.gpt, weights, backbone.family, backbone.geometry, rank=0, ranks=1, tied=backbone.tied
    )
    backbone.requires_grad_(False)
    lora.add_lora(backbone.gpt, backbone.geometry, r=4, alpha=8, p=p, targets='all-linear')
    return backbone.to(DEVICE).train()


def learn(backbone: Any, row: Mapping[str, Any], dtype: torch.dtype, *, autocast: bool, by_logits: bool) -> dict:
    """Loss and gradients of a packed row, over whole logits or as training computes it."""
    from nemo_vtb.backbone.megatron import lora
    from nemo_vtb.model.loss import row_nll

    backbone.zero_grad()
    embeds = row['embeds'].to(dtype).clone().requires_grad_(True)
    cast: AbstractContextManager = torch.autocast(DEVICE.type, HALF) if autocast else nullcontext()
    with cast:
        hidden = backbone(embeds, row['position_ids'], row['cu_seqlens'], row['max_seqlen'])
        logits = backbone.head(hidden) if by_logits else None
        if logits is not None:
            loss = cross_entropy(logits.float(), row['labels'])
        else:
            loss = row_nll(hidden, row['labels'], backbone.nll, chunk=5).mean()
    loss.backward()
    megatron_cases.sum_partial_gradients(backbone)
    gradients = lora.lora_state(backbone.gpt, backbone.geometry, gradients=True)
    gradients = {key: value.clone() for key, value in gradients.items()}
    return {'logits': logits, 'loss': float(loss.detach()), 'embeds': embeds.grad, 'gradients': gradients}


def errors(got: Mapping[str, Any], exact: Mapping[str, Any]) -> dict[str, float]:
    """Relative errors of what `learn` gave."""
    keys = sorted(exact['gradients'])
    flat = [torch.cat([each['gradients'][key].flatten().float() for key in keys]) for each in (got, exact)]
    return {
        **({'logits': error_of(got['logits'], exact['logits'])} if got['logits'] is not None else {}),
        'loss': abs(got['loss'] - exact['loss']) / abs(exact['loss']),
        'lora': error_of(*flat),
        'input': error_of(got['embeds'], exact['embeds']),
    }


@torch.no_grad()
def same_answers(backbone: Any, model: Any, dtype: torch.dtype) -> bool:
    """Whether greedy answers, all prompts at once, are those of `generate`, a prompt at a time."""
    model.to(DEVICE)
    prompts = list(megatron_cases._prompts(backbone.hidden_size))
    width = max(map(len, prompts))
    batch = torch.zeros(len(prompts), width, backbone.hidden_size, device=DEVICE)
    mask = torch.zeros(len(prompts), width, dtype=torch.bool, device=DEVICE)
    for number, prompt in enumerate(prompts):
        batch[number, width - len(prompt) :], mask[number, width - len(prompt) :] = prompt, True
    theirs = megatron_cases._answers(model)
    model.cpu()
    with backbone.without_lora():
        ids = backbone.greedy(batch.to(dtype), mask, 8, {2}, 0)
    return nn.functional.pad(ids, (0, 8 - ids.shape[1])).tolist() == theirs


def parity_case(
    name: str,
    dtype: torch.dtype,
    kernels: str,
    *,
    autocast: bool = False,
    answers: bool = False,
    dropout: float = 0.0,
    **options: Any,
) -> dict[str, Any]:
    """One tiny family: relative errors against float32, beside those of Hugging Face in this type.

    Args:
        name: Key of `megatron_cases.CASES`.
        dtype: Of the products; of the weights too, unless `autocast`.
        kernels: See `choose_kernels`.
        autocast: Whether weights stay float32.
        answers: Whether to compare greedy answers as well.
        dropout: Of LoRA; the errors are then large by design.
        options: Of `MegatronBackbone`.
    """
    from nemo_vtb.backbone.megatron import runtime

    runtime.initialize(1, device=DEVICE)
    weights = torch.float32 if autocast else dtype
    model = megatron_cases._tiny_model(name)
    backbone = build(name, weights, kernels, model, dropout, options)
    found: dict[str, Any] = {'kernels': backbone.kernels.names}
    if answers:
        found['answers_equal'] = same_answers(backbone, model, weights)
    tuned, state = megatron_cases._peft(model)
    backbone.load_lora(state)
    row = megatron_cases._row(backbone.hidden_size, backbone.geometry.vocab)

    def reference(kind: torch.dtype) -> dict[str, Any]:
        tuned.zero_grad()
        tuned.to(DEVICE, kind)
        return megatron_cases._reference(tuned, row | {'embeds': row['embeds'].to(kind)})

    exact = reference(torch.float32)
    for way, by_logits in (('by_logits', True), ('by_parts', False)):
        found[way] = errors(learn(backbone, row, weights, autocast=autocast, by_logits=by_logits), exact)
    if dtype != torch.float32:
        found['hf_in_this_type'] = errors(reference(dtype), exact)
    worst = max(v for way in ('by_logits', 'by_parts') for v in found[way].values())
    # Transformer Engine multiplies float32 as TF32
    bound = 0.08 if dtype != torch.float32 else 0.02 if kernels == 'te' else 1e-3
    loose = dropout > 0 or options.get('fp8') is not None
    found |= {'worst': worst, 'ok': found.get('answers_equal', True) and (loose or worst < bound)}
    return found


def plan_for(kernels: list[str], there: list[str]) -> list[Case]:
    """What is compared, the most telling first."""
    fp32, first = torch.float32, next((k for k in kernels if k in there), 'torch')
    plan: list[Case] = []
    for name in FAMILIES[:2]:
        plan += [(name, HALF, k, {}) for k in kernels] + [(name, fp32, k, {'answers': True}) for k in kernels]
    plan += [
        ('llama', HALF, first, options)
        for options in (
            {'autocast': True}, {'recompute_granularity': 'selective'}, FULL, {'dropout': 0.1},
        )
    ]  # fmt: skip
    if 'te' in there:
        plan += [('llama', HALF, 'te', {'fp8': 'hybrid'}), ('gemma_mqa', HALF, 'te', {'fp8': 'e4m3'})]
    plan += [(name, HALF, k, {}) for name in FAMILIES[2:] for k in kernels]
    plan += [(name, fp32, k, {'answers': True}) for name in FAMILIES[2:] for k in kernels]
    return plan if GPU else plan[: 4 * len(kernels) + 4]


def run(kernels: list[str], budget: float) -> None:
    """Each case for itself, so that one run names all that fails."""
    from nemo_vtb.backbone.megatron import runtime

    runtime.initialize(1, device=DEVICE)
    from nemo_vtb.backbone.megatron.layers import usable_kernels

    there = usable_kernels()
    note('parity.kernels', usable=there)
    kernels = kernels if GPU else there
    for number, (name, dtype, kind, options) in enumerate(plan := plan_for(kernels, there)):
        if GPU and time.time() - BEGAN > budget:
            note('parity.cut', left=len(plan) - number)
            break
        if kind not in there:
            note('parity', family=name, way=kind, skipped='not usable here')
            continue
        with attempt('parity', family=name, way=kind, dtype=str(dtype)[6:], **options) as found:
            found |= parity_case(name, dtype, kind, **options)
