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
"""Runs training jobs on several ranks that are forks of the test's process: they pay for no import of their own."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

TRAINER = {
    'accelerator': 'cpu', 'devices': 1, 'max_steps': 3, 'gradient_clip_val': 0.5, 'logger': False,
    'enable_checkpointing': False, 'enable_progress_bar': False, 'enable_model_summary': False, 'limit_val_batches': 0,
    'num_sanity_val_steps': 0, 'log_every_n_steps': 1,
}  # fmt: skip


def on_ranks(ranks: int, job: Callable[[], Any], timeout_s: float = 300) -> list[Any]:
    """What `job` returned on each rank, or the text of what it raised; as under torchrun, with gloo."""
    context = multiprocessing.get_context('fork')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    pipes, processes = [], []
    for rank in range(ranks):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(job, rank, ranks, port, theirs), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    results = [pipe.recv() if pipe.poll(timeout_s) else 'timeout' for pipe in pipes]
    for process in processes:
        process.join(10)
        process.kill()
    return results


def _run(job: Callable[[], Any], rank: int, ranks: int, port: int, pipe: Any) -> None:
    os.environ |= {
        'RANK': str(rank), 'LOCAL_RANK': str(rank), 'GROUP_RANK': '0', 'WORLD_SIZE': str(ranks),
        'LOCAL_WORLD_SIZE': str(ranks), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port),
        'TORCHELASTIC_RUN_ID': 'test',
    }  # fmt: skip
    try:
        pipe.send(job())
    except BaseException:  # noqa: BLE001 - the test is told
        pipe.send(traceback.format_exc())
    os._exit(0)  # the parent's exit handlers are not ours


def write_config(folder: Path) -> dict[str, Any]:
    """A tiny LLM with saved weights and LoRA, a tiny Whisper, all four kinds of data; two rows for a step."""
    from nemo_vtb.testing import tiny_corpus, tiny_model_cfg

    corpus = tiny_corpus(folder / 'corpus', 4)
    return {
        'name': 'x',
        'seed': 7,
        'model': tiny_model_cfg(folder / 'models', encoder='whisper'),
        'trainer': TRAINER,
        'data': {
            'train_ds': {'sample_rate': 16000, 'seed': 1, 'input_cfg': corpus.input_cfg('train')},
            'max_tokens': 128,
            'rows_per_batch': 2,
            'num_workers': 0,
            'index_dir': str(folder / 'index'),
        },
    }


def train(cfg: Mapping[str, Any]) -> tuple[Any, Any]:
    """Train by the library's own functions; returns trainer and model."""
    from lightning.pytorch import seed_everything
    from omegaconf import OmegaConf

    from nemo_vtb import VtbDataModule, build_model, build_trainer

    conf = OmegaConf.create(cfg)
    conf.trainer.setdefault('default_root_dir', str(Path(conf.data.index_dir).parent))
    seed_everything(conf.seed + int(os.environ.get('RANK', 0)), verbose=False)  # nothing is equal by luck
    trainer = build_trainer(conf)
    model = build_model(conf, trainer)
    trainer.fit(model, VtbDataModule(conf.data, model.renderer, model.frames))
    return trainer, model


def run(cfg: Any) -> Path:
    """What `vtb train` does, without its lines on the terminal; returns the folder of the run."""
    from nemo_vtb import History, check_config, complete_config, resolve_assets
    from nemo_vtb.training.run import train as train_all
    from nemo_vtb.training.run_state import run_folder

    check_config(complete_config(cfg))
    return run_folder(train_all(resolve_assets(cfg), [History()]))
