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
"""Optimizer and schedule of NeMo's configuration, with groups of parameters at a share of the learning rate."""

import re
from typing import TYPE_CHECKING, Any

from nemo.core.classes.common import safe_instantiate

from nemo_vtb.backbone.names import is_llm_weight
from nemo_vtb.errors import VtbConfigError

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender


def grouped_optimizer(model: 'VoiceTextBlender') -> dict[str, Any]:
    """What Lightning's `configure_optimizers` returns; parameters in the order that optimizer states follow.

    Raises:
        VtbConfigError: A pattern of `lr_factors` matches no trained parameter.
    """
    own = {name: p for name, p in model.named_parameters() if p.requires_grad and not is_llm_weight(name)}
    trained = model.backbone.trainable_parameters() | own  # in the order that optimizer states follow
    groups: list[dict[str, Any]] = []
    for number, entry in enumerate(model.cfg.get('lr_factors') or ()):
        names = [name for name in trained if re.match(entry.match, name)]
        if not names:
            raise VtbConfigError(
                'The pattern matches no trained parameter that an earlier one has left over.',
                field=f'model.lr_factors[{number}].match',
                got=entry.match,
                allowed='a regular expression, e.g. ' + next(iter(trained), ''),
            )
        groups.append({'params': [trained.pop(n) for n in names], 'lr': model.cfg.optimizer.lr * entry.factor})
    groups.append({'params': list(trained.values())})
    optimizer = safe_instantiate(model.cfg.optimizer, groups, _convert_='all')
    if 'lr_scheduler' not in model.cfg:
        return {'optimizer': optimizer}
    scheduler = safe_instantiate(model.cfg.lr_scheduler, optimizer)
    return {'optimizer': optimizer, 'lr_scheduler': {'scheduler': scheduler, 'interval': 'step', 'frequency': 1}}
