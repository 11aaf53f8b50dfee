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

Usage: python examples/speechllm_export.py model=FILE.nemo to=nemo|salm|vllm|hf-merged|peft|asr [output=PATH]
The installed package does the same: vtb export FILE.nemo [key=value ...]   (keys: --help)
"""

import nemo_vtb as vtb

vtb.start_script(vtb.ExportConfig)

from nemo.core.config import hydra_runner
from omegaconf import DictConfig


@hydra_runner(config_path='../conf/eval', config_name='speechllm_export')
@vtb.report_errors
def main(cfg: DictConfig) -> None:
    """Restore, write, compare."""
    vtb.run_export(cfg)


if __name__ == '__main__':
    main()
