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
"""CPU-seconds until a model hears: an aligned adapter, by CTC alone, beside two adapters that learn through the LLM.

python benchmarks/alignment.py [--quick] [--cpu-seconds 600]          the last line is one JSON object

`aligned` is scored by greedy CTC, without the LLM; `match_embeddings` and `default` by the answers of the LLM: there
is nothing else to hear them by. All learn from the same recordings, and are measured on the same validation sets.
Measuring is not counted. `--quick` runs tiny random models: it shows that the benchmark works, no figure of it counts.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

import jiwer
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig, OmegaConf, open_dict

import nemo_vtb as vtb
from nemo_vtb.data.conversation import Conversation, conversation_from_dict, read_jsonl
from nemo_vtb.data.normalizers import get_normalizer, normalizer_for
from nemo_vtb.evaluation.answers import evaluating
from nemo_vtb.training.align import Alignment
from nemo_vtb.training.run import train

CONF = Path(__file__).resolve().parents[1] / 'conf'
THROUGH_THE_LLM = ('match_embeddings', 'default')
GOALS = (50, 40, 30)
SILENT = {'exp_manager.create_tensorboard_logger': False, 'exp_manager.create_checkpoint_callback': False}

Point = tuple[float, float]
"""CPU-seconds and WER in percent."""


class Clock:
    """CPU-seconds of this process so far, without those spent on measuring.

    Args:
        limit: When to stop.
    """

    def __init__(self, limit: float) -> None:
        self._begun, self.limit = time.process_time(), limit
        self.points: list[Point] = []

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.process_time() - self._begun

    def measured(self, begun: float, wer: float) -> None:
        """Add a point; `begun` is what `seconds` was when measuring began."""
        self._begun += self.seconds - begun
        self.points.append((round(begun, 1), round(wer, 1)))
        print(f'  {begun:7.1f} CPU-s   WER {wer:5.1f} %', flush=True)


class Timed(Alignment):
    """An alignment that notes when it heard how well, and ends when its time is up."""

    clock: Clock

    def measure(self) -> dict[str, float]:
        """The mean over the validation sets goes to the clock."""
        begun = self.clock.seconds
        wer = super().measure()
        self.clock.measured(begun, sum(wer.values()) / len(wer))
        return wer

    def _train(self, batch: Sequence[int], optimizer: torch.optim.Optimizer) -> float:
        if self.clock.seconds > self.clock.limit:
            raise TimeoutError
        return super()._train(batch, optimizer)


class Heard(Callback):
    """Asks the LLM to write down the validation recordings, every `every` steps.

    Args:
        clock: Gets the points.
        sets: Recordings to be written down, in sets.
        every: Steps.
    """

    def __init__(self, clock: Clock, sets: Sequence[Sequence[Conversation]], every: int) -> None:
        self.clock, self.sets, self.every, self._last = clock, sets, every, 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        """Measure, or stop."""
        if trainer.global_step > self._last and trainer.global_step % self.every == 0:
            self._last, begun = trainer.global_step, self.clock.seconds
            with evaluating(pl_module):
                found = [self._wer(pl_module, some) for some in self.sets]
            self.clock.measured(begun, sum(found) / len(found))
        trainer.should_stop |= self.clock.seconds > self.clock.limit

    @staticmethod
    def _wer(model: Any, conversations: Sequence[Conversation]) -> float:
        form = get_normalizer(normalizer_for('en'))
        answers = model.answer([each.prompt for each in conversations], max_new_tokens=64)
        pairs = [(form(each.answer), form(text)) for each, text in zip(conversations, answers, strict=True)]
        pairs = [pair for pair in pairs if pair[0]]
        return 100 * jiwer.wer([said for said, _ in pairs], [text for _, text in pairs])


def align(cfg: DictConfig, folder: Path, limit: float) -> list[Point]:
    """The points of `aligned`; its clock starts before the recordings are encoded."""
    clock = Clock(limit)
    run = Timed(cfg, folder)
    run.clock = clock
    try:
        run.run()
    except TimeoutError:
        run.measure()
    return clock.points


def joint(cfg: DictConfig, init: str, folder: Path, limit: float, every: int) -> list[Point]:
    """The points of an adapter that learns through the LLM, from recordings to be written down alone."""
    cfg = cfg.copy()
    cfg.model.perception.adapter_init = init
    cfg.exp_manager.explicit_log_dir = str(folder)
    files = [entry.manifest_filepath for one in cfg.data.validation_ds.datasets.values() for entry in one.input_cfg]
    sets = [
        [conversation_from_dict(raw, kind='asr_ast', base_dir=Path(file).parent) for _, _, raw in read_jsonl(file)]
        for file in files
    ]
    clock = Clock(limit)
    train(cfg, [Heard(clock, sets, every)])
    return clock.points


def composed(name: str, *overrides: str) -> DictConfig:
    """A configuration of `conf/`."""
    with initialize_config_dir(str(CONF), version_base=None):
        return compose(name, list(overrides))


def configurations(quick: bool, steps: int, folder: Path) -> tuple[DictConfig, DictConfig]:
    """Of the alignment and of the joint runs, on the same recordings and validation sets."""
    fixed = ['trainer.devices=1', 'data.num_workers=0', 'gate.enabled=false', f'trainer.max_steps={steps}']
    fixed += ['exp_manager.checkpoint_callback_params.monitor=val_loss', 'trainer.limit_val_batches=0']
    joint_cfg = composed('speechllm_joint_sft', 'data=open_dialogues', *fixed)
    align_cfg = composed('speechllm_align_adapter', 'data=open_dialogues')
    kept = {'asr_ast', 'open_asr_ast'}
    if quick:
        from nemo_vtb.testing import tiny_corpus, tiny_llm
        from nemo_vtb.testing.tiny import tiny_whisper

        corpus = tiny_corpus(folder / 'corpus')
        source = {'pretrained_llm': str(tiny_llm(folder / 'llm')), 'pretrained_asr': str(tiny_whisper(folder / 'asr'))}
        held_out = [entry for entry in corpus.input_cfg('validation') if entry['kind'] == 'asr_ast']
        data = {
            'train_ds': {'input_cfg': corpus.input_cfg()},
            'validation_ds': {'datasets': {'asr_ast': {'input_cfg': held_out}}},
        }
        for cfg in (joint_cfg, align_cfg):
            with open_dict(cfg):
                cfg.model.update(source)
                cfg.data.update(OmegaConf.create(data))
        align_cfg.align.update({'hidden': 24, 'num_blocks': 1, 'batch_frames': 200, 'check_every': 4})
        joint_cfg.model.perception.modality_adapter.feat_in = None
    for cfg in (joint_cfg, align_cfg):
        with open_dict(cfg.data):
            train_ds, sets = cfg.data.train_ds, cfg.data.validation_ds.datasets
            train_ds.input_cfg = [entry for entry in train_ds.input_cfg if entry.kind == 'asr_ast']
            cfg.data.validation_ds.datasets = {name: sets[name] for name in sets if name in kept}
    joint_cfg.data.budget.update({'text': 0.0, 'asr_ast': 1.0, 'speech_qa': 0.0, 'mixed_modal': 0.0})
    for key, value in SILENT.items():
        OmegaConf.update(joint_cfg, key, value)
    joint_cfg.exp_manager.checkpoint_callback_params.save_nemo_on_train_end = False
    return vtb.resolve_assets(align_cfg), vtb.resolve_assets(joint_cfg)


def reached(points: Sequence[Point]) -> dict[str, Any]:
    """CPU-seconds until each goal, null where it was not reached; and the best."""
    found: dict[str, Any] = {
        str(goal): next((seconds for seconds, wer in points if wer <= goal), None) for goal in GOALS
    }
    return found | {'best': min((wer for _, wer in points), default=None), 'cpu_s': points[-1][0] if points else 0.0}


def main() -> int:
    """Run the three, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='tiny random models')
    parser.add_argument('--cpu-seconds', type=float, default=600.0, help='of each of the three')
    parser.add_argument('--passes', type=int, default=8, help='over the recordings, in the alignment')
    given = parser.parse_args()
    torch.set_num_threads(1)  # so that CPU-seconds are those of one thread
    limit, every = (8.0, 4) if given.quick else (given.cpu_seconds, 40)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        align_cfg, joint_cfg = configurations(given.quick, 8 if given.quick else 240, folder)
        align_cfg.align.passes = given.passes
        print('aligned', flush=True)
        results['aligned'] = reached(align(align_cfg, folder / 'aligned', limit))
        for init in THROUGH_THE_LLM:
            print(init, flush=True)
            results[init] = reached(joint(joint_cfg, init, folder / init, limit, every))
    print('| start | heard by | ' + ' | '.join(f'{goal} %' for goal in GOALS) + ' | best WER | CPU-s |')
    for init, found in results.items():
        times = ' | '.join('-' if found[str(goal)] is None else f'{found[str(goal)]:.0f} s' for goal in GOALS)
        by = 'CTC' if init == 'aligned' else 'the LLM'
        print(f'| {init} | {by} | {times} | {found["best"]:.1f} % | {found["cpu_s"]:.0f} |')
    ok = all(found['best'] is not None for found in results.values())
    print(json.dumps({'benchmark': 'alignment', 'quick': given.quick, 'ok': ok, 'results': results}))
    return 0 if ok else 1


if __name__ == '__main__':
    sys.exit(main())
