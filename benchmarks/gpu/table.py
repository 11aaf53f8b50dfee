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
"""Steps `table`, `rows`, `ablate` and `profile`: seconds of the LLM's training step, every way that runs here.

Ways: `te`, `te-fp8`, `liger` and `torch` are Megatron with these kernels, `liger-loop` without the variable-length
kernel; `hf` is the Hugging Face backbone as it is on this device, `hf-plain` without Liger, `hf-loop` with a call a
conversation, `hf-cudnn` the same with cuDNN, which torch prefers on Hopper; `padded` is a batch as NeMo's SALM has it,
`padded-cudnn` the same with torch's preference.
"""

import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import megatron_gpu as bench
import torch
from torch import Tensor, nn

from gpu.results import DEVICE, GPU, attempt, free, matmul_tflops, note
from gpu.ways import by_loop, cudnn_allowed

MEGATRON = {'te': {}, 'te-fp8': {'kernels': 'te', 'fp8': 'hybrid'}, 'liger': {}, 'liger-loop': {'kernels': 'liger'},
            'torch': {}}  # fmt: skip
WAYS = (*MEGATRON, 'hf', 'hf-plain', 'hf-loop', 'hf-cudnn', 'padded', 'padded-cudnn')
Figures = dict[str, Any]


class Shape:
    """One LLM, its rows, and how many FLOPs a row needs."""

    def __init__(self, name: str, plan: Any, rate: float) -> None:
        from transformers import AutoConfig

        family, sizes = plan.shapes[name]
        tied = family == 'gemma'
        self.name, self.plan, self.rate = name, plan, rate
        self.config = AutoConfig.for_model(family, **sizes, max_position_embeddings=32768, tie_word_embeddings=tied)
        options = (plan.mean_length, self.config.vocab_size, DEVICE)
        self.rows = [bench.make_row(plan.tokens, *options, seed) for seed in range(plan.rows)]
        self.flops = statistics.mean(bench.useful_flops(self.config, row) for row in self.rows[2:])

    def random_llm(self) -> Any:
        """The same weights for every way."""
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        with DEVICE:
            return AutoModelForCausalLM.from_config(self.config, dtype=self.plan.dtype)

    def megatron(self, **options: Any) -> tuple[Any, Callable[[], Figures]]:
        """The Megatron backbone and what measures it."""
        llm = self.random_llm()
        backbone = bench.megatron_backbone(self.config, llm.state_dict(), self.plan, **options)
        del llm
        free()
        return backbone, lambda: bench.measure_megatron(backbone, self.rows, self.plan)

    def hugging_face(self, padded: bool, plain: bool = False) -> tuple[Any, Callable[[], Figures]]:
        """The Hugging Face backbone (`plain`: without Liger) or a padded batch of the same, and what measures it."""
        from peft import LoraConfig, get_peft_model

        from nemo_vtb.backbone.attention import IMPLEMENTATION, register
        from nemo_vtb.backbone.fused_lora import fuse_lora
        from nemo_vtb.backbone.hf import HFBackbone
        from nemo_vtb.backbone.liger import Kernels, has_liger

        register()
        llm = self.random_llm()
        tuned = get_peft_model(llm, LoraConfig(**bench.LORA), autocast_adapter_dtype=False).train()
        llm.set_attn_implementation('sdpa' if padded else IMPLEMENTATION)
        backbone = HFBackbone(tuned, llm.model.embed_tokens)
        if not padded:
            fuse_lora(tuned)
            if GPU and has_liger() and not plain:
                backbone.take(Kernels.installed())

        def loss_of(row: Any) -> Tensor:
            return bench.padded_loss(tuned, row) if padded else bench.packed_loss(backbone, row)

        return backbone, lambda: bench.measure(tuned, loss_of, self.rows, DEVICE, lambda: None)

    def figures(self, measured: Figures) -> Figures:
        """With rates: of useful tokens, and as a share of the matrix products of this run."""
        step, cold = measured['step_s'], measured['cold_s']
        return measured | {
            'tokens_per_s': self.plan.tokens / step,
            'tflops': self.flops / step / 1e12,
            'mfu': self.flops / step / 1e12 / self.rate,
            'cold_mfu': self.flops / cold / 1e12 / self.rate,
        }


def make(shape: Shape, way: str, **more: Any) -> tuple[Any, Callable[[], Figures]]:
    """The model of a way and what measures it."""
    if way in MEGATRON:
        return shape.megatron(**{'kernels': way, **MEGATRON[way], **more})
    return shape.hugging_face(way.startswith('padded'), plain=way == 'hf-plain')


