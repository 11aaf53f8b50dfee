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
"""The table of the study: each run over its seeds with 95 % intervals, and the questions by paired differences.

    python benchmarks/study/summarise.py [runs/study/cpu] [--runs A B] [--seeds 0 1 2] [--markdown FILE] [--plot FILE]

The last line is one JSON object. `ok`: no run or seed that was asked for is missing, and joint training in one stage
(A) keeps at least 98 % of the base LLM's text ability (perplexity of the base divided by its own, on chats that a
person wrote).
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from plan import RUNS, STAGE_ONE

from nemo_vtb.io import read_json_lines

GOAL = 98.0
METRICS = {
    'retention': 'text kept, human chats [%]',
    'retention_sampled': 'text kept, own chats [%]',
    'wer': 'WER commands [%]',
    'wer_real': 'WER real prompts [%]',
    'bleu': 'BLEU',
    'qa': 'QA exact [%]',
    'mixed': 'mixed exact [%]',
}
LOWER_IS_BETTER = ('wer', 'wer_real')
# task, metric, sources of the embedded corpus (None: the mean over all)
_ROWS = {
    'wer': ('asr', 'WER', 'commands'),
    'wer_real': ('asr', 'WER', 'asterisk-asr'),
    'bleu': ('ast', 'BLEU', None),
    'qa': ('speech_qa', 'exact match', 'commands-qa'),
    'mixed': ('mixed_modal', 'exact match', 'commands-mixed'),
}
QUESTIONS = (
    ('Does joint training keep the text ability?', 'A', 'E', 'retention'),
    ("... on the base LLM's own chats?", 'A', 'E', 'retention_sampled'),
    ('What does it cost in hearing, beside speech alone?', 'A', 'E', 'wer'),
    ('... in questions?', 'A', 'E', 'qa'),
    ('What does it cost in hearing, beside a frozen LLM?', 'A', 'B', 'wer'),
    ('... in questions?', 'A', 'B', 'qa'),
    ('Is one stage as good as two, with text (retention)?', 'A', 'D', 'retention'),
    ('... on own chats?', 'A', 'D', 'retention_sampled'),
    ('... in hearing?', 'A', 'D', 'wer'),
    ('... and as two without (retention)?', 'A', 'C', 'retention'),
    ('... on own chats?', 'A', 'C', 'retention_sampled'),
    ('... in hearing?', 'A', 'C', 'wer'),
    ('Does a token budget beat a mix by example count (retention)?', 'A', 'M', 'retention'),
    ('... in hearing?', 'A', 'M', 'wer'),
    ('What does the hold on the base distribution bring (retention)?', 'A', 'N', 'retention'),
    ('... on own chats?', 'A', 'N', 'retention_sampled'),
    ('... in hearing?', 'A', 'N', 'wer'),
    ('... in questions?', 'A', 'N', 'qa'),
    ('What does a quarter of text in place of a tenth bring (retention)?', 'O', 'N', 'retention'),
    ('... on own chats?', 'O', 'N', 'retention_sampled'),
    ('... in hearing?', 'O', 'N', 'wer'),
    ('... in questions?', 'O', 'N', 'qa'),
)
# two-sided 95 % quantiles of Student's distribution by degrees of freedom
_STUDENT = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def figures_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The study's figures out of the records of one evaluation; what was not measured is not there."""
    found = {}
    for name, (task, metric, source) in _ROWS.items():
        values = [
            r['value'] for r in rows if (r['task'], r['name']) == (task, metric) and source in (None, r['source'])
        ]
        if values:
            found[name] = statistics.mean(values)
    for row in rows:
        if (row['task'], row['name']) == ('text', 'perplexity') and row['base']:
            name = 'retention' if row['source'] == 'reference' else 'retention_sampled'
            found[name] = 100 * row['base'] / row['value']
    return found


