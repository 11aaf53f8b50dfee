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
"""Recordings: what the header says, how many samples a clip has, and the samples themselves.

The number of samples is decided in one place, `clip_span`, for the index and for the loader, so that the token budget
of a row is exact.
"""

import hashlib
import io
import json
import os
import re
import stat
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from nemo_vtb.data.addresses import is_address
from nemo_vtb.data.conversation import Audio
from nemo_vtb.data.faults import Reason, audio_fault, guarded
from nemo_vtb.data.limits import LIMITS, Limits
from nemo_vtb.data.object_files import RangeFile, fetch_ahead, is_cached, open_file, read_range
from nemo_vtb.data.stores import ObjectChanged, file_facts, object_identity
from nemo_vtb.errors import VtbAudioError, VtbDataError, VtbStoreError
from nemo_vtb.io import cache_dir, file_lock, read_json_object, write_atomically

DURATION_TOLERANCE_S = 0.1
"""A duration field may differ from the recording by this much before it counts as a lie."""

MAX_LEVEL = 2.0**31
"""Greatest sample: that of 32-bit integers, never scaled. Beyond about 1e16 the spectrum overflows float32."""

_MOST_SAMPLES_A_BYTE = 65536
"No codec packs more: FLAC's largest block has 65,535 samples. A header that claims more does not know the length."
_BLOCK = 1 << 16
_SEGMENT = re.compile(r'^(.+)-sub\d+(\.\w+)?$')
_SIGNED_TAR = re.compile(r'\.tar\?[^!]*(?=!/)')
_WHOLE_BYTES = 16 << 20
"A recording in a store is read at once up to here, and by ranges beyond."
_RECODE = 'convert it to WAV or FLAC: ffmpeg -i RECORDING -ar 16000 -ac 1 NEW.wav'


@dataclass(frozen=True, slots=True)
class AudioHeader:
    """What the header of a recording says: samples of one channel, rate in Hz, number of channels.

    Args:
        num_samples: Counted by decoding where the header does not know it (a FLAC that was streamed).
        sample_rate: In Hz.
        num_channels: Of the file.
        seekable: Whether a decoder finds a place in it; otherwise it is decoded from the start.
    """

    num_samples: int
    sample_rate: int
    num_channels: int
    seekable: bool = True

    @property
    def duration_s(self) -> float:
        """Length of the whole recording in seconds."""
        return self.num_samples / self.sample_rate


@dataclass(frozen=True, slots=True)
class ClipSpan:
    """Where a clip lies in its recording (in samples of the file) and how many samples it has at the target rate."""

    start: int
    count: int
    num_samples: int


def probe(path: str | Path) -> AudioHeader:
    """Read the header of a recording; `shard.tar!/name.wav` is a member of an archive.

    Raises:
        VtbAudioError: Missing, a folder, empty, without permission, or not decodable; `error.reason` says which.
    """
    archive, member = _split(str(path))
    with _decoding(str(path)):
        if not is_address(archive) and not stat.S_ISREG(os.stat(archive).st_mode):  # a pipe would be waited for
            raise audio_fault(Reason.AUDIO_NOT_A_FILE, field='audio', got=str(path), allowed='a recording')
        found = file_facts(archive)
        size = _member(archive, member)[1] if member else found.size
        return _probe(str(path), archive, size, found.tag)


@lru_cache(maxsize=1024)  # segments of one long recording ask for the same header again and again
def _probe(path: str, file: str, size: int, _tag: str) -> AudioHeader:
    import soundfile

    if size == 0:
        raise audio_fault(Reason.AUDIO_EMPTY_FILE, field='audio', got=path)
    if not is_address(file) and not os.access(file, os.R_OK):
        raise audio_fault(Reason.AUDIO_NO_PERMISSION, field='audio', got=path)
    with _opened(path) as source:
        info = soundfile.info(source)
    seekable = info.frames <= size * _MOST_SAMPLES_A_BYTE
    frames = info.frames if seekable else _count_samples(path)
    if frames <= 0:
        raise audio_fault(Reason.AUDIO_NO_SAMPLES, field='audio', got=path)
    return AudioHeader(frames, info.samplerate, info.channels, seekable)


