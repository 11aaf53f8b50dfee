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
"""The report on models: collects what is shown (verdicts, numbers, curves, worst answers) and writes its files."""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from itertools import zip_longest
from pathlib import Path
from typing import Any

from nemo_vtb.checkpoint.archive import read_info
from nemo_vtb.constants import SAMPLE_RATE
from nemo_vtb.data.audio import read_audio
from nemo_vtb.data.conversation import Audio
from nemo_vtb.data.template import ChatRenderer
from nemo_vtb.errors import VtbDataError, VtbError
from nemo_vtb.evaluation.report.html_page import render_page
from nemo_vtb.evaluation.report.markdown import render_markdown
from nemo_vtb.evaluation.result import Evaluation, Sample, write_json
from nemo_vtb.evaluation.tasks.held_out import examples_of, load_conversations
from nemo_vtb.evaluation.verdict import LEVELS, verdict_of
from nemo_vtb.io import write_atomically
from nemo_vtb.training.history import read_history

FORMAT_VERSION = 2
_MAX_SECONDS = 20.0
_SPEECH_TASKS = ('asr', 'ast', 'speech_qa', 'mixed_modal')


@dataclass(frozen=True, slots=True)
class Subject:
    """A measured model.

    Args:
        name: What the report calls it.
        evaluation: What `vtb eval` found.
        ledger: What it was trained on (`ledger.json`, or the manifest's), None where it is not known.
        history: Records of `history.jsonl`, [] where there are none.
    """

    name: str
    evaluation: Evaluation
    ledger: Mapping[str, Any] | None = None
    history: Sequence[Mapping[str, Any]] = ()


def read_subject(path: str | Path, name: str | None = None) -> Subject:
    """Read a result of `vtb eval`, and what lies beside it or beside its model: ledger and history.

    Args:
        path: An `.eval.jsonl` file.
        name: What the report calls it; None: the file's name, or its folder's where that says nothing.

    Raises:
        VtbDataError: The file is missing or no result.
    """
    path = Path(path)
    evaluation = Evaluation.read(path)
    model = Path((evaluation.info.get('file') or {}).get('model') or path.with_name(f'{name_of(path)}.nemo'))
    folders = list(dict.fromkeys((path.parent, path.parent.parent, model.parent, model.parent.parent)))
    history = next((h for folder in folders if (h := read_history(folder / 'history.jsonl'))), [])
    return Subject(name or name_of(path), evaluation, _ledger(model, folders), history)


def name_of(path: Path) -> str:
    """`run` for `run.eval.json`, the folder's name for a file that is just called eval, model or the like."""
    stem = path.name.removesuffix('.json').removesuffix('.jsonl').removesuffix('.eval').removesuffix('.nemo')
    folder = path.parent.parent if path.parent.name == 'checkpoints' else path.parent
    return folder.name if stem in ('eval', 'model', 'result') and folder.name else stem


def make_report(subjects: Sequence[Subject], base: Subject | None = None) -> dict[str, Any]:
    """Everything that the page shows: the `Metric` records of each model, and what was found beside them.

    Args:
        subjects: The models.
        base: A model to compare with, None for the base LLM alone.

    Raises:
        VtbDataError: No model, or two of one name.
    """
    names = [s.name for s in (*subjects, *([base] if base else []))]
    if not subjects or len(set(names)) < len(names):
        raise VtbDataError(
            'A report needs models of different names.', field='models', got=names, remedy='name them: NAME=FILE'
        )
    entries: list[dict[str, Any]] = []
    for subject in (*([base] if base else []), *subjects):
        is_base = subject is base
        beside = () if is_base or base is None else (base.evaluation, base.name)
        verdict = verdict_of(subject.evaluation, *beside)
        entries.append(
            {
                'name': subject.name,
                'is_base': is_base,
                'verdict': {'level': verdict.level, 'sentence': verdict.sentence, 'reasons': list(verdict.reasons)},
                'info': dict(subject.evaluation.info),
                'metrics': list(subject.evaluation.metrics),
                'ledger': dict(subject.ledger) if subject.ledger else None,
                'curves': _curves(subject.history),
                'worst': [] if is_base else worst_examples(subject.evaluation, 3 if len(subjects) == 1 else 1),
            }
        )
    judged = [e['verdict'] for e in entries if not e['is_base']]
    worst = max(judged, key=lambda v: LEVELS.index(v['level']))
    return {
        'format_version': FORMAT_VERSION,
        'base': base.name if base else None,
        'verdict': {'level': worst['level'], 'sentence': worst['sentence']},
        'models': entries,
    }


