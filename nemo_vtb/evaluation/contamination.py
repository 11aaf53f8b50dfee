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
"""Warns when recordings or transcripts of an evaluation stand in the data that the model was trained on."""

import filecmp
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nemo_vtb.data.conversation import read_jsonl
from nemo_vtb.data.faults import Reason, guarded
from nemo_vtb.data.normalizers import normalize_answer
from nemo_vtb.errors import VtbDataError
from nemo_vtb.evaluation.result import Sample
from nemo_vtb.factory.contamination import spans_of, texts_of

_MIN_WORDS = 6  # "thank you" is in every set


def training_data(run_config: Any) -> list[Path]:
    """The manifests that a run was trained on, as far as they are still on this machine.

    Args:
        run_config: Of the manifest of a `.nemo`; None where it has none.
    """
    section = run_config  # of a stranger, maybe: nothing in it is what it should be
    for key in ('data', 'train_ds'):
        section = section.get(key) if isinstance(section, Mapping) else None
    paths = [Path(value) for value in _values(section, 'manifest_filepath')]
    return list(dict.fromkeys(p for p in paths if p.suffix in ('.jsonl', '.json') and p.is_file()))


def warnings_of(files: Sequence[Path], samples: Sequence[Sample]) -> list[str]:
    """A sentence for each training file that holds a recording or a transcript of these answers.

    A recording is known by its place, or by its name and all its bytes; a transcript of at least six words by its
    words. A recording that was renamed and cut is found by `avoid` of the factory, before training.

    Args:
        files: Of `training_data`.
        samples: All answers.
    """
    recordings = {Path(path) for s in samples for path in s.audios}
    by_name: dict[str, list[Path]] = {}
    for path in recordings:
        by_name.setdefault(path.name, []).append(path)
    transcripts = {
        _key(text): text for s in samples for text in (*s.said, *([s.reference] if s.task == 'asr' else ()))
    }
    transcripts.pop('', None)
    told = []
    for file in files if samples else ():
        heard: dict[Path, None] = {}
        read: dict[str, None] = {}
        for number, _, row in read_jsonl(file, lambda *_: None):
            # what training skips cannot have taught anything
            with suppress(VtbDataError), guarded(Reason.OTHER, f'{file}:{number}'):
                for place, *_ in spans_of(row, file.parent):
                    heard |= dict.fromkeys(p for p in by_name.get(Path(place).name, ()) if _equal(p, Path(place)))
                read |= dict.fromkeys(key for text in texts_of(row) if (key := _key(text)) in transcripts)
        if heard:
            first = next(iter(heard))
            told.append(
                f'{len(heard)} of {len(recordings)} evaluation recordings stand in the training data {file} '
                f'(first: {first}): their scores say little about unheard speech'
            )
        if read:
            told.append(
                f'{len(read)} of {len(transcripts)} evaluation transcripts stand in the training data {file} '
                f'(first: "{transcripts[next(iter(read))]}"): the model may know their words'
            )
    return told


def _values(section: Any, name: str) -> Iterator[str]:
    """All texts under a key, however deep; a list counts each of its texts."""
    if isinstance(section, Mapping):
        for key, value in section.items():
            if key == name:
                values = value if isinstance(value, list) else [value]
                yield from (v for v in values if isinstance(v, str))
            else:
                yield from _values(value, name)
    elif isinstance(section, list):
        for value in section:
            yield from _values(value, name)


def _key(text: str) -> str:
    words = normalize_answer(text)
    return words if len(words.split()) >= _MIN_WORDS else ''


def _equal(one: Path, other: Path) -> bool:
    try:
        return one.resolve() == other.resolve() or filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False
