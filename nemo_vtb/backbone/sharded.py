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
"""FSDP2 for the Hugging Face backbone: each rank keeps a part of the frozen LLM, and gathers a layer to run it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from nemo_vtb.backbone.hf import HFBackbone
from nemo_vtb.backbone.names import base_weights

if TYPE_CHECKING:
    from nemo_vtb.backbone.spec import BackboneSpec


class ShardedHFBackbone(HFBackbone):
    """The decoder layers of a frozen LLM spread over the data-parallel ranks; LoRA, embedding and head are whole.

    How often embedding and head run differs from rank to rank, and a rank that gathers alone would wait forever.
    """

    deferred = True
    _source: str

    @classmethod
    def check(cls, spec: 'BackboneSpec') -> None:
        """Refuse an LLM without weights, or one that is trained itself.

        Raises:
            VtbConfigError: It is one of them.
        """
        spec.require_weights('trainer.strategy=fully_sharded')
        spec.require_frozen()

    @classmethod
    def build(
        cls,
        spec: 'BackboneSpec',
        *,
        dtype: torch.dtype = torch.float32,
        mesh: DeviceMesh | None = None,
        **options: Any,
    ) -> 'ShardedHFBackbone':
        """Load the LLM, freeze it, and spread it over `mesh`, the data-parallel ranks."""
        backbone = super().build(spec, dtype=dtype)
        assert isinstance(backbone, ShardedHFBackbone)
        backbone._source = spec.source
        for name, parameter in backbone._llm.named_parameters():
            parameter.requires_grad_('.lora_' in name)
        if dtype != torch.float32:
            backbone._llm.to(dtype)  # before it is cut: Lightning does so with the rest
        shard_decoder(backbone.decoder, mesh)
        return backbone

    def frozen_weights(self) -> dict[str, Tensor]:
        """The untouched LLM as its folder has it: each rank holds a part of it."""
        return base_weights(self._source, self.lora_state())

    def idle_pass(self, device: torch.device) -> Tensor:
        """Run one token: the others wait for this rank's parts of the layers."""
        one = torch.zeros(1, dtype=torch.int64, device=device)
        borders = torch.tensor([0, 1], dtype=torch.int32, device=device)
        return (self.forward(self.embed(one), one, borders, 1) * 0.0).sum()

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Gather the decoder once, and give it back at the end."""
        parts = [module for module in self.decoder.modules() if isinstance(module, FSDPModule)]

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


def shard_decoder(decoder: nn.Module, mesh: DeviceMesh | None) -> None:
    """Spread the frozen weights of a decoder over the ranks, layer by layer.

    Args:
        decoder: With `layers`; its trained parameters stay as they are.
        mesh: The data-parallel ranks.
    """
    trained = {parameter for parameter in decoder.parameters() if parameter.requires_grad}
    layers: Any = decoder.layers
    for module in (*layers, decoder):
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
