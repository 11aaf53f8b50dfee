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
"""A signal at a chosen moment of a training, sent by the process to itself.

>>> import signal
>>> from nemo_vtb.testing.signals import SendSignal
>>> SendSignal(signal.SIGTERM, 3, hook='on_validation_batch_start').step
3
"""

import os
from typing import Any

import lightning.pytorch as pl


class SendSignal(pl.Callback):
    """Sends a signal once: at a row of a step, in the validation behind a step, or at another hook.

    Args:
        number: The signal.
        step: Optimizer steps that were made.
        row: Row of the rank within the global batch, from 0.
        hook: on_fit_start, on_train_batch_start, on_validation_batch_start or on_train_end.
    """

    def __init__(self, number: int, step: int = 0, row: int = 0, *, hook: str = 'on_train_batch_start') -> None:
        self.number, self.step, self.row, self.hook = number, step, row, hook

    def on_fit_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Before anything was trained."""
        self._send(trainer, 'on_fit_start')

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Before a row."""
        self._send(trainer, 'on_train_batch_start', batch_idx % trainer.accumulate_grad_batches)

    def on_validation_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Before a row of a validation."""
        self._send(trainer, 'on_validation_batch_start')

    def on_train_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Behind the last step."""
        self._send(trainer, 'on_train_end')

    def _send(self, trainer: pl.Trainer, hook: str, row: int = 0) -> None:
        if hook == self.hook and trainer.global_step == self.step and row == self.row:
            self.hook = ''
            os.kill(os.getpid(), self.number)
