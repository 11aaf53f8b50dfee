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


"""The training script: 20 steps on two tensor-parallel ranks are those on one, and each goes on from the other."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from nemo_vtb.training.history import read_history

pytest.importorskip('megatron.core')
pytestmark = [pytest.mark.integration, pytest.mark.slow]

SCRIPT = Path(__file__).parents[3] / 'examples' / 'speechllm_joint_sft.py'
STEPS, HALF = 20, 10
KINDS = ('text', 'asr_ast', 'speech_qa', 'mixed_modal')
COMMON = (
    'model=tiny', 'data=tiny', f'trainer.max_steps={STEPS}', f'trainer.val_check_interval={HALF}',
    'trainer.limit_val_batches=1', 'gate.enabled=false', 'exp_manager.checkpoint_callback_params.monitor=val_loss',
    'exp_manager.checkpoint_callback_params.save_top_k=-1', 'exp_manager.create_tensorboard_logger=false',
)  # fmt: skip


def write_groups(folder: Path) -> None:
    """`model/tiny.yaml` and `data/tiny.yaml`, as a user would add them: all kinds of data, saved weights."""
    from nemo_vtb.testing import tiny_corpus, tiny_model_cfg

    corpus = tiny_corpus(folder / 'corpus', 8)
    model = tiny_model_cfg(folder / 'models', encoder='whisper')
    data = {
        'train_ds': {'sample_rate': 16000, 'seed': 1, 'input_cfg': corpus.input_cfg('train')},
        'validation_ds': {'sample_rate': 16000, 'datasets': {'all': {'input_cfg': corpus.input_cfg('validation')}}},
        'budget': dict.fromkeys(KINDS, 0.25), 'max_tokens': 192, 'rows_per_batch': 2, 'num_workers': 0,
    }  # fmt: skip
    for group, cfg in (('model', model), ('data', data)):
        (folder / 'conf' / group).mkdir(parents=True)
        OmegaConf.save(cfg, folder / 'conf' / group / 'tiny.yaml')


class Script:
    """Runs of the script, each in a folder of its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_groups(folder)

    def train(self, name: str, ranks: int, trainer: str, *words: str) -> None:
        """The script by itself, or by torchrun on several ranks."""
        launch = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={ranks}'] if ranks > 1 else []
        command = [
            sys.executable, *launch, str(SCRIPT), '--config-dir', str(self.folder / 'conf'), *COMMON,
            f'trainer={trainer}', f'trainer.devices={ranks}', f'name={name}',
            f'exp_manager.explicit_log_dir={self.folder / name}', *words,
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=self.folder, env=os.environ | {'OMP_NUM_THREADS': '1'}, capture_output=True, text=True
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]

    def losses(self, name: str) -> dict[int, dict[str, Any]]:
        """Step -> loss of each kind."""
        records = read_history(self.folder / name / 'history.jsonl')
        return {record['step']: record['losses'] for record in records if 'losses' in record}

    def half(self, name: str) -> str:
        """The word that goes on from the checkpoint in the middle of another run."""
        (found,) = (self.folder / name / 'checkpoints').glob(f'step={HALF}-*[0-9].ckpt')
        return f'exp_manager.resume_from_checkpoint="{found}"'  # quoted, since its name has an equals sign


@pytest.fixture(scope='module')
def script(tmp_path_factory: pytest.TempPathFactory) -> Script:
    script = Script(tmp_path_factory.mktemp('script'))
    script.train('hf', 1, 'cpu_quick')
    script.train('tp2', 2, 'megatron_tp2')
    return script


def test_the_loss_curve_is_that_of_the_other_backbone(script: Script) -> None:
    whole, split = script.losses('hf'), script.losses('tp2')
    assert list(whole) == list(split) == list(range(1, STEPS + 1))
    for step, losses in split.items():
        assert losses == pytest.approx(whole[step], abs=1e-4), step
    assert max(abs(whole[1][kind] - whole[STEPS][kind]) for kind in whole[1].keys() & whole[STEPS].keys()) > 0.01


@pytest.mark.parametrize(
    ('name', 'ranks', 'trainer', 'source'),
    [('tp2_rest', 2, 'megatron_tp2', 'hf'), ('hf_rest', 1, 'cpu_quick', 'tp2')],
)
def test_each_goes_on_from_a_checkpoint_of_the_other(
    script: Script, name: str, ranks: int, trainer: str, source: str
) -> None:
    script.train(name, ranks, trainer, script.half(source))
    whole, rest = script.losses('hf'), script.losses(name)
    assert list(rest) == list(range(HALF + 1, STEPS + 1))
    for step, losses in rest.items():
        assert losses == pytest.approx(whole[step], abs=1e-4), step


def test_fsdp2_has_the_same_curve_with_its_gate(script: Script) -> None:
    """The gate asks the LLM between the steps, at each validation; NeMo admits the class of the strategy."""
    script.train('fs2', 2, 'fully_sharded', 'gate.enabled=true', 'gate.items=9')
    whole, ours = script.losses('hf'), script.losses('fs2')
    assert list(ours) == list(range(1, STEPS + 1))
    for step, losses in ours.items():
        assert losses == pytest.approx(whole[step], abs=1e-4), step
