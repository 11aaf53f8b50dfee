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
"""Switches between ways of computing the same, for comparisons; the product itself takes the fastest that is there."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch


@contextmanager
def by_loop(*, cudnn: bool = False) -> Iterator[None]:
    """Attention by a call for each conversation, as on CPUs.

    Args:
        cudnn: With cuDNN, which torch prefers on Hopper and which builds a plan for each new length.
    """
    from nemo_vtb.backbone import attention
    from nemo_vtb.backbone.megatron import layers

    def no(*args: Any, **options: Any) -> bool:
        return False

    with ExitStack() as stack:
        for module in (attention, layers):
            stack.enter_context(patch.object(module, 'takes_whole_rows', no))
        if cudnn:
            stack.enter_context(patch.object(attention, 'kernels_for_any_length', lambda query: nullcontext()))
        yield


@contextmanager
def cudnn_allowed(allowed: bool) -> Iterator[None]:
    """Whether torch may take cuDNN where it chooses by itself, as for the padded batch."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(allowed)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
