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
"""The suite `speech`: held-out conversations, every task with its metrics, every source in a row of its own."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_vtb.constants import KINDS
from nemo_vtb.data.conversation import Audio, Conversation, Text, conversation_from_dict, read_jsonl, task_of
from nemo_vtb.data.faults import Reason, guarded, skip_table
from nemo_vtb.data.normalizers import normalizer_for
from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.evaluation import metrics
from nemo_vtb.evaluation.answers import AnswerCache, Steps, answer_all, evaluating
from nemo_vtb.evaluation.metrics import Score
from nemo_vtb.evaluation.result import Evaluation, Row, Sample, readable

if TYPE_CHECKING:
    from rich.console import Console

    from nemo_vtb.model.blender import VoiceTextBlender

TASKS = ('asr', 'ast', 'speech_qa', 'mixed_modal', 'text')
"""Tasks in the order in which they are reported."""

_ROW_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Question:
    """One assistant turn to be predicted, after the reference history.

    Args:
        id: Conversation and number of the turn.
        task: One of `TASKS`.
        source: Name of its row.
        lang: Language of the answer; decides normaliser and tokeniser.
        direction: 'es' (spoken), or 'es-en' for a translation; a row of its own where a source has several.
        prompt: Conversation that ends with the user turn to answer.
        reference: The expected answer.
    """

    id: str
    task: str
    source: str
    lang: str
    direction: str
    prompt: Conversation
    reference: str


def evaluate(
    model: 'VoiceTextBlender',
    datasets: Mapping[str, str | Path],
    *,
    limit: int | None = None,
    batch_size: int = 8,
    max_new_tokens: int = 128,
    cache: AnswerCache | None = None,
    console: 'Console | None' = None,
) -> Evaluation:
    """Measure a model on held-out conversations.

    Args:
        model: The model; evaluated as it is, and its text ability also without LoRA (the base LLM).
        datasets: Name -> JSONL file in NeMo's `multimodal_conversation` format. A name out of `KINDS` decides the kind
            of lines that do not say it themselves.
        limit: At most so many conversations of each source; None for all.
        batch_size: Prompts in one batch.
        max_new_tokens: Longest answer.
        cache: Keeps answers, so that a killed evaluation resumes.
        console: Where progress is shown; None for silence.

    Returns:
        Rows (task x source x metric), all samples, settings.

    Raises:
        VtbDataError: A file is missing, or there is nothing to evaluate. A broken line or recording costs its
            conversation alone: `info['skipped']` lists it with the reason.
        VtbConfigError: A number is not positive.
    """
    for name, value in (('limit', limit), ('batch_size', batch_size), ('max_new_tokens', max_new_tokens)):
        if value is not None and value < 1:
            raise VtbConfigError('A count must be at least 1.', field=name, got=value, allowed='>= 1')
    begun = time.monotonic()
    skipped: list[dict[str, Any]] = []
    chats, questions = _sort(datasets, limit, model, skipped)
    files = {name: str(path) for name, path in datasets.items()}
    table = skip_table({'evaluation': Counter(fault['reason'] for fault in skipped)})
    if not chats and not questions:
        raise VtbDataError(
            'There is nothing to evaluate.' + (f'\n{table}' if table else ''), field='datasets', got=files
        )
    if table and console is not None:
        console.print(f'Skipped:\n{table}', style='yellow', highlight=False, markup=False, soft_wrap=True)
    with evaluating(model), _progress(console) as progress:
        answers = answer_all(
            model,
            [(q.id, q.prompt) for q in questions],
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            cache=AnswerCache(None) if cache is None else cache,
            progress=progress,
        )
        text_rows = _text_rows(model, chats, progress)
        text_samples = _text_samples(model, chats, max_new_tokens)
    rows = sorted(
        [*_answer_rows(questions, answers), *text_rows], key=lambda r: TASKS.index(r.task)
    )  # stable: sources stay in the order of the files
    samples = [_sample(q, a) for q, a in zip(questions, answers, strict=True)]
    info = {
        'model': str(model.cfg.get('pretrained_llm')),
        'template': model.renderer.fingerprint,
        'datasets': files,
        'limit': limit,
        'max_new_tokens': max_new_tokens,
        'conversations': len(chats) + len({q.prompt.id for q in questions}),
        'skipped': skipped,
        'seconds': round(time.monotonic() - begun, 1),
    }
    return Evaluation(tuple(rows), (*samples, *text_samples), info)


# ---- questions


def load_conversations(
    path: str | Path, name: str = '', on_fault: Callable[[int, VtbDataError], object] | None = None
) -> Iterator[Conversation]:
    """Read a JSONL file of conversations; `name` is their source, and their kind if it is one of `KINDS`.

    Args:
        path: The file.
        name: The name.
        on_fault: As of `read_jsonl`.

    Raises:
        VtbDataError: The file is missing; or without `on_fault`, a line is broken.
    """
    path = Path(path)
    kind = name if name in KINDS else next((k for k in KINDS if name.startswith(k)), None)
    for number, _, line in read_jsonl(path, on_fault):
        try:
            with guarded(Reason.OTHER, f'{path}:{number}'):
                custom = line.get('custom')
                custom = custom if isinstance(custom, Mapping) else {}
                conversation = conversation_from_dict(
                    line,
                    kind=custom.get('kind') or kind,
                    source=str(custom.get('source') or name or path.stem),
                    base_dir=path.parent,
                    where=f'{path}:{number}',
                )
        except VtbDataError as error:
            if on_fault is None:
                raise
            on_fault(number, error)
        else:
            yield conversation


def questions_of(conversation: Conversation) -> list[Question]:
    """Every assistant turn as a question after the reference history, so that one error does not affect the rest."""
    task = task_of(conversation)
    custom = conversation.custom
    spoken = str(custom.get('lang') or custom.get('source_lang') or custom.get('language') or 'en')
    lang = str(custom.get('target_lang') or spoken) if task == 'ast' else spoken
    direction = f'{spoken}-{lang}' if task == 'ast' else spoken
    c = conversation
    return [
        Question(
            f'{c.id}#{number}',
            task,
            c.source,
            lang,
            direction,
            Conversation(c.id, c.turns[:number], c.kind, c.source, c.custom),
            turn.text,
        )
        for number, turn in enumerate(c.turns)
        if turn.role == 'assistant' and c.turns[number - 1].role == 'user'
    ]


def _sort(
    datasets: Mapping[str, str | Path], limit: int | None, model: 'VoiceTextBlender', skipped: list[dict[str, Any]]
) -> tuple[list[Conversation], list[Question]]:
    """Text-only conversations, whose perplexity is measured, and questions of all others; `limit` per source.

    What cannot be read, rendered or heard is put into `skipped`.
    """
    from nemo_vtb.data.collate import Collator

    collator = Collator(model.renderer, model.frames)
    chats: list[Conversation] = []
    questions: list[Question] = []
    taken: Counter[tuple] = Counter()
    for name, path in datasets.items():

        def skip(number: int | None, error: VtbDataError, id_: str | None = None, file: str = str(path)) -> None:
            skipped.append({'file': file, 'line': number, 'id': id_, **error.facts})

        for conversation in load_conversations(path, name, skip):
            try:
                own = [] if conversation.kind == 'text' else questions_of(conversation)
                group = (conversation.kind, conversation.source, *((own[0].task, own[0].direction) if own else ()))
                if limit is not None and taken[group] >= limit:
                    continue
                collator.prepare(conversation)
            except VtbDataError as error:
                skip(None, error, conversation.id)
                continue
            taken[group] += 1
            if conversation.kind == 'text':
                chats.append(conversation)
            questions += own
    return chats, questions


# ---- rows and samples


def _answer_rows(questions: Sequence[Question], answers: Sequence[str]) -> list[Row]:
    groups: dict[tuple[str, str, str], list[int]] = {}
    directions: dict[tuple[str, str], set[str]] = {}
    for i, q in enumerate(questions):
        groups.setdefault((q.task, q.source, q.direction), []).append(i)
        directions.setdefault((q.task, q.source), set()).add(q.direction)
    rows = []
    for (task, source, direction), chosen in groups.items():
        name = f'{source} ({direction})' if len(directions[task, source]) > 1 else source
        references, hypotheses = [questions[i].reference for i in chosen], [answers[i] for i in chosen]
        try:
            with guarded(Reason.OTHER, f'{task} of {name}'):
                scores = _scores(task, references, hypotheses, questions[chosen[0]].lang)
        except VtbDataError as error:  # this row alone; the others have their numbers
            rows.append(
                Row(task, name, 'n/a', len(chosen), None, signature=f'n/a: {" ".join(str(error).split())[:200]}')
            )
            continue
        rows += [_row(task, name, score) for score in scores]
    return rows


def _scores(task: str, references: list[str], hypotheses: list[str], lang: str) -> list[Score]:
    if task == 'asr':
        if normalizer_for(lang) == 'characters':
            return [metrics.cer(references, hypotheses, lang=lang)]
        return [metrics.wer(references, hypotheses, lang=lang)]
    if task == 'ast':
        return [metrics.bleu(references, hypotheses, lang=lang), metrics.chrf(references, hypotheses)]
    scores = [metrics.exact_match(references, hypotheses), metrics.f1(references, hypotheses)]
    # long free answers never match exactly
    return scores[1:] if metrics.is_long(references) else scores


def _row(
    task: str,
    source: str,
    score: Score,
    *,
    n: int | None = None,
    base: float | None = None,
    kept: tuple[float | None, ...] | None = None,
) -> Row:
    return Row(
        task, source, score.metric, n or score.n, score.value, base, score.low, score.high,
        score.higher_is_better, score.signature, kept,
    )  # fmt: skip


def _sample(question: Question, answer: str, base: str | None = None) -> Sample:
    prompt = question.prompt
    parts = prompt.turns[-1].parts
    return Sample(
        question.id,
        question.task,
        question.source,
        readable(prompt),
        question.reference,
        answer,
        tuple(a.path for a in prompt.audios),
        tuple(a.text or '' for a in prompt.audios),
        any(isinstance(p, Audio) for p in parts) and any(isinstance(p, Text) for p in parts),
        base,
    )


# ---- text ability


def _text_rows(model: 'VoiceTextBlender', chats: Sequence[Conversation], progress: 'Steps') -> list[Row]:
    """Perplexity of base LLM and model on the same text-only conversations; intervals resample conversations."""
    from nemo_vtb.data.collate import Collator, fill_rows, pack_row

    groups: dict[str, list[Conversation]] = {}
    for chat in chats:
        groups.setdefault(chat.source, []).append(chat)
    collator = Collator(model.renderer, model.frames)
    rows = []
    for source, group in groups.items():
        packs = list(fill_rows([collator.prepare(chat) for chat in group], _ROW_TOKENS))
        sums: dict[bool, list[float]] = {True: [], False: []}
        counts: list[float] = []
        for pack in progress(f'perplexity of {source}', packs):
            batch = pack_row(pack).to(model.device)
            for use_lora in (True, False):
                nll, targets = model.conversation_nll(batch, use_lora=use_lora)  # (N,), (N,)
                sums[use_lora] += nll.tolist()
            counts += targets.tolist()
        base = metrics.perplexity(sums[False], counts).value
        kept = metrics.perplexity_kept(sums[False], sums[True], counts)
        ours = metrics.perplexity(sums[True], counts)
        rows.append(_row('text', source, ours, n=len(group), base=base, kept=kept))
    return rows


def _text_samples(model: 'VoiceTextBlender', chats: Sequence[Conversation], max_new_tokens: int) -> list[Sample]:
    """The first text-only conversation of each source, answered by model and base LLM."""
    firsts = list({chat.source: chat for chat in reversed(chats)}.values())[::-1]
    questions = [questions_of(chat)[0] for chat in firsts]
    if not questions:
        return []
    prompts = [q.prompt for q in questions]
    ours = model.answer(prompts, max_new_tokens=max_new_tokens)
    base = model.answer(prompts, max_new_tokens=max_new_tokens, use_lora=False)
    return [_sample(q, a, b) for q, a, b in zip(questions, ours, base, strict=True)]


# ---- helpers


@contextmanager
def _progress(console: 'Console | None') -> Iterator[Steps]:
    """A function that shows the progress of a loop."""
    if console is None:
        yield lambda _, steps: iter(steps)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:

        def steps(label: str, items: Sequence) -> Iterator:
            task = bar.add_task(label, total=len(items))
            for item in items:
                yield item
                bar.advance(task)

        yield steps
