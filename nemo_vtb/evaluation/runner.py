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
"""Runs the tasks of the requested suites on a model and its base LLM: one loop, one record; a killed run resumes."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track

from nemo_vtb.checkpoint.archive import read_info
from nemo_vtb.data.conversation import Conversation
from nemo_vtb.data.faults import skip_table
from nemo_vtb.errors import VtbConfigError, VtbDataError, first_line
from nemo_vtb.evaluation.answers import AnswerCache, Asker, decoding, evaluating
from nemo_vtb.evaluation.benchmarks.catalog import catalog
from nemo_vtb.evaluation.benchmarks.suites import benchmark_tasks, rows_of
from nemo_vtb.evaluation.benchmarks.summaries import summaries
from nemo_vtb.evaluation.contamination import training_data, warnings_of
from nemo_vtb.evaluation.judge import Judge, add_verdicts, check_judge
from nemo_vtb.evaluation.result import Evaluation
from nemo_vtb.evaluation.retention import retention_metrics
from nemo_vtb.evaluation.scoring import Record, differences, record_of
from nemo_vtb.evaluation.symptoms import symptom_metrics
from nemo_vtb.evaluation.task import Context, Example, Task
from nemo_vtb.evaluation.tasks import ALL, SUITES
from nemo_vtb.evaluation.verdict import write_to_manifest
from nemo_vtb.model.pretrained import restore
from nemo_vtb.parallel.dims import ParallelDims, is_distributed

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender

_READS_DATA = {'speech', 'ladder'}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how.

    Args:
        suites: Out of `SUITES`, or public benchmarks.
        datasets: Name -> JSONL file, for the suites `speech` and `ladder`.
        limit: At most so many conversations of each source, and items of each task; None for all.
        batch_size: Prompts in one batch.
        max_new_tokens: Longest answer where the task sets none.
        num_beams: Beams of the search for an answer; 1 is greedy.
        no_repeat_ngram_size: No answer has so many tokens in a row twice; 0 for no such limit.
        tasks: Tasks of lm-eval for the suite `text`; none are those of the package.
        include: Folders with YAML tasks of lm-eval.
        chat_template: Whether questions of lm-eval become user turns.
        judge: Judges the answers about speech; None for no judge.
        folder: Where synthesised recordings go, for the suites `instruct`, `emergent` and `ladder`.
        data_root: Folder of public benchmarks.
    """

    suites: Sequence[str] = ('speech',)
    datasets: Mapping[str, Path] | None = None
    limit: int | None = None
    batch_size: int = 8
    max_new_tokens: int = 64
    num_beams: int = 1
    no_repeat_ngram_size: int = 0
    tasks: Sequence[str] = ()
    include: Sequence[str] = ()
    chat_template: bool = True
    judge: Judge | None = None
    folder: Path | None = None
    data_root: Path | None = None

    @property
    def decoding(self) -> dict[str, int]:
        """Options of transformers' `generate`, where they are not greedy."""
        return decoding(self.num_beams, self.no_repeat_ngram_size)


def suites_of(name: str) -> tuple[str, ...]:
    """The suites that `--suite NAME` selects.

    Raises:
        VtbConfigError: The name is unknown.
    """
    if name == 'all':
        return ALL
    if name not in SUITES and not rows_of(name):
        known = ', '.join((*SUITES, 'all', *catalog(), 'paper'))
        raise VtbConfigError('Unknown suite.', field='suite', got=name, allowed=f'{known}; BENCHMARK:PART')
    return (name,)


def needs_data(suites: Sequence[str]) -> bool:
    """Whether any of the suites reads held-out files."""
    return bool(_READS_DATA & set(suites))


