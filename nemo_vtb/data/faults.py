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
"""Reasons for which a conversation is skipped: one list for quarantine, ledger, tests and docs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from functools import partial

from nemo_vtb.errors import VtbAudioError, VtbDataError, VtbError, first_line


class Reason(StrEnum):
    """Why a conversation is skipped; `meaning` says it in words. Files hold the values."""

    def __new__(cls, value: str, meaning: str) -> 'Reason':
        """A member is its value; its meaning stands beside."""
        member = str.__new__(cls, value)
        member._value_, member.meaning = value, meaning
        return member

    meaning: str

    NOT_JSON = 'not_json', 'the line is cut, not UTF-8 or not JSON'
    NOT_AN_OBJECT = 'not_an_object', 'the line is JSON but not an object'
    MISSING_KEY = 'missing_key', 'a key that the format needs is missing, empty or of a wrong type'
    NOT_UNICODE = 'not_unicode', 'a text is not valid Unicode: half of a surrogate pair'
    BAD_CUSTOM = 'bad_custom', '`custom` is not an object'
    UNKNOWN_ROLE = 'unknown_role', 'a turn is by somebody who is not system, user or assistant'
    UNKNOWN_TURN_TYPE = 'unknown_turn_type', 'a turn is neither text nor audio'
    WRONG_TURNS = (
        'wrong_turns',
        'no user or no assistant turn, assistant first, late system turn, or spoken answer',
    )
    BAD_SPAN = (
        'bad_span',
        'offset or duration is no number of seconds, negative, or beyond the end of the recording',
    )
    REFUSED_PATH = 'refused_path', 'an audio path is a command, or an address that nobody allowed'
    UNREAD_PART = 'unread_part', 'the line has a part that is not read for this type: recordings, images, tools'
    PLACEHOLDER_MISMATCH = 'placeholder_mismatch', 'there are more or fewer placeholders than recordings'
    UNSUPPORTED_CUT = (
        'unsupported_cut',
        'a lhotse cut that is mixed, padded, augmented, of several channels or supervisions, or of features alone',
    )
    TEMPLATE_REFUSED = 'template_refused', 'the chat template of the LLM refuses the conversation'
    NOTHING_TO_LEARN = 'nothing_to_learn', 'no token of the conversation is supervised'
    AUDIO_MISSING = 'audio_missing', 'the recording does not exist'
    AUDIO_NOT_A_FILE = 'audio_not_a_file', 'the path of the recording is a folder or a device'
    AUDIO_NO_PERMISSION = 'audio_no_permission', 'the recording may not be read'
    AUDIO_EMPTY_FILE = 'audio_empty_file', 'the recording has zero bytes'
    AUDIO_UNREADABLE = 'audio_unreadable', 'the recording cannot be decoded'
    AUDIO_TRUNCATED = 'audio_truncated', 'the recording ends before its header says so'
    AUDIO_NO_SAMPLES = 'audio_no_samples', 'the recording, or the span of it, has no samples'
    AUDIO_NO_CHANNEL = 'audio_no_channel', 'the recording has no such channel'
    AUDIO_TOO_SHORT = 'audio_too_short', 'the recording is shorter than one frame of the encoder'
    AUDIO_NOT_FINITE = 'audio_not_finite', 'the recording holds NaN or infinite samples'
    AUDIO_TOO_LOUD = 'audio_too_loud', 'samples lie beyond 2^31: no level of sound, and its square overflows'
    AUDIO_WRONG_RATE = 'audio_wrong_rate', 'the sampling rate differs and data.train_ds.resample is false'
    AUDIO_CHANGED = 'audio_changed', 'the recording has another length, size or time than when it was indexed'
    STORE_FAILED = 'store_failed', 'the object store did not answer, in all tries'
    AUDIO_NOT_IN_TAR = 'audio_not_in_tar', 'the archive has no member of that name'
    DURATION_MISMATCH = 'duration_mismatch', 'the duration field differs from the recording by more than the tolerance'
    OVERLONG = 'overlong', 'longer than max_tokens, and it cannot be cut between turns'
    LINE_CHANGED = 'line_changed', 'the line is not as it was when it was indexed'
    LINE_TOO_LONG = 'line_too_long', 'the line has more bytes than data.max_line_bytes'
    TOO_MANY_TURNS = 'too_many_turns', 'the conversation has more turns than data.max_turns'
    CLIP_TOO_LARGE = 'clip_too_large', 'the clip is longer than data.max_clip_seconds, or has too many samples'
    FILTERED = 'filtered', 'a filter of the loader section refuses it, as min_duration or max_cer'
    LOSS_NOT_FINITE = 'loss_not_finite', 'its loss or gradient was not finite: the step was left out on all ranks'
    OTHER = 'other', 'reading it raised an error of none of these reasons; the detail names its class'


def data_fault(
    reason: Reason,
    *,
    field: str,
    got: object,
    allowed: object = None,
    remedy: str | None = None,
    error: type[VtbDataError] = VtbDataError,
) -> VtbDataError:
    """Make the error of a broken line; its reason stays readable as `error.reason`."""
    message = f'{reason.meaning[0].upper()}{reason.meaning[1:]}.'
    return error(message, reason=reason, field=field, got=got, allowed=allowed, remedy=remedy)


audio_fault = partial(data_fault, error=VtbAudioError)
"""Make the error of a broken recording; as `data_fault`."""


@contextmanager
def guarded(
    reason: Reason, field: str, *, remedy: str | None = None, error: type[VtbDataError] = VtbDataError
) -> Iterator[None]:
    """Turn whatever is raised while one line is read or one recording is decoded into an error with a reason.

    Errors of this package pass, and so does what no datum is to blame for: MemoryError, KeyboardInterrupt, SystemExit.

    Args:
        reason: Of errors that nobody expected; the class of what was raised stands in `got`.
        field: Line or recording.
        remedy: As of `VtbError`.
        error: Class of the error.

    Raises:
        VtbDataError: Something was raised within the block.
    """
    try:
        yield
    except (VtbError, MemoryError):
        raise
    except Exception as found:
        got = f'{type(found).__name__}: {first_line(found)}'
        raise data_fault(reason, field=field, got=got, remedy=remedy, error=error) from found


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: JSON can spell half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def skip_table(reasons: Mapping[str, Mapping[str, int]]) -> str:
    """A plain table of what was skipped: source, reason, number, meaning."""
    meanings = {reason.value: reason.meaning for reason in Reason}
    rows = [(s, r, str(n), meanings.get(r, '')) for s, counts in reasons.items() for r, n in sorted(counts.items())]
    widths = [max((len(row[c]) for row in rows), default=0) for c in range(3)]
    return '\n'.join(f'  {s:<{widths[0]}}  {r:<{widths[1]}}  {n:>{widths[2]}}  {text}' for s, r, n, text in rows)
