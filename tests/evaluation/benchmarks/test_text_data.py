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
"""Text benchmarks from snapshots on the disk: our figures are those of lm-eval on the same files and model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmark_folders import write

from nemo_vtb.evaluation.lm_eval_engine import load_tasks, own_folder, task_manager
from nemo_vtb.evaluation.runner import Plan, run_suites

lm_eval = pytest.importorskip('lm_eval')

LETTERS = 'ABCD'
CATEGORIES = (
    'biology', 'business', 'chemistry', 'computer science', 'economics', 'engineering', 'health', 'history', 'law',
    'math', 'other', 'philosophy', 'physics', 'psychology',
)  # fmt: skip
MC = {'choices': ['It barks.', 'It sings.', 'It reads aloud.'], 'labels': [1, 0, 0]}


def named(folder: str) -> list[str]:
    """The configurations of a data set that lm-eval's tasks in a folder of its own name."""
    files = (Path(lm_eval.__file__).parent / 'tasks' / folder).glob('*.yaml')
    # a tag of lm-eval's loader stands in some: the line is enough
    lines = [line.replace('"', '') for file in sorted(files) for line in file.read_text().splitlines()]
    return [line.partition(': ')[2] for line in lines if line.startswith('dataset_name:')]


def rows_of(suite: str) -> list[dict[str, Any]]:
    """Six rows of a data set: all of its columns, different right answers."""
    rows: Callable[[int], dict[str, Any]] = {
        'hellaswag': lambda n: {
            'ind': n, 'activity_label': 'Dogs', 'ctx_a': f'Dog {n} sits.', 'ctx_b': 'it', 'ctx': f'Dog {n} sits. it',
            'endings': ['barks.', 'sings aloud.', 'reads.', 'cooks.'], 'source_id': 'a', 'split': 'val',
            'split_type': 'x', 'label': str(n % 4),
        },
        'arc': lambda n: {
            'id': f'q{n}', 'question': f'What barks {n} times?', 'answerKey': LETTERS[n % 2],
            'choices': {'text': ['dog', 'cat'], 'label': ['A', 'B']},
        },
        'truthfulqa': lambda n: {'question': f'What does dog {n} do?', 'mc1_targets': MC, 'mc2_targets': MC},
        'mmlu': lambda n: {
            'question': f'What is {n}?', 'subject': 'x', 'choices': ['one', 'two', 'three', 'four'], 'answer': n % 4
        },
        'gsm8k': lambda n: {'question': f'What is {n} + 1?', 'answer': f'It is {n + 1}.\n#### {n + 1}'},
        'ifeval': lambda n: {
            'key': n, 'prompt': f'Say {n}.', 'kwargs': [{'num_words': None}],
            'instruction_id_list': ['punctuation:no_comma' if n % 2 else 'startend:quotation'],
        },
        'bbh': lambda n: {'input': f'Is {n} even?', 'target': ('Yes', 'No')[n % 2]},
        'mmlu_pro': lambda n: {
            'question_id': n, 'question': 'What barks?', 'options': ['dog', 'cat'], 'answer': LETTERS[n % 2],
            'answer_index': n % 2, 'cot_content': "A: Let's think step by step. The answer is (A).",
            'category': CATEGORIES[n // 6], 'src': 'x',
        },
    }[suite]  # fmt: skip
    return [rows(n) for n in range(6 * (len(CATEGORIES) if suite == 'mmlu_pro' else 1))]


SETS: dict[str, tuple[str, Callable[[], list[str]], list[str]]] = {
    # suite: folder of the snapshot, its configurations and splits
    'hellaswag': ('hellaswag', lambda: ['default'], ['train', 'validation', 'test']),
    'arc': ('ai2_arc', lambda: ['ARC-Easy', 'ARC-Challenge'], ['train', 'validation', 'test']),
    'truthfulqa': ('truthful_qa', lambda: ['multiple_choice', 'generation'], ['validation']),
    'mmlu': ('mmlu', lambda: named('mmlu/default'), ['test', 'validation', 'dev']),
    'gsm8k': ('gsm8k', lambda: ['main', 'socratic'], ['train', 'test']),
    'ifeval': ('IFEval', lambda: ['default'], ['train']),
    'bbh': ('bbh', lambda: named('bbh/cot_fewshot'), ['test']),
    'mmlu_pro': ('MMLU-Pro', lambda: ['default'], ['validation', 'test']),
}
TASKS = {
    'hellaswag': ['hellaswag'],
    'arc': ['arc_easy', 'arc_challenge'],
    'truthfulqa': ['truthfulqa_mc1', 'truthfulqa_mc2'],
    'mmlu': ['mmlu'],
    'gsm8k': ['gsm8k'],
    'ifeval': ['ifeval'],
    'bbh': ['bbh'],
    'mmlu_pro': ['mmlu_pro'],
}
GROUPS = {'mmlu': 57, 'bbh': 27, 'mmlu_pro': 14}
REPLY = 'So the answer is Yes.\nOr the answer is (B).\n#### 3'


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`datasets` keeps what it has read of a folder."""
    import datasets

    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'cache'))
    yield


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever generates through lm-eval's model says the same: a random LLM is never right, and is slow."""
    import torch
    from lm_eval.models.huggingface import HFLM

    def generate(self: Any, context: Any, **_: Any) -> Any:
        reply = torch.tensor(self.tok_encode(REPLY, add_special_tokens=False))
        return torch.cat([context, reply.expand(len(context), -1)], dim=1)

    monkeypatch.setattr(HFLM, '_model_generate', generate)


def snapshot(root: Path, suite: str) -> None:
    """A repository of the hub as `huggingface-cli download --local-dir` leaves it."""
    import pyarrow
    import pyarrow.parquet

    folder, configurations, splits = SETS[suite]
    table = pyarrow.Table.from_pylist(rows_of(suite))
    lines = ['---', 'configs:']
    for name in configurations():
        lines += [f'- config_name: {name}', '  data_files:']
        for split in splits:
            lines += [f'  - split: {split}', f'    path: {name}/{split}-*']
            file = root / folder / name / f'{split}-00000-of-00001.parquet'
            file.parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(table, file)
    write(root / folder / 'README.md', *lines, '---', '# A data set')


def plain(folder: str, root: Path, suite: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What lm-eval prints by itself: its own model class, tasks and groups; the hub's repositories lie in a folder."""
    import datasets
    from lm_eval.models.huggingface import HFLM

    load = datasets.load_dataset
    with monkeypatch.context() as patch:
        patch.setattr('lm_eval.evaluator.add_env_info', lambda results: None)  # seconds of subprocesses
        patch.setattr(datasets, 'load_dataset', lambda path, *a, **k: load(str(root / Path(path).name), *a, **k))
        lm = HFLM(pretrained=folder, device='cpu', dtype='float32', batch_size=8)
        manager = task_manager((), (own_folder(suite),))
        found = lm_eval.simple_evaluate(
            lm, tasks=TASKS[suite], task_manager=manager, apply_chat_template=True, limit=limit, bootstrap_iters=0
        )
    assert found is not None
    return found


@pytest.mark.parametrize(
    'suite', [pytest.param(name, marks=[pytest.mark.slow] * (name in ('mmlu', 'bbh'))) for name in SETS]
)
def test_figures_are_those_of_lm_eval_on_the_snapshot(
    suite: str, tiny_model: Any, replies: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, limit = tmp_path / 'data', 2 if suite in GROUPS else 6
    snapshot(root, suite)
    found = run_suites(tiny_model, Plan((suite,), data_root=root, limit=limit)).of(suite)
    results = plain(tiny_model.cfg.pretrained_llm, root, suite, limit, monkeypatch)
    tasks = [m for m in found if m.task not in GROUPS]
    assert len(tasks) == GROUPS.get(suite, len(TASKS[suite])) and {m.n for m in tasks} == {limit}
    for m in tasks:
        of_task = results['results'][m.task]
        [key] = [key for key in of_task if key.startswith(f'{m.name},') and key.split(',')[1] in m.signature]
        assert m.value == 100 * of_task[key] == m.base, m.task  # an untrained LoRA changes nothing
    if suite in GROUPS:
        [whole] = [m for m in found if m.task == suite]
        of_group = results['groups'][suite]
        [key] = [key for key in of_group if key.startswith(f'{whole.name},')]
        assert whole.value == pytest.approx(100 * of_group[key], rel=1e-14) and whole.n == limit * len(tasks)
    values = {m.value for m in found}
    assert values - {0.0, 100.0}, 'figures that are all or nothing prove little'


def test_mmlu_pro_is_cut_by_category(tmp_path: Path) -> None:
    snapshot(tmp_path, 'mmlu_pro')
    tasks = load_tasks(('mmlu_pro',), (own_folder('mmlu_pro'),), data=str(tmp_path / 'MMLU-Pro'))
    assert len(tasks) == 14
    assert {len(task.eval_docs) for task in tasks.values()} == {6}
