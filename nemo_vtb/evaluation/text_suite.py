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
"""Text ability by lm-eval: any of its tasks from local files, this model beside its base LLM, item by item."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nemo_vtb.errors import VtbConfigError, VtbDataError, first_line
from nemo_vtb.evaluation.answers import AnswerCache
from nemo_vtb.evaluation.items import FOLDER
from nemo_vtb.evaluation.metrics import bootstrap_interval, paired_interval, paired_p_value

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    from nemo_vtb.model.blender import VoiceTextBlender

TEXT_TASKS = ('vtb_facts', 'vtb_commonsense', 'vtb_language', 'vtb_arithmetic', 'vtb_reading', 'vtb_instructions')
"""The tasks that come with the package: 200 multiple-choice items and 50 instructions that a program can check."""

_SEED = 0


def run_text_suite(
    model: 'VoiceTextBlender',
    tasks: Sequence[str] = TEXT_TASKS,
    *,
    include: Sequence[str | Path] = (),
    chat_template: bool = True,
    limit: int | None = None,
    batch_size: int = 8,
    cache: AnswerCache | None = None,
    on_task: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run lm-eval tasks on the model and on its base LLM (LoRA off).

    Args:
        model: The speech LLM.
        tasks: Names of tasks, groups or tags of lm-eval, or paths of YAML files.
        include: Folders with YAML tasks of your own.
        chat_template: Whether each question becomes a user turn of the LLM's chat template.
        limit: At most so many items of each task.
        batch_size: Requests in one batch.
        cache: Keeps finished tasks, so that a killed run resumes.
        on_task: Called with the name of each task before it runs.

    Returns:
        `tasks`: name -> metric, value, interval, n, items, base (value, interval, items), change, p_value;
        `retention`: mean over the tasks of value / base value, with its interval; None without LoRA, as there is no
        base then.

    Raises:
        VtbConfigError: lm-eval is not installed, or a task is unknown.
        VtbDataError: The data of a task is not on this machine.
    """
    import torch

    check_installed()
    from nemo_vtb.evaluation.lm_eval_model import BlenderLM

    cache = AnswerCache(None) if cache is None else cache
    has_base = bool(model.backbone.lora_state())
    sides = {'ours': True, 'base': False} if has_base else {'ours': True}
    compared: dict[str, Any] = {}
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), _quiet():
            adapters = {who: BlenderLM(model, use_lora=lora, batch_size=batch_size) for who, lora in sides.items()}
            manager = task_manager(tasks, include)
            for name in _load(manager, tasks):
                if on_task:
                    on_task(name)
                results = {}
                for who, adapter in adapters.items():
                    key = AnswerCache.key('text', name, who, chat_template, limit)
                    if key not in cache:
                        result = run_task(adapter, name, tasks, manager, chat_template=chat_template, limit=limit)
                        cache.add(key, result)
                    results[who] = cache[key]
                compared[name] = compare(results['ours'], results.get('base'))
    finally:
        model.train(training)
    return {'chat_template': chat_template, 'tasks': compared} | retention_of(compared)


def check_installed() -> None:
    """Raise with the remedy if lm-eval is missing.

    Raises:
        VtbConfigError: It is.
    """
    from importlib.util import find_spec

    if find_spec('lm_eval') is None:
        raise VtbConfigError(
            'The text suite needs lm-eval.', field='suite', got='text', remedy="pip install 'nemo_vtb[eval]'"
        )


# ---- one task


def task_manager(names: Sequence[str], include: Sequence[str | Path] = ()) -> 'TaskManager':
    """lm-eval's index of tasks: ours, those of `include`, and its own thousands only where one of them is named."""
    from lm_eval.tasks import TaskManager

    folders = [FOLDER, *map(Path, include)]
    manager = TaskManager(include_path=folders, include_defaults=False)
    known = {*manager.all_tasks, *(name for name in names if name.endswith(('.yaml', '.yml')))}
    return manager if known.issuperset(names) else TaskManager(include_path=folders)


