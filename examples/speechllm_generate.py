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
"""Asks a speech LLM about recordings.

Usage: python examples/speechllm_generate.py model=FILE.nemo audio=[a.wav,b.wav] prompt="Transcribe the recording."
The installed package does the same: vtb generate FILE.nemo [key=value ...]   (keys: --help)
"""

import nemo_vtb as vtb

vtb.start_script(vtb.GenerateConfig)

from nemo.core.config import hydra_runner
from omegaconf import DictConfig


@hydra_runner(config_path='../conf/eval', config_name='speechllm_generate')
@vtb.report_errors
def main(cfg: DictConfig) -> None:
    """Read the questions, restore the model, answer, show."""
    vtb.run_generation(cfg)


if __name__ == '__main__':
    main()
