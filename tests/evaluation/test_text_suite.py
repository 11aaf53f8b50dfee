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

from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.evaluation.answers import AnswerCache
from nemo_vtb.evaluation.items import read_items
from nemo_vtb.evaluation.text_suite import TEXT_TASKS, compare, retention_of, run_text_suite, task_manager
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.testing import tiny_model_cfg
from nemo_vtb.training.retention_monitor import retention_items

lm_eval = pytest.importorskip('lm_eval')


def plain(folder: str, *, chat: bool, limit: int | None, tasks: tuple[str, ...] = TEXT_TASKS) -> dict[str, Any]:
    """What lm-eval says by itself: its own model class on the folder, all tasks in one call."""
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=folder, device='cpu', dtype='float32', batch_size=8)
    results = lm_eval.simple_evaluate(
        lm, tasks=list(tasks), task_manager=task_manager(tasks), apply_chat_template=chat, limit=limit,
        bootstrap_iters=0,
    )  # fmt: skip
    assert results is not None
    return results


def same(suite: dict[str, Any], results: dict[str, Any], who: str = 'base') -> None:
    for name, entry in suite['tasks'].items():
        side = entry[who] if who == 'base' else entry
        assert side['value'] == results['results'][name][f'{entry["metric"]},none'], name
        samples = sorted(results['samples'][name], key=lambda s: s['doc_id'])
        assert side['items'] == [float(s[entry['metric']]) for s in samples], name


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
        suite = run_text_suite(tiny_model, chat_template=chat, limit=12)
    same(suite, plain(tiny_model.cfg.pretrained_llm, chat=chat, limit=12))
    # LoRA is really on for the other side
    assert any(t['items'] != t['base']['items'] for t in suite['tasks'].values())


def test_log_likelihoods_are_bit_equal(tiny_model: VoiceTextBlender) -> None:
    from lm_eval.models.huggingface import HFLM

    from nemo_vtb.evaluation.lm_eval_model import BlenderLM

    lm = HFLM(pretrained=tiny_model.cfg.pretrained_llm, device='cpu', dtype='float32', batch_size=8)
    numbers = []
    for side in (lm, BlenderLM(tiny_model, use_lora=False)):
        results = lm_eval.simple_evaluate(
            side, tasks=['vtb_facts'], task_manager=task_manager(['vtb_facts']), limit=16, bootstrap_iters=0
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
        suite = run_text_suite(model)
    same(suite, plain(str(folder), chat=True, limit=None))
    assert suite['tasks']['vtb_reading']['base']['value'] > 0.5
    assert suite['retention'] is not None and suite['retention'] != 1.0


# ---- comparison


def test_an_untrained_model_keeps_everything(tiny_model: VoiceTextBlender) -> None:
    suite = run_text_suite(tiny_model, ('vtb_facts', 'vtb_reading'), limit=10)
    assert suite['retention'] == 1.0 and suite['retention_interval'] == [1.0, 1.0]
    for entry in suite['tasks'].values():
        assert entry['p_value'] == 1.0 and entry['change'] == {'value': 0.0, 'interval': [0.0, 0.0]}
        low, high = entry['interval']
        assert low <= entry['value'] <= high and entry['n'] == 10


def result(items: list[float], *, higher: bool = True) -> dict[str, Any]:
    value = float(np.mean(items))
    return {
        'metric': 'acc', 'value': value, 'stderr': None, 'higher_is_better': higher, 'version': 1, 'n': len(items),
        'items': items,
    }  # fmt: skip


def test_retention_is_the_mean_of_ratios_and_a_loss_is_significant() -> None:
    base, ours = [1.0] * 30 + [0.0] * 10, [1.0] * 15 + [0.0] * 25
    tasks = {'a': compare(result(ours), result(base)), 'b': compare(result(base), result(base))}
    kept = retention_of(tasks)
    assert kept['retention'] == pytest.approx((0.5 + 1.0) / 2)
    low, high = kept['retention_interval']
    assert 0.6 < low < 0.75 < high < 0.9
    assert tasks['a']['p_value'] < 0.001 and tasks['a']['change']['interval'][1] < 0
    # a lower perplexity is better
    worse = {'c': compare(result([4.0] * 5, higher=False), result([2.0] * 5, higher=False))}
    assert retention_of(worse)['retention'] == pytest.approx(0.5)
    # a task that the base cannot do at all says nothing
    assert retention_of({'d': compare(result([1.0]), result([0.0]))})['retention'] is None


def test_a_model_without_lora_has_no_base(tmp_path: Path) -> None:
    model = VoiceTextBlender(tiny_model_cfg(tmp_path, lora=False)).eval()
    suite = run_text_suite(model, ('vtb_facts',), limit=4)
    assert suite['retention'] is None and suite['tasks']['vtb_facts']['base'] is None
    same(suite, plain(model.cfg.pretrained_llm, chat=True, limit=4, tasks=('vtb_facts',)), who='ours')


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
    suite = run_text_suite(tiny_model, [str(tmp_path / 'my_task.yaml')])
    assert suite['tasks']['my_task']['metric'] == 'acc_norm' and suite['tasks']['my_task']['n'] == 6
    assert run_text_suite(tiny_model, ['my_task'], include=[tmp_path])['tasks'] == suite['tasks']


def test_unknown_tasks_and_missing_data_are_errors(tiny_model: VoiceTextBlender, tmp_path: Path) -> None:
    with pytest.raises(VtbConfigError, match='no such task'):
        run_text_suite(tiny_model, ['vtb_facst'])
    (tmp_path / 'my_task.yaml').write_text(YAML.format(file=tmp_path / 'absent.jsonl'))
    with pytest.raises(VtbDataError, match='cannot be read'):
        run_text_suite(tiny_model, [str(tmp_path / 'my_task.yaml')])


def test_a_killed_run_goes_on_behind_the_finished_tasks(tiny_model: VoiceTextBlender, tmp_path: Path) -> None:
    tasks, asked = ('vtb_facts', 'vtb_reading'), []

    def stop(name: str) -> None:
        asked.append(name)
        if name == 'vtb_reading':
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_text_suite(tiny_model, tasks, limit=4, cache=AnswerCache(tmp_path / 'j.jsonl'), on_task=stop)
    cache = AnswerCache(tmp_path / 'j.jsonl')
    assert cache.resumed == 2  # facts, by both
    suite = run_text_suite(tiny_model, tasks, limit=4, cache=cache)
    assert suite == run_text_suite(tiny_model, tasks, limit=4)
