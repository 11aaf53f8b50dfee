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
"""Step `ops`: attention on a packed row, the loss, the norm; error against float32, time of forward and backward."""

from collections.abc import Callable
from typing import Any

import torch
from megatron_gpu import Row, make_row
from torch import Tensor, nn

from gpu.results import DEVICE, GPU, HALF, attempt, error_of, free, seconds_of, timed
from gpu.ways import by_loop

SHAPES = {'Gemma 2B': (8, 1, 256), 'Llama 8B': (32, 8, 128), 'SmolLM2 135M': (9, 3, 64)}
"""Heads, key-value heads, width of a head."""
Attend = Callable[[Tensor, Tensor, Tensor, Row], Tensor]


def run() -> None:
    """Note all of it."""
    tokens, length = (8192, 350) if GPU else (256, 40)
    rows = [make_row(tokens, length, 512, DEVICE, seed) for seed in (0, 1)]  # of different lengths
    for name, sizes in (SHAPES if GPU else {'small': (4, 2, 32)}).items():
        attentions(name, rows, *sizes)
        free()
    losses()
    norms()


def attention_ways(heads: int, kv: int, dim: int) -> dict[str, Attend]:
    """Every attention on packed rows: (T, heads, D) on (T, KV heads, D) to (T, heads, D)."""
    from nemo_vtb.backbone.attention import Borders, attend_row, attention

    core: list[Any] = []

    def product(q: Tensor, k: Tensor, v: Tensor, row: Row) -> Tensor:
        four = [x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)]
        borders = Borders.of(row.cu_seqlens, max(row.lengths), DEVICE)
        return attention(nn.Module(), *four, None, borders=borders)[0][0]

    def loop(q: Tensor, k: Tensor, v: Tensor, row: Row, *, cudnn: bool = False) -> Tensor:
        with by_loop(cudnn=cudnn):
            return product(q, k, v, row)

    def repeated(q: Tensor, k: Tensor, v: Tensor, row: Row) -> Tensor:
        k, v = (x.repeat_interleave(heads // kv, 1) for x in (k, v))
        return attend_row(q, k, v, row.cu_seqlens.to(DEVICE), max(row.lengths))

    def te(q: Tensor, k: Tensor, v: Tensor, row: Row) -> Tensor:
        import transformer_engine.pytorch as tep

        kind = {'qkv_format': 'thd', 'attn_mask_type': 'padding_causal'}
        if not core:
            core.append(tep.DotProductAttention(heads, dim, kv, attention_dropout=0.0, **kind))
        borders, longest = row.cu_seqlens.to(DEVICE), max(row.lengths)
        sizes = {'cu_seqlens_q': borders, 'cu_seqlens_kv': borders, 'max_seqlen_q': longest, 'max_seqlen_kv': longest}
        return core[0](q, k, v, **kind, **sizes).view(q.shape)

    ways: dict[str, Attend] = {'loop, float32': loop, 'product': product, 'loop': loop}
    if GPU:
        ways |= {'loop, cuDNN': lambda *args: loop(*args, cudnn=True), 'repeated heads': repeated, 'te': te}
    return ways


def attentions(name: str, rows: list[Row], heads: int, kv: int, dim: int) -> None:
    """Each way on a row that it has seen and on one of new lengths."""
    one, other = rows
    torch.manual_seed(0)
    tokens = int(one.cu_seqlens[-1])
    base = [torch.randn(tokens, n, dim, device=DEVICE) for n in (heads, kv, kv)]
    grad = torch.randn(tokens, heads, dim, device=DEVICE)
    expected: list[Tensor] = []

    def both(f: Attend, row: Row, dtype: torch.dtype) -> list[Tensor]:
        q, k, v = (x.detach().to(dtype, copy=True).requires_grad_(True) for x in base)
        out = f(q, k, v, row)
        out.backward(grad.to(dtype))
        return [out.detach(), q.grad, k.grad, v.grad]

    for way, f in attention_ways(heads, kv, dim).items():
        with attempt('ops.attention', shape=name, way=way, tokens=tokens) as found:
            dtype = torch.float32 if 'float32' in way else HALF
            got = both(f, one, dtype)
            expected = expected or got
            found['errors'] = [error_of(a, b) for a, b in zip(got, expected, strict=True)]
            found['ms'] = timed(lambda f=f, t=dtype: both(f, one, t), 5, 1) * 1e3
            found['cold_ms'] = seconds_of(lambda f=f, t=dtype: both(f, other, t)) * 1e3
            flops = 3.5 * 2 * sum(n * n for n in one.lengths) * heads * dim
            found['tflops'] = flops / found['ms'] / 1e9


def loss_ways(targets: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Every cross-entropy: logits (n, V) to (n,)."""
    from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    from nemo_vtb.backbone.megatron import runtime

    group = runtime.tp_group()

    def liger(x: Tensor) -> Tensor:
        from liger_kernel.megatron import LigerMegatronCrossEntropy

        return LigerMegatronCrossEntropy()(x.unsqueeze(1), targets.unsqueeze(1), group).squeeze(1)

    def te(x: Tensor) -> Tensor:
        from megatron.core.extensions.transformer_engine import te_parallel_cross_entropy

        return te_parallel_cross_entropy(x.unsqueeze(1), targets.unsqueeze(1), group).squeeze(1)

    ways = {
        'float32, torch': lambda x: nn.functional.cross_entropy(x.float(), targets, reduction='none'),
        'megatron': lambda x: vocab_parallel_cross_entropy(x, targets),
    }
    if GPU:  # the compiler would take most of a rehearsal
        ways |= {'megatron fused': lambda x: fused_vocab_parallel_cross_entropy(x, targets, group)}
        ways |= {'liger': liger, 'te': te}
    return ways


def losses() -> None:
    """A chunk of the vocabulary."""
    from nemo_vtb.backbone.megatron import runtime

    runtime.initialize(1, device=DEVICE)
    rows, vocab = (1024, 256000) if GPU else (16, 512)
    torch.manual_seed(0)
    base = torch.randn(rows, vocab, device=DEVICE, dtype=HALF)
    weight = torch.rand(rows, device=DEVICE)
    expected: list[Tensor] = []

    def both(f: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
        x.grad = None
        loss = f(x * 1.0)  # some overwrite their input
        (loss.float() * weight).sum().backward()
        return [loss.detach(), x.grad / weight[:, None].to(HALF)]

    for way, f in loss_ways(torch.randint(0, vocab, (rows,), device=DEVICE)).items():
        with attempt('ops.loss', way=way) as found:
            x = base.clone().requires_grad_(True)
            got = both(f, x)
            expected = expected or got
            found['errors'] = [error_of(a, b) for a, b in zip(got, expected, strict=True)]
            before = torch.cuda.memory_allocated() if GPU else 0
            if GPU:
                torch.cuda.reset_peak_memory_stats()
            found['ms'] = timed(lambda f=f, x=x: both(f, x), 5) * 1e3
            found['extra_mb'] = (torch.cuda.max_memory_allocated() - before) / 2**20 if GPU else None


def norms() -> None:
    """The norm of a row, Llama's and Gemma's way."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    from nemo_vtb.backbone.megatron import layers

    tokens, width = (8192, 4096) if GPU else (32, 64)
    x0, grad = (torch.randn(tokens, 1, width, device=DEVICE) for _ in range(2))

    def both(norm: nn.Module, x: Tensor) -> list[Tensor]:
        x.grad = None
        y = norm(x)
        y.backward(grad.to(y.dtype))
        return [y.detach(), x.grad]

    for zero_centred in (False, True):
        expected: list[Tensor] = []
        for way in ('float32', 'torch', *(('liger', 'te') if GPU else ())):
            with attempt('ops.norm', way=way, zero_centred=zero_centred) as found:
                dtype = torch.float32 if way == 'float32' else HALF
                config = TransformerConfig(
                    num_layers=1, hidden_size=width, num_attention_heads=4, normalization='RMSNorm',
                    params_dtype=dtype, layernorm_zero_centered_gamma=zero_centred, use_cpu_initialization=not GPU,
                )  # fmt: skip
                norm = layers._modules_of('torch' if way == 'float32' else way).norm(config, width, 1e-6).to(DEVICE)
                found['weight'] = str(norm.weight.dtype)[6:]
                x = x0.detach().to(dtype, copy=True).requires_grad_(True)
                got = both(norm, x)
                expected = expected or got
                found['errors'] = [error_of(a, b) for a, b in zip(got, expected, strict=True)]
                found['ms'] = timed(lambda norm=norm, x=x: both(norm, x), 10) * 1e3