def run_task(
    lm: 'LM',
    name: str,
    selected: Sequence[str],
    manager: 'TaskManager',
    *,
    chat_template: bool = True,
    limit: int | None = None,
) -> dict[str, Any]:
    """Run one task and return `metric`, `value`, `stderr`, `higher_is_better` and `items`, one number for each item.

    Args:
        lm: A model of lm-eval.
        name: The task.
        selected: The names that were requested; a group among them may change the settings of the task.
        manager: Index of the tasks.
        chat_template: Whether questions become user turns.
        limit: At most so many items.
    """
    from lm_eval import simple_evaluate

    task = _load(manager, selected)[name]
    results = simple_evaluate(
        lm,
        tasks=[task],
        task_manager=manager,
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
    }


def result_of(metric: str, items: list[float]) -> dict[str, Any]:
    """A result for `compare` from the scores (0 to 1) of all items, for suites that lm-eval does not run."""
    return {
        'metric': metric,
        'value': float(np.mean(items)),
        'stderr': None,
        'higher_is_better': True,
        'version': 1,
        'n': len(items),
        'items': items,
    }


def compare(ours: Mapping[str, Any], base: Mapping[str, Any] | None) -> dict[str, Any]:
    """The two results of a task as one entry of the report."""
    entry = {key: ours[key] for key in ('metric', 'value', 'n', 'items', 'higher_is_better', 'version')}
    entry |= {'interval': _interval(ours), 'base': None, 'change': None, 'p_value': None}
    if base is None:
        return entry
    entry['base'] = {'value': base['value'], 'interval': _interval(base), 'items': base['items']}
    if ours['items'] and len(ours['items']) == len(base['items']):
        entry['change'] = {
            'value': ours['value'] - base['value'],
            'interval': list(paired_interval(ours['items'], base['items'])),
        }
        entry['p_value'] = paired_p_value(ours['items'], base['items'])
    return entry


def retention_of(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`retention` (mean of value / base value over the tasks whose base value is not 0) and its paired interval."""
    compared = [t for t in tasks.values() if t['base'] and t['base']['value'] and t['value'] is not None]
    if not compared:
        return {'retention': None, 'retention_interval': [None, None]}

    def ratio(value: float, base: float, higher: bool) -> float:
        return value / base if higher else base / value if value else np.inf

    value = float(np.mean([ratio(t['value'], t['base']['value'], t['higher_is_better']) for t in compared]))
    if not all(t['items'] and len(t['items']) == len(t['base']['items']) for t in compared):
        return {'retention': value, 'retention_interval': [None, None]}
    rng, means = np.random.default_rng(_SEED), []
    for _ in range(1000):
        ratios = []
        for t in compared:
            chosen = rng.integers(0, len(t['items']), len(t['items']))
            base = float(np.asarray(t['base']['items'])[chosen].mean())
            if base:
                ratios.append(ratio(float(np.asarray(t['items'])[chosen].mean()), base, t['higher_is_better']))
        if ratios:
            means.append(float(np.mean(ratios)))
    low, high = np.percentile(means, [2.5, 97.5])
    return {'retention': value, 'retention_interval': [float(low), float(high)]}


# ---- parts


def _interval(result: Mapping[str, Any]) -> list[float | None]:
    items = np.asarray(result['items'])
    # a metric that is no mean of its items (corpus BLEU, perplexity) has lm-eval's own standard error
    if len(items) and abs(float(items.mean()) - result['value']) < 1e-9:
        return list(bootstrap_interval(lambda chosen: float(items[chosen].mean()), len(items)))
    if result['stderr'] is not None:
        return [result['value'] - 1.96 * result['stderr'], result['value'] + 1.96 * result['stderr']]
    return [None, None]


def _load(manager: 'TaskManager', names: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in dict.fromkeys(names):
        if name in found:
            continue
        try:
            found |= manager.load([name])['tasks']
        except KeyError as error:
            near = manager.match_tasks([f'*{name.removeprefix("vtb_")[:4]}*'])[:8]
            raise VtbConfigError(
                'lm-eval has no such task.',
                field='tasks',
                got=name,
                allowed=near or list(TEXT_TASKS),
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
