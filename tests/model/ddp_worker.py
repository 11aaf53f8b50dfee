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
"""One of two ranks: trains under Lightning's DDP (gloo) with audio on rank 0 and text alone on rank 1.

Usage: torchrun --nproc-per-node=2 ddp_worker.py salm|ours FOLDER
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault('HF_HUB_OFFLINE', '1')
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from nemo.collections.speechlm2 import SALM
from salm_peer import salm_batch, salm_cfg, spoken_conversation, text_guard
from torch.utils.data import DataLoader

from nemo_vtb.data.collate import Collator, PackedRow
from nemo_vtb.model.blender import VoiceTextBlender


class KeepFirstGradients(Callback):
    """Holds the gradients of the first step, as the optimizer got them."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def build(cfg: dict[str, Any]) -> VoiceTextBlender:
    torch.manual_seed(0)
    return VoiceTextBlender(cfg)


def fit(model: Any, batch: Any) -> dict[str, torch.Tensor]:
    """Three steps on the same batch: NeMo's ranks fall apart in the second."""
    keep = KeepFirstGradients()
    trainer = Trainer(
        accelerator='cpu', devices=2, strategy=DDPStrategy(process_group_backend='gloo'), max_steps=3, logger=False,
        enable_checkpointing=False, use_distributed_sampler=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0, callbacks=[keep],
    )  # fmt: skip
    trainer.fit(model, DataLoader([batch] * 3, batch_size=None))
    return keep.gradients


def alone(model: VoiceTextBlender, rows: list[PackedRow]) -> dict[str, torch.Tensor]:
    """The gradient of one process that sees the rows of both ranks: of the mean over all their targets."""
    model.configure_optimizers()  # freezes
    for row in rows:
        model.training_step(row, 0)['loss'].backward()
    factor = 100.0 / sum(int((row.labels != -100).sum()) for row in rows)
    return {n: p.grad * factor for n, p in model.named_parameters() if p.grad is not None}


def main() -> None:
    side, out = sys.argv[1], Path(sys.argv[2])
    rank = int(os.environ['RANK'])
    torch.set_num_threads(1)
    cfg = json.loads((out / 'cfg.json').read_text(encoding='utf-8'))
    ours = build(cfg)
    paths = sorted(str(p) for p in (out / 'wav').iterdir())
    conversations = [spoken_conversation(paths), spoken_conversation([])]
    if side == 'salm':
        with text_guard():
            fit(SALM(salm_cfg(cfg)), salm_batch(ours, [conversations[rank]]))
        return
    rows = [Collator(ours.renderer, ours.frames)([c]) for c in conversations]
    result = {'gradients': fit(ours, rows[rank]), 'has_audio': bool(rows[rank].audios.shape[0])}
    torch.save(result | {'alone': alone(build(cfg), rows) if rank == 0 else {}}, out / f'rank{rank}.pt')


if __name__ == '__main__':
    main()
