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
"""Pure functions that turn a packed row into the LLM's input (letters: T row length, F audio frames, H width)."""

from torch import Tensor

from nemo_vtb.errors import VtbModelError


def splice(text_embeds: Tensor, frames: Tensor, positions: Tensor) -> Tensor:
    """Put audio frames into a row of text embeddings.

    Args:
        text_embeds: (T, H) embeddings of the row's tokens; the values at `positions` are ignored.
        frames: (F, H) output of the perception module, all clips one after the other, without padding.
        positions: (F,) int64, where each frame stands in the row.

    Returns:
        (T, H) in the dtype of `text_embeds`.

    Raises:
        VtbModelError: The encoder made another number of frames than the data pipeline counted.
    """
    if frames.shape[0] != positions.shape[0]:
        raise VtbModelError(
            'The encoder made another number of frames than the data pipeline counted.',
            field='perception',
            got=f'{frames.shape[0]} frames for {positions.shape[0]} positions',
            allowed='equal numbers',
            remedy='build the data module with the frame counter of this very model (model.frames)',
        )
    if frames.shape[0] == 0:
        return text_embeds
    return text_embeds.index_copy(0, positions, frames.to(text_embeds.dtype))  # (T, H)