def trusted_samples(audio: Audio, sample_rate: int = 16000) -> int:
    """Samples of a clip whose duration is trusted, at `sample_rate`; the recording is not opened.

    Raises:
        VtbAudioError: They are none.
    """
    assert audio.duration_s is not None
    if not (count := _samples(audio.duration_s / audio.speed, sample_rate)):
        got = f'duration {audio.duration_s} s: {audio.path}'
        raise audio_fault(Reason.AUDIO_NO_SAMPLES, field='duration', got=got, allowed='> 0')
    return count


def clip_span(audio: Audio, header: AudioHeader, sample_rate: int = 16000) -> ClipSpan:
    """Decide exactly which samples of a recording make a clip.

    Args:
        audio: The span that the conversation asks for; without a duration it reaches to the end of the recording.
        header: Of that recording.
        sample_rate: Rate in Hz at which the encoder reads.

    Raises:
        VtbAudioError: The span begins or ends beyond the recording, or is empty.
    """
    if audio.channel is not None and audio.channel >= header.num_channels:
        got = f'channel {audio.channel} of {header.num_channels}: {audio.path}'
        raise audio_fault(Reason.AUDIO_NO_CHANNEL, field='channel', got=got, allowed=f'0 to {header.num_channels - 1}')
    rate = header.sample_rate
    start = _samples(audio.offset_s, rate)
    rest = header.num_samples - start
    if audio.offset_s < 0 or (start and rest <= 0):
        got = f'offset {audio.offset_s} s in a recording of {header.duration_s:.3f} s: {audio.path}'
        raise audio_fault(Reason.BAD_SPAN, field='offset', got=got)
    count = rest
    if audio.duration_s is not None:
        count = _samples(audio.duration_s, rate)
        longer = audio.whole and rest - count > DURATION_TOLERANCE_S * rate
        if longer or count - rest > DURATION_TOLERANCE_S * rate:
            got = f'duration {audio.duration_s} s, recording {rest / rate:.3f} s: {audio.path}'
            raise audio_fault(
                Reason.DURATION_MISMATCH, field='duration', got=got, allowed=f'+-{DURATION_TOLERANCE_S} s'
            )
        count = min(count, rest)
    heard = heard_rate(audio, rate)
    num_samples = count if heard == sample_rate else round(count * sample_rate / heard)
    if audio.trusted:  # as it was counted; silence is added where the recording is a little shorter
        return ClipSpan(start, count, trusted_samples(audio, sample_rate))
    if num_samples <= 0:
        raise audio_fault(Reason.AUDIO_NO_SAMPLES, field='audio', got=audio.path)
    return ClipSpan(start, count, num_samples)


def heard_rate(audio: Audio, rate: int) -> int:
    """The rate in Hz as which the samples of a recording are taken: a higher one than it has is a faster speed."""
    return rate if audio.speed == 1 else round(rate * audio.speed)


def _samples(seconds: float, rate: int) -> int:
    """Samples in so many seconds; what no file can hold becomes what no file holds, instead of an overflow."""
    return round(min(seconds * rate, 2.0**62))


def read_audio(
    audio: Audio, sample_rate: int = 16000, *, resample: bool = True, limits: Limits = LIMITS
) -> np.ndarray:
    """Read one clip as mono float32 at `sample_rate`: exactly `clip_span(...).num_samples` samples, shape (S,).

    Several channels are averaged where the clip names none; another rate is resampled.

    Raises:
        VtbAudioError: The recording is missing, unreadable, cut, too large, not finite, too loud, or of another rate
            with `resample=False`.
    """
    header = probe(audio.path)
    if header.sample_rate != sample_rate and not resample:
        raise audio_fault(
            Reason.AUDIO_WRONG_RATE,
            field='audio',
            got=f'{header.sample_rate} Hz: {audio.path}',
            allowed=f'{sample_rate} Hz',
            remedy='convert the recording or set resample to true',
        )
    span = clip_span(audio, header, sample_rate)
    limits.check_clip(audio.path, span.count, header.sample_rate, header.num_channels)
    samples = _decode(audio, span, header.seekable)
    if not np.isfinite(samples).all():
        raise audio_fault(Reason.AUDIO_NOT_FINITE, field='audio', got=audio.path)
    if (level := float(np.abs(samples).max(initial=0.0))) > MAX_LEVEL:
        got = f'a sample of {level:.3g}: {audio.path}'
        raise audio_fault(Reason.AUDIO_TOO_LOUD, field='audio', got=got, allowed=f'at most {MAX_LEVEL:.3g}')
    if (heard := heard_rate(audio, header.sample_rate)) != sample_rate:
        import soxr

        samples = soxr.resample(samples, heard, sample_rate).astype(np.float32, copy=False)
    # soxr rounds the length in its own way, by a sample at most; a trusted duration is off by the tolerance at most
    missing = span.num_samples - len(samples)
    return np.pad(samples, (0, missing)) if missing > 0 else samples[: span.num_samples]


