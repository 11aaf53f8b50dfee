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
"""Kills a real training with SIGKILL at random moments, and compares with an uninterrupted run, bit by bit.

python benchmarks/resume_matrix.py --quick     # 3 kills
python benchmarks/resume_matrix.py             # 20 kills
python benchmarks/resume_matrix.py --full      # 100 kills
python benchmarks/resume_matrix.py --s3        # the data in an S3 server on loopback, read in blocks

Each attempt is examples/speechllm_joint_sft.py itself, with a tiny model that has dropout, dither and SpecAugment, in
a process forked after the imports (so that a kill costs two seconds, not twenty). Compared are the conversations of
each row, the loss of each row as raw bits, and `nemo_vtb.testing.oracle` of the whole state at the end. A
kill ends the whole process group, loader processes too: at the start, while training, while a checkpoint is written.
Then: one rank saves and two go on (gloo), and the reverse: same conversations in each global batch.
"""

import argparse
import json
import logging
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {'OMP_NUM_THREADS': '1', 'TOKENIZERS_PARALLELISM': 'false', 'HF_HUB_OFFLINE': '1', 'MPLBACKEND': 'Agg'}
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'examples'))

from nemo_vtb.scripts import start_script

start_script()

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from nemo_vtb.testing import tiny_corpus, tiny_model_cfg
from nemo_vtb.testing.failpoints import install
from nemo_vtb.testing.oracle import RowRecorder, read_rows
from nemo_vtb.testing.s3_server import S3Process
from nemo_vtb.training.history import read_history

STEPS = 24
ROWS_PER_BATCH = 2
KILLS_PER_RUN = 3
EARLY = 0.15  # share of the kills that come before the first row
SAVES = {  # how checkpoints are made: as in conf/, after a validation; or every few steps
    'validation': ['trainer.val_check_interval=4'],
    'steps': [
        'trainer.val_check_interval=10',
        '++exp_manager.checkpoint_callback_params.every_n_train_steps=3',
        'exp_manager.checkpoint_callback_params.every_n_epochs=null',
    ],
}
KEPT = ('checkpoints/quickstart.nemo', 'history.jsonl', 'curves.png', 'ledger.json', 'ledger.png')
console = Console()


