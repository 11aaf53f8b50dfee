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
"""Step `env`: versions, the ceilings of the device, what can be imported, process groups."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import time

import torch

from gpu.results import DEVICE, GPU, HALF, attempt, matmul_tflops, note, synchronize, timed

PACKAGES = """torch triton transformers peft lightning pytorch-lightning numpy safetensors tokenizers megatron-core
    liger-kernel transformer-engine transformer-engine-cu13 transformer-engine-torch nemo-toolkit lhotse omegaconf
    hydra-core nvidia-cudnn-cu13 nvidia-nccl-cu13 soundfile librosa pytest""".split()
IMPORTS = (
    'liger_kernel.megatron', 'transformer_engine.pytorch', 'megatron.core.extensions.transformer_engine',
    'nemo_vtb.training.run', 'nemo_vtb.backbone.megatron.model', 'pytest',
)  # fmt: skip


def run() -> None:
    """Note all of it."""
    with attempt('env.versions') as found:
        for name in PACKAGES:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = None
        found |= {'python': sys.version.split()[0], 'cuda': torch.version.cuda, 'cpus': os.cpu_count()}
        found |= {tool: shutil.which(tool) for tool in ('gcc', 'g++', 'nvcc', 'ninja')}
    with attempt('env.gpu') as found:
        if GPU:
            p = torch.cuda.get_device_properties(0)
            found |= {'name': p.name, 'memory_gb': p.total_memory / 2**30, 'sms': p.multi_processor_count}
            found['cudnn'] = torch.backends.cudnn.version()
            smi = 'nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,power.draw --format=csv,noheader'
            found['smi'] = subprocess.run(smi.split(), capture_output=True, text=True).stdout.strip()
    ceilings()
    imports()
    with attempt('env.groups') as found:
        import torch.distributed as dist

        from nemo_vtb.backbone.megatron import runtime

        runtime.initialize(1, device=DEVICE)
        from nemo_vtb.backbone.megatron.layers import usable_kernels

        x = torch.ones(4, device=DEVICE)
        dist.all_reduce(x, group=runtime.tp_group())
        dist.all_gather_object([None], 'a')
        dist.barrier()
        states = {name: list(state.shape) for name, state in runtime.generator_states().items()}
        found |= {'backend': dist.get_backend(), 'kernels': usable_kernels(), 'te_refusal': runtime.te_refusal}
        found['generators'] = states


def ceilings() -> None:
    """Matrix products, memory, launches, copies, FP8, the compiler."""
    with attempt('env.ceilings') as found:
        found['bf16_tflops'] = matmul_tflops()
        a = torch.randn(2**29 if GPU else 2**19, device=DEVICE).view(HALF)
        b = torch.empty_like(a)
        found['copy_tb_per_s'] = 2 * a.numel() * 2 / timed(lambda: b.copy_(a)) / 1e12
        small = torch.zeros(16, device=DEVICE)
        found['launch_us'] = timed(lambda: [small.add_(1) for _ in range(1000)], 5) * 1e3
        if GPU:
            host = torch.empty(2**28, dtype=torch.uint8)
            pinned = host.pin_memory()
            found['h2d_gb_per_s'] = host.numel() / timed(lambda: host.to(DEVICE), 3) / 1e9
            found['h2d_pinned_gb_per_s'] = host.numel() / timed(lambda: pinned.to(DEVICE), 3) / 1e9
    with attempt('env.fp8') as found:
        if GPU:
            x = torch.randn(8192, 8192, device=DEVICE).to(torch.float8_e4m3fn)
            one = torch.ones((), device=DEVICE)
            t = timed(lambda: torch._scaled_mm(x, x.t(), one, one, out_dtype=HALF))
            found['fp8_tflops'] = 2 * 8192**3 / t / 1e12
    with attempt('env.compile') as found:
        f = torch.compile(lambda x: torch.nn.functional.silu(x) * x, dynamic=True)
        begin = time.time()
        x = torch.randn(64, 64, device=DEVICE, requires_grad=True)
        f(x).sum().backward()
        synchronize()
        found['first_compile_s'] = time.time() - begin


def imports() -> None:
    """All at once, each in a process of its own: some take seconds."""
    # torch first: Transformer Engine finds NCCL and cuDNN among the libraries that it has loaded
    code = 'import time; t = time.time(); import torch, {}; print(round(time.time() - t, 1))'
    options = {'text': True, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    alone = {**os.environ, 'OMP_NUM_THREADS': '1'}
    running = [
        subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code.format(name)], env=alone, **options)
        for name in IMPORTS
    ]
    for name, process in zip(IMPORTS, running, strict=True):
        out, problems = process.communicate()
        last = problems.strip().splitlines()[-1:] if process.returncode else []
        note('env.import', module=name, ok=not process.returncode, s=out.strip()[-6:], why=last)
