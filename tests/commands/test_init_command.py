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
"""`vtb init`: the YAML files of the package, in a folder of one's own; `vtb train` reads those."""

from pathlib import Path

import pytest

from nemo_vtb.commands.init import main
from nemo_vtb.config.command_line import conf_folder
from nemo_vtb.errors import VtbConfigError

pytestmark = pytest.mark.unit


def test_every_file_is_copied_and_nothing_is_overwritten(tmp_path: Path) -> None:
    assert main([str(tmp_path / 'mine')]) == 0
    made = {path.relative_to(tmp_path / 'mine' / 'conf'): path.read_text() for path in tmp_path.rglob('*.yaml')}
    assert made == {path.relative_to(conf_folder()): path.read_text() for path in conf_folder().rglob('*.yaml')}
    edited = tmp_path / 'mine' / 'conf' / 'speechllm_joint_sft.yaml'
    edited.write_text('mine')
    with pytest.raises(VtbConfigError) as caught:
        main([str(tmp_path / 'mine')])
    assert caught.value.field == 'FOLDER' and edited.read_text() == 'mine'


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(VtbConfigError) as caught:
        main([str(tmp_path / 'file')])
    assert caught.value.field == 'FOLDER'
