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
"""The LLM behind one protocol: packed rows in, hidden states out; the vocabulary is reached on request."""

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Backbone(Protocol):
    """What the speech LLM needs of a language model (letters: T row length, H width, n positions, V vocabulary)."""

    hidden_size: int
    """H, also the width that the perception module must produce."""

    def embed(self, ids: Tensor) -> Tensor:
        """(T,) token ids to (T, H), at the scale at which the LLM reads them (Gemma multiplies by sqrt(H))."""

    def forward(self, embeds: Tensor, position_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """(T, H) of a packed row to hidden states (T, H); attention is causal and never crosses `cu_seqlens`."""

    def head(self, hidden: Tensor) -> Tensor:
        """(n, H) to logits (n, V), with the LLM's own soft-capping."""

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """(n, H) and the tokens (n,) that must follow to their negative log-likelihoods (n,), float32."""

    def score(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As `nll`, and whether the most likely token is the target: (n,) bool. Without gradients."""

    def without_lora(self) -> AbstractContextManager:
        """The untouched base LLM, as long as the context is open."""

    def lora_state(self) -> dict[str, Tensor]:
        """LoRA weights under the names that PEFT gives them on the Hugging Face model."""

    def load_lora(self, state: dict[str, Tensor]) -> None:
        """Load what `lora_state` gave, on whatever backbone; every key must fit."""
