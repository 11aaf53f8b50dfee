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
"""The page `docs/reliability.md` and the figures, from the lines of the trials."""

import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torture.matrix import GROUPS, ROWS, Row
from torture.trials import Experiment

Records = Sequence[Mapping[str, Any]]
_DIRTY = '+changes'
_HEAD = """# Reliability

This page is written by `make torture` (`benchmarks/torture/run.py`), which does every fault of the matrix to real
processes and files. Where ordinary tests prove a row, they are named. What is promised:

1. **Kill it at any moment**: whatever ends whichever rank, the same command goes on with the same samples and the same
   losses, bit for bit on the same number of ranks; an orderly signal loses no step.
2. **Bad data costs only itself**: each broken conversation is left out once, counted and listed with its reason.
3. **A checkpoint is complete and verified, or it is not used**, and the last good one is never removed.
4. **Strangers' files run no code**: model files, folders, manifests, recordings and archives.
5. **What cannot be kept is refused by name** before the first step, never approximated.

A *trial* is one fault, with a seed. After N trials without a failure the true rate of failures is below 3/N with 95 %
confidence: that is the bound. A trial that does not end in time is a failure. Trials run on a CPU with a model of
two layers. The decisions behind them are [0047](adr/0047-whose-file-it-is.md) to
[0053](adr/0053-errors-become-reasons-where-they-rise.md), and [0060](adr/0060-the-matrix-is-a-run.md).
"""


def commit_of(root: Path) -> str:
    """The commit of the working tree, marked where it has changes."""

    def git(*words: str) -> str:
        return subprocess.run(['git', '-C', str(root), *words], capture_output=True, text=True).stdout.strip()

    changed = git('status', '--porcelain', '--untracked-files=no', '--', '.', ':!docs/reliability.md')
    return (git('rev-parse', '--short=10', 'HEAD') or 'unknown') + (_DIRTY if changed else '')


def dirty(commit: str) -> bool:
    """Whether the working tree had changes: then nobody knows what was tried."""
    return commit.endswith(_DIRTY)


def latest(records: Records) -> list[Mapping[str, Any]]:
    """The newest line of each trial, of the newest commit that an experiment was tried with."""
    commits = {record['key']: record['commit'] for record in records}
    own = [record for record in records if record['commit'] == commits[record['key']]]
    return list({(record['key'], record['trial']): record for record in own}.values())


def figures(found: Sequence[Experiment], records: Records, *, quick: bool) -> dict[str, Any]:
    """What the last line of the command says; ok: all that could be run was, without a failure."""
    keys = {e.key: e.quick if quick else e.count for e in found}
    own = [record for record in latest(records) if record['key'] in keys]
    done = Counter(record['key'] for record in own)
    missing = {key: count - done[key] for key, count in keys.items() if done[key] < count}
    failed = Counter({record['key']: 0 for record in own})
    for record in own:
        failed[record['key']] += record['failures']
    failed = +failed
    return {
        'ok': not missing and not failed,
        'trials': sum(record['n'] for record in own),
        'failures': sum(failed.values()),
        'failed': dict(failed),
        'missing': missing,
        'not_run': sorted({record['key'] for record in own if 'skipped' in record}),
    }


def page(experiments: Sequence[Experiment], records: Records, soak_log: Path) -> str:
    """The text of the page."""
    by_key: dict[str, list[Mapping[str, Any]]] = {}
    for record in latest(records):
        by_key.setdefault(record['key'], []).append(record)
    parts = [_HEAD]
    for letters, heading in GROUPS.items():
        rows = [row for row in ROWS if row.id.rstrip('0123456789') == letters]
        lines = ['| row | what is done | trials | failures | bound | when, commit | where |', '| --- ' * 7 + '|']
        for row in rows:
            lines += _lines(row, [e for e in experiments if e.row == row.id], by_key)
        parts.append(f'## {heading}\n\n' + '\n'.join(lines) + '\n')
        if letters == 'D':
            parts += _kinds(by_key.get('D', []))
        if letters == 'soak':
            parts += _soak(by_key.get('soak', []), soak_log)
    problems = [
        f'| {r["key"]} {r["trial"]} | {_cell(problem)} |' for r in latest(records) for problem in r['problems']
    ]
    if problems:
        parts.append('## Failures\n\n' + '\n'.join(['| trial | what was found |', '| --- | --- |', *problems]) + '\n')
    return '\n'.join(parts)


