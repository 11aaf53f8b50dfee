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
"""What a conversation takes in a row: counted for the index, and exactly what the loader makes."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nemo_vtb.config.schema import DataSettings
from nemo_vtb.data.audio import DURATION_TOLERANCE_S, clip_span, probe, trusted_samples
from nemo_vtb.data.conversation import Audio, Conversation
from nemo_vtb.data.faults import Reason, audio_fault, data_fault, guarded
from nemo_vtb.data.limits import LIMITS, Limits
from nemo_vtb.data.template import ChatRenderer
from nemo_vtb.errors import VtbError

_LONGEST = int(np.iinfo(np.int32).max)  # what a column can hold


@dataclass(frozen=True, slots=True)
class Meter:
    """Counts what a conversation takes in a row; the loader makes exactly that, or the conversation is refused.

    Args:
        renderer: The one renderer.
        frame_counter: Samples of a clip -> frames that the perception returns for it.
        sample_rate: Rate in Hz at which the encoder reads.
        resample: Whether recordings of another rate are resampled, or refused.
        on_duration_mismatch: See `DataSettings`.
        limits: The largest line, conversation and clip.
    """

    renderer: ChatRenderer
    frame_counter: Callable[[int], int]
    sample_rate: int = 16000
    resample: bool = True
    on_duration_mismatch: str = 'quarantine'
    limits: Limits = LIMITS

    @classmethod
    def of(cls, settings: DataSettings, renderer: ChatRenderer, frame_counter: Callable[[int], int]) -> 'Meter':
        """The meter of the settings."""
        read = (settings.sample_rate, settings.resample, settings.on_duration_mismatch)
        return cls(renderer, frame_counter, *read, Limits.of(settings))

    def measure(self, conversation: Conversation, *, segments: bool = True) -> dict[str, int | float]:
        """Length, text tokens, supervised tokens, frames, clips and seconds of one conversation.

        Args:
            conversation: Headers of its recordings are read.
            segments: Whether a duration shorter than the recording means a segment, or must be a lie.

        Raises:
            VtbDataError: The conversation cannot be trained on; `error.reason` says why.
        """
        with guarded(Reason.OTHER, f'conversation {conversation.id}'):
            return self._measure(conversation, segments)

    def _measure(self, conversation: Conversation, segments: bool) -> dict[str, int | float]:
        self.limits.check_turns(conversation)
        frames, seconds = self._heard(conversation, segments)
        counted = self.renderer.count(conversation)
        text, supervised = counted.text, counted.supervised
        if not supervised:
            raise data_fault(
                Reason.NOTHING_TO_LEARN, field=f'conversation {conversation.id}', got='0 supervised tokens'
            )
        if text + frames > _LONGEST:
            got = f'{text + frames} tokens'
            raise data_fault(
                Reason.OVERLONG, field=f'conversation {conversation.id}', got=got, allowed=f'<= {_LONGEST}'
            )
        return {
            'length': text + frames,
            'text': text,
            'supervised': supervised,
            'frames': frames,
            'clips': counted.audios,
            'seconds': seconds,
        }

    def frames(self, conversation: Conversation, *, segments: bool = True) -> int:
        """Frames of all its recordings; arguments and errors as of `measure`."""
        with guarded(Reason.OTHER, f'conversation {conversation.id}'):
            return self._heard(conversation, segments)[0]

    def _heard(self, conversation: Conversation, segments: bool) -> tuple[int, float]:
        """Frames and seconds of its recordings."""
        frames, seconds = 0, 0.0
        for audio in conversation.audios:
            samples = self._samples(audio, segments)
            if (count := self.frame_counter(samples)) < 1:
                raise audio_fault(Reason.AUDIO_TOO_SHORT, field='audio', got=f'{samples} samples: {audio.path}')
            frames += count
            seconds += samples / self.sample_rate
        return frames, seconds

    def _samples(self, audio: Audio, segments: bool) -> int:
        if audio.trusted:
            samples = trusted_samples(audio, self.sample_rate)
            self.limits.check_clip(audio.path, samples, self.sample_rate, 1)
            return samples
        header = probe(audio.path)
        if header.sample_rate != self.sample_rate and not self.resample:
            got = f'{header.sample_rate} Hz: {audio.path}'
            raise audio_fault(Reason.AUDIO_WRONG_RATE, field='audio', got=got, allowed=f'{self.sample_rate} Hz')
        span = clip_span(audio, header, self.sample_rate)
        self.limits.check_clip(audio.path, span.count, header.sample_rate, header.num_channels)
        if audio.duration_s is not None and not segments and self.on_duration_mismatch != 'segment':
            if header.duration_s - audio.duration_s > DURATION_TOLERANCE_S:
                got = f'duration {audio.duration_s} s, recording {header.duration_s:.3f} s: {audio.path}'
                raise audio_fault(
                    Reason.DURATION_MISMATCH, field='duration', got=got, allowed=f'+-{DURATION_TOLERANCE_S} s'
                )
        return span.num_samples

    def fingerprint(self) -> dict[str, Any]:
        """What decides lengths; the frame counter is known by what it answers."""
        probes = [*range(0, 4000, 80), *(round(1.07**n) for n in range(60, 250))]
        answers = []
        for samples in probes:
            try:
                answers.append(self.frame_counter(samples))
            except VtbError:
                answers.append(-1)
        return {
            'renderer': self.renderer.fingerprint,
            'frames': hashlib.sha256(json.dumps(answers).encode()).hexdigest(),
            'sample_rate': self.sample_rate,
            'resample': self.resample,
            'on_duration_mismatch': self.on_duration_mismatch,
            # only where they differ: runs that began before there were bounds go on
            **({} if self.limits == LIMITS else {'limits': asdict(self.limits)}),
        }
