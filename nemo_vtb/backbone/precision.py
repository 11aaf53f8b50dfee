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
"""In which type a device multiplies, and which `trainer.precision` that makes the best one."""

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def multiplies_bfloat16(device_type: str) -> bool:
    """Whether a kind of device has instructions for products of bfloat16 matrices, not an emulation of them.

    Args:
        device_type: 'cuda' or 'cpu': AVX-512 BF16 or AMX there.
    """
    if device_type == 'cuda':
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != 'cpu':
        return False
    # torch has no public question for it in all the versions that we admit
    questions = (getattr(torch.cpu, name, None) for name in ('_is_avx512_bf16_supported', '_is_amx_tile_supported'))
    return any(question is not None and question() for question in questions)


def resolve_precision(precision: str, accelerator: str) -> str:
    """`trainer.precision`, `auto` replaced by what the device has: bf16-mixed, else 32-true.

    Args:
        precision: As configured.
        accelerator: `trainer.accelerator`: 'cpu', 'gpu', 'cuda', or 'auto' for a GPU where there is one.
    """
    if precision != 'auto':
        return precision
    on_gpu = accelerator in ('gpu', 'cuda') or (accelerator == 'auto' and torch.cuda.is_available())
    return 'bf16-mixed' if multiplies_bfloat16('cuda' if on_gpu else 'cpu') else '32-true'


def product_dtype(x: Tensor) -> torch.dtype:
    """The type in which products with a tensor are computed: that of autocast where it is on, else its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def computes_in_half(x: Tensor) -> bool:
    """Whether products with a tensor are computed in float16 or bfloat16."""
    return product_dtype(x) in HALF