def switches(way: str) -> Any:
    """What is changed while a way runs."""
    if way.endswith(('-loop', '-cudnn')) and not way.startswith('padded'):
        return by_loop(cudnn=way.endswith('-cudnn'))
    return nullcontext()


def shapes_for(names: Sequence[str] | None, tokens: int | None) -> list[Shape]:
    """The shapes that were asked for, all by default."""
    from nemo_vtb.backbone.megatron import runtime

    runtime.initialize(1, device=DEVICE)
    plan = replace(bench.plan_for(not GPU), device=DEVICE)
    if tokens:
        plan = replace(plan, tokens=tokens if GPU else 1024)
    rate = matmul_tflops()
    note('table.rate', tflops=rate, gpu=torch.cuda.get_device_name(0) if GPU else None)
    chosen = [n for n in plan.shapes if not names or any(s.lower() in n.lower() for s in names)]
    return [Shape(name, plan, rate) for name in chosen]


def usable(ways: Sequence[str]) -> list[str]:
    """Without those whose kernels a CPU cannot have, in a rehearsal."""
    from nemo_vtb.backbone.megatron.layers import usable_kernels

    there = usable_kernels()
    kernels = {way: MEGATRON[way].get('kernels', way) for way in MEGATRON}
    return [way for way in ways if GPU or kernels.get(way, 'torch') in there]


def run(ways: Sequence[str], names: Sequence[str] | None = None, tokens: int | None = None) -> None:
    """The table: a line as soon as it is there, an error a line too."""
    for shape in shapes_for(names, tokens):
        for way in usable(ways):
            sizes = {'tokens': shape.plan.tokens, 'conversations': len(shape.rows[0].lengths)}
            with (
                attempt('table', shape=shape.name, way=way, **sizes) as found,
                cudnn_allowed(way.endswith('-cudnn')),
                switches(way),
            ):
                model, work = make(shape, way)
                found['kernels'] = getattr(getattr(model, 'kernels', None), 'names', None)
                found |= shape.figures(work())
                if way.startswith('padded'):
                    lengths = shape.rows[0].lengths
                    found['fill'] = sum(lengths) / (len(lengths) * max(lengths))
            model = work = None  # before the next is made
            free()


def ablate(way: str, names: Sequence[str] | None = None) -> None:
    """One set of Megatron's kernels without each fusion."""
    from nemo_vtb.backbone.megatron.layers import FUSIONS

    way, fusions = (way, FUSIONS) if GPU else ('torch', FUSIONS[:2])
    for shape in shapes_for(names, None):
        for left_out in fusions:
            with attempt(
                'table', shape=shape.name, way=f'{way} without {left_out}', tokens=shape.plan.tokens
            ) as found:
                _, work = make(shape, way, fusions=[name for name in fusions if name != left_out])
                found |= shape.figures(work())
            work = None
            free()


def profile(ways: Sequence[str], names: Sequence[str] | None = None) -> None:
    """The operations that take most of a step; the trace of each way goes to a file for a picture."""
    from gpu.results import OUT

    for shape in shapes_for(names, None):
        for way in usable(ways):
            with attempt('profile', shape=shape.name, way=way) as found, switches(way):
                model, work = make(shape, way)
                figures = work()
                found['step_s'] = figures['step_s']
                found |= _profiled(model, shape.rows[0], str(OUT / f'trace-{way}.json.gz') if GPU else None)
            model = work = None
            free()


def _profiled(backbone: Any, row: Any, trace: str | None) -> Figures:
    from torch.profiler import ProfilerActivity

    trained: nn.Module = backbone if isinstance(backbone, nn.Module) else backbone.salm_modules['llm']
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if GPU else [])]
    with torch.profiler.profile(activities=kinds) as found:
        bench.packed_loss(backbone, row).backward()
        if GPU:
            torch.cuda.synchronize()
    trained.zero_grad(set_to_none=True)
    if trace:
        found.export_chrome_trace(trace)
    key = 'self_device_time_total' if GPU else 'self_cpu_time_total'
    events = sorted(found.key_averages(), key=lambda e: -getattr(e, key, 0))
    total = sum(getattr(e, key, 0) for e in events)
    top = [[e.key[:70], round(getattr(e, key, 0) / 1e3, 2), e.count] for e in events[:25]]
    return {'total_ms': round(total / 1e3, 2), 'top': top}