def interval(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean and Student's 95 % interval; None where one value says nothing about the spread."""
    mean, count = statistics.mean(values), len(values)
    if count < 2:
        return {'mean': round(mean, 3), 'low': None, 'high': None, 'n': count}
    quantile = _STUDENT[count - 1] if count <= len(_STUDENT) else 1.96
    half = quantile * statistics.stdev(values) / math.sqrt(count)
    return {'mean': round(mean, 3), 'low': round(mean - half, 3), 'high': round(mean + half, 3), 'n': count}


def read_study(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Run -> seed -> {figures, ledger, steps, seconds} of every leg that is complete."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.glob('*/result.json')):
        result = json.loads(path.read_text(encoding='utf-8'))
        if result['run'] == STAGE_ONE:
            continue
        records = read_json_lines(path.parent / 'eval.jsonl')
        ledger_file = path.parent / 'ledger.json'
        ledger = json.loads(ledger_file.read_text(encoding='utf-8')) if ledger_file.is_file() else {}
        found.setdefault(result['run'], {})[result['seed']] = {
            'figures': figures_of([r for r in records if r['type'] == 'metric' and r['suite'] == 'speech']),
            'delivered': {kind: share['delivered'] for kind, share in (ledger.get('kinds') or {}).items()},
            'tokens': ledger.get('tokens'),
            'steps': result['steps'],
            'seconds': result['seconds'],
        }
    return {run: found[run] for run in RUNS if run in found}


def summarise(
    study: Mapping[str, Mapping[int, Mapping[str, Any]]], runs: Sequence[str], seeds: Sequence[int]
) -> dict[str, Any]:
    """All figures of the study: `runs`, `seeds`, one entry per metric, `questions`, `missing`, `ok`.

    Args:
        study: What `read_study` found.
        runs: Which runs must be there.
        seeds: With which seeds each of them.
    """
    # seeds that only some runs have would be compared with nothing
    study = {run: {s: legs[s] for s in seeds if s in legs} for run, legs in study.items() if run in runs}
    study = {run: legs for run, legs in study.items() if legs}
    missing = [f'{run}-{seed}' for run in runs for seed in seeds if seed not in study.get(run, {})]
    summary: dict[str, Any] = {'benchmark': 'study', 'ok': False, 'runs': list(study), 'seeds': list(seeds)}
    summary['missing'] = missing
    for metric in METRICS:
        values = {run: [leg['figures'][metric] for leg in legs.values() if metric in leg['figures']]
                  for run, legs in study.items()}  # fmt: skip
        summary[metric] = {run: interval(found) for run, found in values.items() if found}
    summary['delivered'] = {
        run: _mean_shares([leg['delivered'] for leg in legs.values()]) for run, legs in study.items()
    }
    summary['tokens'] = {run: [leg['tokens'] for leg in legs.values()] for run, legs in study.items()}
    summary['questions'] = [q for entry in QUESTIONS if (q := _question(study, *entry)) is not None]
    kept = summary['retention'].get('A')
    summary['ok'] = not missing and kept is not None and kept['mean'] >= GOAL
    return summary


def _question(study: Mapping[str, Any], text: str, one: str, other: str, metric: str) -> dict[str, Any] | None:
    """The difference of two runs, seed by seed, and what it says."""
    shared = [
        (study[one][seed]['figures'][metric], study[other][seed]['figures'][metric])
        for seed in sorted(set(study.get(one, {})) & set(study.get(other, {})))
        if metric in study[one][seed]['figures'] and metric in study[other][seed]['figures']
    ]
    if not shared:
        return None
    difference = interval([a - b for a, b in shared])
    sign = -1 if metric in LOWER_IS_BETTER else 1
    low, high = difference['low'], difference['high']
    verdict = 'not decided'
    if low is not None and high is not None and low * high > 0:
        verdict = f'{one} is better' if sign * low > 0 else f'{other} is better'
    elif low == high == 0:
        verdict = 'equal'
    return {'question': text, 'of': [one, other], 'metric': metric, 'difference': difference, 'verdict': verdict}


def _mean_shares(shares: Sequence[Mapping[str, float]]) -> dict[str, float]:
    kinds = dict.fromkeys(kind for each in shares for kind in each)
    return {kind: round(statistics.mean(each.get(kind, 0.0) for each in shares), 4) for kind in kinds}


def show(value: Mapping[str, Any] | None) -> str:
    """A mean with its interval for people."""
    if value is None:
        return '-'
    if value['low'] is None:
        return f'{value["mean"]:.1f}'
    return f'{value["mean"]:.1f} ({value["low"]:.1f} to {value["high"]:.1f})'


def markdown(summary: Mapping[str, Any]) -> str:
    """Table of the runs and table of the questions."""
    metrics = [metric for metric in METRICS if summary[metric]]
    lines = [
        '| run | ' + ' | '.join(METRICS[m] for m in metrics) + ' | text share of tokens |',
        '| --- ' * (len(metrics) + 2) + '|',
    ]
    for run in summary['runs']:
        share = 100 * summary['delivered'][run].get('text', 0.0)
        cells = ' | '.join(show(summary[m].get(run)) for m in metrics)
        lines.append(f'| {RUNS[run].title} | {cells} | {share:.1f} % |')
    lines += ['', '| question | difference | 95 % interval | verdict |', '| --- | --- | --- | --- |']
    for q in summary['questions']:
        d = q['difference']
        ends = '-' if d['low'] is None else f'{d["low"]:+.1f} to {d["high"]:+.1f}'
        unit = f'{q["of"][0]} - {q["of"][1]}, {q["metric"]}'
        lines.append(f'| {q["question"]} | {d["mean"]:+.1f} ({unit}) | {ends} | {q["verdict"]} |')
    return '\n'.join(lines) + '\n'


def plot(study: Mapping[str, Mapping[int, Mapping[str, Any]]], path: Path) -> None:
    """Draw each seed as a dot and each mean as a bar, one panel for each figure."""
    from matplotlib.figure import Figure

    panels = ('retention', 'retention_sampled', 'wer', 'qa', 'mixed')
    metrics = [m for m in panels if all(m in leg['figures'] for legs in study.values() for leg in legs.values())]
    figure = Figure(figsize=(2.9 * len(metrics), 3.6), layout='constrained')
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for x, run in enumerate(study):
            colour = '#0f766e' if run == 'A' else '#94a3b8'
            values = [leg['figures'][metric] for leg in study[run].values()]
            axes.plot([x - 0.3, x + 0.3], [statistics.mean(values)] * 2, color=colour, linewidth=3)
            axes.scatter([x] * len(values), values, color=colour, s=24, alpha=0.75, edgecolor='white', linewidth=0.6)
        if metric.startswith('retention'):
            axes.axhline(100, color='#64748b', linewidth=0.8, linestyle=(0, (3, 3)))
        better = 'lower' if metric in LOWER_IS_BETTER else 'higher'
        axes.set_title(f'{METRICS[metric]}\n{better} is better', fontsize=9.5, loc='left')
        axes.set_xticks(range(len(study)), list(study))
        axes.spines[['top', 'right']].set_visible(False)
        axes.grid(axis='y', linewidth=0.5, alpha=0.4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)


def main() -> int:
    """Print the tables and the line of JSON; exit status 1 where `ok` is false."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', nargs='?', type=Path, default=ROOT / 'runs' / 'study' / 'cpu', help='of a study')
    names = [name for name in RUNS if name != STAGE_ONE]
    parser.add_argument('--runs', nargs='+', choices=names, default=names, help='must be there (default: all)')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2], help='of each run (default: 0 1 2)')
    parser.add_argument('--markdown', type=Path, help='write the tables there as well')
    parser.add_argument('--plot', type=Path, help='draw the figures there (PNG)')
    arguments = parser.parse_args()
    study = read_study(arguments.folder)
    if not study:
        parser.error(f'no complete leg in {arguments.folder}; make some with benchmarks/study/run.py')
    summary = summarise(study, arguments.runs, arguments.seeds)
    tables = markdown(summary)
    print(tables)
    if summary['missing']:
        print(f'not complete: {", ".join(summary["missing"])}; the same benchmarks/study/run.py resumes\n')
    if arguments.markdown:
        arguments.markdown.write_text(tables, encoding='utf-8')
    if arguments.plot:
        plot(study, arguments.plot)
    print(json.dumps(summary))
    return 0 if summary['ok'] else 1


if __name__ == '__main__':
    sys.exit(main())
