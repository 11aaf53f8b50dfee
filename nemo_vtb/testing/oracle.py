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
"""One digest of everything that decides how a run goes on: two runs that agree here are the same run, bit for bit.

>>> from nemo_vtb.testing.oracle import run_digest, state_digests
>>> run_digest('runs/a/checkpoints/step=8-last.ckpt') == run_digest(trainer)  # doctest: +SKIP
>>> differing(state_digests(one), state_digests(other))  # doctest: +SKIP
['optimizer', 'random']
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from nemo_vtb.checkpoint.checkpoint_io import AtomicCheckpointIO
from nemo_vtb.io import read_json_lines
from nemo_vtb.training.history import read_history

_PARTS = {
    'parameters': lambda checkpoint: checkpoint['state_dict'],
    'optimizer': lambda checkpoint: checkpoint.get('optimizer_states'),
    'scheduler': lambda checkpoint: checkpoint.get('lr_schedulers'),
    'counters': lambda checkpoint: [checkpoint['global_step'], checkpoint['epoch']],
    'random': lambda checkpoint: _run_state(checkpoint).get('random'),
    'sampler': lambda checkpoint: {k: _run_state(checkpoint).get(k) for k in ('plan', 'batches', 'failed')},
    'ledger': lambda checkpoint: _run_state(checkpoint).get('ledger'),
}
"""What a run's state is made of; paths, times and the callbacks' own notes are not part of it."""


def digest(value: Any) -> str:
    """SHA-256 over nested mappings and sequences; tensors and arrays by type, shape and raw bytes, floats by bits."""
    sha = hashlib.sha256()

    def add(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            raw = item.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            sha.update(f'{item.dtype}{tuple(item.shape)}'.encode() + raw.numpy().tobytes())
        elif isinstance(item, np.ndarray):
            sha.update(f'{item.dtype}{item.shape}'.encode() + item.tobytes())
        elif isinstance(item, Mapping):
            sha.update(b'{')
            for key in sorted(item, key=str):
                sha.update(str(key).encode())
                add(item[key])
            sha.update(b'}')
        elif isinstance(item, list | tuple):
            sha.update(b'[')
            for each in item:
                add(each)
            sha.update(b']')
        else:
            sha.update((item.hex() if isinstance(item, float) else repr(item)).encode() + b';')

    add(value)
    return sha.hexdigest()


def state_digests(source: 'pl.Trainer | Mapping[str, Any] | str | Path') -> dict[str, str]:
    """Name of a part -> SHA-256 of it: parameters, optimizer, scheduler, counters, random, sampler, ledger.

    The rows to come are a function of `sampler`, so equal digests mean equal next batches.

    Args:
        source: A trainer (all ranks call it together), a checkpoint that was read, or the path of one.

    Raises:
        VtbCheckpointError: The file is missing or damaged.
    """
    checkpoint = _checkpoint_of(source)
    return {name: digest(part(checkpoint)) for name, part in _PARTS.items()}


def run_digest(source: 'pl.Trainer | Mapping[str, Any] | str | Path') -> str:
    """SHA-256 of a run's whole state; arguments and errors as of `state_digests`."""
    return digest(state_digests(source))


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Names of the parts that are not equal; [] for equal states."""
    return [name for name in one if one[name] != other.get(name)]


def loss_bits(path: str | Path) -> dict[int, dict[str, str]]:
    """Step -> kind -> loss as hexadecimal float, from a `history.jsonl`, in which losses have five digits.

    `RowRecorder` has them unrounded. A step that stands twice is as it was written last.
    """
    train = [record for record in read_history(path) if record['type'] == 'train']
    return {record['step']: {k: float(v).hex() for k, v in record['losses'].items()} for record in train}


class RowRecorder(pl.Callback):
    """Writes a line for each row that was trained on (index, ids, loss as raw bits), and the digests at the end.

    A line is flushed at once, so that what was written survives a kill.

    Args:
        path: The file of JSON lines; with several ranks each needs one of its own.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self.path.open('w', encoding='utf-8')

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One line."""
        self._write({'row': batch.index, 'ids': batch.ids, 'loss': float(outputs['loss']).hex()})

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The digests; also of a run that was killed after its last step and has nothing more to train."""
        parts = state_digests(trainer)
        self._write({'digest': digest(parts), 'steps': trainer.global_step, 'parts': parts})

    def _write(self, record: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(record) + '\n')
        self._stream.flush()


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """What a `RowRecorder` wrote; a line that a kill has cut off is left out."""
    return read_json_lines(path)


def _run_state(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    return checkpoint.get('run_state') or {}


def _checkpoint_of(source: Any) -> Mapping[str, Any]:
    if isinstance(source, pl.Trainer):
        return source._checkpoint_connector.dump_checkpoint(weights_only=False)
    if isinstance(source, str | Path):
        return AtomicCheckpointIO().load_checkpoint(source)
    return source
