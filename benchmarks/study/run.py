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
"""The paper's comparison on our own models: joint, speech only, two stages; same data, same steps, several seeds.

    python benchmarks/study/run.py [--runs A B C D E M N O] [--seeds 0 1 2] [--quick | --full] [--out runs/study]

Each run of each seed is one training (`examples/speechllm_joint_sft.py`) and one evaluation, in processes of their
own. Killed at any moment, the same command resumes from the last checkpoint; a leg with its `result.json` is complete.
Without `--quick` (a smoke test) or `--full` (135 M parameters on one GPU): under two hours on two free cores.
`python benchmarks/study/summarise.py` makes the table.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from plan import RUNS, SIZES, STAGE_ONE, overrides, steps_of


@dataclass(frozen=True, slots=True)
class Leg:
    """One run with one seed, and its folder."""

    run: str
    seed: int
    folder: Path

    @property
    def model(self) -> Path:
        """The `.nemo` file that training leaves when it is complete."""
        return self.folder / 'checkpoints' / 'model.nemo'

    @property
    def result(self) -> Path:
        """Written last: the leg is complete."""
        return self.folder / 'result.json'


class OutOfTimeError(Exception):
    """The time of this leg is over; the same command resumes it."""


def legs_of(runs: Sequence[str], seeds: Sequence[int], out: Path) -> list[Leg]:
    """All legs, seed by seed, so that an interrupted study has complete comparisons; first stages come first."""
    needed = [STAGE_ONE] if any(RUNS[run].init for run in runs) else []
    return [Leg(run, seed, out / f'{run}-{seed}') for seed in seeds for run in (*needed, *runs)]


def call(command: Sequence[str], log: Path, deadline: float) -> None:
    """Run a script and wait for it.

    Raises:
        OutOfTimeError: The deadline has come; the process was ended.
        SystemExit: It failed; the end of its log is shown.
    """
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'COLUMNS': '120'}
    environment.setdefault('OMP_NUM_THREADS', '1')
    with log.open('a', encoding='utf-8') as stream:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            status = process.wait(timeout=max(0.0, deadline - time.time()))
        except subprocess.TimeoutExpired:
            # checkpoints are complete or absent, so that a kill at any moment costs only the steps since the last one
            process.kill()
            process.wait()
            raise OutOfTimeError from None
    if status:
        tail = log.read_text(encoding='utf-8', errors='replace').splitlines()[-25:]
        raise SystemExit('\n'.join([f'failed with status {status}: {" ".join(command)}', *tail]))


def work(leg: Leg, size_name: str, deadline: float) -> str:
    """Complete a leg: training, evaluation, result."""
    run, size = RUNS[leg.run], SIZES[size_name]
    if leg.result.is_file():
        return 'already complete'
    began = time.time()
    leg.folder.mkdir(parents=True, exist_ok=True)
    # not in the folder: NeMo's experiment manager puts aside what it finds there
    log = leg.folder.with_suffix('.log')
    init = leg.folder.parent / f'{run.init}-{leg.seed}' / 'checkpoints' / 'model.nemo' if run.init else None
    if not leg.model.is_file():
        arguments = [*overrides(run, size, leg.seed, str(init)), 'name=model']
        folder = f'exp_manager.explicit_log_dir={leg.folder}'
        script = 'benchmarks/study/nemo_loader.py' if run.sampler == 'nemo' else 'examples/speechllm_joint_sft.py'
        call([script, *arguments, folder], log, deadline)
    if leg.run != STAGE_ONE:
        arguments = [*size.evaluation, 'examples=false', f'output={leg.folder / "eval.jsonl"}']
        if size_name == 'full':
            arguments += [f'data=[asset:{size.corpus}]']
        call(['examples/speechllm_eval.py', f'model={leg.model}', *arguments], log, deadline)
    for checkpoint in leg.model.parent.glob('*.ckpt'):
        checkpoint.unlink()
    result = {
        'run': leg.run,
        'title': run.title,
        'seed': leg.seed,
        'size': size_name,
        'steps': steps_of(run, size),
        'overrides': overrides(run, size, leg.seed, 'model.nemo of stage 1' if run.init else None),
        'seconds': round(time.time() - began, 1),
    }
    partial = leg.result.with_suffix('.part')
    partial.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    partial.replace(leg.result)
    return f'done in {time.time() - began:.0f} s'


def study(legs: Sequence[Leg], size: str, jobs: int, deadline: float) -> int:
    """Work on all legs, `jobs` at a time; returns how many are left."""

    def do(leg: Leg) -> None:
        try:
            done = work(leg, size, deadline)
            print(f'{time.strftime("%H:%M:%S")} {leg.run} seed {leg.seed}: {done}', flush=True)
        except OutOfTimeError:
            print(f'{leg.run} seed {leg.seed}: time is over; the same command resumes it', flush=True)

    waiting = [leg for leg in legs if not leg.result.is_file()]
    for seed in dict.fromkeys(leg.seed for leg in waiting):
        mine = [leg for leg in waiting if leg.seed == seed]
        with ThreadPoolExecutor(jobs) as pool:
            # a second stage begins when its first is there; meanwhile the runs of one stage are made
            first = [pool.submit(do, leg) for leg in mine if leg.run == STAGE_ONE]
            alone = [pool.submit(do, leg) for leg in mine if leg.run != STAGE_ONE and not RUNS[leg.run].init]
            for future in first:
                future.result()
            later = [pool.submit(do, leg) for leg in mine if RUNS[leg.run].init] if time.time() < deadline else []
            for future in (*alone, *later):
                future.result()
    return sum(not leg.result.is_file() for leg in legs)


def main() -> int:
    """Run the study; exit status 1 while legs are left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name in RUNS if name != STAGE_ONE]
    parser.add_argument('--runs', nargs='+', choices=names, default=names, help='which runs (default: all)')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2], help='seeds (default: 0 1 2)')
    group = parser.add_mutually_exclusive_group()
    group.add_argument('--quick', action='store_true', help='three steps of A and E, as a smoke test')
    group.add_argument('--full', action='store_true', help='135 M parameters, full schedule, one GPU')
    parser.add_argument('--out', type=Path, default=ROOT / 'runs' / 'study', help='folder (default: runs/study)')
    parser.add_argument('--jobs', type=int, default=None, help='legs at a time (default: 2, with --full 1)')
    parser.add_argument('--leg-minutes', type=float, default=float('inf'), help='stop after so many minutes')
    arguments = parser.parse_args()
    size = 'full' if arguments.full else 'quick' if arguments.quick else 'cpu'
    runs, seeds = (['A', 'E'], [0]) if arguments.quick else (arguments.runs, arguments.seeds)
    legs = legs_of(runs, seeds, (arguments.out / size).absolute())
    jobs = arguments.jobs or (1 if arguments.full else 2)
    left = study(legs, size, jobs, time.time() + 60 * arguments.leg_minutes)
    print(f'{len(legs) - left} of {len(legs)} legs are complete: {arguments.out / size}')
    return int(left > 0)


if __name__ == '__main__':
    sys.exit(main())
