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
"""What a device multiplies best, and the precision of a run that follows from it."""

from pathlib import Path

import pytest
import torch

from nemo_vtb.backbone import precision
from nemo_vtb.backbone.precision import multiplies_bfloat16, product_dtype, resolve_precision

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ('asked', 'accelerator', 'able', 'expected'),
    [
        ('auto', 'cpu', {'cpu'}, 'bf16-mixed'),
        ('auto', 'cpu', {'cuda'}, '32-true'),
        ('auto', 'gpu', {'cuda'}, 'bf16-mixed'),
        ('auto', 'cuda', {'cpu'}, '32-true'),
        ('16-mixed', 'cpu', set(), '16-mixed'),
        ('32-true', 'cpu', {'cpu'}, '32-true'),
    ],
)
def test_auto_is_what_the_device_has(
    asked: str, accelerator: str, able: set[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, 'multiplies_bfloat16', lambda kind: kind in able)
    assert resolve_precision(asked, accelerator) == expected


def test_auto_takes_the_gpu_where_lightning_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, 'multiplies_bfloat16', lambda kind: kind == 'cuda')
    for there, expected in ((True, 'bf16-mixed'), (False, '32-true')):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda there=there: there)
        assert resolve_precision('auto', 'auto') == expected


def test_a_cpu_is_asked_for_its_instructions() -> None:
    flags = set(Path('/proc/cpuinfo').read_text(encoding='utf-8').split())
    assert multiplies_bfloat16('cpu') == bool(flags & {'avx512_bf16', 'amx_bf16'})
    assert not multiplies_bfloat16('mps')


def test_products_have_the_type_of_autocast() -> None:
    x = torch.zeros(2)
    assert product_dtype(x) == torch.float32 and product_dtype(x.bfloat16()) == torch.bfloat16
    with torch.autocast('cpu', torch.bfloat16):
        assert product_dtype(x) == torch.bfloat16
