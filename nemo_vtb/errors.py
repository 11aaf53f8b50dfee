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
"""Errors that a user can act on: each names the field, the value, what is allowed and the remedy."""

import copyreg
import errno
import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec('P')
R = TypeVar('R')

_ADDRESS = re.compile(r'([A-Za-z][A-Za-z0-9+.-]*://)([^\s/?#\'"]*@)?([^\s?\'"<>]*)(\?[^\s\'"<>]*)?')


def redacted(text: str) -> str:
    """A text in which no address has a user, a password or a query: a query may be a signature."""
    if '://' not in text:
        return text
    return _ADDRESS.sub(lambda m: f'{m[1]}{"***@" if m[2] else ""}{m[3]}{"?***" if m[4] else ""}', text)


class VtbError(Exception):
    """Base of all errors that nemo_vtb raises on purpose.

    Args:
        message: One sentence: what is wrong.
        field: The config key, file or argument at fault.
        got: The value that came.
        allowed: What would have been accepted.
        remedy: What to type or change.
    """

    def __init__(
        self,
        message: str = '',
        *,
        field: str | None = None,
        got: object = None,
        allowed: object = None,
        remedy: str | None = None,
    ) -> None:
        self.field = redacted(field) if field is not None else None
        self.got = redacted(got) if isinstance(got, str) else got
        self.allowed, self.remedy = allowed, remedy
        lines = [message] if message else []
        for name, value in (('field', field), ('got', got), ('allowed', allowed), ('remedy', remedy)):
            if value is not None:
                lines.append(f'  {name + ":":<9}{_short(value)}')
        super().__init__(redacted('\n'.join(lines)))

    def __reduce__(self) -> tuple:
        # loader workers send exceptions through pickle, which would call __init__ with the message alone
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class VtbConfigError(VtbError, ValueError):
    """A key of the configuration is unknown, missing or has a value that is not allowed."""


class VtbDataError(VtbError, ValueError):
    """A manifest, conversation or source of data is broken.

    Args:
        message: As of `VtbError`.
        reason: Why a conversation must be skipped, a value of `data.faults.Reason`.
        parts: As of `VtbError`.
    """

    def __init__(self, message: str = '', *, reason: str = 'other', **parts: Any) -> None:
        self.reason = reason
        super().__init__(message, **parts)

    @property
    def facts(self) -> dict[str, str]:
        """`reason` and `detail`, as the quarantine file and other lists of what was skipped have them."""
        return {'reason': str(self.reason), 'detail': ' '.join(str(self).split())[:400]}


class VtbIndexError(VtbError, RuntimeError):
    """The index of a source was removed or damaged while it was in use."""


class VtbStoreError(VtbError, RuntimeError):
    """An object store refuses all that is asked of it, or does not answer.

    Args:
        message: As of `VtbError`.
        busy: Whether it may answer later: it was asked again and again, and one object cannot be had.
        parts: As of `VtbError`.
    """

    def __init__(self, message: str = '', *, busy: bool = False, **parts: Any) -> None:
        self.busy = busy
        super().__init__(message, **parts)


class VtbAudioError(VtbDataError):
    """A recording is missing, unreadable, empty or of the wrong rate."""


class VtbTemplateError(VtbDataError):
    """The tokenizer has no usable chat template, or the template refuses a conversation."""


class VtbModelError(VtbError, ValueError):
    """A model folder is missing, corrupt, of an unknown family, or its parts do not fit together."""


class VtbCheckpointError(VtbError, RuntimeError):
    """A checkpoint cannot be written, is incomplete, or does not belong to this run."""


class VtbNumericsError(VtbError, ArithmeticError):
    """Losses, gradients or weights are not finite."""


class VtbAssetError(VtbError, RuntimeError):
    """An embedded asset cannot be fetched, verified or converted."""


_DISK = {
    errno.ENOSPC: ('the disk is full', 'free some space, or name a folder on another disk'),
    errno.EDQUOT: (
        'the quota of this user or project is used up',
        'remove what is no longer needed, or have it raised',
    ),
    errno.EFBIG: (
        'the file would be larger than a file may be here',
        'raise the limit (ulimit -f), or use another disk',
    ),
    errno.EROFS: ('the file system is read-only', 'name a folder that can be written to'),
    errno.EACCES: ('this user may not write there', 'correct the permissions, or name another folder'),
    errno.EPERM: ('this user may not write there', 'correct the permissions, or name another folder'),
    errno.ENOENT: ('the file or folder is gone', 'put it back, or correct the path'),
    errno.EIO: ('the disk reports an error', 'use another disk, and have this one checked'),
    errno.ESTALE: ('the file server has lost the file', 'start again once the mount is back'),
}


def disk_fault(error: BaseException | None) -> tuple[str, str] | None:
    """What the system says about a failed reading or writing, and the remedy; None if the disk is not the cause.

    Writers of other libraries raise errors of their own: what they were raised from is looked at, too.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return _DISK[error.errno]
        error = error.__cause__ or error.__context__
    return None


def disk_error(error: OSError) -> VtbError | None:
    """What is wrong with a file as an error of ours; None if the disk is not the cause, or no file is named."""
    if (fault := disk_fault(error)) is None or error.filename is None:
        return None
    what, remedy = fault
    if Path(os.fsdecode(error.filename)).is_relative_to(Path.home()):
        remedy += '; NEMO_VTB_CACHE=FOLDER moves what is kept under the home folder'
    return VtbError(f'{what[0].upper()}{what[1:]}.', field='file', got=str(error), remedy=remedy)


def report_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Let a script end with the message of a `VtbError`, or what is wrong with a disk, and exit code 2."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except VtbError as error:
            sys.stderr.write(f'\n{type(error).__name__}: {error}\n')
            sys.exit(2)
        except OSError as error:
            if (named := disk_error(error)) is None:
                raise
            sys.stderr.write(f'\n{type(named).__name__}: {named}\n')
            sys.exit(2)

    return wrapped


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _short(value: object, limit: int = 400) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[:limit] + ' ...'
