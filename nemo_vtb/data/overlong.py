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
"""Conversations longer than a row: cut between turns, or left out with a reason; never inside speech or an answer."""

import hashlib
import json
from typing import Any

import numpy as np

from nemo_vtb.data.conversation import Conversation
from nemo_vtb.data.faults import Reason
from nemo_vtb.data.index import Meter, SourceIndex
from nemo_vtb.errors import VtbDataError
from nemo_vtb.io import write_atomically


def keep_exchanges(conversation: Conversation, count: int) -> Conversation:
    """The conversation up to the answer of its exchange number `count`; a system turn is kept."""
    turns, answers = [], 0
    for turn in conversation.turns:
        turns.append(turn)
        answers += turn.role == 'assistant'
        if answers == count:
            break
    return Conversation(conversation.id, tuple(turns), conversation.kind, conversation.source, conversation.custom)


class FittedSource:
    """A source as the plan sees it: entries that fit into a row, some of them cut.

    Entries are numbered anew, 0 ... len-1, when some had to be left out.

    Args:
        index: The source.
        meter: Measures what is left of a cut conversation.
        max_tokens: Length of a row.
        overlong: `cut`, `drop` or `error`.

    Raises:
        VtbDataError: All conversations are too long, or one is and `overlong` is `error`.
    """

    def __init__(self, index: SourceIndex, meter: Meter, max_tokens: int, overlong: str = 'cut') -> None:
        self.index = index
        self.name, self.kind, self.weight, self.max_repeats = index.name, index.kind, index.weight, index.max_repeats
        self.digest = hashlib.sha256(f'{index.digest}:{max_tokens}:{overlong}'.encode()).hexdigest()
        found = self._load(meter, max_tokens, overlong)
        self.dropped: list[dict[str, Any]] = found['dropped']
        self._cut = np.array([c[0] for c in found['cut']], dtype=np.int64)  # entries of the index, sorted
        self._kept = np.array([c[1] for c in found['cut']], dtype=np.int64)  # exchanges
        self._cut_sizes = np.array([c[2:] for c in found['cut']], dtype=np.float64).reshape(-1, 3)
        self._entries: np.ndarray | None = None
        if self.dropped:
            gone = [fault['entry'] for fault in self.dropped]
            self._entries = np.delete(np.arange(len(index), dtype=np.int64), gone)
        if not len(self):
            raise VtbDataError(
                'All conversations of a source are longer than a row.',
                field=f'source {self.name}',
                got=f'shortest {int(index.column("length").min())} tokens',
                allowed=f'data.max_tokens {max_tokens}',
                remedy='raise data.max_tokens',
            )

    def __len__(self) -> int:
        return len(self.index) if self._entries is None else len(self._entries)

    def skipped(self) -> list[dict[str, Any]]:
        """What was left out of it before training: broken when the index was built, or too long."""
        return [*self.index.quarantined(), *self.dropped]

    @property
    def num_cut(self) -> int:
        """How many conversations lose their last turns."""
        return len(self._cut)

    def measure(self, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, supervised tokens and seconds of audio of some entries, each (len(entries),)."""
        entries = np.asarray(entries) if self._entries is None else self._entries[np.asarray(entries)]
        tokens, supervised, seconds = self.index.measure(entries)
        if len(self._cut):
            at = np.minimum(np.searchsorted(self._cut, entries), len(self._cut) - 1)
            hit = self._cut[at] == entries
            tokens[hit], supervised[hit], seconds[hit] = self._cut_sizes[at[hit]].T
        return tokens, supervised, seconds

    def read(self, entry: int) -> Conversation:
        """Read one conversation, cut as planned."""
        entry = entry if self._entries is None else int(self._entries[entry])
        conversation = self.index.read(entry)
        if len(self._cut):
            at = int(np.searchsorted(self._cut, entry))
            if at < len(self._cut) and self._cut[at] == entry:
                return keep_exchanges(conversation, int(self._kept[at]))
        return conversation

    def locate(self, entry: int) -> dict[str, Any]:
        """Where an entry stands: source, file, byte_offset."""
        entry = entry if self._entries is None else int(self._entries[entry])
        file = self.index.spec.files[int(self.index.column('file')[entry])]
        return {'source': self.name, 'file': file, 'byte_offset': int(self.index.column('offset')[entry])}

    def _load(self, meter: Meter, max_tokens: int, overlong: str) -> dict[str, list]:
        over = np.flatnonzero(self.index.column('length') > max_tokens)
        if not len(over):
            return {'cut': [], 'dropped': []}
        if overlong == 'error':
            entry = int(over[0])
            raise VtbDataError(
                'A conversation is longer than a row.',
                field=f'source {self.name}, {self.index.read(entry).id}',
                got=f'{int(self.index.column("length")[entry])} tokens; {len(over)} are too long',
                allowed=f'data.max_tokens {max_tokens}',
                remedy='raise data.max_tokens, or set data.overlong to cut or drop',
            )
        cache = self.index.folder / f'overlong-{overlong}-{max_tokens}.json'
        if cache.is_file():
            return json.loads(cache.read_text(encoding='utf-8'))
        found: dict[str, list] = {'cut': [], 'dropped': []}
        for entry in over.tolist():
            conversation = self.index.read(entry)
            kept = self._cut_to(conversation, meter, max_tokens) if overlong == 'cut' else None
            if kept:
                found['cut'].append([entry, *kept])
            else:
                found['dropped'].append(self._fault(entry, conversation.id, max_tokens))
        write_atomically(cache, json.dumps(found))
        return found

    def _cut_to(self, conversation: Conversation, meter: Meter, max_tokens: int) -> tuple | None:
        """The longest beginning of whole exchanges that fits: (exchanges, tokens, supervised tokens, seconds)."""
        answers = sum(turn.role == 'assistant' for turn in conversation.turns)
        for count in range(answers - (conversation.turns[-1].role == 'assistant'), 0, -1):
            size = meter.measure(keep_exchanges(conversation, count))
            if size['length'] <= max_tokens:
                return count, size['length'], size['supervised'], size['seconds']
        return None

    def _fault(self, entry: int, id_: str, max_tokens: int) -> dict[str, Any]:
        return {
            'entry': entry,
            'source': self.name,
            'file': self.index.spec.files[int(self.index.column('file')[entry])],
            'line': None,
            'byte_offset': int(self.index.column('offset')[entry]),
            'id': id_,
            'reason': Reason.OVERLONG.value,
            'detail': f'{int(self.index.column("length")[entry])} tokens, max_tokens {max_tokens}',
        }
