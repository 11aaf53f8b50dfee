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
"""The result of an evaluation: rows of numbers and the answers behind them, as a table, as examples and as JSON."""

import errno
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_vtb.data.conversation import Audio, Conversation
from nemo_vtb.errors import VtbCheckpointError, VtbDataError
from nemo_vtb.io import write_atomically

if TYPE_CHECKING:
    from rich.console import Console

SUITE_KEYS = ('text_suite', 'instruct', 'emergent', 'ladder')
"""Keys of a result for the suites beside `speech`: `tasks` by name, each with value, interval and base."""

FORMAT_VERSION = 1
"""Written into every JSON file; raised when a field changes its meaning."""

_TASK_NAMES = {
    'asr': 'Transcribe speech',
    'ast': 'Translate speech',
    'speech_qa': 'Answer about speech',
    'mixed_modal': 'Text + speech turns',
    'text': 'Text only',
}
_SUITE_TITLES = {
    'text_suite': 'Text ability (percent): this model beside its base LLM',
    'instruct': 'Instructions that a program checks (percent), spoken and typed',
    'emergent': 'Tasks outside the training data (percent)',
    'ladder': 'The same questions typed and spoken (percent)',
}
_PERCENT = ('WER', 'CER', 'exact match', 'F1', 'judge: correct')
_EXPLANATIONS = {
    'WER': 'WER: of 100 words said, so many are wrong, missing or added (0 = perfect).',
    'BLEU': 'BLEU: likeness to the reference translation (0 to 100; above 30 is understandable).',
    'exact match': 'exact match / F1: answers equal to the reference / words shared with it (100 = perfect).',
    'judge: correct': 'judge: answers that are right and no mere copies / redundancy: copied without need (1 to 10).',
    'perplexity': 'perplexity: on held-out text-only conversations; equal to the base = nothing was forgotten.',
}


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure, a line of the record that everything shows figures from.

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
    interval: tuple[float | None, float | None] = (None, None)
    base: float | None = None
    change: float | None = None
    change_interval: tuple[float | None, float | None] = (None, None)
    p: float | None = None
    higher_is_better: bool = True
    unit: str = '%'
    signature: str = ''
    title: str = ''


