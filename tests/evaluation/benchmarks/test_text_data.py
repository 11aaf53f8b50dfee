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

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmark_folders import write

from nemo_vtb.evaluation.lm_eval_engine import local_tasks
from nemo_vtb.evaluation.runner import Plan, run_suites

QUESTION = {
    'id': 'q',
    'question': 'What barks?',
    'choices': {'text': ['dog', 'cat'], 'label': ['A', 'B']},
    'answerKey': 'A',
}
MC = {'choices': ['It barks.', 'It sings.'], 'labels': [1, 0]}
ROWS: dict[str, tuple[str, list[str], list[str], list[dict[str, Any]]]] = {
    # suite: folder of the snapshot, its configurations and splits, its rows
    'hellaswag': ('hellaswag', ['default'], ['train', 'validation', 'test'], [
        {'ind': 1, 'activity_label': 'Dogs', 'ctx_a': 'A dog sits.', 'ctx_b': 'it', 'ctx': 'A dog sits. it',
         'endings': ['barks.', 'sings.', 'reads.', 'cooks.'], 'source_id': 'a', 'split': 'val', 'split_type': 'x',
         'label': '0'}
    ]),
    'arc': ('ai2_arc', ['ARC-Easy', 'ARC-Challenge'], ['train', 'validation', 'test'], [QUESTION]),
    'gsm8k': ('gsm8k', ['main', 'socratic'], ['train', 'test'], [
        {'question': f'What is {n} + 1?', 'answer': f'It is {n + 1}.\n#### {n + 1}'} for n in range(6)
    ]),
    'truthfulqa': ('truthful_qa', ['multiple_choice', 'generation'], ['validation'], [
        {'question': 'What does a dog do?', 'mc1_targets': MC, 'mc2_targets': MC}
    ]),
    'ifeval': ('IFEval', ['default'], ['train'], [
        {'key': 1, 'prompt': 'Say it.', 'instruction_id_list': ['punctuation:no_comma'],
         'kwargs': [{'num_words': None}]}
    ]),
    'mmlu_pro': ('MMLU-Pro', ['default'], ['validation', 'test'], [
        {'question_id': n, 'question': 'What barks?', 'options': ['dog', 'cat'], 'answer': 'A', 'answer_index': 0,
         'cot_content': "A: Let's think step by step. The answer is (A).", 'category': category, 'src': 'x'}
        for category in (
            'biology', 'business', 'chemistry', 'computer science', 'economics', 'engineering', 'health', 'history',
            'law', 'math', 'other', 'philosophy', 'physics', 'psychology',
        )
        for n in range(6)
    ]),
}  # fmt: skip
METRICS = {
    'hellaswag': {('hellaswag', 'acc', 1)}, 'arc': {('arc_easy', 'acc', 1), ('arc_challenge', 'acc', 1)},
    'gsm8k': {('gsm8k', 'exact_match', 1)},
    'truthfulqa': {('truthfulqa_mc1', 'acc', 1), ('truthfulqa_mc2', 'acc', 1)},
    'ifeval': {('ifeval', 'prompt_level_strict_acc', 1)},
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`datasets` keeps what it has read of a folder."""
    import datasets

    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'cache'))
    yield


def snapshot(root: Path, suite: str) -> None:
    """A repository of the hub as `huggingface-cli download --local-dir` leaves it."""
    import pyarrow
    import pyarrow.parquet

    folder, configurations, splits, rows = ROWS[suite]
    lines = ['---', 'configs:']
    for name in configurations:
        lines += [f'- config_name: {name}', '  data_files:']
        for split in splits:
            lines += [f'  - split: {split}', f'    path: {name}/{split}-*']
            file = root / folder / name / f'{split}-00000-of-00001.parquet'
            file.parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    write(root / folder / 'README.md', *lines, '---', '# A data set')


@pytest.mark.slow
@pytest.mark.parametrize('suite', sorted(METRICS))
def test_lm_eval_reads_the_snapshot_on_the_disk(suite: str, tiny_model: object, tmp_path: Path) -> None:
    snapshot(tmp_path / 'data', suite)
    found = run_suites(tiny_model, Plan((suite,), data_root=tmp_path / 'data', limit=1))
    assert {(m.task, m.name, m.n) for m in found.of(suite)} == METRICS[suite]
    # an untrained LoRA changes nothing
    assert all(m.base == m.value and m.change == 0 for m in found.of(suite))


@pytest.mark.slow
def test_mmlu_pro_is_a_group_with_a_mean(tmp_path: Path) -> None:
    snapshot(tmp_path, 'mmlu_pro')
    tasks = local_tasks('mmlu_pro', str(tmp_path / 'MMLU-Pro'))
    assert len(tasks) == 14
    assert {len(task.eval_docs) for task in tasks.values()} == {6}
