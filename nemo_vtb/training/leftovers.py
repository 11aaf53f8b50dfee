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
"""What a kill leaves in a folder of checkpoints: NeMo's resume stops at it, though every file there is complete."""

import logging
from pathlib import Path

__all__ = ['clear_leftovers']

logger = logging.getLogger(__name__)

_MARKER = '-unfinished'


def clear_leftovers(folder: str | Path) -> Path | None:
    """Prepare a folder of checkpoints for `resume_if_exists`; returns the checkpoint that NeMo will resume from.

    Our checkpoints are renamed into place when they are whole. So a marker of NeMo's says nothing (NeMo would delete
    the file beside it), of two newest checkpoints the older one was about to be deleted, and a hidden file was never
    finished. All ranks may call it at once.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None
    for path in (*folder.glob(f'*{_MARKER}'), *folder.glob('.*.ckpt'), *folder.glob('.*.nemo')):
        logger.info('Removed what a kill left: %s', path)
        path.unlink(missing_ok=True)
    found = []
    for path in folder.glob('*last.ckpt'):
        try:
            found.append((path.stat().st_mtime_ns, path.name, path))
        except FileNotFoundError:  # another rank was faster
            continue
    newest = [path for *_, path in sorted(found)]
    for path in newest[:-1]:
        path.unlink(missing_ok=True)
    return newest[-1] if newest else None
