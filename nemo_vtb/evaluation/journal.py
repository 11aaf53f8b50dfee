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
"""What an evaluation has already: one JSON line for each answer, so that a killed one goes on where it was."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from nemo_vtb.errors import VtbCheckpointError
from nemo_vtb.io import read_json_lines, write_atomically


class Journal:
    """Key -> value, appended to a file and flushed before it counts.

    A file of another model or other settings (another `stamp`) is begun anew; a last line that a kill cut off is left
    out.

    Args:
        path: The file; None remembers for this process alone.
        stamp: What the answers depend on: model file, its size and time, settings.

    Raises:
        VtbCheckpointError: The file cannot be written.
    """

    def __init__(self, path: str | Path | None, stamp: Mapping[str, Any] | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._values: dict[str, Any] = {}
        self._file: IO[str] | None = None
        self.resumed = 0
        if self.path is None:
            return
        head = json.dumps({'stamp': dict(stamp or {})}, sort_keys=True, ensure_ascii=False)
        lines = self._read(head)
        try:
            # written again whole: what a kill cut off must not stand in the middle of the file
            write_atomically(self.path, ''.join(f'{line}\n' for line in [head, *lines]))
            self._file = self.path.open('a', encoding='utf-8')
        except OSError as error:
            raise VtbCheckpointError(
                'The answers of an evaluation cannot be written.', field='output', got=f'{self.path}: {error}',
                remedy='free some space, or name another output',
            ) from error  # fmt: skip

    def _read(self, head: str) -> list[str]:
        assert self.path is not None
        found = read_json_lines(self.path)
        if not found or json.dumps(found[0], sort_keys=True, ensure_ascii=False) != head:
            return []
        kept = [entry for entry in found[1:] if isinstance(entry, dict) and entry.keys() == {'key', 'value'}]
        self._values = {entry['key']: entry['value'] for entry in kept}
        self.resumed = len(kept)
        return [json.dumps(entry, ensure_ascii=False) for entry in kept]

    @staticmethod
    def key(*parts: Any) -> str:
        """A short name of what an answer depends on."""
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:24]

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def add(self, key: str, value: Any) -> None:
        """Remember a value of JSON."""
        self._values[key] = value
        if self._file is not None:
            self._write(json.dumps({'key': key, 'value': value}, ensure_ascii=False))

    def _write(self, line: str) -> None:
        assert self._file is not None
        self._file.write(line + '\n')
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Remove the file: what it held is in the result now."""
        if self._file is not None and self.path is not None:
            self._file.close()
            self._file = None
            self.path.unlink(missing_ok=True)
