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
"""Measures a speech LLM on held-out data, its base LLM beside it.

Usage: python examples/speechllm_eval.py model=FILE.nemo data=[TEST.jsonl,...]   (keys: conf/eval/speechllm_eval.yaml)
"""

from nemo_vtb.scripts import quiet_logs, start_script

start_script()

from nemo.core.config import hydra_runner
from omegaconf import DictConfig
from rich.console import Console

from nemo_vtb.errors import report_errors
from nemo_vtb.evaluation.asking import EVAL_SCHEMA, check_settings, find_datasets
from nemo_vtb.evaluation.judge import judge_of
from nemo_vtb.evaluation.suite import Plan, measure_file, needs_data, suites_of


@hydra_runner(config_path='../conf/eval', config_name='speechllm_eval')
@report_errors
def main(cfg: DictConfig) -> None:
    """Restore, answer, measure, show."""
    console = Console()
    quiet_logs()
    check_settings(cfg, EVAL_SCHEMA)
    suites = suites_of(cfg.suite)
    datasets = find_datasets(cfg.data) if needs_data(suites) else {}
    keys = ('limit', 'batch_size', 'max_new_tokens', 'tasks', 'include', 'chat_template')
    judge = judge_of(suites=suites, **cfg.judge)
    plan = Plan(suites, datasets, **{key: cfg[key] for key in keys}, judge=judge)
    options = {'device': cfg.device, 'record': cfg.record}
    result, path = measure_file(cfg.model, plan, cfg.output, console=console, **options)
    result.show(console, examples=cfg.examples)
    console.print(f'All {len(result.samples)} answers: {path}', highlight=False)


if __name__ == '__main__':
    main()
