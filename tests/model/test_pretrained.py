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
"""A `.nemo` file that is missing or broken is named."""

from pathlib import Path

import pytest

from nemo_vtb.errors import VtbCheckpointError, VtbModelError
from nemo_vtb.model.pretrained import restore


def test_missing_and_broken_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(VtbModelError, match='no model at this path'):
        restore(tmp_path / 'absent.nemo')
    (tmp_path / 'cut.nemo').write_bytes(b'not an archive')
    with pytest.raises(VtbCheckpointError, match='no complete .nemo file') as caught:
        restore(tmp_path / 'cut.nemo', 'cpu')
    assert 'cut.nemo' in str(caught.value)
