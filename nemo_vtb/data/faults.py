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
"""Reasons for which a conversation is left out: one table for quarantine, ledger, tests and docs."""

from collections.abc import Mapping

from nemo_vtb.errors import VtbAudioError, VtbDataError, VtbError, VtbTemplateError

REASONS: Mapping[str, str] = {
    'not_json': 'the line is cut, not UTF-8 or not JSON',
    'not_an_object': 'the line is JSON but not an object',
    'missing_key': 'a key that the format needs is missing or empty',
    'unknown_role': 'a turn is by somebody who is not system, user or assistant',
    'unknown_turn_type': 'a turn is neither text nor audio',
    'wrong_turns': 'the turns do not make a conversation: no user, no assistant, assistant first, late system turn',
    'bad_span': 'offset or duration is not a number of seconds, is negative, or lies beyond the end of the recording',
    'refused_path': 'an audio path is a command or an address',
    'placeholder_mismatch': 'there are more or fewer placeholders than recordings',
    'template_refused': 'the chat template of the LLM refuses the conversation',
    'nothing_to_learn': 'no token of the conversation is supervised',
    'audio_missing': 'the recording does not exist',
    'audio_not_a_file': 'the path of the recording is a folder or a device',
    'audio_no_permission': 'the recording may not be read',
    'audio_empty_file': 'the recording has zero bytes',
    'audio_unreadable': 'the recording cannot be decoded',
    'audio_truncated': 'the recording ends before its header says so',
    'audio_no_samples': 'the recording, or the span of it, has no samples',
    'audio_too_short': 'the recording is shorter than one frame of the encoder',
    'audio_not_finite': 'the recording holds NaN or infinite samples',
    'audio_wrong_rate': 'the sampling rate differs and data.train_ds.resample is false',
    'audio_changed': 'the recording is not as long as it was when it was indexed',
    'audio_not_in_tar': 'the archive has no member of that name',
    'duration_mismatch': 'the duration field differs from the recording by more than the tolerance',
    'overlong': 'longer than max_tokens, and it cannot be cut between turns',
    'line_changed': 'the line is not as it was when it was indexed',
}

# the words with which data/conversation.py refuses a line
_BY_MESSAGE = {
    'The line is not valid JSON.': 'not_json',
    'The line is not a JSON object.': 'not_an_object',
    'A conversation needs a list of turns.': 'missing_key',
    'A turn must be an object.': 'missing_key',
    'A turn needs a value.': 'missing_key',
    'Unknown role.': 'unknown_role',
    'Unknown type of turn.': 'unknown_turn_type',
    'Only a user turn can be spoken.': 'wrong_turns',
    'An audio path must be a plain file: commands and addresses in a manifest are never run.': 'refused_path',
    'The duration of a recording must be a number of seconds.': 'bad_span',
    'The offset of a recording must be a number of seconds.': 'bad_span',
}


def audio_fault(
    reason: str, *, field: str, got: object, allowed: object = None, remedy: str | None = None
) -> VtbError:
    """Make the error of a broken recording; `reason` is a key of `REASONS` and stays readable as `error.reason`."""
    return _with_reason(VtbAudioError, reason, field, got, allowed, remedy)


def data_fault(reason: str, *, field: str, got: object, allowed: object = None, remedy: str | None = None) -> VtbError:
    """Make the error of a broken line; `reason` is a key of `REASONS` and stays readable as `error.reason`."""
    return _with_reason(VtbDataError, reason, field, got, allowed, remedy)


def reason_of(error: VtbError) -> str:
    """Return the key of `REASONS` for an error that was raised while a conversation was read."""
    if reason := getattr(error, 'reason', None):
        return reason
    if isinstance(error, VtbTemplateError):
        return 'template_refused'
    return _BY_MESSAGE.get(str(error).split('\n', 1)[0], 'wrong_turns')


def _with_reason(
    cls: type[VtbError], reason: str, field: str, got: object, allowed: object, remedy: str | None
) -> VtbError:
    message = REASONS[reason]
    error = cls(f'{message[0].upper()}{message[1:]}.', field=field, got=got, allowed=allowed, remedy=remedy)
    error.reason = reason  # type: ignore[attr-defined]
    return error
