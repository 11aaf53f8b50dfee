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
"""CPU time of the quickstart's training step in float32 and in bfloat16, and where it goes.

python benchmarks/half_precision.py --quick     # three packed rows of 1,024 tokens
python benchmarks/half_precision.py --full      # eight, five times
python benchmarks/half_precision.py --profile   # milliseconds of a row by operation, for each way
One thread, forward and backward pass of the joint step, the ways in turn on each row; then the optimizer's step, so
that losses are compared, each row's the first time that it is seen. `ceiling`: how much faster bfloat16 multiplies
here than float32, which no step can exceed. `ok`: the losses agree within its rounding, and where it multiplies
faster, the step is faster, too.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ['OMP_NUM_THREADS'] = '1'

from nemo_vtb.scripts import quiet_logs, start_script

start_script()

import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Trainer, seed_everything
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from nemo_vtb.assets.resolve import resolve_assets
from nemo_vtb.config.command_line import conf_folder
from nemo_vtb.data.collate import PackedRow
from nemo_vtb.data.datamodule import VtbDataModule
from nemo_vtb.model.blender import VoiceTextBlender, plain_dict
from nemo_vtb.parallel.dims import ParallelDims

WAYS: dict[str, dict[str, Any]] = {
    '32-true': {'precision': '32-true'},
    'bf16-mixed, frozen weights float32': {'precision': 'bf16-mixed', 'frozen_dtype': 'float32'},
    'bf16-mixed': {'precision': 'bf16-mixed'},
}
BEST, GOAL_LOSS = 'bf16-mixed', 0.02  # relative difference of a row's loss


class Way:
    """One model of the quickstart, and how it is trained."""

    def __init__(self, cfg: Any, precision: str, frozen_dtype: str = 'auto') -> None:
        seed_everything(cfg.seed, verbose=False)
        self.trainer = Trainer(
            accelerator='cpu', devices=1, precision=precision, logger=False, enable_checkpointing=False  # type: ignore[arg-type]
        )  # fmt: skip
        self.model = VoiceTextBlender(plain_dict(cfg.model) | {'frozen_dtype': frozen_dtype}, self.trainer).train()
        self.model.log = self.model.log_dict = lambda *args, **options: None  # type: ignore[method-assign]
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=2e-4)
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def row(self, row: PackedRow) -> float:
        """Forward and backward pass; CPU seconds."""
        begun = time.process_time()
        with self.trainer.precision_plugin.train_step_context():
            out = self.model.training_step(row, 0)
        out['loss'].backward()
        self.losses.append(float(out['mean_loss']))
        return time.process_time() - begun

    def step(self) -> None:
        """The optimizer's, on the clipped gradient."""
        torch.nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]['params'], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def quickstart_rows(cfg: Any, model: VoiceTextBlender, count: int) -> list[PackedRow]:
    """The first packed rows of the quickstart, read once."""
    data = plain_dict(cfg.data) | {'num_workers': 0, 'plan_ahead': 0, 'rows_per_batch': 1}
    module = VtbDataModule(data, model.renderer, model.frames, num_batches=count, dims=ParallelDims())
    module.prepare_data()
    return list(module.train_dataloader())


def matrix_rate(dtype: torch.dtype, size: int = 768, times: int = 8) -> float:
    """FLOP per CPU second of products like those of a layer."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    return 2 * size**3 / _fastest(lambda: a @ b, times)


def _fastest(work: Callable[[], Any], times: int) -> float:
    spent = []
    for _ in range(times):
        begun = time.process_time()
        work()
        spent.append(time.process_time() - begun)
    return min(spent)


def profile_way(way: Way, row: PackedRow, console: Console, name: str) -> None:
    """Own time of each operation in one row."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        way.row(row)
    way.optimizer.zero_grad()
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    table = Table('operation', 'calls', 'ms', 'share', title=f'{name}: {total / 1000:.0f} ms')
    for event in events[:22]:
        spent = event.self_cpu_time_total
        table.add_row(event.key, str(event.count), f'{spent / 1000:.1f}', f'{spent / total:.1%}')
    console.print(table)


def main() -> int:
    """Measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--quick', action='store_true', help='three rows, once (default)')
    size.add_argument('--full', action='store_true', help='eight rows, five times')
    parser.add_argument('--profile', action='store_true', help='also milliseconds by operation')
    args = parser.parse_args()
    quiet_logs()
    torch.set_num_threads(1)
    with initialize_config_dir(str(conf_folder()), version_base=None):
        cfg = resolve_assets(compose('speechllm_joint_sft'))
    ways = {name: Way(cfg, **options) for name, options in WAYS.items()}
    console, first = Console(width=120), next(iter(ways.values()))
    rows = quickstart_rows(cfg, first.model, 8 if args.full else 3)
    for way in ways.values():  # what is made at the first use is not counted
        way.row(rows[0])
        way.optimizer.zero_grad()
        way.losses.clear()
    if args.profile:
        for name, way in ways.items():
            profile_way(way, rows[0], console, name)
            way.losses.clear()
    for _ in range(5 if args.full else 1):
        for row in rows:
            for way in ways.values():
                way.seconds.append(way.row(row))
            for way in ways.values():
                way.step()
    rates = {dtype: matrix_rate(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return report(ways, len(rows), rates, console)


def report(ways: dict[str, Way], rows: int, rates: dict[torch.dtype, float], console: Console) -> int:
    """The table, the JSON line, the exit status."""
    exact = ways['32-true']
    table = Table('way', 'CPU ms a row', 'times float32', 'largest difference of a loss')
    ratios, differences = {}, {}
    for name, way in ways.items():
        pairs = zip(exact.seconds, way.seconds, strict=True)
        ratios[name] = statistics.median(theirs / ours for theirs, ours in pairs)
        # later rows are known by heart: their losses are small, and follow another trajectory
        losses = zip(exact.losses[:rows], way.losses[:rows], strict=True)
        differences[name] = max(abs(theirs - ours) / abs(theirs) for theirs, ours in losses)
        spent = statistics.median(way.seconds) * 1000
        table.add_row(name, f'{spent:.0f}', f'{ratios[name]:.2f}', f'{differences[name]:.2%}')
    console.print(table)
    ceiling = rates[torch.bfloat16] / rates[torch.float32]
    agree = max(differences.values()) <= GOAL_LOSS
    ok = agree and (ceiling < 1.2 or ratios[BEST] > 1)
    figures = {
        'ratios': {name: round(ratio, 3) for name, ratio in ratios.items()},
        'loss_diff': {name: round(value, 5) for name, value in differences.items()},
        'gflops': {str(dtype).rpartition('.')[2]: round(rate / 1e9) for dtype, rate in rates.items()},
        'ceiling': round(ceiling, 2),
    }
    print(json.dumps({'benchmark': 'half_precision', 'ok': ok, **figures}))
    return 0 if ok else 1


if __name__ == '__main__':
    raise SystemExit(main())
