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
"""What the plan of a global batch costs at 8, 64 and 1,024 ranks: made by each rank, or ahead by one process for all.

python benchmarks/plan_scale.py --quick     # 1 million entries, few steps
python benchmarks/plan_scale.py --full      # 10 million entries, five times the steps

One row of 4,096 tokens for each rank. `here`: a rank plans all rows when it loads. `ahead`: the process of
`data.plan_ahead`, with this process as rank 0 and another one as the last rank, which connects to it; the messages for
the ranks between are made and thrown away. A step of training is simulated by a pause. Waits are medians over the
steps, computing is that of the processor; `busy` is the share of a step for which the planning process computes.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from sampler_scale import BUDGET, KINDS, make_index, rss_mb

from nemo_vtb.data import planner as planning
from nemo_vtb.data.planner import Planner
from nemo_vtb.data.sampler import BatchPlan, TokenBudgetPlan, TokenBudgetSampler

GOALS = {'wait_ms': 1.0, 'follower_growth': 1.5, 'state_bytes': 100_000, 'process_mb': 300.0, 'first_rows_s': 10.0}
WORLDS = {8: (24, 0.2), 64: (12, 0.5), 1024: (8, 2.5)}
"""Ranks -> steps, and how long one takes in seconds."""

AHEAD = 4


class Rank:
    """Who a process is: two meet, and stand for so many ranks."""

    def __init__(self, rank: int, met: list[Any]) -> None:
        self.data_rank, self.world_size, self.is_writer, self.met = rank, 2, rank == 0, met

    def gather_objects(self, value: Any) -> list[Any]:
        """What rank 0 said."""
        if self.is_writer:
            self.met.append(value)
        return self.met


def main() -> int:
    """Measure each world, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--quick', action='store_true', help='1 million entries (default)')
    size.add_argument('--full', action='store_true', help='10 million entries, five times the steps')
    args = parser.parse_args()
    entries, times = (10_000_000, 5) if args.full else (1_000_000, 1)
    with tempfile.TemporaryDirectory() as folder:
        sources = [make_index(Path(folder), kind, round(entries * share)) for kind, (_, _, share) in KINDS.items()]
        worlds = [measure(sources, ranks, steps * times, step_s) for ranks, (steps, step_s) in WORLDS.items()]
    figures = summarise(worlds)
    show(worlds)
    ok = all(figures[name] <= goal for name, goal in GOALS.items())
    figures |= {'entries': entries, 'worlds': worlds}
    print(json.dumps({'benchmark': 'plan_scale', 'ok': ok, 'goals': GOALS, **figures}))
    return 0 if ok else 1