def _cell(text: str) -> str:
    return ' '.join(text.replace('|', '/').split())[:300]


def _lines(row: Row, experiments: Sequence[Experiment], by_key: Mapping[str, Records]) -> Iterator[str]:
    tests = ', '.join(f'`{test}`' for test in row.tests)
    yield f'| **{row.id}** | {row.fault} | | | | | {"`make test`: " + tests if tests else ""} |'
    for experiment in experiments:
        yield _line(experiment, by_key.get(experiment.key, []))
    if row.open:
        yield f'| | open: {row.open} | | | | | |'


def _line(experiment: Experiment, records: Records) -> str:
    run = [record for record in records if 'skipped' not in record]
    n, failures = sum(record['n'] for record in run), sum(record['failures'] for record in run)
    if not n:
        why = next((record['skipped'] for record in records if 'skipped' in record), 'not yet run')
        return f'| | {experiment.what} | | | | | open: {why} |'
    bound = f'{_percent(3 / n)}' if not failures else f'{_percent(failures / n)} failed'
    when = f'{max(record["date"] for record in run)[:10]}, {run[0]["commit"]}'
    whole = '' if len(run) >= experiment.count else f', {len(run)} of {experiment.count} trials'
    return f'| | {experiment.what} | {n:,} | {failures} | {bound} | {when} | `make torture` {experiment.key}{whole} |'


def _percent(share: float) -> str:
    return f'{min(1.0, share):.1%}' if share < 0.1 else f'{min(1.0, share):.0%}'


def _kinds(records: Records) -> Iterator[str]:
    """The 39 kinds of the matrix one by one, and the others together."""
    from nemo_vtb.testing.torture import WRITTEN

    listed = [f'{fault.group}: {fault.name}' for fault in WRITTEN[:39]]
    found: dict[str, list[int]] = {}
    for record in records:
        for kind, (n, failures) in record['figures'].get('kinds', {}).items():
            sums = found.setdefault(kind, [0, 0])
            sums[0], sums[1] = sums[0] + n, sums[1] + failures
    yield 'The kinds, with the outcome that [data.md](data.md) documents:\n'
    lines = ['| kind | lines | failures |', '| --- | --- | --- |']
    for kind in listed:
        n, failures = found.get(kind, ['', ''])
        lines.append(f'| {kind} | {n} | {failures} |')
    others = [sums for kind, sums in found.items() if kind not in listed]
    total = [sum(column) for column in zip(*others, strict=True)] or ['', '']
    lines.append(f'| {len(others) or ""} further kinds | {total[0]} | {total[1]} |')
    yield '\n'.join(lines) + '\n'


def _soak(records: Records, log: Path) -> Iterator[str]:
    """What was done, and the beginning and the end of the log."""
    for record in records:
        figures = dict(record['figures'])
        minutes, rounds, attempts = (figures.pop(name, '?') for name in ('minutes', 'rounds', 'attempts'))
        done = ', '.join(f'{name} {count}' for name, count in figures.items())
        verdict = 'bit-equal at each end' if not record['problems'] else '; '.join(record['problems'])[:600]
        size = f'{minutes} minutes, {rounds} trainings to their end, {attempts} attempts'
        yield f'{size}: {verdict}. Done to them: {done}.\n'
    if records and log.exists():
        lines = log.read_text(encoding='utf-8').splitlines()
        shown = lines if len(lines) <= 24 else [*lines[:10], '...', *lines[-10:]]
        yield f'The log (`runs/torture/soak.log`, {len(lines)} lines):\n\n```text\n' + '\n'.join(shown) + '\n```\n'