@contextmanager
def _decoding(path: str) -> Iterator[None]:
    """The one place where what a recording's file or decoder raises becomes a reason."""
    with guarded(Reason.AUDIO_UNREADABLE, f'audio {path}', remedy=_RECODE, error=VtbAudioError):
        try:
            yield
        except OSError as error:
            raise _os_fault(path, error) from error


def _decode(audio: Audio, span: ClipSpan, seekable: bool) -> np.ndarray:
    path = audio.path
    with _decoding(path):
        samples = _decode_span(path, span, seekable)  # (count, channels)
    if len(samples) != span.count:
        raise audio_fault(Reason.AUDIO_TRUNCATED, field='audio', got=f'{len(samples)} of {span.count} samples: {path}')
    if audio.channel is None and samples.shape[1] > 1:
        return samples.mean(axis=1, dtype=np.float32)
    return np.ascontiguousarray(samples[:, audio.channel or 0])


def _decode_span(path: str, span: ClipSpan, seekable: bool) -> np.ndarray:
    import soundfile

    if seekable:
        try:
            with _opened(path) as source:
                return soundfile.read(source, span.count, span.start, dtype='float32', always_2d=True)[0]
        except soundfile.SoundFileError:
            if not span.start:
                raise
            # a file in which no place can be found may still be whole
    with _from_the_start(path) as file:
        for _ in _blocks(file, span.start):
            pass
        return file.read(span.count, dtype='float32', always_2d=True)


def _count_samples(path: str) -> int:
    """Samples of a recording whose header does not tell, by decoding it; at most 2^30, which no clip may have."""
    with _from_the_start(path) as file:
        return sum(_blocks(file, 1 << 30))


@contextmanager
def _from_the_start(path: str) -> Iterator[Any]:
    """An open recording that libsndfile is never asked to seek in: it fails where the length is not known."""
    import soundfile

    class Sequential(soundfile.SoundFile):
        def seekable(self) -> bool:
            return False

    with _opened(path) as source, Sequential(source) as file:
        yield file


def _blocks(file: Any, count: int) -> Iterator[int]:
    """Pass over `count` samples at most; yields how many each step took."""
    while count > 0 and (taken := len(file.read(min(count, _BLOCK), dtype='float32', always_2d=True))):
        count -= taken
        yield taken


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """What libsndfile reads a recording from. It drops what a store raises meanwhile; here it is raised."""
    source = open_audio(path)
    try:
        yield _without_name(source)
    finally:
        if isinstance(source, RangeFile) and source.error is not None:
            raise source.error


def _without_name(source: str | io.BytesIO | RangeFile) -> Any:
    """The descriptor of a file whose name soundfile would believe: it never looks into a `.raw`."""
    if isinstance(source, str) and source.lower().endswith('.raw'):
        return os.open(source, os.O_RDONLY)
    return source


def _split(path: str) -> tuple[str, str]:
    """`shard.tar!/name.wav` -> ('shard.tar', 'name.wav'); any other path -> (path, '')."""
    archive, mark, member = path.partition('.tar!/')
    if mark:
        return f'{archive}.tar', member
    if is_address(path) and (signed := _SIGNED_TAR.search(path)):
        return path[: signed.end()], path[signed.end() + 2 :]
    return path, ''


