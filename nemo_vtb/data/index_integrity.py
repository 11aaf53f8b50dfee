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
"""What an index says is what was written, and a recording is the one that was indexed: digests of both."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nemo_vtb.data.audio import archive_of
from nemo_vtb.data.conversation import Audio
from nemo_vtb.data.stores import file_facts
from nemo_vtb.io import file_digest

META = 'meta.json'


def write_meta(folder: Path, meta: Mapping[str, Any]) -> None:
    """Write `meta.json` with the digests of all other files of an index, and of itself."""
    files = sorted(path for path in folder.iterdir() if path.is_file())  # archives of parts check themselves
    sealed = dict(meta) | {'sha256': {path.name: file_digest(path) for path in files}}
    sealed['own_sha256'] = _own_digest(sealed)
    (folder / META).write_text(json.dumps(sealed, indent=1), encoding='utf-8')


def index_damage(folder: Path) -> str | None:
    """What is not as it was written; None for an index that is whole."""
    try:
        meta = json.loads((folder / META).read_text(encoding='utf-8'))
        if meta['own_sha256'] != _own_digest(meta):
            return f'{META} was changed'
        for name, digest in meta['sha256'].items():
            if file_digest(folder / name) != digest:
                return f'{name} was changed'
    except OSError as error:
        return f'{Path(error.filename or META).name}: {error.strerror}'
    except (ValueError, KeyError, TypeError, AttributeError):
        return f'{META} is cut off or was changed'
    return None


def read_sealed(path: Path) -> Any:
    """The value that `sealed` made a file of; None where there is none, or another one than was written."""
    try:
        stored = json.loads(path.read_text(encoding='utf-8'))
        return stored['value'] if stored['sha256'] == _digest(stored['value']) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sealed(value: Any) -> str:
    """The text of a small file with its digest in it."""
    return json.dumps({'sha256': _digest(value), 'value': value})


def audio_identity(audios: Iterable[Audio]) -> dict[str, int]:
    """Bytes of the recordings of a conversation (or of their archives), and a stamp of sizes and times (or tags).

    Returns:
        `audio_bytes` and `audio_stamp`, a signed number of 64 bits; zeros for a conversation without audio, or with
        trusted durations alone.

    Raises:
        OSError: A recording is gone.
    """
    found = [file_facts(archive_of(audio.path)) for audio in audios if not audio.trusted]
    if not found:
        return {'audio_bytes': 0, 'audio_stamp': 0}
    raw = json.dumps([[facts.size, int(t) if (t := facts.tag).isdigit() else t] for facts in found]).encode()
    stamp = int.from_bytes(hashlib.sha256(raw).digest()[:8], 'little', signed=True)
    return {'audio_bytes': sum(facts.size for facts in found), 'audio_stamp': stamp}


def _own_digest(meta: Mapping[str, Any]) -> str:
    return _digest({name: value for name, value in meta.items() if name != 'own_sha256'})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
