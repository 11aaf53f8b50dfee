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
"""The record of an evaluation: figures, what each example contributed to them, and answers, as JSON lines.

Everything that shows a figure (tables, report, manifest of a `.nemo`, model card) reads its `Metric` lines.
"""

import errno
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nemo_vtb.data.conversation import Audio, Conversation
from nemo_vtb.errors import VtbCheckpointError, VtbDataError
from nemo_vtb.evaluation.metrics import Interval
from nemo_vtb.io import json_line, read_json_lines, write_atomically

FORMAT_VERSION = 2
"""Of the file; raised when a field changes its meaning."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure.

    Args:
        suite: As in 'speech'.
        task: As in 'asr'.
        source: Where the data comes from; a record of its own for each.
        name: Of the metric, as in 'WER'.
        n: Examples.
        value: Of the model; None where it cannot be scored, and `signature` says why.
        interval: 95 % interval of `value`.
        base: Value of the base LLM on the same examples; None where it cannot be asked.
        change: `value` minus `base`.
        change_interval: 95 % interval of `change`, examples drawn in pairs.
        p: How often chance alone makes a change as large.
        higher_is_better: Direction.
        unit: '%' or ''.
        signature: Normaliser, tokeniser and versions.
        title: What tables call the task; '' is its name.
    """

    suite: str
    task: str
    source: str
    name: str
    n: int
    value: float | None
    interval: Interval = (None, None)
    base: float | None = None
    change: float | None = None
    change_interval: Interval = (None, None)
    p: float | None = None
    higher_is_better: bool = True
    unit: str = '%'
    signature: str = ''
    title: str = ''

    @property
    def change_percent(self) -> float | None:
        """Difference to the base LLM in percent of its value, None without one."""
        return None if not self.base or self.value is None else 100.0 * (self.value - self.base) / self.base


