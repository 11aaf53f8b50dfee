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
"""Trains a tiny model by the library's own functions, on any strategy; every rank runs it.

Usage: torchrun --nproc-per-node=N train_worker.py FOLDER JOB [JOB ...]     (as `write_jobs` has written them)
"""

import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault('HF_HUB_OFFLINE', '1')
import torch
from omegaconf import OmegaConf

KINDS = ('text', 'asr_ast', 'speech_qa', 'mixed_modal')
TRAINER = {
    'accelerator': 'cpu', 'devices': 1, 'num_nodes': 1, 'precision': '32-true', 'strategy': 'auto', 'max_steps': 6,
    'gradient_clip_val': 0.5, 'logger': False, 'enable_checkpointing': False, 'enable_progress_bar': False,
    'enable_model_summary': False, 'use_distributed_sampler': False, 'limit_val_batches': 0,
    'num_sanity_val_steps': 0,
}  # fmt: skip


def write_config(
    folder: Path, family: str = 'llama', adapter: Mapping[str, Any] | None = None, validation: int = 0
) -> None:
    """`cfg.yaml`: a tiny LLM with saved weights, a tiny Whisper, all four kinds of data, two learning rates."""
    from nemo_vtb.testing import tiny_corpus, tiny_model_cfg

    corpus = tiny_corpus(folder / 'corpus', 8)
    model = tiny_model_cfg(folder / 'models', family=family, encoder='whisper')
    model['lr_factors'] = [{'match': r'^llm\..+\.lora_.+$', 'factor': 0.5}]
    model['optimizer']['weight_decay'] = 0.01
    if adapter is not None:
        model['perception']['modality_adapter'] = dict(adapter)
        # a bias in front of a batch norm has no gradient but rounding, of 1e-9, which Adam's own 1e-8 makes steps of
        model['optimizer']['eps'] = 1e-6
    data = {
        'train_ds': {'sample_rate': 16000, 'seed': 1, 'input_cfg': corpus.input_cfg('train')},
        **({'validation_ds': validation_sets(corpus)} if validation else {}),
        'budget': dict.fromkeys(KINDS, 0.25),
        'max_tokens': 192,
        'rows_per_batch': 2,
        'num_workers': 0,
        'index_dir': str(folder / 'index'),
    }
    trainer = TRAINER | ({'limit_val_batches': 1.0, 'val_check_interval': validation} if validation else {})
    OmegaConf.save({'name': 'x', 'seed': 7, 'model': model, 'trainer': trainer, 'data': data}, folder / 'cfg.yaml')


def validation_sets(corpus: Any) -> dict[str, Any]:
    """One set of typed chats, one of recordings."""
    text, *spoken = corpus.input_cfg('validation')
    sets = {'text': {'input_cfg': [text]}, 'speech': {'input_cfg': spoken[:1]}}
    return {'sample_rate': 16000, 'datasets': sets}