@dataclass
class Run:
    """One training folder: its command line and what its attempts recorded."""

    folder: Path
    overrides: Sequence[str]
    attempts: int = 0
    kills: int = 0
    problems: list[str] = field(default_factory=list)
    callbacks: Sequence[Any] = ()

    def start(self, ranks: int = 1, failpoints: str = '') -> list[int]:
        """Fork one process for each rank, the first with `failpoints`; returns their ids, each leads its own group."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.attempts += 1
        with socket.create_server(('127.0.0.1', 0)) as server:
            port = server.getsockname()[1]
        processes = []
        for rank in range(ranks):
            if (process := os.fork()) == 0:
                self.train(rank, ranks, port, failpoints if rank == 0 else '')
            processes.append(process)
        return processes

    def train(self, rank: int, ranks: int, port: int | None = None, failpoints: str = '') -> None:
        """Be a rank, and end this process; without a port a launcher has set what ranks know of one another."""
        os.setsid()
        # shells make commands in the background ignore the one, nohup the other
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        log = os.open(
            self.folder / f'log-{self.attempts:03}-{rank}.txt', os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644
        )
        os.dup2(log, 1)
        os.dup2(log, 2)
        if ranks > 1 and port is not None:
            os.environ |= {'LOCAL_RANK': str(rank), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
            os.environ |= {'NODE_RANK': '0', 'WORLD_SIZE': str(ranks)}
        status = 1
        try:
            import speechllm_joint_sft as script

            from nemo_vtb.training import run

            build, recorder = run.build_trainer, RowRecorder(self.folder / f'rows-{self.attempts:03}-{rank}.jsonl')
            run.build_trainer = lambda cfg, callbacks=(): build(cfg, [*callbacks, recorder, *self.callbacks])
            sys.argv = ['speechllm_joint_sft.py', *self.overrides, f'trainer.devices={ranks}']
            if failpoints:
                install(failpoints)
            script.main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            logging.exception('the training failed')
        finally:
            sys.stdout.flush()
            os._exit(status)

    def rows(self, attempt: int | None = None) -> list[dict[str, Any]]:
        """The records of one attempt (the present one if none is named), of all its ranks."""
        paths = sorted(self.folder.glob(f'rows-{attempt or self.attempts:03}-*.jsonl'))
        return [row for path in paths for row in read_rows(path)]

    def newest_step(self) -> int:
        """Optimizer step of the newest complete checkpoint; 0 without any."""
        steps = [int(p.name.split('step=')[1].split('-')[0]) for p in self.folder.glob('run/checkpoints/step=*.ckpt')]
        return max(steps, default=0)

    def log_tail(self) -> str:
        """The end of the newest log, for a failure."""
        logs = sorted(self.folder.glob(f'log-{self.attempts:03}-*.txt'))
        return '\n'.join(path.read_text(errors='replace')[-1500:] for path in logs)


def wait(processes: Sequence[int]) -> int:
    """Wait for all; the first status that is not 0."""
    statuses = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    return next((status for status in statuses if status), 0)


def kill(processes: Sequence[int]) -> bool:
    """SIGKILL to each process group; whether somebody was still running."""
    running = [process for process in processes if os.waitpid(process, os.WNOHANG)[0] == 0]
    for process in running:
        os.killpg(process, signal.SIGKILL)
    for process in running:
        os.waitpid(process, 0)
    return bool(running)


def store_data(folder: Path) -> S3Process:
    """Put the corpus into an S3 server, and let the configuration read it there, in blocks of neighbours."""
    server = S3Process(folder / 'corpus')
    os.environ |= server.environment
    path = folder / 'tiny.yaml'
    text = path.read_text(encoding='utf-8').replace(f'{folder / "corpus"}/', 's3://bucket/')
    cfg = OmegaConf.create(text)
    cfg.data.order, cfg.data.shuffle_window, cfg.data.durations = 'blocks', 4, 'trust'
    OmegaConf.save(cfg, path)
    return server


def write_config(folder: Path) -> None:
    """The configuration of examples/speechllm_joint_sft.py with a tiny model and corpus, as one YAML file."""
    corpus = tiny_corpus(folder / 'corpus', 8)
    model = tiny_model_cfg(folder / 'models')
    model['lora']['lora_dropout'] = 0.1
    perception = model['perception']
    perception['preprocessor']['dither'] = 1e-5
    perception['spec_augment'] = {
        '_target_': 'nemo.collections.asr.modules.SpectrogramAugmentation',
        'freq_masks': 2,
        'time_masks': 2,
        'freq_width': 8,
        'time_width': 0.05,
    }
    for part in ('encoder', 'modality_adapter'):
        perception[part] |= {'dropout': 0.1, 'dropout_pre_encoder': 0.1, 'dropout_att': 0.1}
    cfg = OmegaConf.load(ROOT / 'conf/speechllm_joint_sft.yaml')
    del cfg.defaults
    trainer = OmegaConf.load(ROOT / 'conf/trainer/cpu_quick.yaml')
    cfg.update({'model': model, 'trainer': trainer, 'data': data_section(corpus, folder)})
    cfg.trainer.max_steps, cfg.trainer.limit_val_batches = STEPS, 1
    OmegaConf.save(cfg, folder / 'tiny.yaml')


def data_section(corpus: Any, folder: Path) -> dict[str, Any]:
    """Four kinds, a quarter each."""
    entries = corpus.input_cfg('validation')
    sets = {entry['kind']: {'input_cfg': [entry]} for entry in entries[:2]}
    return {
        'train_ds': {'sample_rate': 16000, 'seed': 1, 'input_cfg': corpus.input_cfg('train')},
        'validation_ds': {'sample_rate': 16000, 'datasets': sets},
        'budget': dict.fromkeys(('text', 'asr_ast', 'speech_qa', 'mixed_modal'), 0.25),
        'max_tokens': 192,
        'rows_per_batch': ROWS_PER_BATCH,
        'num_workers': 0,
        'index_dir': str(folder / 'index'),
    }


class Matrix:
    """All runs of one benchmark.

    Args:
        folder: Where everything goes.
        seed: Of the moments of the kills.
        s3: Whether the data lie in an S3 server.
    """

    def __init__(self, folder: Path, seed: int, s3: bool = False) -> None:
        self.folder, self.random = folder, random.Random(seed)
        in_child(lambda: write_config(folder))
        self.server = store_data(folder) if s3 else None

    def run(self, name: str, *overrides: str) -> Run:
        """A run that has not begun."""
        folder = self.folder / name
        words = [f'--config-path={self.folder}', '--config-name=tiny', f'exp_manager.explicit_log_dir={folder}/run']
        return Run(folder, [*words, *overrides])

    def reference(self) -> None:
        """The uninterrupted run, and how long it takes to the first row and from there to the end."""
        run = self.run('reference', *SAVES['validation'])
        begin = time.perf_counter()
        processes = run.start()
        while not run.rows() and time.perf_counter() - begin < 300:
            time.sleep(0.02)
        self.start_s = time.perf_counter() - begin
        if wait(processes):
            raise SystemExit(f'The uninterrupted run failed:\n{run.log_tail()}')
        self.train_s = time.perf_counter() - begin - self.start_s
        *rows, last = run.rows()
        self.rows, self.digest = {row['row']: row for row in rows}, last['digest']
        self.batches = per_batch(rows)

    def trial(self, number: int, workers: int, kills: int) -> Run:
        """Kill a run up to `kills` times, let it end, compare every attempt."""
        saves = list(SAVES)[number // 2 % 2]
        run = self.run(f'trial-{number}', *SAVES[saves], f'data.num_workers={workers}')
        while run.kills < kills:
            begins_at = run.newest_step()
            processes = run.start()
            self._sleep(run)
            killed = kill(processes)
            self._compare(run, begins_at)
            if not killed:
                break  # it had ended
            run.kills += 1
        ended = any('digest' in row for row in run.rows())
        # a kill may fall between the end of the training and the last file
        if not ended or any(not (run.folder / 'run' / name).is_file() for name in KEPT):
            begins_at = run.newest_step()
            if status := wait(run.start()):
                run.problems.append(f'exit status {status}:\n{run.log_tail()}')
            self._compare(run, begins_at)
        self._check_end(run)
        return run

    def _check_end(self, run: Run) -> None:
        last = run.rows()[-1] if run.rows() else {}
        if last.get('digest') != self.digest:
            run.problems.append(f'digest {str(last.get("digest"))[:12]} instead of {self.digest[:12]}')
        run.problems += [f'{name} is missing' for name in KEPT if not (run.folder / 'run' / name).is_file()]
        steps = [
            record['step'] for record in read_history(run.folder / 'run/history.jsonl') if record['type'] == 'train'
        ]
        if steps != list(range(1, STEPS + 1)):
            run.problems.append(f'history.jsonl has the steps {steps}')

    def directed(self) -> Run:
        """Kill a resumed run after the first row of a global batch of two, where Lightning saves once more."""
        run = self.run('directed', *SAVES['steps'], 'data.num_workers=0')
        for rows in (4 * ROWS_PER_BATCH, 1):
            begins_at = run.newest_step()
            processes = run.start()
            deadline = time.perf_counter() + 300
            # the row after: what the callbacks of the row itself save is on disk by then
            while len(run.rows()) < rows + 1 and time.perf_counter() < deadline:
                time.sleep(0.002)
            run.kills += kill(processes)
            self._compare(run, begins_at)
        begins_at = run.newest_step()
        if status := wait(run.start()):
            run.problems.append(f'exit status {status}:\n{run.log_tail()}')
        self._compare(run, begins_at)
        self._check_end(run)
        return run

    def _sleep(self, run: Run) -> None:
        if self.random.random() < EARLY:
            time.sleep(self.random.uniform(0, self.start_s))
            return
        deadline = time.perf_counter() + 20 * self.start_s
        while not run.rows() and time.perf_counter() < deadline:
            time.sleep(0.005)
        time.sleep(self.random.uniform(0, self.train_s))

    def _compare(self, run: Run, begins_at: int) -> None:
        rows = [row for row in run.rows() if 'row' in row]
        if rows and rows[0]['row'] != begins_at * ROWS_PER_BATCH:
            run.problems.append(f'began at row {rows[0]["row"]}, its checkpoint was at step {begins_at}')
        wrong = next((row for row in rows if row != self.rows.get(row['row'])), None)
        if wrong:
            run.problems.append(f'attempt {run.attempts}: {wrong} instead of {self.rows.get(wrong["row"])}')

    def reshard(self, before: int, after: int, workers: int) -> Run:
        """Save on some ranks, kill, go on with others: the same conversations in each global batch."""
        run = self.run(f'ranks-{before}-{after}-{workers}', *SAVES['steps'], f'data.num_workers={workers}')
        processes = run.start(before)
        deadline = time.perf_counter() + 300
        while max([row.get('row', 0) for row in run.rows()], default=0) < STEPS and time.perf_counter() < deadline:
            time.sleep(0.01)
        run.kills += kill(processes)
        if not (begins_at := run.newest_step()):
            run.problems.append(f'no checkpoint:\n{run.log_tail()}')
        first = per_batch(run.rows())
        if status := wait(run.start(after)):
            run.problems.append(f'exit status {status}:\n{run.log_tail()}')
        second = per_batch(run.rows())
        for number, ids in self.batches.items():
            found = first if number < begins_at else second
            if found.get(number) != ids:
                run.problems.append(f'global batch {number}: {found.get(number)} instead of {ids}')
                break
        return run


def per_batch(rows: Sequence[Mapping[str, Any]]) -> dict[int, list[str]]:
    """Global batch -> its conversations, sorted."""
    batches: dict[int, list[str]] = {}
    for row in rows:
        if 'row' in row:
            batches.setdefault(row['row'] // ROWS_PER_BATCH, []).extend(row['ids'])
    return {number: sorted(ids) for number, ids in batches.items()}


def in_child(action: Any) -> None:
    """Run in a forked process, so that this one never starts a thread."""
    if (process := os.fork()) == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            logging.exception('the set-up failed')
            os._exit(1)
    if wait([process]):
        raise SystemExit('The set-up failed.')


def measure(
    folder: Path, kills: int, cases: Sequence[tuple[int, int, int]], seed: int, s3: bool = False
) -> dict[str, Any]:
    """All runs; prints a line for each."""
    matrix = Matrix(folder, seed, s3)
    matrix.reference()
    rows = len(matrix.rows)
    console.print(f'uninterrupted: {rows} rows, {STEPS} steps, {matrix.start_s:.1f} s + {matrix.train_s:.1f} s')
    table = Table(title='killed runs against the uninterrupted one')
    for name in ('run', 'workers', 'checkpoints', 'kills', 'attempts', 'bit exact'):
        table.add_column(name)
    directed = matrix.directed()
    not_exact = bool(directed.problems) * directed.kills
    verdict = '[green]yes' if not directed.problems else f'[red]{directed.problems[0]}'
    table.add_row('directed', '0', 'every 3 steps', str(directed.kills), str(directed.attempts), verdict)
    done, number = directed.kills, 0
    while done < kills and number < 3 * kills:
        workers = (0, 2)[number % 2]
        run = matrix.trial(number, workers, min(KILLS_PER_RUN, kills - done))
        done += run.kills
        not_exact += bool(run.problems) * max(1, run.kills)
        verdict = '[green]yes' if not run.problems else f'[red]{run.problems[0]}'
        saves = 'after validation' if number // 2 % 2 == 0 else 'every 3 steps'
        table.add_row(str(number), str(workers), saves, str(run.kills), str(run.attempts), verdict)
        number += 1
    console.print(table)
    failures = 0
    for before, after, workers in cases:
        run = matrix.reshard(before, after, workers)
        failures += bool(run.problems)
        verdict = '[green]same conversations' if not run.problems else f'[red]{run.problems[0]}'
        console.print(f'{before} -> {after} ranks, {workers} workers: {verdict}')
    asked = {}
    if matrix.server:
        asked = {'s3_requests': len(matrix.server.requests())}
        matrix.server.close()
    return asked | {
        'kills': done,
        'not_bit_exact': not_exact,
        'runs': number,
        'rows_per_run': rows,
        'reshard_cases': len(cases),
        'reshard_failures': failures,
    }


def main() -> int:
    """Run the matrix; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--quick', action='store_true', help='3 kills')
    size.add_argument('--full', action='store_true', help='100 kills')
    parser.add_argument('--kills', type=int, help='so many kills')
    parser.add_argument('--seed', type=int, default=0, help='of the moments (default: 0)')
    parser.add_argument('--s3', action='store_true', help='the data in an S3 server on loopback, read in blocks')
    parser.add_argument('--keep', metavar='FOLDER', help='keep all files there')
    args = parser.parse_args()
    kills = args.kills or (3 if args.quick else 100 if args.full else 20)
    cases = [(1, 2, 0), (2, 1, 0)] if args.quick else [(1, 2, 0), (2, 1, 0), (1, 2, 2), (2, 1, 2)]
    # the imports are paid for once; the children fork from here
    import speechllm_joint_sft  # noqa: F401

    import nemo_vtb

    for name in nemo_vtb.__all__:
        getattr(nemo_vtb, name)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(args.keep or folder).resolve(), kills, cases, args.seed, args.s3)
    ok = figures['kills'] >= kills and not figures['not_bit_exact'] and not figures['reshard_failures']
    figures |= {'seed': args.seed, 'seconds': round(time.perf_counter() - begin, 1)}
    print(json.dumps({'benchmark': 'resume_matrix', 'ok': ok, **figures}))
    return 0 if ok else 1


if __name__ == '__main__':
    sys.exit(main())
