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
"""Bounds on one line and one recording, checked before the work that they would cost.

Rendering a line of 50 MB takes gigabytes, a compressed recording of one megabyte decodes to a thousand: one bad line
must cost itself only.
"""

from dataclasses import dataclass
from io import BufferedIOBase
from typing import BinaryIO

from nemo_vtb.config.schema import DataSettings
from nemo_vtb.data.conversation import Conversation
from nemo_vtb.data.faults import Reason, audio_fault, data_fault

_SAMPLES_PER_SECOND = 48_000
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest line, conversation and recording that are read; as the keys of `data` with these names.

    Args:
        max_line_bytes: Bytes of a line of a manifest.
        max_turns: Turns of a conversation, as its line lists them.
        max_clip_seconds: Length of a clip; over all channels it has at most as many samples as that takes at 48 kHz.
    """

    max_line_bytes: int
    max_turns: int
    max_clip_seconds: float

    @classmethod
    def of(cls, settings: DataSettings) -> 'Limits':
        """The bounds of the settings."""
        return cls(settings.max_line_bytes, settings.max_turns, settings.max_clip_seconds)

    def check_line(self, nbytes: int, where: str) -> None:
        """Refuse a line that is too long to be parsed.

        Raises:
            VtbDataError: With the reason `line_too_long`.
        """
        if nbytes > self.max_line_bytes:
            raise data_fault(
                Reason.LINE_TOO_LONG, field=where, got=f'{nbytes} bytes', allowed=f'<= {self.max_line_bytes} bytes',
                remedy='split the conversation, or raise data.max_line_bytes',
            )  # fmt: skip

    def check_turns(self, conversation: Conversation) -> None:
        """Refuse a conversation of too many turns before it is rendered.

        Raises:
            VtbDataError: With the reason `too_many_turns`.
        """
        turns = sum(len(turn.parts) for turn in conversation.turns)
        if turns > self.max_turns:
            raise data_fault(
                Reason.TOO_MANY_TURNS, field=f'conversation {conversation.id}', got=f'{turns} turns',
                allowed=f'<= {self.max_turns} turns', remedy='split the conversation, or raise data.max_turns',
            )  # fmt: skip

    def check_clip(self, path: str, count: int, sample_rate: int, num_channels: int) -> None:
        """Refuse a clip that would fill the memory, by what the header says, before anything is decoded.

        Args:
            path: Of the recording.
            count: Samples of each channel.
            sample_rate: Of the file, in Hz.
            num_channels: Of the file.

        Raises:
            VtbAudioError: With the reason `clip_too_large`.
        """
        bound = self.max_clip_seconds
        if count > bound * sample_rate or count * num_channels > bound * _SAMPLES_PER_SECOND:
            raise audio_fault(
                Reason.CLIP_TOO_LARGE, field='audio',
                got=f'{count / sample_rate:.1f} s of {num_channels} channels at {sample_rate} Hz: {path}',
                allowed=f'<= {bound} s, and <= {bound * _SAMPLES_PER_SECOND:.0f} samples of all channels',
                remedy='cut the recording or convert it to one channel at 16 kHz, or raise data.max_clip_seconds',
            )  # fmt: skip


LIMITS = Limits.of(DataSettings())
"""The bounds where nobody set others."""


def read_line(stream: BinaryIO | BufferedIOBase, max_bytes: int) -> tuple[bytes, int]:
    """The next line and its length in bytes; of a line that is too long only the beginning. At the end (b'', 0)."""
    raw = piece = stream.readline(max_bytes + 1)
    size = len(raw)
    while size > max_bytes and piece and not piece.endswith(b'\n'):
        piece = stream.readline(_PIECE)
        size += len(piece)
    return raw, size
