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
"""The text suite: the base LLM has the numbers of plain lm-eval, to the last digit; a broken LLM is seen."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_helpers import ask, kept_of, text_metric, text_scores

from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.evaluation.answers import AnswerCache
from nemo_vtb.evaluation.items import read_items
from nemo_vtb.evaluation.lm_eval_engine import task_manager
from nemo_vtb.evaluation.metrics import EXACT_MATCH, compare_pairs
from nemo_vtb.evaluation.result import Evaluation
from nemo_vtb.evaluation.tasks.text import TEXT_TASKS
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.testing import tiny_model_cfg
from nemo_vtb.training.retention_monitor import retention_items

lm_eval = pytest.importorskip('lm_eval')


def plain(folder: str, *, chat: bool, limit: int | None, tasks: tuple[str, ...] = TEXT_TASKS) -> dict[str, Any]:
    """What lm-eval says by itself: its own model class on the folder, all tasks in one call."""
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=folder, device='cpu', dtype='float32', batch_size=8)
    results = lm_eval.simple_evaluate(
        lm, tasks=list(tasks), task_manager=task_manager(tuple(tasks)), apply_chat_template=chat, limit=limit,
        bootstrap_iters=0,
    )  # fmt: skip
    assert results is not None
    return results


def same(found: Evaluation, results: dict[str, Any], who: str = 'base') -> None:
    for m in found.of('text'):
        value = m.base if who == 'base' else m.value
        assert value == 100 * results['results'][m.task][f'{m.name},none'], m.task
        scores = [s for s in found.scores if s.task == m.task]
        items = [(s.base if who == 'base' else s.scores)[m.name][0] for s in scores]
        samples = sorted(results['samples'][m.task], key=lambda s: s['doc_id'])
        assert items == [float(s[m.name]) for s in samples], m.task


@contextmanager
def louder(model: VoiceTextBlender, std: float) -> Iterator[None]:
    """LoRA with something in it."""
    weights = [p for name, p in model.named_parameters() if 'lora_B' in name]
    with torch.no_grad():
        for weight in weights:
            torch.nn.init.normal_(weight, std=std)
        yield
        for weight in weights:
            weight.zero_()


# ---- the items


def test_there_are_200_choices_with_the_answer_anywhere() -> None:
    items = retention_items()
    assert len(items) == 200 and len({i['id'] for i in items}) == 200
    counts = np.bincount([i['answer'] for i in items], minlength=4)
    assert counts.min() > 30  # a model that always takes one place gets nowhere
    assert len(read_items('instructions')) == 50


# ---- equality with lm-eval


@pytest.mark.parametrize('chat', [False, True])
def test_base_llm_equals_plain_lm_eval_on_a_tiny_model(tiny_model: VoiceTextBlender, chat: bool) -> None:
    with louder(tiny_model, 0.5):
        suite = ask(tiny_model, 'text', chat_template=chat, limit=12)
    same(suite, plain(tiny_model.cfg.pretrained_llm, chat=chat, limit=12))
    # LoRA is really on for the other side
    assert any(s.scores != s.base for s in suite.scores)


def test_log_likelihoods_are_bit_equal(tiny_model: VoiceTextBlender) -> None:
    from lm_eval.models.huggingface import HFLM

    from nemo_vtb.evaluation.lm_eval_model import BlenderLM

    lm = HFLM(pretrained=tiny_model.cfg.pretrained_llm, device='cpu', dtype='float32', batch_size=8)
    numbers = []
    for side in (lm, BlenderLM(tiny_model, use_lora=False)):
        results = lm_eval.simple_evaluate(
            side, tasks=['vtb_facts'], task_manager=task_manager(('vtb_facts',)), limit=16, bootstrap_iters=0
        )
        numbers.append([s['filtered_resps'] for s in results['samples']['vtb_facts']])
    assert numbers[0] == numbers[1]
    assert not hasattr(tiny_model.backbone.decoder, 'embed_tokens')


@pytest.mark.real_weights
@pytest.mark.slow
def test_base_llm_equals_plain_lm_eval_on_minimind2(assets: Any, tmp_path: Path) -> None:
    folder = assets('minimind2-small')['minimind2-small']
    cfg = tiny_model_cfg(tmp_path, encoder='whisper') | {'pretrained_llm': str(folder)}
    model = VoiceTextBlender(cfg).eval()
    with louder(model, 0.02):
        suite = ask(model, 'text')
    same(suite, plain(str(folder), chat=True, limit=None))
    assert suite.metric('vtb_reading', 'acc').base > 50
    assert suite.metric('retention', 'kept').value != 100.0


# ---- comparison


def test_an_untrained_model_keeps_everything(tiny_model: VoiceTextBlender) -> None:
    suite = ask(tiny_model, 'text', tasks=('vtb_facts', 'vtb_reading'), limit=10)
    kept = suite.metric('retention', 'kept')
    assert kept.value == pytest.approx(100) and kept.interval == pytest.approx((100, 100))
    for m in suite.of('text'):
        assert m.p == 1.0 and m.change == 0.0 and m.change_interval == (0.0, 0.0)
        low, high = m.interval
        assert low <= m.value <= high and m.n == 10


def test_the_probability_of_the_right_choice_is_what_is_kept(tiny_model: VoiceTextBlender) -> None:
    with louder(tiny_model, 0.5):
        suite = ask(tiny_model, 'text', tasks=('vtb_facts', 'vtb_reading'), limit=10)
    ratios = []
    for task in ('vtb_facts', 'vtb_reading'):
        scores = [s for s in suite.scores if s.task == task]
        ours, base = ([side['P(right)'][0] for side in sides]
                      for sides in ((s.scores for s in scores), (s.base for s in scores)))  # fmt: skip
        assert all(0 < p < 1 for p in (*ours, *base))
        ratios.append(sum(ours) / sum(base))
        assert suite.metric('tasks', 'kept', task).value == pytest.approx(100 * ratios[-1])
    assert suite.metric('retention', 'kept').value == pytest.approx(100 * sum(ratios) / 2)


def test_retention_is_the_mean_of_ratios_and_a_loss_is_significant() -> None:
    base, ours = [1.0] * 30 + [0.0] * 10, [1.0] * 15 + [0.0] * 25
    metrics = [text_metric('a', ours, base), text_metric('b', base, base)]
    kept = kept_of(metrics, [*text_scores('a', ours, base), *text_scores('b', base, base)])
    assert kept['retention'].value == kept['tasks'].value == pytest.approx(100 * (0.5 + 1.0) / 2)
    low, high = kept['retention'].interval
    assert 60 < low < 75 < high < 90
    pairs = compare_pairs(EXACT_MATCH, [(x, 1.0) for x in ours], [(x, 1.0) for x in base])
    assert pairs.p < 0.001 and pairs.interval[1] < 0
    # a lower perplexity is better
    worse = text_metric('c', [4.0] * 5, [2.0] * 5, higher=False)
    assert kept_of([worse], text_scores('c', [4.0] * 5, [2.0] * 5))['retention'].value == pytest.approx(50)
    # a task that the base cannot do at all says nothing
    assert 'retention' not in kept_of([text_metric('d', [1.0], [0.0])], text_scores('d', [1.0], [0.0]))


def test_a_trained_llm_without_lora_has_no_base(tmp_path: Path) -> None:
    model = VoiceTextBlender(tiny_model_cfg(tmp_path, lora=False) | {'freeze_params': []}).eval()
    suite = ask(model, 'text', tasks=('vtb_facts',), limit=4)
    assert not suite.of('retention') and suite.metric('vtb_facts', 'acc').base is None
    same(suite, plain(model.cfg.pretrained_llm, chat=True, limit=4, tasks=('vtb_facts',)), who='ours')


def test_an_llm_that_was_never_trained_is_its_own_base(tmp_path: Path) -> None:
    model = VoiceTextBlender(tiny_model_cfg(tmp_path, lora=False)).eval()
    suite = ask(model, 'text', tasks=('vtb_facts',), limit=4)
    assert suite.metric('retention', 'kept').value == pytest.approx(100)


# ---- tasks of others, and kills


YAML = """
task: my_task
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_target: a
doc_to_choice: "{{{{c}}}}"
metric_list: [{{metric: acc_norm}}]
"""


def test_a_task_of_the_user_runs_from_local_files(tiny_model: VoiceTextBlender, tmp_path: Path) -> None:
    data = tmp_path / 'my.jsonl'
    data.write_text('\n'.join(json.dumps({'q': f'{i}?', 'c': ['yes', 'no'], 'a': i % 2}) for i in range(6)))
    (tmp_path / 'my_task.yaml').write_text(YAML.format(file=data))
    suite = ask(tiny_model, 'text', tasks=[str(tmp_path / 'my_task.yaml')])
    assert suite.metric('my_task', 'acc_norm').n == 6
    assert ask(tiny_model, 'text', tasks=['my_task'], include=[tmp_path]).metrics == suite.metrics


def test_unknown_tasks_and_missing_data_are_errors(tiny_model: VoiceTextBlender, tmp_path: Path) -> None:
    with pytest.raises(VtbConfigError, match='no such task'):
        ask(tiny_model, 'text', tasks=['vtb_facst'])
    (tmp_path / 'my_task.yaml').write_text(YAML.format(file=tmp_path / 'absent.jsonl'))
    with pytest.raises(VtbDataError, match='cannot be read'):
        ask(tiny_model, 'text', tasks=[str(tmp_path / 'my_task.yaml')])


def test_a_killed_run_goes_on_behind_the_finished_tasks(tiny_model: VoiceTextBlender, tmp_path: Path) -> None:
    tasks, asked = ('vtb_facts', 'vtb_reading'), []

    def stop(name: str) -> None:
        asked.append(name)
        if name == 'text: vtb_reading':
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(tiny_model, 'text', AnswerCache(tmp_path / 'j.jsonl'), stop, tasks=tasks, limit=4)
    cache = AnswerCache(tmp_path / 'j.jsonl')
    assert cache.resumed == 2  # facts, by both
    suite = ask(tiny_model, 'text', cache, tasks=tasks, limit=4)
    assert suite.metrics == ask(tiny_model, 'text', tasks=tasks, limit=4).metrics
