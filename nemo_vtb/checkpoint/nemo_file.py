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
"""One `.nemo` file that answers anywhere: written, then proved in a process that knows nothing but the file."""

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_vtb.data.conversation import Conversation, Text, conversation_from_dict, conversation_to_dict
from nemo_vtb.errors import VtbCheckpointError, VtbError, VtbModelError

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender

__all__ = ['Proof', 'load', 'prove', 'sources_of']


@dataclass(frozen=True, slots=True)
class Proof:
    """One prompt, answered by the live model and by the file in a fresh process."""

    prompt: str
    live: str
    fresh: str

    @property
    def equal(self) -> bool:
        """Whether both gave the same answer."""
        return self.live == self.fresh


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


def sources_of(model: 'VoiceTextBlender') -> list[str]:
    """The folders and files that the model was built from, as far as they are paths."""
    paths = [model.cfg.get(key) for key in ('pretrained_llm', 'pretrained_asr', 'tokenizer_path')]
    return [str(p) for p in paths if p and Path(str(p)).exists()]


def prove(model: 'VoiceTextBlender', path: str | Path, prompts: Sequence[Conversation], **options: Any) -> list[Proof]:
    """Answer prompts with the live model, and with the file in a fresh process that may not open the model's sources.

    Args:
        model: What was saved.
        path: The `.nemo` file that was written from it.
        prompts: Conversations that end with a user turn.
        options: Passed on to `answer`, e.g. `max_new_tokens`.

    Raises:
        VtbCheckpointError: The fresh process fails.
    """
    live = model.eval().answer(prompts, **options)
    request = {
        'path': str(Path(path).resolve()),
        'forbidden': sources_of(model),
        'prompts': [conversation_to_dict(p) for p in _absolute(prompts)],
        'options': options,
    }
    with tempfile.TemporaryDirectory(prefix='nemo_vtb_proof_') as folder:
        answers = Path(folder) / 'answers.json'
        # an empty cache folder: the embedded assets are out of reach too
        env = os.environ | {'NEMO_VTB_CACHE': str(Path(folder) / 'cache'), 'HF_HUB_OFFLINE': '1'}
        done = subprocess.run(
            [sys.executable, '-m', 'nemo_vtb.checkpoint.answer_alone', str(answers)],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            env=env,
            cwd=folder,
        )
        if done.returncode or not answers.is_file():
            raise VtbCheckpointError(
                'The file does not answer in a fresh process.',
                field='path',
                got=f'{path}: {done.stderr.strip()[-1500:]}',
                allowed='a self-contained .nemo file',
            )
        fresh = json.loads(answers.read_text())
    return [Proof(_last_user_text(p), a, b) for p, a, b in zip(prompts, live, fresh, strict=True)]


def read_prompts(lines: Sequence[dict[str, Any]]) -> list[Conversation]:
    """The conversations of a request; they end with a user turn, so an answer is put behind it and taken off again."""
    closing = {'type': 'text', 'from': 'Assistant', 'value': '-'}
    return [
        conversation_from_dict({**line, 'conversations': [*line['conversations'], closing]}).prompt for line in lines
    ]


def _absolute(prompts: Sequence[Conversation]) -> list[Conversation]:
    # the fresh process runs in a folder of its own
    out = []
    for conversation in prompts:
        line = conversation_to_dict(conversation)
        for entry in line['conversations']:
            if entry['type'] == 'audio':
                entry['value'] = str(Path(entry['value']).resolve())
        out.append(read_prompts([line])[0])
    return out


def _last_user_text(conversation: Conversation) -> str:
    parts = conversation.turns[-1].parts
    return ' '.join(p.text if isinstance(p, Text) else f'▶ {Path(p.path).name}' for p in parts)
