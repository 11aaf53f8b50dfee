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
"""The settings that decide how weights change, kept in a checkpoint: a resumed run names each one that differs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch.trainer.states import TrainerFn
from omegaconf import OmegaConf

from nemo_vtb.errors import VtbCheckpointError

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender

KEY = 'run_settings'
SCHEDULE_LENGTH = 'model.lr_scheduler.max_steps'
"""A run may be made longer without asking: the schedule follows the new length."""

_SECTIONS = ('optimizer', 'lr_scheduler', 'lora')
_KEYS = ('lr_factors', 'text_anchor', 'freeze_params', 'prevent_freeze_params')
_TRAINER = ('precision', 'gradient_clip_val', 'gradient_clip_algorithm')
_SHAPES = ('model.lora.r', 'model.lora.target_modules')


def run_settings(model: 'VoiceTextBlender') -> dict[str, Any]:
    """Dotted key -> plain value: optimizer, schedule, LoRA, what is frozen, precision and clipping."""
    cfg: Any = OmegaConf.to_container(model.cfg, resolve=True)
    found = {f'model.{key}': cfg.get(key) for key in _KEYS}
    for section in _SECTIONS:
        found |= {f'model.{section}.{key}': value for key, value in (cfg.get(section) or {}).items()}
    found |= {f'trainer.{key}': getattr(model._trainer, key, None) for key in _TRAINER}
    # enumerations are texts in a file that is read without running code
    return {key: value.value if hasattr(value, 'value') else value for key, value in found.items()}


def changed_settings(model: 'VoiceTextBlender', checkpoint: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Key -> value in the checkpoint and now, of all that differ; {} for a checkpoint of before, which names none."""
    saved = checkpoint.get(KEY)
    if saved is None:
        return {}
    now = run_settings(model)
    keys = sorted(saved.keys() | now.keys())
    return {key: (saved.get(key), now.get(key)) for key in keys if saved.get(key) != now.get(key)}


def check_settings(model: 'VoiceTextBlender', checkpoint: Mapping[str, Any]) -> None:
    """Refuse to resume with other settings, unless `data.allow_changed` is set.

    Raises:
        VtbCheckpointError: They differ; or LoRA has another shape, for which the checkpoint has no weights.
    """
    trainer = model._trainer
    if trainer is None or trainer.state.fn != TrainerFn.FITTING:
        return
    changed = {key: pair for key, pair in changed_settings(model, checkpoint).items() if key != SCHEDULE_LENGTH}
    allowed = bool(getattr(getattr(trainer.datamodule, 'settings', None), 'allow_changed', False))
    shapes = [key for key in changed if key in _SHAPES]
    if not changed or (allowed and not shapes):
        return
    remedy = 'set them as they were, or data.allow_changed=true to go on with the new ones'
    if shapes:
        remedy = 'set them as they were, or begin a new run with init_from_nemo=... and another name'
    raise VtbCheckpointError(
        'The run is to be resumed with other settings than it was saved with.',
        field=', '.join(changed),
        got=', '.join(f'{key}={now}' for key, (_, now) in changed.items()),
        allowed=', '.join(f'{key}={saved}' for key, (saved, _) in changed.items()),
        remedy=remedy,
    )
