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
"""What a `.nemo` file says about itself, read from its archive without loading a weight."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nemo_vtb.checkpoint.archive import CONFIG, broken, check_digest, open_plain, read_members, read_passport


@dataclass(frozen=True, slots=True)
class NemoInfo:
    """What a `.nemo` archive says about itself.

    Args:
        path: The file.
        files: Name -> bytes of every member.
        config: The model's configuration.
        passport: Template hash, ledger, retention card ...; {} where the file has none.
    """

    path: Path
    files: Mapping[str, int]
    config: Mapping[str, Any]
    passport: Mapping[str, Any]


def read_info(path: str | Path, *, check: bool = False) -> NemoInfo:
    """Read names, configuration and passport of a `.nemo` file; nothing is unpacked or executed.

    Args:
        path: The file.
        check: Read every byte and compare each member with its SHA-256.

    Raises:
        VtbCheckpointError: The file is missing, no archive, cut off, changed, or without a configuration.
    """
    path = Path(path)
    with open_plain(path) as plain:
        members = read_members(plain)
        passport = read_passport(plain, members) or {}
        if CONFIG not in members:
            raise broken(path, f'no {CONFIG} among {sorted(members)[:8]}')
        try:
            config = yaml.safe_load(members[CONFIG].text())
        except yaml.YAMLError as error:
            raise broken(path, f'{type(error).__name__}: {error}') from error
        if check and passport:
            for name in passport['members']:
                check_digest(path, name, members[name].digest(), passport)
        if not isinstance(config, dict):
            raise broken(path, 'its configuration is no mapping')
        return NemoInfo(path, {name: m.size for name, m in members.items()}, config, passport)
