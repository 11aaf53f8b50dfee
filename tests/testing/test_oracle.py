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
"""The digest sees every bit of a run's state, names the part that differs, and is equal for a trainer and its file."""

import copy
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from nemo_vtb.checkpoint.checkpoint_io import AtomicCheckpointIO
from nemo_vtb.testing.oracle import RowRecorder, differing, digest, loss_bits, read_rows, run_digest, state_digests


def checkpoint() -> dict:
    return {
        'state_dict': {'w': torch.arange(6.0).view(2, 3), 'h': torch.zeros(2, dtype=torch.bfloat16)},
        'optimizer_states': [{'state': {0: {'step': torch.tensor(3.0), 'exp_avg': torch.zeros(2)}}}],
        'lr_schedulers': [{'last_epoch': 3}],
        'global_step': 3,
        'epoch': 0,
        'run_state': {'random': [{'torch': 'ab'}], 'plan': {'row': 6}, 'batches': 3, 'failed': [], 'ledger': {}},
        'callbacks': {'where': '/some/folder'},
    }


def turn_lowest_bit(found: dict) -> None:
    found['state_dict']['w'][1, 2] = torch.nextafter(torch.tensor(5.0), torch.tensor(6.0))


@pytest.mark.parametrize(
    ('part', 'change'),
    [
        ('parameters', turn_lowest_bit),
        ('parameters', lambda c: c['state_dict'].update(h=torch.zeros(2, dtype=torch.float16))),
        ('optimizer', lambda c: c['optimizer_states'][0]['state'][0]['step'].add_(1)),
        ('scheduler', lambda c: c['lr_schedulers'][0].update(last_epoch=4)),
        ('counters', lambda c: c.update(global_step=4)),
        ('random', lambda c: c['run_state'].update(random=[{'torch': 'ac'}])),
        ('sampler', lambda c: c['run_state'].update(plan={'row': 7})),
    ],
)
def test_every_part_is_seen(part: str, change: object) -> None:
    other = copy.deepcopy(checkpoint())
    assert run_digest(other) == run_digest(checkpoint())
    change(other)
    assert differing(state_digests(checkpoint()), state_digests(other)) == [part]
    assert run_digest(other) != run_digest(checkpoint())


def test_paths_do_not_count_and_nesting_does() -> None:
    assert run_digest(checkpoint() | {'callbacks': {'where': '/elsewhere'}}) == run_digest(checkpoint())
    assert digest([[1], 2]) != digest([1, [2]])
    assert digest(0.1 + 0.2) != digest(0.3)


class Tiny(pl.LightningModule):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return (self.weight - batch).square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 0.1)


class Row(list):
    """A row with a number."""

    index, ids = 5, ['a']


def test_a_trainer_equals_its_file(tmp_path: Path) -> None:
    trainer = pl.Trainer(
        accelerator='cpu', devices=1, max_steps=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    trainer.fit(Tiny(), torch.utils.data.DataLoader([torch.ones(3)] * 3))
    trainer.save_checkpoint(tmp_path / 'a.ckpt')
    assert state_digests(trainer) == state_digests(tmp_path / 'a.ckpt')
    recorder = RowRecorder(tmp_path / 'rows.jsonl')
    recorder.on_train_batch_end(trainer, None, {'loss': torch.tensor(0.1)}, Row(), 0)
    recorder.on_fit_end(trainer, None)
    row, end = read_rows(tmp_path / 'rows.jsonl')
    assert row == {'row': 5, 'ids': ['a'], 'loss': float(torch.tensor(0.1)).hex()}
    assert end['digest'] == run_digest(tmp_path / 'a.ckpt') and end['steps'] == 2


def test_losses_as_bits(tmp_path: Path) -> None:
    path = tmp_path / 'history.jsonl'
    path.write_text(
        '{"type": "train", "step": 1, "losses": {"text": 0.5}}\n{"type": "validation", "step": 1}\n'
        '{"type": "train", "step": 1, "losses": {"text": 0.25}}\n{"type": "tr'
    )
    assert loss_bits(path) == {1: {'text': (0.25).hex()}}
