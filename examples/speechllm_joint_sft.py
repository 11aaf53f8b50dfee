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
"""

import nemo_vtb as vtb

vtb.start_script(vtb.TrainConfig)

from lightning.pytorch import seed_everything
from nemo.core.config import hydra_runner
from nemo.utils.exp_manager import exp_manager
from omegaconf import DictConfig, OmegaConf


@hydra_runner(config_path='../conf', config_name='speechllm_joint_sft')
@vtb.report_errors
def main(cfg: DictConfig) -> None:
    """Check, build, train, sum up."""
    vtb.check_config(cfg)
    cfg = vtb.resolve_assets(cfg)
    vtb.quiet_logs()
    seed_everything(cfg.seed, workers=True, verbose=False)
    history = vtb.History()
    trainer = vtb.build_trainer(cfg, [vtb.ProgressLine(), history])
    run_dir = exp_manager(trainer, cfg.exp_manager)
    if trainer.is_global_zero:
        OmegaConf.save(cfg, run_dir / 'config.yaml', resolve=True)
    model = vtb.build_model(cfg, trainer)
    data = vtb.VtbDataModule(cfg.data, model.renderer, model.frames)
    trainer.fit(model, data)
    if trainer.is_global_zero:
        model_file = f'model={run_dir}/checkpoints/{cfg.name}.nemo'
        scripts = [f'python examples/speechllm_{s}.py {model_file}' for s in ('eval', 'generate', 'export')]
        vtb.print_summary(run_dir, next_commands=scripts)


if __name__ == '__main__':
    main()
