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
"""What a report shows of single answers: the worst ones, with their recordings and the prompt as the LLM read it."""

import base64
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nemo_vtb.errors import VtbError
from nemo_vtb.evaluation.result import Evaluation, Sample

_TASKS = ('asr', 'ast', 'speech_qa', 'mixed_modal')
_MAX_SECONDS = 20.0
_RATE = 16000


def worst_examples(evaluation: Evaluation, per_task: int = 3) -> list[dict[str, Any]]:
    """The answers that are furthest from their references, with all that is needed to see why.

    Args:
        evaluation: The result.
        per_task: How many of each task; only wrong ones.

    Returns:
        Records of task, source, id, error (0 to 1), prompt, rendered, said, reference, answer, diff, players.
    """
    chosen: list[tuple[float, Sample]] = []
    for task in _TASKS:
        scored = [(_error(s.reference, s.hypothesis), s) for s in evaluation.samples if s.task == task]
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
    queues: dict[str, list[tuple[float, Sample]]] = {}
    for entry in scored:
        queues.setdefault(entry[1].source, []).append(entry)
    taken: list[tuple[float, Sample]] = []
    while len(taken) < count and any(queues.values()):
        for queue in queues.values():
            if queue and len(taken) < count:
                taken.append(queue.pop(0))
    return taken


def word_diff(reference: str, answer: str) -> list[tuple[str, str]]:
    """Runs of words as (`same`, `missing` or `wrong`, text): what was right, left out, and said instead."""
    from difflib import SequenceMatcher

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
    from nemo_vtb.data.conversation import Audio

    record: dict[str, Any] = {'name': Path(path).name, 'seconds': None, 'uri': None}
    try:
        import soundfile

        from nemo_vtb.data.audio import read_audio

        samples = read_audio(Audio(path), _RATE)
        record['seconds'] = round(len(samples) / _RATE, 2)
        stream = io.BytesIO()
        soundfile.write(stream, samples[: int(_MAX_SECONDS * _RATE)], _RATE, format='WAV', subtype='PCM_16')
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
    from nemo_vtb.evaluation.tasks import load_conversations, questions_of

    wanted = set(ids)
    renderer = _renderer(evaluation.info)
    if renderer is None or not wanted:
        return {}
    found: dict[str, str] = {}
    for name, path in (evaluation.info.get('datasets') or {}).items():
        try:
            conversations = list(load_conversations(path, name))
        except VtbError:
            continue
        for conversation in conversations:
            if conversation.kind == 'text':
                continue
            for question in questions_of(conversation):
                if question.id in wanted:
                    found[question.id] = renderer.render_prompt(question.prompt).text
    return found


def _renderer(info: Mapping[str, Any]) -> Any:
    folder = Path(str(info.get('model')))
    if not (folder / 'tokenizer_config.json').is_file():
        return None
    from transformers import AutoTokenizer

    from nemo_vtb.data.template import ChatRenderer

    try:
        return ChatRenderer(AutoTokenizer.from_pretrained(folder))
    except (VtbError, OSError, ValueError):
        return None


def _error(reference: str, answer: str) -> float:
    """Share of words that are not right, at most 1."""
    runs = word_diff(reference, answer)
    count = {kind: sum(len(text.split()) for k, text in runs if k == kind) for kind in ('same', 'missing', 'wrong')}
    return min(1.0, max(count['missing'], count['wrong']) / max(1, len(reference.split())))
