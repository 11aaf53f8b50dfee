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
"""NeMo's filters of a loader section: what they refuse is counted as `filtered`, and is no fault of the data.

They are applied when a source is indexed, with exact lengths; an index belongs to its filters.
"""

from collections.abc import Mapping
from typing import Any

from nemo_vtb.data.faults import Reason, data_fault
from nemo_vtb.errors import VtbConfigError

KEYS = (
    'min_duration', 'max_duration', 'min_tps', 'max_tps', 'min_tokens', 'max_tokens', 'min_tpt', 'max_tpt', 'max_cer',
    'min_context_speaker_similarity', 'keep',
)  # fmt: skip
"""Keys of a loader section."""

_KEEP = 'pass'


def filters_of(loader: Mapping[str, Any]) -> dict[str, Any]:
    """The filters of a loader section that can refuse anything.

    Raises:
        VtbConfigError: A bound for each bucket: there are no buckets.
    """
    given = {key: loader[key] for key in KEYS if loader.get(key) is not None}
    for key, value in given.items():
        if isinstance(value, list | tuple):
            raise VtbConfigError(
                'There are no buckets that could have bounds of their own.',
                field=f'data.train_ds.{key}',
                got=value,
                allowed='a number',
                remedy=f'the largest of them: {max(value)}' if value else 'null',
            )
    bounds = {k: float(v) for k, v in given.items() if isinstance(v, int | float) and abs(v) != float('inf')}
    bounds = {k: v for k, v in bounds.items() if not (k.startswith('min_') and v < 0)}
    return bounds | ({'keep': given['keep']} if given.get('keep', _KEEP) != _KEEP else {})


def check_filters(filters: Mapping[str, Any], line: Mapping[str, Any], size: Mapping[str, float], where: str) -> None:
    """Apply filters to one conversation.

    Args:
        filters: Of `filters_of`.
        line: The line of the manifest, which may name its `cer`, `validation_status` and
            `context_speaker_similarity`.
        size: Of `Meter.measure`.
        where: What an error names.

    Raises:
        VtbDataError: One of them refuses it; `error.reason` is `Reason.FILTERED`.
    """
    spoken = size['clips'] > 0
    notes = _notes(line)
    values = {'tokens': size['length'], 'cer': _noted(notes, 'cer')}
    values['context_speaker_similarity'] = _noted(notes, 'context_speaker_similarity')
    if spoken:  # as in NeMo, these are for recordings ...
        values |= {'duration': size['seconds'], 'tps': size['supervised'] / max(size['seconds'], 1e-9)}
    else:  # ... and this is for text
        values['tpt'] = size['supervised'] / max(size['length'] - size['supervised'], 1)
    for key, bound in filters.items():
        side, _, name = key.partition('_')
        value = values.get(name)
        if isinstance(value, int | float) and (value < bound if side == 'min' else value > bound):
            raise data_fault(Reason.FILTERED, field=where, got=f'{name} {value:.4g}', allowed=f'{key} {bound:g}')
    status = _noted(notes, 'validation_status')
    if status is not None and status != filters.get('keep', _KEEP):
        raise data_fault(Reason.FILTERED, field=where, got=f'validation_status {status}', allowed=_KEEP)


def _notes(line: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Where a manifest notes values: beside the recording, in `custom`, or in a cut's first supervision."""
    supervisions = line.get('supervisions')
    first = supervisions[0] if isinstance(supervisions, list) and supervisions else None
    places = [line, line.get('custom'), first, first.get('custom') if isinstance(first, dict) else None]
    return [place for place in places if isinstance(place, dict)]


def _noted(notes: list[Mapping[str, Any]], name: str) -> Any:
    return next((place[name] for place in notes if place.get(name) is not None), None)
