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
"""FSDP2 of a frozen Hugging Face decoder: each rank keeps a part of each layer, and gathers a layer to run it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard


def shard_decoder(decoder: nn.Module, mesh: DeviceMesh) -> None:
    """Spread the frozen weights of a decoder over the ranks, layer by layer.

    Args:
        decoder: With `layers`; its trained parameters stay as they are.
        mesh: The data-parallel ranks.
    """
    trained = {parameter for parameter in decoder.parameters() if parameter.requires_grad}
    layers: Any = decoder.layers
    for module in (*layers, decoder):
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=trained)


@contextmanager
def kept_whole(decoder: nn.Module) -> Iterator[None]:
    """Gather a decoder once, for passes that not all ranks run equally often (validation, answers)."""
    parts = [module for module in decoder.modules() if isinstance(module, FSDPModule)]

    def keep(whole: bool) -> None:
        # what is made in inference mode could not be trained on afterwards
        with torch.inference_mode(False), torch.no_grad():
            for part in parts:
                part.set_reshard_after_forward(not whole, recurse=False)
                part.unshard() if whole else part.reshard()

    keep(True)
    try:
        yield
    finally:
        keep(False)
