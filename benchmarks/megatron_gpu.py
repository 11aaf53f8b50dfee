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
"""Speed of the LLM's training step on one GPU (or several): Megatron by kernels, the HF backbone, and a padded batch.

python benchmarks/megatron_gpu.py                              the shapes of Gemma 2B and Llama 8B, bf16, rows of 8k
torchrun --nproc-per-node 2 benchmarks/megatron_gpu.py         the same on two tensor-parallel GPUs
python benchmarks/megatron_gpu.py --quick                      small shapes, a test of the script; without a GPU always

Random weights, LoRA on all linear layers, forward, backward and optimizer step. All ways get the same weights, tokens
and targets, so their losses must agree. FLOPs are those that the step needs: two products per frozen weight (nothing
is recomputed, no gradient of the weight itself), attention within conversations, the vocabulary at targets. Their rate
is compared with that of large bf16 matrix products measured in the same run. The padded batch is what NeMo's SALM
gives its LLM: one conversation a line, the vocabulary at every position. Each row has other lengths: 'new lengths' is
the time of a row that was not seen before, 's a step' that of one that was. A way that fails is a line with its error.
"""

import argparse
import gc
import json
import logging
import os
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

os.environ |= {'HF_HUB_OFFLINE': '1', 'TOKENIZERS_PARALLELISM': 'false'}
os.environ.setdefault('OMP_NUM_THREADS', '1')
if __name__ == '__main__':  # who imports this keeps the logs
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