def evaluate(
    model: 'VoiceTextBlender',
    datasets: Mapping[str, str | Path],
    *,
    limit: int | None = None,
    batch_size: int = 8,
    max_new_tokens: int = 128,
    cache: AnswerCache | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Measure a model on held-out conversations: the suite `speech`.

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
        Figures (task x source x metric), all answers, settings.

    Raises:
        VtbDataError: A file is missing, or there is nothing to evaluate. A broken line or recording costs its
            conversation alone: `info['skipped']` lists it with the reason.
        VtbConfigError: A number is not positive.
    """
    files = {name: Path(path) for name, path in datasets.items()}
    plan = Plan(('speech',), files, limit, batch_size, max_new_tokens)
    return run_suites(model, plan, cache=cache, console=console)


def evaluate_file(
    file: str | Path,
    plan: Plan,
    output: str | Path | None,
    *,
    device: str = 'auto',
    record: bool = False,
    console: Console | None = None,
) -> tuple[Evaluation, Path]:
    """Measure a `.nemo` file and write the result; a killed call resumes from its cached answers.

    Under `torchrun` each rank answers a part, and rank 0 writes.

    Args:
        file: The model.
        plan: What is measured; without a folder, recordings go into NAME.audio beside the result.
        output: The result; None is NAME.eval.jsonl beside the model.
        device: Where the model runs.
        record: Whether the numbers also go into the manifest of the file.
        console: Where progress is shown; None for silence.

    Returns:
        The result and its file.

    Raises:
        VtbCheckpointError: The file is not a model, or the result cannot be written.
    """
    output = Path(output or Path(file).with_suffix('.eval.jsonl'))
    plan = replace(plan, folder=plan.folder or output.with_suffix('.audio'))
    with _ranks() as dims:
        console = console if console is not None and dims.is_writer else Console(quiet=True)
        model = restore(str(file), _device(device, dims))
        name = '.answers.jsonl' if dims.data_rank == 0 else f'.answers.{dims.data_rank}.jsonl'
        cache = AnswerCache(output.with_suffix(name), stamp_of(file))
        if dims.is_writer:
            cache.adopt(sorted(output.parent.glob(f'{escape(output.stem)}.answers.*.jsonl')))
        result = run_suites(model, plan, cache=cache, console=console, dims=dims)
        told = warnings_of(training_data(read_info(file).manifest.get('run_config')), result.samples)
        result = replace(result, info=dict(result.info) | {'contamination': told})
        for warning in told:
            _say(console, warning, 'yellow')
        if record and dims.is_writer:
            write_to_manifest(file, result)
        result = replace(result, info=dict(result.info) | {'file': stamp_of(file)})
        if dims.is_writer:
            result.write(output)
        cache.finish()
    return result, output


def stamp_of(file: str | Path) -> dict[str, Any]:
    """Path, size and time of a model file: what a result was measured on."""
    facts = Path(file).stat()
    return {'model': str(Path(file).resolve()), 'bytes': facts.st_size, 'mtime_ns': facts.st_mtime_ns}


def run_suites(
    model: 'VoiceTextBlender',
    plan: Plan,
    *,
    cache: AnswerCache | None = None,
    console: Console | None = None,
    dims: ParallelDims | None = None,
    on_task: Callable[[str], None] | None = None,
) -> Evaluation:
    """Measure a model.

    Args:
        model: The model; its base LLM is asked the same examples wherever it can be.
        plan: What is measured.
        cache: Keeps what was answered.
        console: Where progress is shown; None for silence.
        dims: Place of this rank; None takes it from the trainer of the model. Each rank answers a part.
        on_task: Called with `SUITE: TASK` before a task is asked.

    Returns:
        One record of all figures and answers, the same on all ranks but for the judge's verdicts (rank 0).

    Raises:
        VtbConfigError: A number is not positive, or the only suite requested cannot run.
        VtbDataError: There is nothing to evaluate.
    """
    for name in ('limit', 'batch_size', 'max_new_tokens', 'num_beams'):
        value = getattr(plan, name)
        if value is not None and value < 1:
            raise VtbConfigError('A count must be at least 1.', field=name, got=value, allowed='>= 1')
    begun = time.monotonic()
    cache = AnswerCache(None) if cache is None else cache
    dims = dims or ParallelDims.of(getattr(model, '_trainer', None))
    console = Console(quiet=True) if console is None else console
    if cache.resumed:
        _say(console, f'resumed with {cache.resumed} cached answers: {cache.path}')
    # a missing or unable judge is found before the model has answered for an hour
    # a benchmark tries it with its own prompt
    judge = plan.judge if dims.is_writer and 'speech' in plan.suites else None
    controls = check_judge(judge, cache) if judge is not None else None
    skipped: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    context = _context(model, plan, skipped, cache)
    if dims.data_rank:
        dims.gather_objects(None)
    chosen = _examples(plan, context, left_out)
    if not dims.data_rank:  # the others wait here: recordings are made once
        dims.gather_objects(None)
    _check_ranks(dims, [(task.suite, task.name, len(examples)) for task, examples in chosen])
    for name, why in left_out.items():
        _say(console, f'skipped: {name}. {why}', 'yellow')
    if table := skip_table({'evaluation': Counter(fault['reason'] for fault in skipped)}):
        _say(console, f'Skipped:\n{table}', 'yellow')
    if not any(examples for _, examples in chosen):
        files = {name: str(path) for name, path in context.datasets.items()}
        raise VtbDataError(
            'There is nothing to evaluate.' + (f'\n{table}' if table else ''), field='datasets', got=files
        )
    records: list[Record] = []
    show = partial(track, console=console, transient=True, disable=console.quiet)
    with evaluating(model):
        asker = Asker(model, cache, dims, plan.batch_size, plan.max_new_tokens, show, plan.decoding)
        asker.share_out(chosen)
        for task, examples in chosen:
            if on_task:
                on_task(f'{task.suite}: {task.name}')
            records.append(_asked(task, examples, asker))
    result = _gathered(records, chosen)
    info = _info(model, plan, context, skipped, left_out)
    info['seconds'] = round(time.monotonic() - begun, 1)
    result = replace(result, info=info | {'conversations': _conversations(chosen)})
    if judge is not None:
        result = add_verdicts(result, judge, cache, controls=controls, console=console)
    return result


def _asked(task: Task, examples: Sequence[Example], asker: Asker) -> Record:
    """Ask model and base LLM, and score their answers."""
    ours, base = asker.ask(task, examples), asker.ask(task, examples, base=True)
    for answers in (ours, base) if asker.dims.is_writer else ():
        known = [(e, a) for e, a in zip(examples, answers, strict=True) if a is not None]
        if known:
            task.settle([e for e, _ in known], [a for _, a in known])
    return record_of(task, examples, ours, base)


def _gathered(records: Sequence[Record], chosen: Sequence[tuple[Task, Sequence[Example]]]) -> Evaluation:
    """One record of all tasks, with what follows from several of them."""
    metrics = [m for record in records for m in record.metrics]
    samples = tuple(s for record in records for s in record.samples)
    scores = tuple(s for record in records for s in record.scores)
    metrics += differences([task for task, _ in chosen], scores)
    metrics += retention_metrics(metrics, scores)
    metrics += summaries(metrics)
    metrics += symptom_metrics(samples, {(t.suite, t.name, e.id): e for t, examples in chosen for e in examples})
    return Evaluation(tuple(metrics), samples, {}, scores)


def _examples(plan: Plan, context: Context, left_out: dict[str, str]) -> list[tuple[Task, Sequence[Example]]]:
    """The tasks of all suites with their examples; what cannot run of several is listed in `left_out`.

    Raises:
        VtbConfigError: The only suite cannot run here.
        VtbDataError: It has no data.
    """
    chosen: list[tuple[Task, Sequence[Example]]] = []
    last: VtbConfigError | VtbDataError | None = None
    for suite in plan.suites:
        suites_of(suite)
        try:
            tasks = SUITES[suite](context) if suite in SUITES else benchmark_tasks(suite, context)
        except (VtbConfigError, VtbDataError) as error:
            if len(plan.suites) == 1:
                raise
            left_out[suite] = first_line(error)
            continue
        for task in tasks:
            try:
                chosen.append((task, task.examples(context)))
            except (VtbConfigError, VtbDataError) as error:
                if len(plan.suites) == 1 and (len(tasks) == 1 or suite in ALL):
                    raise
                left_out[f'{task.suite}: {task.name}'], last = first_line(error), error
    if last is not None and not chosen:
        raise last
    return chosen


def _context(model: 'VoiceTextBlender', plan: Plan, skipped: list[dict[str, Any]], cache: AnswerCache) -> Context:
    from nemo_vtb.data.collate import Collator

    def skip(error: VtbDataError, where: Mapping[str, Any]) -> None:
        skipped.append({**where, **error.facts})

    settings = {'tasks': plan.tasks, 'include': plan.include, 'chat_template': plan.chat_template}
    settings |= {'judge': plan.judge, 'cache': cache}
    usable: Callable[[Conversation], object] = Collator(model.renderer, model.frames).prepare
    return Context(plan.datasets or {}, plan.limit, plan.folder, plan.data_root, settings, usable, skip)


def _conversations(chosen: Sequence[tuple[Task, Sequence[Example]]]) -> int:
    """Held-out conversations, however many turns of them are asked."""
    speech = [(task, examples) for task, examples in chosen if task.suite == 'speech' and task.metrics]
    return sum(len({e.prompt.id for e in examples}) for _, examples in speech)


def _info(
    model: 'VoiceTextBlender', plan: Plan, context: Context, skipped: list[dict[str, Any]], left_out: Mapping[str, str]
) -> dict[str, Any]:
    return {
        'model': str(model.cfg.get('pretrained_llm')),
        'template': model.renderer.fingerprint,
        'datasets': {name: str(path) for name, path in context.datasets.items()},
        'limit': plan.limit,
        'max_new_tokens': plan.max_new_tokens,
        **plan.decoding,
        'chat_template': plan.chat_template,
        'suites': [suite for suite in plan.suites if suite not in left_out],
        'left_out': dict(left_out),
        'skipped': skipped,
    }


# ---- ranks and progress


@contextmanager
def _ranks() -> Iterator[ParallelDims]:
    """The place of this process among those that torchrun started; alone without it."""
    import torch.distributed as dist

    begun = not is_distributed() and int(os.environ.get('WORLD_SIZE', '1')) > 1
    if begun:
        # the others wait for a judge, or for a long task of one rank; torchrun ends them where that dies
        dist.init_process_group('gloo', timeout=timedelta(days=7))
    try:
        yield ParallelDims(dist.get_rank(), dist.get_world_size()) if is_distributed() else ParallelDims()
    finally:
        if begun:
            dist.destroy_process_group()


def _check_ranks(dims: ParallelDims, chosen: list[tuple[str, str, int]]) -> None:
    """Raise on all ranks where they would ask different things, and wait for one another for ever."""
    found = dims.gather_objects(chosen)
    if any(other != found[0] for other in found):
        raise VtbDataError(
            'The ranks have different examples.', field='data_root',
            got=[sorted(set(other) ^ set(found[0])) for other in found],
            remedy='let every rank see the same files and the same judge',
        )  # fmt: skip


def _device(device: str, dims: ParallelDims) -> str:
    """A GPU of its own for each rank, where torchrun started several."""
    import torch

    own = device == 'auto' and dims.data_size > 1 and torch.cuda.is_available()
    return f'cuda:{os.environ.get("LOCAL_RANK", "0")}' if own else device


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
