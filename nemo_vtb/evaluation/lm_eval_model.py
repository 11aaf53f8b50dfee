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
"""A speech LLM as a model of lm-eval: its LLM on text, with LoRA or as the unchanged base LLM."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender


class BlenderLM(HFLM):
    """lm-eval's own model for transformers, on the LLM inside a speech LLM.

    Nothing of the scoring is replaced: requests, batches, truncation and templates are those of `HFLM`, so that the
    base LLM has the very numbers that lm-eval gives to its folder.

    Args:
        model: The speech LLM, on the Hugging Face backbone.
        use_lora: False evaluates the unchanged base LLM.
        batch_size: Requests in one batch.

    Raises:
        VtbModelError: No rank has the whole LLM.
    """

    def __init__(self, model: 'VoiceTextBlender', *, use_lora: bool = True, batch_size: int = 8) -> None:
        self._blender, self._use_lora = model, use_lora
        with model.backbone.as_transformers() as llm:
            super().__init__(
                pretrained=llm, backend='causal', tokenizer=model.tokenizer.tokenizer, batch_size=batch_size
            )

    @contextmanager
    def _ready(self) -> Iterator[None]:
        lora = nullcontext() if self._use_lora else self._blender.backbone.without_lora()
        with lora, self._blender.backbone.as_transformers(), torch.no_grad():
            yield

    def _model_call(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self._ready():
            return super()._model_call(*args, **kwargs)  # (B, T, V)

    def _model_generate(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self._ready():
            return super()._model_generate(*args, **kwargs)  # (B, T)

    def get_model_info(self) -> dict[str, Any]:
        """Nothing: lm-eval would query the hub for the revision of a local model."""
        return {}
