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
"""A setting that was changed between two attempts is named and refused; where it is allowed, it is what is used."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from nemo_vtb.checkpoint.checkpoint_io import AtomicCheckpointIO
from nemo_vtb.data.collate import Collator
from nemo_vtb.data.conversation import conversation_from_dict, read_jsonl
from nemo_vtb.errors import VtbCheckpointError
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.testing import tiny_model_cfg
from nemo_vtb.training.changed_settings import ChangedSettings
from nemo_vtb.training.run_state import RunState

Fit = Callable[..., Trainer]


class Rows(LightningDataModule):
    """The same row again and again."""

    def __init__(self, row: Any, allow_changed: bool) -> None:
        super().__init__()
        self.row, self.settings = row, SimpleNamespace(allow_changed=allow_changed)

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.row] * 9, batch_size=None)


@pytest.fixture(scope='module')
def fit(tmp_path_factory: pytest.TempPathFactory, corpus: Any) -> Fit:
    """Train for some steps with changes to the model's configuration (dotted) and to the trainer."""
    folder = tmp_path_factory.mktemp('settings')

    def run(steps: int, ckpt: Path | None = None, allow: bool = False, model: Any = (), **options: Any) -> Trainer:
        torch.manual_seed(0)
        cfg = tiny_model_cfg(folder)
        for key, value in dict(model).items():
            section, _, name = key.rpartition('.')
            (cfg[section] if section else cfg)[name] = value
        blender = VoiceTextBlender(cfg)
        _, _, line = next(read_jsonl(corpus.path('text')))
        conversation = conversation_from_dict(line, kind='text', base_dir=corpus.folder)
        row = Collator(blender.renderer, blender.frames)([conversation], 0)
        callbacks = [ChangedSettings(), *options.pop('callbacks', ())]
        trainer = Trainer(
            accelerator='cpu', devices=1, max_steps=steps, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
            plugins=[AtomicCheckpointIO()], use_distributed_sampler=False, **options,
        )  # fmt: skip
        trainer.fit(blender, Rows(row, allow), ckpt_path=ckpt)
        return trainer

    return run


@pytest.fixture(scope='module')
def saved(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('saved') / 'a.ckpt'
    fit(2, gradient_clip_val=1.0).save_checkpoint(path)
    return path


@pytest.mark.parametrize(
    ('field', 'model', 'options'),
    [
        ('model.optimizer.lr', {'optimizer.lr': 5e-3}, {'gradient_clip_val': 1.0}),
        ('trainer.gradient_clip_val', {}, {'gradient_clip_val': 0.5}),
        ('trainer.precision', {}, {'gradient_clip_val': 1.0, 'precision': 'bf16-mixed'}),
        ('model.text_anchor', {'text_anchor': 1.0}, {'gradient_clip_val': 1.0}),
        ('model.lora.r', {'lora.r': 8}, {'gradient_clip_val': 1.0}),
    ],
)
def test_each_is_refused_by_name(fit: Fit, saved: Path, field: str, model: Any, options: Any) -> None:
    with pytest.raises(VtbCheckpointError) as error:
        fit(4, saved, model=model, **options)
    assert error.value.field == field and field in error.value.allowed
    if field == 'model.lora.r':
        with pytest.raises(VtbCheckpointError) as error:
            fit(4, saved, True, model, **options)
        assert error.value.field == field  # no weights of that shape, whatever is allowed


def test_what_is_allowed_is_used(fit: Fit, saved: Path) -> None:
    """Lightning would bring the old learning rate, decay and schedule back."""
    changes = {'optimizer.lr': 5e-3, 'optimizer.weight_decay': 0.25, 'lr_scheduler.min_lr': 1e-4}
    resumed = fit(3, saved, True, changes, gradient_clip_val=1.0)
    fresh = fit(3, model=changes)
    (group,), (expected,) = (trainer.optimizers[0].param_groups for trainer in (resumed, fresh))
    assert {k: v for k, v in group.items() if k != 'params'} == {k: v for k, v in expected.items() if k != 'params'}
    one, other = (trainer.lr_scheduler_configs[0].scheduler.state_dict() for trainer in (resumed, fresh))
    assert one == other and one['base_lrs'] == [5e-3]


def test_a_refused_attempt_leaves_the_configuration_of_the_one_before(fit: Fit, saved: Path, tmp_path: Path) -> None:
    (tmp_path / 'run_0').mkdir()
    for folder, rate in ((tmp_path / 'run_0', '0.001'), (tmp_path, '0.005')):  # as exp_manager and the script do
        (folder / 'config.yaml').write_text(rate)
    with pytest.raises(VtbCheckpointError):
        fit(4, saved, model={'optimizer.lr': 5e-3}, callbacks=[RunState(tmp_path)], gradient_clip_val=1.0)
    assert (tmp_path / 'config.yaml').read_text() == '0.001'


def test_a_longer_run_needs_no_permission(fit: Fit, saved: Path) -> None:
    longer = fit(3, saved, model={'lr_scheduler.max_steps': 2000}, gradient_clip_val=1.0)
    assert longer.lr_scheduler_configs[0].scheduler.max_steps == 2000
    assert fit(3, saved, gradient_clip_val=1.0).global_step == 3  # as it was


def test_a_checkpoint_of_before_names_no_settings(fit: Fit, saved: Path, tmp_path: Path) -> None:
    content = AtomicCheckpointIO().load_checkpoint(saved)
    del content['run_settings']
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / 'old.ckpt')
    assert fit(3, tmp_path / 'old.ckpt', model={'optimizer.lr': 5e-3}).global_step == 3