GOAL_MFU = 0.45
MOST_COLD_S = 12.0
"""A kernel that is built anew for each length is not waited for any longer."""
LORA = {'r': 32, 'lora_alpha': 32, 'lora_dropout': 0.0, 'target_modules': 'all-linear'}
SHAPES: dict[str, tuple[str, dict[str, int]]] = {
    'Gemma 2B': ('gemma', {'hidden_size': 2048, 'intermediate_size': 16384, 'num_hidden_layers': 18, 'head_dim': 256,
                           'num_attention_heads': 8, 'num_key_value_heads': 1, 'vocab_size': 256000}),
    'Llama 8B': ('llama', {'hidden_size': 4096, 'intermediate_size': 14336, 'num_hidden_layers': 32, 'head_dim': 128,
                           'num_attention_heads': 32, 'num_key_value_heads': 8, 'vocab_size': 128256}),
}  # fmt: skip
SMALL: dict[str, tuple[str, dict[str, int]]] = {
    'small Gemma': ('gemma', {'hidden_size': 128, 'intermediate_size': 256, 'num_hidden_layers': 2, 'head_dim': 32,
                              'num_attention_heads': 4, 'num_key_value_heads': 1, 'vocab_size': 512}),
    'small Llama': ('llama', {'hidden_size': 128, 'intermediate_size': 256, 'num_hidden_layers': 2, 'head_dim': 32,
                              'num_attention_heads': 4, 'num_key_value_heads': 2, 'vocab_size': 512}),
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What one run measures."""

    shapes: dict[str, tuple[str, dict[str, int]]]
    tokens: int
    mean_length: int
    rows: int
    """Rows of different lengths; the first two are not timed."""
    matrix: int
    dtype: torch.dtype
    device: torch.device
    tolerance: float  # of losses, relative to the first way


@dataclass(frozen=True)
class Row:
    """A packed row; its borders stay on the host, as in training."""

    ids: Tensor
    labels: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    lengths: list[int]


def plan_for(quick: bool) -> Plan:
    """The full plan on a GPU, a small one otherwise."""
    gpu = torch.cuda.is_available()
    device = torch.device('cuda', int(os.environ.get('LOCAL_RANK', 0))) if gpu else torch.device('cpu')
    dtype, tolerance = (torch.bfloat16, 0.02) if gpu else (torch.float32, 1e-4)
    if quick or not gpu:
        return Plan(SMALL, 512, 60, 4, 4096 if gpu else 1024, dtype, device, tolerance)
    return Plan(SHAPES, 8192, 350, 8, 8192, dtype, device, tolerance)


def make_row(tokens: int, mean_length: int, vocab: int, device: torch.device, seed: int = 0) -> Row:
    """Conversations of random lengths that fill a row, a third of their tokens supervised; others for each seed."""
    rng, lengths = random.Random(seed), list[int]()
    while sum(lengths) < tokens:
        lengths.append(min(max(8, round(rng.lognormvariate(0, 0.6) * mean_length)), tokens - sum(lengths)))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, vocab, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) > 1 / 3] = -100
    ids = torch.randint(3, vocab, (tokens,), generator=generator)
    positions = torch.cat([torch.arange(n) for n in lengths])
    borders = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return Row(*(x.to(device) for x in (ids, labels, positions)), borders, lengths)


def useful_flops(config: Any, row: Row) -> float:
    """FLOPs that forward and backward of a row need, with frozen weights and LoRA."""
    h, d = config.hidden_size, config.head_dim
    q, kv, f = config.num_attention_heads * d, config.num_key_value_heads * d, config.intermediate_size
    linears = [(h, q), (h, kv), (h, kv), (q, h), (h, f), (h, f), (f, h)]
    frozen = sum(i * o for i, o in linears)
    lora = sum(LORA['r'] * (i + o) for i, o in linears)
    attention = sum(n * n for n in row.lengths) * q * 2  # causal: half of two products of n x n x q
    layers = config.num_hidden_layers * (sum(row.lengths) * (4 * frozen + 6 * lora) + 3 * attention)
    targets = int((row.labels != -100).sum())
    return layers + 4 * targets * h * config.vocab_size


def matmul_rate(plan: Plan) -> float:
    """TFLOP/s of large matrix products in the type of the plan, the best of some."""
    a, b = (torch.randn(plan.matrix, plan.matrix, dtype=plan.dtype, device=plan.device) for _ in range(2))
    times = [timed(lambda: a @ b, plan.device) for _ in range(10)]
    return 2 * plan.matrix**3 / min(times) / 1e12


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of wall time until the device is done."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    work()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def measure(
    model: nn.Module,
    loss_of: Callable[[Row], Tensor],
    rows: Sequence[Row],
    device: torch.device,
    after: Callable[[], None],
) -> dict[str, Any]:
    """Median seconds of a training step on rows of new lengths (cold) and on the same again, first loss, memory.

    Args:
        model: Whose trainable parameters are updated.
        loss_of: Loss of a row.
        rows: Of different lengths; the first two compile and tune.
        device: Where the model is.
        after: Called between backward and optimizer.
    """
    gpu = device.type == 'cuda'
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=gpu)
    losses: list[float] = []

    def step(row: Row) -> None:
        loss = loss_of(row)
        loss.backward()
        after()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))

    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    first = [timed(lambda row=row: step(row), device) for row in rows[:2]]
    cold: list[float] = []
    for row in rows[2:]:
        cold.append(timed(lambda row=row: step(row), device))
        if sum(cold) > MOST_COLD_S:
            break
    warm = [timed(lambda row=row: step(row), device) for row in rows[2 : 2 + len(cold)]]
    return {
        'step_s': statistics.median(warm), 'cold_s': statistics.median(cold), 'first_s': [round(s, 2) for s in first],
        'loss': losses[0], 'loss_last': losses[-1],
        'peak_gb': torch.cuda.max_memory_allocated(device) / 2**30 if gpu else None,
    }  # fmt: skip


def packed_loss(backbone: Any, row: Row) -> Tensor:
    """As `VoiceTextBlender` computes it."""
    from nemo_vtb.model.loss import row_nll

    # the input has a gradient, as it has where an encoder is trained
    embeds = backbone.embed(row.ids).detach().requires_grad_(True)
    hidden = backbone.forward(embeds, row.position_ids, row.cu_seqlens, max(row.lengths))
    return row_nll(hidden, row.labels, backbone.nll).mean()


def padded_loss(llm: nn.Module, row: Row) -> Tensor:
    """One conversation a line, logits everywhere."""
    pad = nn.utils.rnn.pad_sequence
    ids = pad(list(row.ids.split(row.lengths)), batch_first=True)  # (B, T)
    labels = pad(list(row.labels.split(row.lengths)), batch_first=True, padding_value=-100)
    mask = pad([torch.ones(n, dtype=torch.long, device=ids.device) for n in row.lengths], batch_first=True)
    embeds = llm.get_input_embeddings()(ids).detach().requires_grad_(True)
    logits = llm(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def megatron_ways(gpu: bool) -> dict[str, dict[str, Any]]:
    """All kernels that are here, then the fastest without each fusion (on a CPU: with what can be fused there)."""
    from nemo_vtb.backbone.megatron.layers import FUSIONS, usable_kernels

    there = usable_kernels()
    ways: dict[str, dict[str, Any]] = {f'Megatron, {name}': {'kernels': name} for name in there}
    if not gpu:
        return ways | {'Megatron, fused': {'kernels': 'torch', 'fusions': FUSIONS[:2]}}
    for left_out in FUSIONS:
        kept = [name for name in FUSIONS if name != left_out]
        ways[f'Megatron, {there[0]} without {left_out}'] = {'kernels': there[0], 'fusions': kept}
    return ways


def megatron_backbone(config: Any, weights: dict[str, Tensor], plan: Plan, **options: Any) -> Any:
    """Our Megatron backbone with these kernels."""
    from nemo_vtb.backbone.megatron import convert, lora, runtime
    from nemo_vtb.backbone.megatron.model import MegatronBackbone

    ranks = runtime.tp_size()
    backbone = MegatronBackbone(config, dtype=plan.dtype, sequence_parallel=ranks > 1, **options)
    convert.load_weights(
        backbone.gpt, weights, backbone.family, backbone.geometry,
        rank=runtime.tp_rank(), ranks=ranks, tied=backbone.tied,
    )  # fmt: skip
    lora.add_lora(backbone.gpt, backbone.geometry, r=LORA['r'], alpha=LORA['lora_alpha'], targets='all-linear')
    return backbone.to(plan.device).train()


def measure_megatron(backbone: Any, rows: Sequence[Row], plan: Plan) -> dict[str, Any]:
    """A training step of it."""
    from megatron_cases import sum_partial_gradients

    return measure(
        backbone, lambda row: packed_loss(backbone, row), rows, plan.device, lambda: sum_partial_gradients(backbone)
    )


def hugging_face_ways(llm: Any, rows: Sequence[Row], plan: Plan) -> dict[str, Callable[[], dict[str, Any]]]:
    """The HF backbone on a packed row, and a padded batch."""
    from peft import LoraConfig, get_peft_model

    from nemo_vtb.backbone.attention import IMPLEMENTATION, register
    from nemo_vtb.backbone.hf import HFBackbone

    register()
    # LoRA in the type of the weights, as Megatron's here
    tuned = get_peft_model(llm.to(plan.device), LoraConfig(**LORA), autocast_adapter_dtype=False).train()

    def run(attention: str, loss_of: Callable[[Row], Tensor]) -> dict[str, Any]:
        llm.set_attn_implementation(attention)
        with torch.no_grad():  # back to the start, where LoRA is nothing
            for factor in (p for name, p in tuned.named_parameters() if '.lora_B.' in name):
                factor.zero_()
        return measure(tuned, loss_of, rows, plan.device, lambda: None)

    backbone = HFBackbone(tuned, llm.model.embed_tokens)

    return {
        'HF backbone': lambda: run(IMPLEMENTATION, lambda row: packed_loss(backbone, row)),
        'padded batch': lambda: run('sdpa', lambda row: padded_loss(tuned, row)),
    }


def measure_shape(name: str, family: str, sizes: dict[str, int], plan: Plan, rate: float) -> list[dict[str, Any]]:
    """All ways of one shape."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **sizes, max_position_embeddings=8192, tie_word_embeddings=family == 'gemma')
    rows = [make_row(plan.tokens, plan.mean_length, config.vocab_size, plan.device, seed) for seed in range(plan.rows)]
    torch.manual_seed(0)
    with plan.device:
        llm = AutoModelForCausalLM.from_config(config, dtype=plan.dtype)
    llm.cpu()  # so that it is not counted with the others
    weights = llm.state_dict()
    timed_rows = rows[2:]
    flops = statistics.mean(useful_flops(config, row) for row in timed_rows) / int(os.environ.get('WORLD_SIZE', 1))
    found: list[dict[str, Any]] = []

    def note(way: str, run: Callable[[], dict[str, Any]]) -> None:
        try:
            figures = run()
        except (RuntimeError, ImportError, AssertionError, TypeError, ValueError, AttributeError, KeyError) as error:
            # out of memory, or a kernel that does not run here: the others are measured all the same
            what = f'{type(error).__name__}: {str(error)[:300]}'
            figures = {'step_s': None, 'cold_s': None, 'loss': None, 'peak_gb': None, 'error': what}
        gc.collect()
        if plan.device.type == 'cuda':
            torch.cuda.empty_cache()
        if seconds := figures['step_s']:
            tflops = flops / seconds / 1e12
            figures |= {'tokens_per_s': plan.tokens / seconds, 'tflops': tflops, 'mfu': tflops / rate}
        found.append({'shape': name, 'way': way, **figures})

    for way, options in megatron_ways(plan.device.type == 'cuda').items():
        note(way, lambda o=options: measure_megatron(megatron_backbone(config, weights, plan, **o), rows, plan))
    for way, run in hugging_face_ways(llm, rows, plan).items():
        note(way, run)
    return found


def report(plan: Plan, rate: float, rows: Sequence[dict[str, Any]]) -> int:
    """The table, and the line of figures: of the fastest Megatron way of the last shape."""
    gpu = torch.cuda.get_device_name(plan.device) if plan.device.type == 'cuda' else None
    table = Table(title=f'{gpu or "CPU, small shapes: a test of this script"}; matrix products: {rate:.1f} TFLOP/s')
    for column in ('shape', 'way', 's a step', 'new lengths', 'tokens/s', 'TFLOP/s', 'share', 'GB', 'loss'):
        table.add_column(column)
    for r in rows:
        if r['step_s'] is None:
            table.add_row(r['shape'], r['way'], r['error'][:40])
            continue
        numbers = (
            f'{r["step_s"]:.3f}',
            f'{r["cold_s"]:.3f}',
            f'{r["tokens_per_s"]:,.0f}',
            f'{r["tflops"]:.2f}',
            f'{r["mfu"]:.0%}',
        )
        memory = '-' if r['peak_gb'] is None else f'{r["peak_gb"]:.1f}'
        table.add_row(r['shape'], r['way'], *numbers, memory, f'{r["loss"]:.4f}')
    Console(width=110).print(table)
    ran = [r for r in rows if r['step_s'] is not None]
    agree = all(
        abs(r['loss'] - first['loss']) <= plan.tolerance * abs(first['loss'])
        for r in ran for first in ran if first['shape'] == r['shape']
    )  # fmt: skip
    ours = [r for r in ran if r['way'].startswith('Megatron')]
    best = [max((r for r in ours if r['shape'] == name), key=lambda r: r['mfu'], default=None) for name in plan.shapes]
    fast = plan.shapes is SMALL or all(r is not None and r['mfu'] >= GOAL_MFU for r in best)
    if gpu is None:
        print('There is no GPU here: this run says that the script works, and nothing about speed.')
    figures = {key: best[-1][key] if best[-1] else None for key in ('tflops', 'mfu', 'tokens_per_s', 'peak_gb')}
    line = {'benchmark': 'megatron_gpu', 'ok': bool(agree and fast and all(best)), 'gpu': gpu, 'matmul_tflops': rate}
    print(json.dumps(line | figures | {'losses_agree': agree, 'rows': rows}))
    return 0 if line['ok'] else 1


def main() -> int:
    """Measure every shape in every way that runs here; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--quick', action='store_true', help='small shapes; a test of this script')
    size.add_argument('--full', action='store_true', help='Gemma 2B and Llama 8B (the default on a GPU)')
    plan = plan_for(parser.parse_args().quick)
    from nemo_vtb.backbone.megatron import runtime

    if plan.device.type == 'cuda':
        torch.cuda.set_device(plan.device)
    runtime.initialize(int(os.environ.get('WORLD_SIZE', 1)))
    rate = matmul_rate(plan)
    rows = [r for name, (family, sizes) in plan.shapes.items() for r in measure_shape(name, family, sizes, plan, rate)]
    return report(plan, rate, rows) if runtime.tp_rank() == 0 else 0


if __name__ == '__main__':
    sys.exit(main())
