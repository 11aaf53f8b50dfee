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

from nemo_vtb.scripts import quiet_logs, start_script

start_script()

from lightning.pytorch import seed_everything
from nemo.core.config import hydra_runner
from nemo.utils.exp_manager import exp_manager
from omegaconf import DictConfig, OmegaConf

from nemo_vtb.config import check_config
from nemo_vtb.data.datamodule import VtbDataModule
from nemo_vtb.errors import report_errors
from nemo_vtb.training.history import History
from nemo_vtb.training.progress_bar import ProgressLine
from nemo_vtb.training.run import build_model, build_trainer
from nemo_vtb.training.summary import print_summary


@hydra_runner(config_path='../conf', config_name='speechllm_joint_sft')
@report_errors
def main(cfg: DictConfig) -> None:
    """Check, build, train, sum up."""
    check_config(cfg)
    quiet_logs()
    seed_everything(cfg.seed, workers=True, verbose=False)
    history = History()
    trainer = build_trainer(cfg, [ProgressLine(), history])
    run_dir = exp_manager(trainer, cfg.exp_manager)
    if trainer.is_global_zero:
        OmegaConf.save(cfg, run_dir / 'config.yaml', resolve=True)
    model = build_model(cfg, trainer)
    data = VtbDataModule(cfg.data, model.renderer, model.frames, run_dir=run_dir)
    trainer.fit(model, data)
    if trainer.is_global_zero:
        model_file = f'model={run_dir}/checkpoints/{cfg.name}.nemo'
        scripts = [f'python examples/speechllm_{s}.py {model_file}' for s in ('eval', 'generate', 'export')]
        print_summary(run_dir, data.ledger, next_commands=scripts)


if __name__ == '__main__':
    main()
