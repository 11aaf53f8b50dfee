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
"""A tiny model for the tests of serving."""

from pathlib import Path
from typing import Any


def make_model(folder: Path, family: str = 'llama') -> Any:
    """A random model of a family, LoRA switched on visibly."""
    import torch

    from nemo_vtb.model.blender import VoiceTextBlender
    from nemo_vtb.testing import tiny_model_cfg

    torch.manual_seed(0)
    model = VoiceTextBlender(tiny_model_cfg(folder, family=family)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if '.lora_B.' in name:
                parameter.normal_(std=0.1)
    return model
