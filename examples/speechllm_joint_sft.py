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
"""Joint speech-text SFT in one stage; without arguments, the embedded default on a CPU.

python examples/speechllm_joint_sft.py [model=FILE] [data=FILE] [trainer=FILE] [key.subkey=value ...]
The installed package does the same: vtb train [key=value ...]
"""

import nemo_vtb as vtb

vtb.start_script(vtb.TrainConfig)

from nemo.core.config import hydra_runner
from omegaconf import DictConfig


@hydra_runner(config_path='../conf', config_name='speechllm_joint_sft')
@vtb.report_errors
def main(cfg: DictConfig) -> float | None:
    """Check, build, train, sum up; what is returned is for Hydra's sweepers."""
    return vtb.run_training(cfg)


if __name__ == '__main__':
    main()
