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
"""Runs the requested suites on a model and gathers one result; a killed run resumes from its cached answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_vtb.errors import VtbConfigError, VtbDataError, first_line
from nemo_vtb.evaluation.answers import AnswerCache
from nemo_vtb.evaluation.emergent_suite import run_emergent
from nemo_vtb.evaluation.instruct_suite import run_instruct
from nemo_vtb.evaluation.judge import Judge, add_verdicts, check_judge
from nemo_vtb.evaluation.ladder_suite import LADDER_QUESTIONS, LadderQuestion, ladder_questions, run_ladder
from nemo_vtb.evaluation.result import Evaluation
from nemo_vtb.evaluation.speech_suite import evaluate, load_conversations
from nemo_vtb.evaluation.text_suite import TEXT_TASKS, check_installed, run_text_suite
from nemo_vtb.evaluation.verdict import write_to_manifest
from nemo_vtb.model.pretrained import restore

if TYPE_CHECKING:
    from rich.console import Console

    from nemo_vtb.model.blender import VoiceTextBlender

SUITE_NAMES = ('speech', 'text', 'instruct', 'emergent', 'ladder')
"""What `vtb eval --suite` takes beside `all`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how.

    Args:
        suites: Out of `SUITE_NAMES`.
        datasets: Name -> JSONL file, for the suites `speech` and `ladder`.
        limit: At most so many conversations of each source, and items of each task; None for all.
        batch_size: Prompts in one batch.
        max_new_tokens: Longest answer of the suite `speech`.
        tasks: Tasks of lm-eval for the suite `text`; none are those of the package.
        include: Folders with YAML tasks of lm-eval.
        chat_template: Whether questions of lm-eval become user turns.
        judge: Judges the answers about speech; None for no judge.
        folder: Where synthesised recordings go, for the suites `instruct`, `emergent` and `ladder`.
    """

    suites: Sequence[str] = ('speech',)
    datasets: Mapping[str, Path] | None = None
    limit: int | None = None
    batch_size: int = 8
    max_new_tokens: int = 64
    tasks: Sequence[str] = ()
    include: Sequence[str] = ()
    chat_template: bool = True
    judge: Judge | None = None
    folder: Path | None = None


def suites_of(name: str) -> tuple[str, ...]:
    """The suites that `--suite NAME` selects.

    Raises:
        VtbConfigError: The name is unknown.
    """
    if name == 'all':
        return SUITE_NAMES
    if name not in SUITE_NAMES:
        raise VtbConfigError('Unknown suite.', field='suite', got=name, allowed=', '.join((*SUITE_NAMES, 'all')))
    return (name,)


def needs_data(suites: Sequence[str]) -> bool:
    """Whether any of the suites reads held-out files."""
    return bool({'speech', 'ladder'} & set(suites))


def evaluate_file(
    file: str | Path,
    plan: Plan,
    output: str | Path | None,
    *,
    device: str = 'auto',
    record: bool = False,
    console: 'Console | None' = None,
) -> tuple[Evaluation, Path]:
    """Measure a `.nemo` file and write the result; a killed call resumes from its cached answers.

    Args:
        file: The model.
        plan: What is measured; without a folder, recordings go into NAME.audio beside the result.
        output: The result; None is NAME.eval.json beside the model.
        device: Where the model runs.
        record: Whether the numbers also go into the manifest of the file.
        console: Where progress is shown; None for silence.

    Returns:
        The result and its file.

    Raises:
        VtbCheckpointError: The file is not a model, or the result cannot be written.
    """
    output = Path(output or Path(file).with_suffix('.eval.json'))
    plan = replace(plan, folder=plan.folder or output.with_suffix('.audio'))
    model = restore(str(file), device)
    cache = AnswerCache(output.with_suffix('.answers.jsonl'), stamp_of(file))
    result = run_suites(model, plan, cache=cache, console=console)
    if record:
        write_to_manifest(file, result)
    result = replace(result, info=dict(result.info) | {'file': stamp_of(file)})
    path = result.to_json(output)
    cache.finish()
    return result, path


def stamp_of(file: str | Path) -> dict[str, Any]:
    """Path, size and time of a model file: what a result was measured on."""
    facts = Path(file).stat()
    return {'model': str(Path(file).resolve()), 'bytes': facts.st_size, 'mtime_ns': facts.st_mtime_ns}


def run_suites(
    model: 'VoiceTextBlender', plan: Plan, *, cache: AnswerCache | None = None, console: 'Console | None' = None
) -> Evaluation:
    """Measure a model.

    Args:
        model: The model; its base LLM is measured beside it wherever it can be.
        plan: What is measured.
        cache: Keeps what was answered.
        console: Where progress is shown; None for silence.

    Returns:
        One result with the rows and samples of `speech`, and an entry for each other suite.
    """
    cache = AnswerCache(None) if cache is None else cache
    if console is not None and cache.resumed:
        console.print(f'resumed with {cache.resumed} cached answers: {cache.path}', highlight=False, markup=False)
    # a missing or unable judge is found before the model has answered for an hour
    controls = check_judge(plan.judge, cache) if plan.judge is not None else None
    skipped, ladder = _prepare(plan)
    for name, why in skipped.items():
        if console is not None:
            console.print(f'skipped: {name}. {why}', style='yellow', highlight=False, markup=False, soft_wrap=True)
    plan = replace(plan, suites=[name for name in plan.suites if name not in skipped])
    result = Evaluation((), (), {'model': str(model.cfg.get('pretrained_llm')), 'limit': plan.limit})
    if 'speech' in plan.suites:
        result = evaluate(
            model,
            plan.datasets or {},
            limit=plan.limit,
            batch_size=plan.batch_size,
            max_new_tokens=plan.max_new_tokens,
            cache=cache,
            console=console,
        )
    if plan.judge is not None:
        result = add_verdicts(result, plan.judge, cache, controls=controls, console=console)
    options: dict[str, Any] = {'batch_size': plan.batch_size, 'cache': cache, 'on_task': _announcer(console)}
    suites: dict[str, Any] = {}
    if 'text' in plan.suites:
        settings: dict[str, Any] = {'include': plan.include, 'chat_template': plan.chat_template, 'limit': plan.limit}
        suites['text_suite'] = run_text_suite(model, plan.tasks or TEXT_TASKS, **settings, **options)
    for name, run in (('instruct', run_instruct), ('emergent', run_emergent)):
        if name in plan.suites:
            suites[name] = run(model, _folder(plan) / name, limit=plan.limit, **options)
    if 'ladder' in plan.suites:
        suites['ladder'] = run_ladder(model, ladder, _folder(plan) / 'ladder', **options)
    info = dict(result.info) | {'suites': list(plan.suites), 'left_out': skipped}
    return Evaluation(result.rows, result.samples, info, suites)


def _prepare(plan: Plan) -> tuple[dict[str, str], list[LadderQuestion]]:
    """Suites out of several that cannot run here, and why (a single one is an error); the questions of the ladder.

    Raises:
        VtbConfigError: lm-eval is not installed, and nothing else is requested.
        VtbDataError: No question can be spoken, and nothing else is requested.
    """
    skipped: dict[str, str] = {}
    questions: list[LadderQuestion] = []
    for name, check in (('text', check_installed), ('ladder', lambda: questions.extend(_ladder_questions(plan)))):
        if name in plan.suites:
            try:
                check()
            except (VtbConfigError, VtbDataError) as error:
                if len(plan.suites) == 1:
                    raise
                skipped[name] = first_line(error)
    return skipped, questions


def _folder(plan: Plan) -> Path:
    if plan.folder is None:
        raise VtbConfigError('The suite writes recordings.', field='folder', got=None, allowed='a folder')
    return plan.folder


def _ladder_questions(plan: Plan) -> list[LadderQuestion]:
    # broken lines are listed by the suite `speech`
    held_out = chain.from_iterable(
        load_conversations(file, name, lambda *_: None) for name, file in (plan.datasets or {}).items()
    )
    return ladder_questions(held_out, min(LADDER_QUESTIONS, plan.limit or LADDER_QUESTIONS))


def _announcer(console: 'Console | None') -> Callable[[str], None] | None:
    if console is None:
        return None
    return lambda name: console.print(f'{name} ...', style='dim', highlight=False, markup=False)
