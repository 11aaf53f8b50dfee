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
"""lm-eval on the LLM inside a speech LLM: its tasks, its requests and its scores, this model beside its base LLM."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from nemo_vtb.errors import VtbConfigError, VtbDataError, first_line
from nemo_vtb.evaluation.items import FOLDER

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    from nemo_vtb.model.blender import VoiceTextBlender


def ask_task(
    model: 'VoiceTextBlender', task: Any, *, use_lora: bool, batch_size: int, chat_template: bool, limit: int | None
) -> dict[str, Any]:
    """Run a task on the model or, without LoRA, on its base LLM; returns as `run_task`.

    Args:
        model: The speech LLM.
        task: Of `load_tasks`.
        use_lora: False for the base LLM.
        batch_size: Requests in one batch.
        chat_template: Whether questions become user turns.
        limit: At most so many items.
    """
    with _quiet():
        from nemo_vtb.evaluation.lm_eval_model import BlenderLM

        lm = BlenderLM(model, use_lora=use_lora, batch_size=batch_size)
        return run_task(lm, task, chat_template=chat_template, limit=limit)


@cache
def task_manager(names: tuple[str, ...] = (), include: tuple[str | Path, ...] = ()) -> 'TaskManager':
    """lm-eval's index of tasks: those of `include` and ours, and its own thousands only where another one is named.

    Raises:
        VtbConfigError: lm-eval is not installed.
    """
    if find_spec('lm_eval') is None:
        raise VtbConfigError(
            'The text suite needs lm-eval.', field='suite', got='text', remedy="pip install 'nemo_vtb[eval]'"
        )
    from lm_eval.tasks import TaskManager

    folders = [FOLDER, *map(Path, include)]
    manager = TaskManager(include_path=folders, include_defaults=False)
    known = {*manager.all_tasks, *(name for name in names if name.endswith(('.yaml', '.yml')))}
    return manager if known.issuperset(names) else TaskManager(include_path=folders)


def own_folder(name: str) -> str:
    """Where lm-eval keeps the tasks of a benchmark: its whole index takes seconds to build."""
    spec = find_spec('lm_eval')
    return '' if spec is None or spec.origin is None else str(Path(spec.origin).parent / 'tasks' / name)


def run_task(lm: 'LM', task: Any, *, chat_template: bool = True, limit: int | None = None) -> dict[str, Any]:
    """Run one task: `metric`, `value`, `stderr`, `higher_is_better`, `items` (a number for each) and `right`.

    `right` has the probability of the right choice of each item, [] where there are no choices.

    Args:
        lm: A model of lm-eval.
        task: Of `load_tasks`.
        chat_template: Whether questions become user turns.
        limit: At most so many items.
    """
    from lm_eval import simple_evaluate

    name = task.task_name
    with _only_results():
        results = simple_evaluate(
            lm,
            tasks=[task],
            task_manager=task_manager(),  # any: the task is loaded
            apply_chat_template=chat_template,
            limit=limit,
            bootstrap_iters=1000,
        )
    numbers, samples = results['results'][name], results['samples'][name]
    # the first number that the task names is the one that it is known for
    metric, chosen = next(
        tuple(key.split(',', 1)) for key in numbers if ',' in key and not key.split(',')[0].endswith('_stderr')
    )
    stderr = numbers.get(f'{metric}_stderr,{chosen}')
    mine = sorted((s for s in samples if s['filter'] == chosen), key=lambda s: s['doc_id'])
    items = [s[metric] for s in mine]
    whole = all(isinstance(item, bool | int | float | np.number) for item in items)
    return {
        'metric': metric,
        'filter': chosen,
        'value': float(numbers[f'{metric},{chosen}']),
        'stderr': float(stderr) if isinstance(stderr, int | float) else None,
        'higher_is_better': bool((results.get('higher_is_better') or {}).get(name, {}).get(metric, True)),
        'version': results['versions'].get(name),
        'n': len(items),
        'items': [float(item) for item in items] if whole else [],
        'right': _right(task, mine),
    }


def _right(task: Any, samples: Sequence[Mapping[str, Any]]) -> list[float]:
    """Probability of the right choice of each item, by the log-likelihoods that lm-eval asked for."""
    if task.OUTPUT_TYPE != 'multiple_choice':
        return []
    found = []
    for sample in samples:
        choices, target = task.doc_to_choice(sample['doc']), sample['target']
        place = target if isinstance(target, int) else choices.index(target) if target in choices else -1
        scores = np.array([float(reply[0]) for reply in sample['filtered_resps']][: len(choices)])
        if not 0 <= place < len(scores):
            return []  # several right choices, or choices of a form of its own
        found.append(float(np.exp(scores[place] - np.logaddexp.reduce(scores))))
    return found


def load_tasks(names: Sequence[str], include: Sequence[str | Path] = (), data: str = '') -> dict[str, Any]:
    """Name -> task of lm-eval, groups and tags resolved.

    Args:
        names: Of tasks, groups and tags.
        include: Folders with YAML tasks.
        data: A folder in place of the repository that the tasks name; '' for that.

    Raises:
        VtbConfigError: lm-eval is not installed, or a task is unknown.
        VtbDataError: The data of a task is not on this machine.
    """
    manager = task_manager(tuple(names), tuple(include))
    found: dict[str, Any] = {}
    for name in dict.fromkeys(names):
        if name in found:
            continue
        try:
            with _quiet():
                found |= manager.load(_with_data(manager, name, data))['tasks']
        except KeyError as error:
            near = manager.match_tasks([f'*{name.removeprefix("vtb_")[:4]}*'])[:8]
            raise VtbConfigError(
                'lm-eval has no such task.',
                field='tasks',
                got=name,
                allowed=near or sorted(manager.all_tasks)[:20],
                remedy='correct the name, or name the folder of its YAML file (--include)',
            ) from error
        except (OSError, ConnectionError, ValueError, RuntimeError) as error:
            raise VtbDataError(
                'The data of a task cannot be read.',
                field='tasks',
                got=f'{name}: {first_line(error)}',
                allowed='data in the local cache of Hugging Face datasets, or a YAML task with local files',
                remedy='fetch it once with HF_HUB_OFFLINE=0, or write a task on files of yours (docs/evaluation.md)',
            ) from error
    return found


def _with_data(manager: 'TaskManager', name: str, data: str) -> Any:
    """What `TaskManager.load` takes: a name, or what lm-eval builds of it with data from a folder."""
    if not data:
        return [name]
    index = manager.task_index
    return manager._factory.build(index[name], overrides={'dataset_path': data}, registry=index)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what lm-eval logs of each step, and its warnings about unused arguments."""
    logger = logging.getLogger('lm_eval')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _only_results() -> Iterator[None]:
    """Results on each rank, since each asks tasks of its own, and no report on the machine, which takes seconds."""
    with (
        mock.patch.dict(os.environ, LOCAL_RANK='0'),
        mock.patch('lm_eval.evaluator.add_env_info'),
        mock.patch('lm_eval.evaluator.get_git_commit_hash'),
    ):
        yield