def summarise(worlds: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The worst of each figure over all worlds, and how what a rank pays grows from the smallest to the largest."""
    return {
        'wait_ms': max(w for world in worlds for w in (world['wait_ms'], world['follower_wait_ms'])),
        'follower_growth': round(worlds[-1]['follower_cpu_ms'] / worlds[0]['follower_cpu_ms'], 2),
        **{name: max(world[name] for world in worlds) for name in ('state_bytes', 'process_mb', 'first_rows_s')},
    }


def measure(sources: Sequence[Any], ranks: int, steps: int, step_s: float) -> dict[str, float]:
    """All figures of one world."""
    batch = BatchPlan(ranks, ranks)
    here = TokenBudgetSampler(make(sources), batch, 0, steps)
    began, cpu = time.perf_counter(), time.process_time()
    expected = list(here)
    here_ms, here_wall_ms = (1000 * s / steps for s in (time.process_time() - cpu, time.perf_counter() - began))
    found = ahead(sources, batch, steps, step_s)
    assert found.pop('rows') == expected, 'planned ahead, the rows are others'
    return {
        'ranks': ranks,
        'step_s': step_s,
        'here_ms': round(here_ms, 2),
        'here_wall_ms': round(here_wall_ms, 2),
        **found,
    }


def make(sources: Sequence[Any]) -> TokenBudgetPlan:
    """The plan that all ranks have."""
    return TokenBudgetPlan(sources, BUDGET, max_tokens=4096, pool=512, seed=1)


def ahead(sources: Sequence[Any], batch: BatchPlan, steps: int, step_s: float) -> dict[str, Any]:
    """The process plans for this rank and the last one, as for all ranks."""
    met: list[Any] = []
    leader: Any = Rank(0, met)
    planner = Planner(leader, AHEAD)
    context = multiprocessing.get_context('fork')
    queue = context.Queue()
    follower = context.Process(target=follow, args=(sources, batch, steps, step_s, met, queue))
    follower.start()
    sampler = TokenBudgetSampler(make(sources), batch, 0, steps, planner=planner)
    with Stubs(batch.ranks):
        began = time.perf_counter()
        rows, waits, state, process = [], [], 0, [0.0, 0.0]
        iterator = iter(sampler)
        for step in range(steps):
            before = time.perf_counter()
            rows += islice(iterator, batch.rows_per_rank)
            waits.append(time.perf_counter() - before)
            if step == 0:
                first_s = time.perf_counter() - began
            time.sleep(step_s)
            sampler.take_batch()
            state = max(state, len(json.dumps(sampler.state_dict())))
            process = process_of(pid_of_planner())
        iterator.close()
    other = queue.get(timeout=60)
    follower.join(60)
    assert planner._listener is not None
    planner._listener.close()
    return {
        'rows': rows,
        'wait_ms': round(1000 * statistics.median(waits[1:]), 3),
        'longest_wait_ms': round(1000 * max(waits[1:]), 3),
        **other,
        'process_ms': round(1000 * process[0] / steps, 2),
        'busy': round(process[0] / steps / step_s, 3),
        'process_mb': round(process[1], 1),
        'state_bytes': state,
        'first_rows_s': round(first_s, 3),
    }


class Stubs:
    """Links for the ranks that nobody plays: their messages are made, and thrown away."""

    def __init__(self, ranks: int) -> None:
        self._ranks, self._real = ranks, planning._accept

    def __enter__(self) -> None:
        def accept(*args: Any) -> Any:
            found = [*self._real(*args)]
            yield from found
            sink: Any = Sink()
            yield from ((rank, sink) for rank in range(1, self._ranks - 1))

        planning._accept = accept

    def __exit__(self, *_: object) -> None:
        planning._accept = self._real


class Sink:
    """A connection that leads nowhere: a pipe that is emptied."""

    def __init__(self) -> None:
        self._null = os.open(os.devnull, os.O_WRONLY)

    def send_bytes(self, message: bytes) -> None:
        """Hand it to the system, as a socket would."""
        os.write(self._null, message)


def follow(sources: Sequence[Any], batch: BatchPlan, steps: int, step_s: float, met: list[Any], queue: Any) -> None:
    """The last rank: what it waits, computes and holds for each step."""
    rank: Any = Rank(batch.ranks - 1, met)
    sampler = TokenBudgetSampler(make(sources), batch, batch.ranks - 1, steps, planner=Planner(rank, AHEAD))
    iterator, waits, cpu = iter(sampler), [], 0.0
    for step in range(steps):
        before, used = time.perf_counter(), time.process_time()
        got = list(islice(iterator, batch.rows_per_rank))
        if step:
            waits.append(time.perf_counter() - before)
            cpu += time.process_time() - used
        assert len(got) == batch.rows_per_rank
        time.sleep(step_s)
        sampler.take_batch()
    queue.put({
        'follower_wait_ms': round(1000 * statistics.median(waits), 3),
        'follower_cpu_ms': round(1000 * cpu / len(waits), 3),
    })  # fmt: skip


def pid_of_planner() -> int:
    """Of the process that plans."""
    (pid,) = (p.pid for p in multiprocessing.active_children() if p.name == 'vtb-planner')
    assert pid is not None
    return pid


def process_of(pid: int) -> list[float]:
    """Seconds of computing of a process, and its memory that no other process has, in MB."""
    stat = Path(f'/proc/{pid}/stat').read_text(encoding='utf-8').rpartition(')')[2].split()
    seconds = (int(stat[11]) + int(stat[12])) / os.sysconf('SC_CLK_TCK')
    lines = Path(f'/proc/{pid}/smaps_rollup').read_text(encoding='utf-8').splitlines()
    private = sum(int(line.split()[1]) for line in lines if line.startswith(('Private_Clean', 'Private_Dirty')))
    return [seconds, private / 1024]


def show(worlds: Sequence[dict[str, float]]) -> None:
    """A table for people."""
    table = Table(title=f'planning a global batch (this process: {rss_mb():.0f} MB)')
    for name in worlds[0]:
        table.add_column(name, justify='right')
    for world in worlds:
        table.add_row(*(f'{value:,}' for value in world.values()))
    Console(width=200).print(table)


if __name__ == '__main__':
    sys.exit(main())
