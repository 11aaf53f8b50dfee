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
"""Makes chosen steps not finite, on one rank: what a run must survive, from outside and by its configuration alone.

```yaml
trainer:
  callbacks:
    - {_target_: nemo_vtb.testing.poison.PoisonGradient, steps: [3, 4], rank: 1}
```
"""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from nemo_vtb.constants import IGNORE_INDEX
from nemo_vtb.errors import VtbConfigError


class _Poison(pl.Callback):
    """Base: when and where.

    Args:
        steps: Optimizer steps, from 1.
        rank: Global rank that is poisoned.
        row: Row of the rank within the global batch, from 0; -1 is the last.
        value: 'nan', 'inf' or '-inf', or any number.
    """

    def __init__(self, steps: Sequence[int], rank: int = 0, row: int = 0, value: float | str = 'nan') -> None:
        self.steps, self.rank, self.row, self.value = frozenset(steps), rank, row, float(value)
        self.poisoned: list[int] = []
        "Steps that were poisoned on this rank."
        self._trainer: pl.Trainer | None = None
        self._due = False

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Whether this row is one to poison."""
        if self._trainer is None:
            self._trainer = trainer
            self._install(pl_module)
        each = trainer.accumulate_grad_batches
        here = batch_idx % each == (self.row if self.row >= 0 else each + self.row)
        self._due = here and trainer.global_rank == self.rank and trainer.global_step + 1 in self.steps

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Nothing behind the row, a validation for one, is poisoned."""
        self._due = False

    def _install(self, pl_module: Any) -> None:
        raise NotImplementedError

    def _mark(self) -> None:
        assert self._trainer is not None
        self.poisoned.append(self._trainer.global_step + 1)
        self._due = False


class PoisonGradient(_Poison):
    """One element of one gradient of one row, before gradients are reduced; the loss stays finite.

    Args:
        parameter: Part of the name of the parameter; the first one with it is poisoned.
        options: Those of the base.
    """

    def __init__(self, steps: Sequence[int], parameter: str = '', **options: Any) -> None:
        super().__init__(steps, **options)
        self.parameter = parameter

    def _install(self, pl_module: Any) -> None:
        own = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
        trained = pl_module.backbone.trainable_parameters() | own
        names = [name for name in trained if self.parameter in name]
        if not names:
            raise VtbConfigError('No trained parameter is called so.', field='parameter', got=self.parameter)
        trained[names[0]].register_hook(self._poison)

    def _poison(self, gradient: Tensor) -> Tensor | None:
        if not self._due:
            return None
        self._mark()
        poisoned = gradient.clone()
        poisoned.view(-1)[0] = self.value
        return poisoned


class PoisonLoss(_Poison):
    """The loss of one target of one row, and with it the gradients of its conversation.

    Args:
        target: Which target of the row.
        options: Those of the base.
    """

    def __init__(self, steps: Sequence[int], target: int = 0, **options: Any) -> None:
        super().__init__(steps, **options)
        self.target = target

    def _install(self, pl_module: Any) -> None:
        step = pl_module.training_step
        backbone = pl_module.backbone
        nll = backbone.nll

        def poisoned(hidden: Tensor, targets: Tensor) -> Tensor:
            losses = nll(hidden, targets)
            factor = torch.ones_like(losses)
            factor[self.target] = self.value
            return losses * factor

        def training_step(batch: Any, batch_idx: int) -> Any:
            if not self._due or not len(batch.ids):
                return step(batch, batch_idx)
            self._mark()
            backbone.nll = poisoned
            try:
                return step(batch, batch_idx)
            finally:
                del backbone.nll

        pl_module.training_step = training_step


class PoisonSound(_Poison):
    """All recordings of a row, made louder than any number of float32: encoder, batch norms and loss overflow.

    Args:
        level: What the samples are multiplied by.
        options: Those of the base.
    """

    def __init__(self, steps: Sequence[int], level: float = 1e20, **options: Any) -> None:
        super().__init__(steps, **options)
        self.level = level

    def _install(self, pl_module: Any) -> None:
        return

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Change the row in place."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._due and batch.audios.numel():
            self._mark()
            batch.audios.mul_(self.level)


class PoisonTargets(_Poison):
    """No target is left in a row, as if nobody had answered in it.

    Args:
        rank: Global rank; None: all of them.
        options: Those of the base.
    """

    def __init__(self, steps: Sequence[int], rank: int | None = 0, **options: Any) -> None:
        super().__init__(steps, rank=rank or 0, **options)
        self.all_ranks = rank is None

    def _install(self, pl_module: Any) -> None:
        return

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Change the row in place."""
        if self.all_ranks:
            self.rank = trainer.global_rank
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._due:
            self._mark()
            batch.labels.fill_(IGNORE_INDEX)
            batch.label_kinds.fill_(-1)
