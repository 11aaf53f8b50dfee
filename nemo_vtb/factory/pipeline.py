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
"""Runs a stage: chunks to worker processes, outcomes to the journal, a progress bar."""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nemo_vtb.config import read_settings
from nemo_vtb.data.lhotse_manifests import manifest_files, part_of
from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.factory import settings
from nemo_vtb.factory.asr_ast import AsrAstStage
from nemo_vtb.factory.mixed_modal import MixedModalStage
from nemo_vtb.factory.speech_qa import SpeechQaStage
from nemo_vtb.factory.stage import KEPT, Journal, Outcome, Stage, WorkList, open_work_list, read_journals
from nemo_vtb.factory.text import TextStage

_PR_SET_PDEATHSIG = 1
_SAY_EVERY_S = 15.0


@dataclass(frozen=True, slots=True)
class Produced:
    """What a call of `produce` did.

    Args:
        chunks: Chunks of the work list.
        made: Chunks made by this call.
        left: Chunks that no shard has made yet.
        seconds: Duration of this call.
    """

    chunks: int
    made: int
    left: int
    seconds: float


def make_stage(kind: str, inputs: Sequence[str], *layers: Mapping[str, Any]) -> Stage:
    """The stage of a kind.

    Args:
        kind: 'asr_ast', 'mixed_modal', 'speech_qa' or 'text'.
        inputs: Manifests or conversations (.jsonl); for `asr_ast` and `speech_qa` also folders of `lhotse prepare`,
            whose development and test parts are validation and test, in place of a share of the rest.
        layers: Settings; later ones override earlier ones.

    Raises:
        VtbConfigError: No input, or a wrong setting.
        VtbDataError: A folder without manifests.
    """
    if not inputs:
        raise VtbConfigError('No input files.', field='INPUT', allowed='manifests or conversations (.jsonl)')
    stages: dict[str, tuple[type[Any], type[settings.Common]]] = {
        'asr_ast': (AsrAstStage, settings.AsrAst),
        'mixed_modal': (MixedModalStage, settings.MixedModal),
        'speech_qa': (SpeechQaStage, settings.SpeechQa),
        'text': (TextStage, settings.TextChats),
    }
    stage, keys = stages[kind]
    if kind in ('asr_ast', 'speech_qa'):
        inputs = manifest_files(inputs)
        layers = ({f'{split}_share': 0.0 for split in map(part_of, inputs) if split}, *layers)
    return stage(read_settings(keys, *layers), tuple(inputs))


def parse_shard(text: str) -> tuple[int, int]:
    """Read `I/N`, counted from 0, as a Slurm array numbers its tasks.

    Raises:
        VtbConfigError: Not two numbers, or I is not below N.
    """
    number, _, total = text.partition('/')
    if number.isdigit() and total.isdigit() and int(number) < int(total):
        return int(number), int(total)
    raise VtbConfigError('Not a shard.', field='--shard', got=text, allowed='I/N with 0 <= I < N, as in 0/8')


def produce(stage: Stage, out: Path, *, workers: int = 1, shard: tuple[int, int] = (0, 1)) -> Produced:
    """Make the missing chunks of one shard.

    Args:
        stage: What is made.
        out: The output folder.
        workers: Processes; 1 works in this one.
        shard: (number, total): this call makes every total-th chunk.

    Raises:
        VtbDataError: The folder holds another data set, or another process works on the shard.
    """
    begin = time.perf_counter()
    work = open_work_list(stage, out)
    number, total = shard
    with Journal(out, f'{number}-of-{total}') as journal:
        done = read_journals(out)
        todo = [chunk for chunk in range(number, len(work), total) if chunk not in done]
        mine = len(range(number, len(work), total))
        with _bar(stage.kind, mine, mine - len(todo), work.chunk) as advance:
            for chunk, outcomes in _made(stage, out, work, todo, workers):
                journal.add(chunk, outcomes)
                advance(outcomes)
    left = len(work) - len(read_journals(out))
    return Produced(len(work), len(todo), left, time.perf_counter() - begin)


def _made(
    stage: Stage, out: Path, work: WorkList, todo: Sequence[int], workers: int
) -> Iterator[tuple[int, list[Outcome]]]:
    if workers <= 1 or len(todo) <= 1:
        for chunk in todo:
            yield chunk, stage.make(work.read(chunk), out)
        return
    # a forked child would inherit the models' threads and locks; a spawned one begins clean
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(stage, out, os.getpid())) as pool:
        running: dict[Future, int] = {}
        queue = iter(todo)
        try:
            while True:
                while len(running) < 2 * workers and (following := next(queue, None)) is not None:
                    running[pool.submit(_work, work.read(following))] = following
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise VtbDataError(
                'A worker process died.', field='--workers', got=str(error),
                remedy='start again: finished chunks are kept; fewer workers need less memory',
            ) from error  # fmt: skip
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_worker: list[Any] = []


def _begin_worker(stage: Stage, out: Path, parent: int) -> None:
    # a parent that is killed cannot stop its workers: the kernel does
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    _worker[:] = [stage, out]


def _work(items: Sequence[Any]) -> list[Outcome]:
    stage, out = _worker
    return stage.make(items, out)


@contextmanager
def _bar(kind: str, total: int, done: int, chunk: int) -> Iterator[Any]:
    """A bar with rate and remaining time; where nobody watches, a line now and then."""
    counts: Counter = Counter()
    begin, last = time.perf_counter(), time.perf_counter()
    columns = (
        TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TextColumn('{task.fields[rate]}'),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    watched = sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not watched) as progress:
        task = progress.add_task(kind, total=total, completed=done, rate='')
        made = 0

        def advance(outcomes: Sequence[Outcome]) -> None:
            nonlocal made, last
            made += 1
            counts.update(outcome.reason for outcome in outcomes)
            now = time.perf_counter()
            speed = made / max(now - begin, 1e-9)
            total_items = sum(counts.values())
            rate = f'{speed * chunk:.1f} items/s, kept {counts[KEPT]} of {total_items}'
            progress.update(task, advance=1, rate=rate)
            if not watched and now - last > _SAY_EVERY_S:
                last = now
                eta = (total - done - made) / speed
                sys.stderr.write(f'{kind}: {done + made}/{total} chunks, {rate}, {eta:.0f} s left\n')

        yield advance