@dataclass(frozen=True, slots=True)
class ExampleScore:
    """What one example contributed: metric -> statistics whose sums make its value, of the model and its base LLM."""

    suite: str
    task: str
    source: str
    id: str
    scores: Mapping[str, Sequence[float]]
    base: Mapping[str, Sequence[float]] | None = None
    group: str = ''


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer.

    Args:
        id: Conversation and number of the turn.
        task: As in `Metric`.
        source: As in `Metric`.
        prompt: The prompt in readable form; a recording is `▶ name (seconds)`.
        reference: The expected answer.
        hypothesis: The answer of the model.
        audios: Paths of the recordings in the prompt.
        said: Their transcripts, '' where unknown.
        typed_and_spoken: Whether the turn that is answered holds text and audio.
        base: Answer of the base LLM; None if it cannot be asked.
        verdict: That of the judge, or why there is none (`unjudged`); None without a judge.
        suite: As in `Metric`.
        base_prompt: What the base LLM was asked, where it differs from `prompt`.
        constraints: What a program checks of the answer.
        right: Whether the answer passes them; None where there are none.
        base_right: Likewise of the base LLM.
    """

    id: str
    task: str
    source: str
    prompt: str
    reference: str
    hypothesis: str
    audios: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    typed_and_spoken: bool = False
    base: str | None = None
    verdict: Mapping[str, Any] | None = None
    suite: str = 'speech'
    base_prompt: str = ''
    constraints: tuple[Mapping[str, Any], ...] = ()
    right: bool | None = None
    base_right: bool | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures, answers, what examples contributed, and `info` (model, data, settings, seconds)."""

    metrics: tuple[Metric, ...]
    samples: tuple[Sample, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    scores: tuple[ExampleScore, ...] = ()

    def of(self, suite: str, task: str | None = None) -> list[Metric]:
        """The figures of a suite (and a task of it)."""
        return [m for m in self.metrics if m.suite == suite and task in (None, m.task)]

    def metric(self, task: str, name: str, source: str | None = None, suite: str | None = None) -> Metric:
        """The first figure of a task and metric (and source, and suite).

        Raises:
            VtbDataError: There is none; the message lists what there is.
        """
        for found in self.metrics:
            if (found.task, found.name) == (task, name) and source in (None, found.source):
                if suite in (None, found.suite):
                    return found
        raise VtbDataError(
            'The evaluation has no such figure.',
            field='metric',
            got=(suite, task, name, source),
            allowed=sorted({(m.suite, m.task, m.name, m.source) for m in self.metrics}),
        )

    def write(self, path: str | Path) -> Path:
        """Write all records to a file of JSON lines, whole or not at all, and return its path.

        The first line has `format_version` and `info`; `type` says what each other one is: metric, sample or score.
        Numbers that are not finite become null.

        Raises:
            VtbCheckpointError: The disk is full or the folder cannot be written.
        """
        lines = [{'type': 'info', 'format_version': FORMAT_VERSION, **self.info}]
        for kind, records in (('metric', self.metrics), ('sample', self.samples), ('score', self.scores)):
            lines += [{'type': kind, **asdict(record)} for record in records]
        return write_text(path, ''.join(json_line(finite(line)) for line in lines))

    @classmethod
    def read(cls, path: str | Path) -> 'Evaluation':
        """Read what `write` wrote.

        Raises:
            VtbDataError: The file is missing, is no result, or is one of an earlier version, which had another form.
        """
        path = Path(path)
        try:
            content = path.read_text(encoding='utf-8')
            if '"format_version"' in content and '"rows"' in content and not content.startswith('{"type"'):
                raise ValueError('a result of nemo_vtb before 2.0, one JSON object with rows')
            info, *lines = read_json_lines(path)
            if info.pop('type') != 'info' or info.pop('format_version') != FORMAT_VERSION:
                raise ValueError('another format')
            found: dict[str, list[Any]] = {'metric': [], 'sample': [], 'score': []}
            kinds = {'metric': Metric, 'sample': Sample, 'score': ExampleScore}
            for line in lines:
                kind = line.pop('type')
                found[kind].append(kinds[kind](**{k: _tuples(v) for k, v in line.items()}))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise VtbDataError(
                'This is no result of an evaluation.',
                field='path',
                got=f'{path}: {error}',
                allowed=f'a file of JSON lines that vtb eval writes (format {FORMAT_VERSION})',
                remedy='measure the model again: vtb eval MODEL.nemo',
            ) from error
        return cls(tuple(found['metric']), tuple(found['sample']), info, tuple(found['score']))

    def with_verdicts(
        self, samples: Sequence[Sample], metrics: Sequence[Metric], info: Mapping[str, Any]
    ) -> 'Evaluation':
        """The same with other samples, more figures (behind those of their task) and more on how it was made."""
        order = {key: i for i, key in enumerate(dict.fromkeys((m.suite, m.task) for m in (*self.metrics, *metrics)))}
        both = sorted((*self.metrics, *metrics), key=lambda m: order[m.suite, m.task])
        return replace(self, metrics=tuple(both), samples=tuple(samples), info=dict(self.info) | dict(info))

    def examples(self) -> list[Sample]:
        """The first answers about speech and text of each task, not chosen by quality.

        Two questions about recordings, two turns with text and audio, a transcript of each source, one text-only turn.
        """
        samples = [s for s in self.samples if s.suite == 'speech']
        mixed = [s for s in samples if s.task == 'mixed_modal']
        chosen = [*[s for s in samples if s.task == 'speech_qa'][:2]]
        chosen += ([s for s in mixed if s.typed_and_spoken] or mixed)[:2]
        chosen += {s.source: s for s in reversed(samples) if s.task == 'asr'}.values().__reversed__()
        # written by a person if there is one: what a small LLM generates for itself is a poor reference to show
        texts = [s for s in samples if s.task == 'text']
        return chosen + ([s for s in texts if s.source == 'reference'] or texts)[:1]


def readable(conversation: Conversation) -> str:
    """The turns as text for people, recordings as `▶ name (seconds)`."""
    lines = []
    for turn in conversation.turns:
        parts = []
        for part in turn.parts:
            if isinstance(part, Audio):
                seconds = '' if part.duration_s is None else f' ({part.duration_s:.1f} s)'
                parts.append(f'▶ {Path(part.path).name}{seconds}')
            else:
                parts.append(part.text)
        lines.append(f'{turn.role}: {" ".join(parts)}')
    return '\n'.join(lines)


def write_text(path: str | Path, text: str) -> Path:
    """Write a file beside its place and move it there, so that nobody ever reads half of one.

    Raises:
        VtbCheckpointError: The disk is full or the folder cannot be written.
    """
    try:
        write_atomically(path, text)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise VtbCheckpointError(
            'The disk is full.' if full else 'The file cannot be written.',
            field=str(path),
            got=str(error),
            remedy='free some space' if full else 'choose a folder that you may write to',
        ) from error
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """`write_text` of JSON; errors as there."""
    return write_text(path, json.dumps(finite(value), ensure_ascii=False, indent=1, allow_nan=False) + '\n')


def finite(value: Any) -> Any:
    """The same plain value with None for numbers that JSON does not know."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, str):
        return value
    if isinstance(value, Iterable):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}
    return tuple(value) if isinstance(value, list) else value
