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
"""A `.nemo` file restored for answering, with errors that say what is wrong with it."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_vtb.data.conversation import Conversation, conversation_from_dict
from nemo_vtb.errors import VtbError, VtbModelError

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender


def load(
    path: str | Path,
    device: str = 'auto',
    *,
    trust_remote_code: bool = False,
    base_llm: str | Path | None = None,
) -> 'VoiceTextBlender':
    """Restore a model from a `.nemo` file for answering.

    Args:
        path: The file.
        device: 'auto' (CUDA where there is one), or what torch accepts.
        trust_remote_code: Run code that came with the LLM, if the file asks for it.
        base_llm: Folder of the base LLM, for a file without it.

    Raises:
        VtbModelError: There is no such file, or it is not a `.nemo` of ours.
        VtbCheckpointError: The file is cut off, changed or hostile, or belongs to another LLM.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(str(p) for p in Path('runs').glob('*/checkpoints/*.nemo'))[:5]
        raise VtbModelError(
            'There is no model at this path.',
            field='model',
            got=str(path),
            allowed=near or 'a .nemo file',
            remedy='train one with `python examples/speechllm_joint_sft.py`, or correct the path',
        )
    import torch
    from nemo.core.classes.common import UnsafeTargetError

    from nemo_vtb.model.blender import VoiceTextBlender

    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        model = VoiceTextBlender.restore_from(
            str(path), map_location=torch.device(device), trust_remote_code=trust_remote_code, base_llm=base_llm
        )
    except VtbError:
        raise
    except (OSError, KeyError, RuntimeError, UnsafeTargetError, pickle.UnpicklingError) as error:
        raise VtbModelError(
            'The model cannot be restored.',
            field='model',
            got=f'{path}: {type(error).__name__}: {error}',
            allowed='a .nemo file written by nemo_vtb',
            remedy='`vtb info FILE` says what is in it; copy it again if it is cut off',
        ) from error
    return model.to(device).eval()


def read_prompts(lines: Sequence[dict[str, Any]]) -> list[Conversation]:
    """The conversations of a request; they end with a user turn, so an answer is put behind it and taken off again."""
    closing = {'type': 'text', 'from': 'Assistant', 'value': '-'}
    return [
        conversation_from_dict({**line, 'conversations': [*line['conversations'], closing]}).prompt for line in lines
    ]
