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

Usage: python examples/speechllm_eval.py model=FILE.nemo data=[TEST.jsonl,...]   (keys: --help)
The installed package does the same: vtb eval FILE.nemo [key=value ...]
"""

import nemo_vtb as vtb

vtb.start_script(vtb.EvalConfig)

from nemo.core.config import hydra_runner
from omegaconf import DictConfig


@hydra_runner(config_path='../conf/eval', config_name='speechllm_eval')
@vtb.report_errors
def main(cfg: DictConfig) -> None:
    """Restore, answer, measure, show."""
    vtb.run_evaluation(cfg)


if __name__ == '__main__':
    main()
