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
"""The LLM behind one contract: packed rows in, hidden states out; the vocabulary is reached on request.

Letters: T row length, H width, n positions, V vocabulary, B batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nemo_vtb.errors import VtbCheckpointError

if TYPE_CHECKING:
    from nemo_vtb.backbone.spec import BackboneSpec


class Backbone(ABC):
    """What the speech LLM needs of a language model, however it is spread over the ranks.

    All ranks that hold one LLM call everything together, with the same arguments, and get the same results.
    """

    deferred: ClassVar[bool] = False
    """Whether the ranks must know one another before it can be built (`configure_model`)."""

    hidden_size: int
    """H, also the width that the perception module must produce."""

    clip_group: dist.ProcessGroup | None = None
    """The ranks that share the clips of a row; None where each encodes all clips of its rows."""

    # ---- construction

    @classmethod
    def check(cls, spec: 'BackboneSpec') -> None:
        """Refuse, before anything is launched, what this backbone cannot train.

        Raises:
            VtbConfigError: The configuration asks for more than it has.
            VtbModelError: A package is missing.
        """
        return

    @classmethod
    @abstractmethod
    def build(
        cls,
        spec: 'BackboneSpec',
        *,
        dtype: torch.dtype = torch.float32,
        lora_dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> 'Backbone':
        """Read the weights that `spec` names, put LoRA on them, and freeze the rest.

        Args:
            spec: The plan.
            dtype: Of the frozen weights.
            lora_dtype: Of LoRA.
            options: What the strategy adds: a mesh, kernels ...

        Raises:
            VtbModelError: Weights are missing or corrupt, or the family is not supported.
        """

    @property
    @abstractmethod
    def salm_modules(self) -> Mapping[str, nn.Module]:
        """Modules under the names that NeMo's SALM has for them: `llm`, and `embed_tokens` where it stands outside."""

    # ---- packed rows

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """(T,) token ids to (T, H), at the scale at which the LLM reads them (Gemma multiplies by sqrt(H))."""

    @abstractmethod
    def forward(self, embeds: Tensor, position_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """(T, H) of a packed row to hidden states (T, H); attention is causal and never crosses `cu_seqlens`."""

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """(n, H) to logits (n, V), with the LLM's own soft-capping."""

    @abstractmethod
    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """(n, H) and the tokens (n,) that must follow to their negative log-likelihoods (n,), float32."""

    @property
    def bounds_logits(self) -> bool:
        """Whether `nll` itself keeps only a part of the logits at once, so that a row needs no chunks for it."""
        return False

    @abstractmethod
    def score(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As `nll`, and whether the most likely token is the target: (n,) bool. Without gradients."""

    def idle_pass(self, device: torch.device) -> Tensor:
        """What a rank without a row must run while the others run theirs: a scalar zero, with the gradients of a pass.

        Args:
            device: Of the result.
        """
        return torch.zeros((), device=device)

    # ---- answers

    @abstractmethod
    def generate(self, embeds: Tensor, attention_mask: Tensor, **options: Any) -> Tensor:
        """(B, T, H) prompts, padded on the left, to answers (B, N) int64.

        Args:
            embeds: The prompts.
            attention_mask: (B, T), 1 at the prompts.
            options: Those of transformers' `generate`.

        Raises:
            VtbConfigError: The backbone does not have an option.
        """

    @abstractmethod
    def first_logits(self, embeds: Tensor) -> Tensor:
        """(T, H) of one prompt to the logits of the first token of its answer: (V,) float32."""

    # ---- LoRA and frozen weights

    @abstractmethod
    def without_lora(self) -> AbstractContextManager:
        """The untouched base LLM, as long as the context is open."""

    @abstractmethod
    def lora_state(self) -> dict[str, Tensor]:
        """LoRA weights, whole, under the names that PEFT gives them on the Hugging Face model; {} without LoRA."""

    @abstractmethod
    def load_lora(self, state: Mapping[str, Tensor]) -> None:
        """Load what `lora_state` gave, on whatever backbone.

        Raises:
            VtbCheckpointError: Keys are missing or left over, or a shape differs.
        """

    @abstractmethod
    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, under the keys and in the order that the Hugging Face backbone has in a state dict."""

    @abstractmethod
    def frozen_weights(self) -> dict[str, Tensor]:
        """The untouched LLM, whole, under the keys that the Hugging Face backbone has; {} if it is trained itself."""

    def gather(self, name: str, part: Tensor) -> Tensor:
        """The whole of a trained parameter, or of an optimizer's moment in its shape, from the parts of all ranks.

        Args:
            name: Key of `trainable_parameters`.
            part: What this rank holds.
        """
        return part

    def shard(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part, the inverse of `gather`."""
        return whole

    def unsharded(self) -> AbstractContextManager:
        """Whole weights on each rank, for passes that not all ranks run equally often (validation, answers)."""
        return nullcontext()

    @abstractmethod
    def as_transformers(self) -> AbstractContextManager[Any]:
        """The LLM as transformers runs it, its embedding inside, as long as the context is open.

        Raises:
            VtbModelError: No rank has a whole LLM of transformers.
        """


def lora_misfit(got: object, allowed: object) -> VtbCheckpointError:
    """The error for LoRA weights that do not fit a model."""
    return VtbCheckpointError(
        'The LoRA weights do not fit this model.',
        field='lora',
        got=got,
        allowed=allowed,
        remedy='use the rank and the target modules that the weights were trained with',
    )