def archive_of(path: str) -> str:
    """The file that holds a recording: its archive, or itself."""
    return _split(path)[0]


def open_audio(path: str) -> str | io.BytesIO | RangeFile:
    """The path itself; the bytes of a member of an archive, or of a recording in a store (long ones by ranges).

    Raises:
        OSError: It is not there, or may not be read.
        VtbAudioError: The archive has no such member.
        VtbStoreError: The store refuses the credentials, or does not answer.
    """
    archive, member = _split(path)
    if member:
        return io.BytesIO(read_range(archive, *_member(archive, member)))
    if not is_address(path):
        return path
    size = file_facts(path).size
    return RangeFile(path) if size > _WHOLE_BYTES else io.BytesIO(read_range(path, 0, size))


def fetch_audio_ahead(audios: Iterable[Audio]) -> None:
    """Read recordings that lie in stores, several at once, so that they are there when they are decoded."""
    paths = dict.fromkeys(audio.path for audio in audios if is_address(audio.path))
    if len(paths) > 1:
        fetch_ahead([partial(open_audio, path) for path in paths if not _is_here(path)])


def _is_here(path: str) -> bool:
    try:
        return is_cached(archive_of(path))
    except (OSError, VtbStoreError):
        return False  # said when it is read


def _member(archive: str, member: str) -> tuple[int, int]:
    facts = file_facts(archive)
    members, name = _members(archive, facts.size, facts.tag), _member_name(member)
    # NeMo's converter calls the segments of x.wav x-sub1.wav, x-sub2.wav; the archive holds x.wav alone
    found = members.get(name) or members.get(_SEGMENT.sub(r'\1\2', name))
    if found is None and name.endswith('.*'):  # Shar in a store, whose archive was not looked into
        found = next((place for each, place in members.items() if os.path.splitext(each)[0] == name[:-2]), None)
    if found is None:
        raise audio_fault(Reason.AUDIO_NOT_IN_TAR, field='audio', got=f'{member} in {archive}', remedy='write it anew')
    return found


@lru_cache(maxsize=64)
def _members(archive: str, size: int, _tag: str) -> dict[str, tuple[int, int]]:
    """Offset and size of all members that are whole; those of an object are found once for all processes."""
    if not is_address(archive):
        return _find_members(archive, size)
    key = hashlib.sha256(json.dumps(object_identity(archive)).encode()).hexdigest()[:32]
    table = cache_dir() / 'members' / key[:2] / f'{key}.json'
    if found := read_json_object(table):
        return {name: (place[0], place[1]) for name, place in found.items()}
    with file_lock(table.with_suffix('.lock')):
        if found := read_json_object(table):
            return {name: (place[0], place[1]) for name, place in found.items()}
        members = _find_members(archive, size)
        write_atomically(table, json.dumps(members))
    return members


def _find_members(archive: str, size: int) -> dict[str, tuple[int, int]]:
    """The members of an archive; one that is cut simply has fewer."""
    members: dict[str, tuple[int, int]] = {}
    with open_file(archive) as stream:
        try:
            with tarfile.open(fileobj=stream, mode='r:') as tar:
                for item in tar:
                    if item.isfile() and item.offset_data + item.size <= size:
                        members.setdefault(_member_name(item.name), (item.offset_data, item.size))
        except VtbStoreError:
            raise
        except Exception:  # noqa: BLE001 - a header can raise anything; what lies behind it is reported by member
            if isinstance(stream, RangeFile) and stream.error is not None:
                raise stream.error from None
    return members


def _member_name(name: str) -> str:
    return name.removeprefix('./').lstrip('/')


def _os_fault(path: str | Path, error: OSError) -> VtbDataError:
    if isinstance(error, ObjectChanged):
        return audio_fault(
            Reason.AUDIO_CHANGED, field='audio', got=f'{path} ({error})', remedy='restore it, or build the index anew'
        )
    reason = Reason.AUDIO_NO_PERMISSION if isinstance(error, PermissionError) else Reason.AUDIO_MISSING
    return audio_fault(
        reason, field='audio', got=f'{path} ({error.strerror})', remedy='correct the path in the manifest'
    )
