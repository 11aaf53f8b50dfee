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
"""Aligns an adapter with an LLM by CTC through its embeddings; minutes on a CPU, no pass of the LLM.

Usage: python examples/speechllm_align_adapter.py [model=FILE] [data=FILE] [key.subkey=value ...]   (keys: --help)
The installed package does the same: vtb align [key=value ...]
"""

import nemo_vtb as vtb

vtb.start_script(vtb.AlignConfig)

from nemo.core.config import hydra_runner
from omegaconf import DictConfig


@hydra_runner(config_path='../conf', config_name='speechllm_align_adapter')
@vtb.report_errors
def main(cfg: DictConfig) -> None:
    """Check, read and encode the recordings, align, write the file."""
    vtb.run_alignment(cfg)


if __name__ == '__main__':
    main()
