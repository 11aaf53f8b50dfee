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
"""What a configuration asks of machine and launcher, compared with what they offer before there are ranks.

Processes that a launcher has started, and that Lightning takes for runs of their own, would train replicas apart.
"""

import os
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from nemo_vtb.errors import VtbConfigError, VtbError, first_line


def launch_trainer(options: Mapping[str, Any]) -> Trainer:
    """Lightning's Trainer.

    Raises:
        VtbConfigError: The machine has no such device, the launcher has started other ranks than are asked for, or
            Lightning refuses an argument.
    """
    _check_devices(options.get('accelerator', 'auto'), options.get('devices', 'auto'))
    _check_slurm()
    try:
        trainer = Trainer(**options)
    except VtbError:  # of a strategy of ours, which Lightning has set up
        raise
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise VtbConfigError(
            'Lightning refuses the arguments of its Trainer.', field='trainer', got=first_line(error),
            remedy='docs/nemo.md says what each argument does here',
        ) from error  # fmt: skip
    _check_ranks(trainer)
    return trainer


def _check_devices(accelerator: Any, devices: Any) -> None:
    """SALM's YAML asks for all GPUs: `accelerator: gpu`, `devices: -1`."""
    if CUDAAccelerator.is_available() or MPSAccelerator.is_available():
        return
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    why = 'torch sees no GPU' + ('' if visible is None else f', CUDA_VISIBLE_DEVICES={visible!r}')
    if accelerator in ('gpu', 'cuda'):
        raise VtbConfigError(
            'There is no GPU that could be used.',
            field='trainer.accelerator',
            got=f'{accelerator}: {why}',
            allowed='cpu',
            remedy='trainer.accelerator=cpu trainer.devices=1; with a GPU see `vtb doctor`',
        )
    if accelerator in ('auto', 'cpu') and devices in (-1, '-1'):
        raise VtbConfigError(
            'All GPUs are asked for, and there is none.',
            field='trainer.devices',
            got=f'{devices}: {why}',
            allowed='the number of processes',
            remedy='trainer.devices=1',
        )


def _check_slurm() -> None:
    """In a batch script without `srun` there is one process, which would wait for the others for ever."""
    tasks = os.environ.get('SLURM_NTASKS', '1')
    started = any(name in os.environ for name in ('SLURM_STEP_ID', 'SLURM_STEPID', 'TORCHELASTIC_RUN_ID'))
    if tasks == '1' or started or os.environ.get('SLURM_JOB_NAME') in ('bash', 'interactive'):
        return
    raise VtbConfigError(
        'Slurm counts several tasks, but has not started them: this process was not started by srun.',
        field='SLURM_NTASKS',
        got=tasks,
        allowed='1, or srun, or torchrun',
        remedy='srun vtb train ..., as in examples/slurm/joint_sft.sbatch; one process: SLURM_NTASKS=1 vtb train ...',
    )


def _check_ranks(trainer: Trainer) -> None:
    """Ranks that a launcher has started, as Kubeflow's PyTorchJob does, must be those that Lightning knows."""
    ranks = os.environ.get('WORLD_SIZE', '1')
    if 'RANK' not in os.environ or ranks == str(trainer.world_size):
        return
    raise VtbConfigError(
        'The launcher has started other ranks than the trainer knows: each would train a model of its own.',
        field='trainer.devices',
        got=f'{trainer.world_size} ranks (devices x num_nodes), WORLD_SIZE={ranks}',
        allowed=f'{ranks} ranks',
        remedy=f'trainer.devices=PER_NODE trainer.num_nodes=NODES, {ranks} together, with torchrun or srun; for one '
        'process alone: env -u RANK -u WORLD_SIZE vtb train ...',
    )