def run_job(folder: Path, job: Mapping[str, Any]) -> None:
    """Train; leaves `history.jsonl`, `end.ckpt`, `state.pt` and (asked for) `model.nemo` in a folder of its name.

    A job that must end by an error leaves its message in `error<rank>`.
    """
    from lightning.pytorch import seed_everything
    from lightning.pytorch.callbacks import ModelCheckpoint

    from nemo_vtb.data.datamodule import VtbDataModule
    from nemo_vtb.errors import VtbError
    from nemo_vtb.training.history import History
    from nemo_vtb.training.run import build_model, build_trainer
    from nemo_vtb.training.run_state import RunState

    cfg = OmegaConf.load(folder / 'cfg.yaml')
    for key, value in job.get('set', {}).items():
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    out = folder / job['name']
    # without a common seed each process has its own, as in a script that sets none
    seed = 1000 + int(os.environ.get('RANK', 0)) if cfg.seed is None else cfg.seed
    seed_everything(seed, workers=True, verbose=False)
    checkpoints = (
        [ModelCheckpoint(out, save_last=True, save_top_k=0, every_n_epochs=1)] if job.get('checkpoints') else []
    )
    if checkpoints:
        cfg.trainer.enable_checkpointing = True
    trainer = build_trainer(cfg, [RunState(out), History(out), *checkpoints])
    out.mkdir(parents=True, exist_ok=True)
    (out / f'pid{trainer.global_rank}').write_text(str(os.getpid()))
    model = build_model(cfg, trainer)
    data = VtbDataModule(cfg.data, model.renderer, model.frames)
    if (rank := job.get('empty_on')) is not None:
        leave_out_a_row(model, rank)
    for rank in job.get('mute_on', ()):
        mute_a_batch(model, rank)
    try:
        trainer.fit(model, data, ckpt_path=job.get('resume') and folder / job['resume'] / 'end.ckpt')
    except VtbError as error:
        if type(error).__name__ != job.get('error'):
            raise
        (out / f'error{trainer.global_rank}').write_text(str(error))
        return
    trainer.save_checkpoint(out / 'end.ckpt')
    if trainer.limit_val_batches and trainer.is_global_zero:
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        (out / 'metrics.json').write_text(json.dumps(values))
    if job.get('draw'):
        (out / f'drawn{trainer.global_rank}').write_text(json.dumps(torch.rand(5000, dtype=torch.float64).tolist()))
    if job.get('nemo'):
        model.save_to(out / 'model.nemo')
    trainer.strategy.checkpoint_io.teardown()
    if trainer.world_size > 1:
        check_copies(model, trainer)


def has_megatron() -> bool:
    """Whether the jobs of its strategy can run."""
    return importlib.util.find_spec('megatron') is not None


def leave_out_a_row(model: Any, rank: int) -> None:
    """As if every conversation of the second row of a rank had been broken."""
    from nemo_vtb.data.collate import pack_row

    step = model.training_step

    def training_step(batch: Any, batch_idx: int) -> Any:
        gone = batch_idx == 1 and model.global_rank == rank
        return step(pack_row([]) if gone else batch, batch_idx)

    model.training_step = training_step


def mute_a_batch(model: Any, rank: int) -> None:
    """As if nothing in the second global batch of a rank had been an answer."""
    from nemo_vtb.constants import IGNORE_INDEX

    step = model.training_step

    def training_step(batch: Any, batch_idx: int) -> Any:
        if model.global_rank == rank and model.trainer.global_step == 1:
            batch.labels.fill_(IGNORE_INDEX)
            batch.label_kinds.fill_(-1)
        return step(batch, batch_idx)

    model.training_step = training_step


def check_copies(model: Any, trainer: Any) -> None:
    """What every rank holds whole must be the same on all of them, to the bit."""
    from lightning.pytorch.strategies import DDPStrategy

    from nemo_vtb.backbone.hf import ShardedHFBackbone

    # DDP copies running statistics before a forward pass, not behind it
    late = {name for name, _ in model.named_buffers()} if isinstance(trainer.strategy, DDPStrategy) else set()
    for name, value in model.state_dict().items():
        if not name.startswith('llm.') and value.is_floating_point() and name not in late:
            check_copy(name, value)
    for name, value in model.backbone.trainable_parameters().items():
        if not getattr(value, 'tensor_model_parallel', False):
            check_copy(name, value)
    if isinstance(model.backbone, ShardedHFBackbone):
        check_shards(model, trainer.world_size)


def check_shards(model: Any, ranks: int) -> None:
    """Each rank has its part of the frozen decoder, and the whole of LoRA, the same everywhere."""
    from torch.distributed.tensor import DTensor

    layers = dict(model.backbone.decoder.layers.named_parameters())
    assert any('.lora_' in name for name in layers)
    for name, value in layers.items():
        if '.lora_' in name:
            check_copy(name, value)
        else:
            assert isinstance(value, DTensor), name
            assert value.to_local().numel() * ranks == value.numel(), name


def check_copy(name: str, value: torch.Tensor) -> None:
    import torch.distributed as dist

    first = value.detach().clone()
    dist.broadcast(first, 0)
    assert torch.equal(first, value), f'{name} differs on rank {dist.get_rank()}'


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    jobs = json.loads((folder / 'jobs.json').read_text(encoding='utf-8'))
    for name in sys.argv[2:]:
        run_job(folder, {'name': name, **jobs[name]})


if __name__ == '__main__':
    main()