@dataclass(frozen=True, slots=True)
class Row:
    """One number: a metric of one task on one source.

    Args:
        task: 'asr', 'ast', 'speech_qa', 'mixed_modal' or 'text'.
        source: Where the data comes from; a row of its own for each.
        metric: Name of the metric.
        n: Answers (conversations for the perplexity).
        ours: The value of this model; None where it cannot be scored, and `signature` says why.
        base: The value of the base LLM; None where the prompt has audio, which it cannot take.
        low: Lower end of the 95 % interval of `ours`.
        high: Upper end.
        higher_is_better: Direction of the metric.
        signature: Normaliser, tokeniser and versions.
        kept: Of a perplexity: base LLM by model in percent, and the ends of its interval, chats drawn in pairs.
    """

    task: str
    source: str
    metric: str
    n: int
    ours: float | None
    base: float | None = None
    low: float | None = None
    high: float | None = None
    higher_is_better: bool = True
    signature: str = ''
    kept: tuple[float | None, ...] | None = None

    @property
    def change_percent(self) -> float | None:
        """Difference to the base LLM in percent of its value, None without one."""
        return None if not self.base or self.ours is None else 100.0 * (self.ours - self.base) / self.base


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer.

    Args:
        id: Conversation and number of the turn.
        task: As in `Row`.
        source: As in `Row`.
        prompt: The prompt in readable form; a recording is `▶ name (seconds)`.
        reference: The expected answer.
        hypothesis: The answer of the model.
        audios: Paths of the recordings in the prompt.
        said: Their transcripts, '' where unknown.
        typed_and_spoken: Whether the turn that is answered holds text and audio.
        base: Answer of the base LLM to the same prompt, None if that has audio.
        verdict: That of the judge, or why there is none (`unjudged`); None without a judge.
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


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Rows, samples, `info` (model, data, settings, seconds), and `suites`: those of `SUITE_KEYS`."""

    rows: tuple[Row, ...]
    samples: tuple[Sample, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    suites: Mapping[str, Any] = field(default_factory=dict)

    def row(self, task: str, metric: str, source: str | None = None) -> Row:
        """The first row of a task and metric (and source).

        Raises:
            VtbDataError: There is none; the message lists what there is.
        """
        for row in self.rows:
            if (row.task, row.metric) == (task, metric) and source in (None, row.source):
                return row
        raise VtbDataError(
            'The evaluation has no such row.',
            field='row',
            got=(task, metric, source),
            allowed=sorted({(r.task, r.metric, r.source) for r in self.rows}),
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values; numbers that are not finite become None."""
        return finite(
            {
                'format_version': FORMAT_VERSION,
                'info': dict(self.info),
                'rows': [asdict(r) | {'change_percent': r.change_percent} for r in self.rows],
                'samples': [asdict(s) for s in self.samples],
                **self.suites,
            }
        )

    def to_json(self, path: str | Path) -> Path:
        """Write everything to a JSON file, whole or not at all, and return its path.

        Raises:
            VtbCheckpointError: The disk is full or the folder cannot be written.
        """
        return write_json(path, self.to_dict())

    @classmethod
    def from_json(cls, path: str | Path) -> 'Evaluation':
        """Read what `to_json` wrote.

        Raises:
            VtbDataError: The file is missing or was not written by `to_json`.
        """
        try:
            data = json.loads(Path(path).read_text(encoding='utf-8'))
            rows = [Row(**{k: v for k, v in r.items() if k != 'change_percent'}) for r in data['rows']]
            samples = [Sample(**s | {'audios': tuple(s['audios']), 'said': tuple(s['said'])}) for s in data['samples']]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise VtbDataError(
                'This is no result of an evaluation.',
                field='path',
                got=f'{path}: {error}',
                allowed='a JSON file of eval',
            ) from error
        return cls(tuple(rows), tuple(samples), data['info'], {k: data[k] for k in SUITE_KEYS if k in data})

    def examples(self) -> list[Sample]:
        """The first samples of each task, not chosen by quality.

        Two questions about recordings, two turns with text and audio, a transcript of each source, one text-only turn.
        """
        mixed = [s for s in self.samples if s.task == 'mixed_modal']
        chosen: list[Sample | None] = [
            *[s for s in self.samples if s.task == 'speech_qa'][:2],
            *([s for s in mixed if s.typed_and_spoken] or mixed)[:2],
        ]
        for source in dict.fromkeys(s.source for s in self.samples if s.task == 'asr'):
            chosen.append(self._first(lambda s, source=source: s.task == 'asr' and s.source == source))
        # written by a person if there is one: what a small LLM generates for itself is a poor reference to show
        written = self._first(lambda s: s.task == 'text' and s.source == 'reference')
        chosen.append(written or self._first(lambda s: s.task == 'text'))
        return [sample for sample in chosen if sample is not None]

    def _first(self, wanted: Any) -> Sample | None:
        return next((s for s in self.samples if wanted(s)), None)

    def show(self, console: 'Console', *, examples: bool = True) -> None:
        """Print table, examples and suites."""
        if self.rows:
            self.table(console)
            if examples:
                self.show_examples(console)
        self.show_suites(console)

    def table(self, console: 'Console') -> None:
        """Print the numbers so that a newcomer understands them."""
        from rich.table import Table

        table = Table(title='Held-out data: this model beside its base LLM', title_justify='left', header_style='bold')
        for name in ('Task', 'Source', 'Measure'):
            table.add_column(name, overflow='fold')
        for name in ('n', 'Base LLM', 'This model', '95 % interval'):
            table.add_column(name, justify='right', no_wrap=True)
        task = None
        for row in self.rows:
            if task not in (None, row.task):
                table.add_section()
            arrow = 'higher is better' if row.higher_is_better else 'lower is better'
            interval = (
                '-' if row.low is None or row.high is None else f'{_number(row.low, row)} to {_number(row.high, row)}'
            )
            table.add_row(
                _TASK_NAMES.get(row.task, row.task) if task != row.task else '',
                row.source,
                f'{row.metric}{" %" if row.metric in _PERCENT else ""} [dim]({arrow})[/dim]',
                str(row.n),
                '-' if row.base is None else _number(row.base, row),
                'n/a' if row.ours is None else f'[bold]{_number(row.ours, row)}[/bold]{_change(row)}',
                interval,
            )
            task = row.task
        console.print(table)
        metrics = {row.metric for row in self.rows}
        lines = [text for metric, text in _EXPLANATIONS.items() if metric in metrics]
        if any(row.base is None for row in self.rows):
            lines.append('-: no base value, as the base LLM takes no audio.')
        console.print('\n'.join(lines), style='dim', highlight=False)

    def show_suites(self, console: 'Console') -> None:
        """Print the suites: one line for each task, with the base LLM where it has a value."""
        from rich.table import Table

        for name, suite in self.suites.items():
            table = Table(title=_SUITE_TITLES.get(name, name), title_justify='left', header_style='bold')
            table.add_column('Task', overflow='fold')
            table.add_column('Measure')
            for column in ('n', 'Base LLM', 'This model', '95 % interval', 'p'):
                table.add_column(column, justify='right', no_wrap=True)
            for task, entry in suite['tasks'].items():
                base, p = entry.get('base'), entry.get('p_value')
                table.add_row(
                    entry.get('title', task),
                    entry['metric'],
                    str(entry['n']),
                    _percent(base['value']) if base else '-',
                    f'[bold]{_percent(entry["value"])}[/bold]',
                    ' to '.join(_percent(end) for end in entry['interval']),
                    '-' if p is None else f'{p:.3f}',
                )
            console.print(table)
            if suite.get('retention') is not None:
                low, high = suite.get('retention_interval') or (None, None)
                text = f'retention (mean of this model / base LLM over the tasks): {_percent(suite["retention"])} %'
                console.print(f'{text} ({_percent(low)} to {_percent(high)})', style='dim', highlight=False)

    def show_examples(self, console: 'Console') -> None:
        """Print prompts and answers, with those of the base LLM where it has any."""
        from rich.table import Table

        table = Table(title='Examples', title_justify='left', header_style='bold', show_lines=True)
        table.add_column('Prompt', ratio=5)
        for name in ('Reference', 'This model', 'Base LLM'):
            table.add_column(name, ratio=3)
        for sample in self.examples():
            said = [f'[dim]said: "{plain(text)}"[/dim]' for text in sample.said if text]
            head = f'[bold]{_TASK_NAMES.get(sample.task, sample.task)}[/bold] [dim]({plain(sample.source)})[/dim]'
            table.add_row(
                '\n'.join([head, plain(sample.prompt), *said]),
                plain(sample.reference),
                plain(sample.hypothesis),
                '-' if sample.base is None else plain(sample.base),
            )
        console.print(table)


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


def write_json(path: str | Path, value: Any) -> Path:
    """Write a JSON file beside its place and move it there, so that nobody ever reads half of one.

    Raises:
        VtbCheckpointError: The disk is full or the folder cannot be written.
    """
    text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + '\n'
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


def finite(value: Any) -> Any:
    """The same plain value with None for numbers that JSON does not know."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, str):
        return value
    if isinstance(value, Iterable):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain(text: str) -> str:
    """Text that is safe to show: a model may write markup or control codes of the terminal."""
    from rich.markup import escape

    return escape(''.join(c if c.isprintable() or c == '\n' else '\ufffd' for c in text))


def _number(value: float, row: Row) -> str:
    if abs(value) >= 1000:
        return f'{value:.3g}'
    # percents are small integers at heart; a perplexity of 3.21 against 3.24 is a difference
    return f'{value:.1f}' if row.metric in _PERCENT or row.metric in ('BLEU', 'chrF') else f'{value:.2f}'


def _percent(value: float | None) -> str:
    return '-' if value is None else f'{100 * value:.1f}'


def _change(row: Row) -> str:
    change = row.change_percent
    return '' if change is None else f' ({change:+.1f} %)'
