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
"""Export a model in the form that another program reads, and prove it in a process that may not open the sources.

python examples/speechllm_export.py [model=FILE.nemo] [to=nemo|salm|vllm|hf-merged|peft|asr] [output=PATH]
    [prompts=[FILE.jsonl,...]]
"""

import tempfile
from pathlib import Path

from nemo_vtb.scripts import quiet_logs, start_script

start_script()

from nemo.core.config import hydra_runner
from omegaconf import DictConfig
from rich.console import Console

from nemo_vtb.config import resolve_asset
from nemo_vtb.errors import report_errors
from nemo_vtb.evaluation.asking import EXPORT_SCHEMA, check_settings
from nemo_vtb.export.export import default_output, export
from nemo_vtb.export.questions import questions_from
from nemo_vtb.model.pretrained import load


@hydra_runner(config_path='../conf/eval', config_name='speechllm_export')
@report_errors
def main(cfg: DictConfig) -> None:
    """Restore, write, compare."""
    quiet_logs()
    check_settings(cfg, EXPORT_SCHEMA)
    console = Console()
    output = cfg.output or default_output(cfg.model, cfg.to)
    model = load(cfg.model, 'cpu')
    with tempfile.TemporaryDirectory() as folder:
        questions = questions_from([resolve_asset(path) for path in cfg.prompts], Path(folder), cfg.num_prompts)
        parity = export(model, cfg.to, output, overwrite=True, questions=questions, max_new_tokens=cfg.max_new_tokens)
    if parity is not None:
        console.print(parity.answers_table())
        console.print(parity.table())
    console.print(f'written: {output}', highlight=False, markup=False)


if __name__ == '__main__':
    main()
