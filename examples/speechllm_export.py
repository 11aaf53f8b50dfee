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
"""Write one self-contained .nemo file and prove it: a fresh process must give the same answers without the sources.

python examples/speechllm_export.py [model=FILE.nemo] [output=FILE.nemo] [prompts=[FILE.jsonl,...]]
"""

import sys
from pathlib import Path

from nemo_vtb.scripts import quiet_logs, start_script

start_script()

from nemo.core.config import hydra_runner
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from nemo_vtb.checkpoint.nemo_file import load, prove
from nemo_vtb.config import resolve_asset
from nemo_vtb.data.conversation import conversation_from_dict, read_jsonl
from nemo_vtb.errors import report_errors
from nemo_vtb.evaluation.asking import EXPORT_SCHEMA, check_settings


@hydra_runner(config_path='../conf/eval', config_name='speechllm_export')
@report_errors
def main(cfg: DictConfig) -> None:
    """Restore, write, prove."""
    quiet_logs()
    check_settings(cfg, EXPORT_SCHEMA)
    model = load(cfg.model)
    model.save_to(cfg.output)
    prompts = []
    for path in map(resolve_asset, cfg.prompts):
        lines = [line for _, _, line in read_jsonl(path)][: cfg.num_prompts]
        prompts += [conversation_from_dict(line, base_dir=Path(path).parent).prompt for line in lines]
    table = Table('prompt', 'live model', '.nemo alone', 'equal', title=f'The same answers from {cfg.output}')
    proofs = prove(model, cfg.output, prompts, max_new_tokens=cfg.max_new_tokens)
    for p in proofs:
        table.add_row(p.prompt, p.live, p.fresh, '[green]yes[/]' if p.equal else '[red]NO[/]')
    Console().print(table)
    if not all(p.equal for p in proofs):
        sys.exit('The exported file answers differently: do not use it, and report this as a bug.')


if __name__ == '__main__':
    main()