def write_report(report: Mapping[str, Any], folder: str | Path) -> dict[str, Path]:
    """Write `report.html` (one self-contained page), `report.md` and `report.json`.

    Args:
        report: From `make_report`.
        folder: Where they go.

    Returns:
        html, md, json -> path.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / f'report.{kind}' for kind in ('html', 'md', 'json')}
    write_atomically(paths['html'], render_page(report))
    write_atomically(paths['md'], render_markdown(report))
    # the recordings are in the page; a JSON file is read by programs
    slim = [
        m
        | {'metrics': [asdict(metric) for metric in m['metrics']]}
        | {'worst': [{k: v for k, v in w.items() if k != 'players'} for w in m['worst']]}
        for m in report['models']
    ]
    write_json(paths['json'], {**report, 'models': slim})
    return paths


def _curves(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Kind -> {train: [[step, loss]], validation: [[step, loss]]}; a long run is thinned to 400 points."""
    curves: dict[str, dict[str, list[list[float]]]] = {}

    def add(kind: str, part: str, step: float, loss: float) -> None:
        curves.setdefault(kind, {'train': [], 'validation': []})[part].append([step, loss])

    for record in history:
        for kind, loss in record.get('losses', {}).items() if record.get('type') == 'train' else ():
            add(kind, 'train', record['step'], loss)
        for key, loss in (record.get('metrics') or {}).items():
            if key.startswith('val_loss_'):
                add(key.removeprefix('val_loss_'), 'validation', record['step'], loss)
    for curve in curves.values():
        curve['train'] = curve['train'][:: max(1, len(curve['train']) // 400)]
    return curves


def _ledger(model: Path, folders: Sequence[Path]) -> dict[str, Any] | None:
    """Of the `.nemo` file, or where that has gone, of the run's folder."""
    ledger: dict[str, Any] | None = read_info(model).manifest.get('ledger') if model.is_file() else None
    files = [path for folder in folders if (path := folder / 'ledger.json').is_file()]
    return ledger or (json.loads(files[0].read_text(encoding='utf-8')) if files else None)


# ---- worst answers


def worst_examples(evaluation: Evaluation, per_task: int = 3) -> list[dict[str, Any]]:
    """The answers that are furthest from their references, with all that is needed to see why.

    Args:
        evaluation: The result.
        per_task: How many of each task; only wrong ones.

    Returns:
        Records of task, source, id, error (0 to 1), prompt, rendered, said, reference, answer, diff, players.
    """
    chosen: list[tuple[float, Sample]] = []
    for task in _SPEECH_TASKS:
        scored = [
            (_error(s.reference, s.hypothesis), s) for s in evaluation.samples if (s.suite, s.task) == ('speech', task)
        ]
        scored = sorted((e for e in scored if e[0] > 0), key=lambda e: (-e[0], e[1].id))
        chosen += _of_every_source(scored, per_task)
    prompts = rendered_prompts(evaluation, {s.id for _, s in chosen})
    return [
        {
            'task': sample.task,
            'source': sample.source,
            'id': sample.id,
            'error': round(error, 4),
            'prompt': sample.prompt,
            'rendered': prompts.get(sample.id),
            'said': list(sample.said),
            'reference': sample.reference,
            'answer': sample.hypothesis,
            'diff': word_diff(sample.reference, sample.hypothesis),
            'players': [player(path) for path in sample.audios],
        }
        for error, sample in chosen
    ]


def _of_every_source(scored: list[tuple[float, Sample]], count: int) -> list[tuple[float, Sample]]:
    """The worst, but the sources in turn: one that is hopeless must not hide the others."""
    sources: dict[str, list[tuple[float, Sample]]] = {}
    for entry in scored:
        sources.setdefault(entry[1].source, []).append(entry)
    turns = zip_longest(*sources.values())
    return [entry for turn in turns for entry in turn if entry is not None][:count]


def word_diff(reference: str, answer: str) -> list[tuple[str, str]]:
    """Runs of words as (`same`, `missing` or `wrong`, text): what is right, missing, and in its place."""
    want, got = reference.split(), answer.split()
    plain = [[w.strip('.,!?;:"').lower() for w in words] for words in (want, got)]
    runs: list[tuple[str, str]] = []
    for kind, i, j, k, m in SequenceMatcher(None, plain[0], plain[1], autojunk=False).get_opcodes():
        if kind == 'equal':
            runs.append(('same', ' '.join(got[k:m])))
            continue
        if j > i:
            runs.append(('missing', ' '.join(want[i:j])))
        if m > k:
            runs.append(('wrong', ' '.join(got[k:m])))
    return runs


def player(path: str) -> dict[str, Any]:
    """Name, seconds and a `data:` URI (16-bit WAV) of a recording; without a URI where it cannot be read."""
    record: dict[str, Any] = {'name': Path(path).name, 'seconds': None, 'uri': None}
    try:
        import soundfile

        samples = read_audio(Audio(path), SAMPLE_RATE)
        record['seconds'] = round(len(samples) / SAMPLE_RATE, 2)
        stream = io.BytesIO()
        soundfile.write(
            stream, samples[: int(_MAX_SECONDS * SAMPLE_RATE)], SAMPLE_RATE, format='WAV', subtype='PCM_16'
        )
        record['uri'] = 'data:audio/wav;base64,' + base64.b64encode(stream.getvalue()).decode()
    except (VtbError, OSError, RuntimeError):
        # the numbers are worth a page also where the recordings have gone
        pass
    return record


def rendered_prompts(evaluation: Evaluation, ids: Iterable[str]) -> dict[str, str]:
    """Sample -> the prompt by the LLM's own template, where the LLM's tokenizer and the data are still there.

    Args:
        evaluation: The result; `info` names model and data.
        ids: Of the samples.
    """
    wanted = set(ids)
    renderer = _renderer(evaluation.info)
    if renderer is None or not wanted:
        return {}
    found: dict[str, str] = {}
    for name, path in (evaluation.info.get('datasets') or {}).items():
        try:
            conversations = list(load_conversations(path, name, lambda *_: None))
        except VtbError:
            continue
        for conversation in conversations:
            if conversation.kind == 'text':
                continue
            try:
                for question in examples_of(conversation):
                    if question.id in wanted:
                        found[question.id] = renderer.render_prompt(question.prompt).text
            except VtbError:
                continue
    return found


def _renderer(info: Mapping[str, Any]) -> Any:
    folder = Path(str(info.get('model')))
    if not (folder / 'tokenizer_config.json').is_file():
        return None
    from transformers import AutoTokenizer

    try:
        return ChatRenderer(AutoTokenizer.from_pretrained(folder))
    except (VtbError, OSError, ValueError):
        return None


def _error(reference: str, answer: str) -> float:
    """Share of words that are not right, at most 1."""
    runs = word_diff(reference, answer)
    count = {kind: sum(len(text.split()) for k, text in runs if k == kind) for kind in ('same', 'missing', 'wrong')}
    return min(1.0, max(count['missing'], count['wrong']) / max(1, len(reference.split())))
