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
"""Requests in a queue, answered together: each joins the running batch when there is room, and leaves by itself."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from nemo_vtb.errors import VtbError
from nemo_vtb.serving.engine import Engine, Generation, Sampling
from nemo_vtb.serving.metrics import Metrics


class Refusal(Exception):
    """A request that is refused or broken off.

    Args:
        status: HTTP status.
        code: What is wrong, for programs: the name of the limit or field.
        message: For people.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True, slots=True)
class Piece:
    """What has been answered since the piece before; the last one has the reason of the end."""

    text: str
    finish_reason: str | None = None
    new_tokens: int = 0


class Job:
    """One request on its way.

    Args:
        ids: Token ids of the rendered prompt, `AUDIO_SLOT` for each recording.
        clips: The recordings, (S,) float32 each.
        sampling: How it is answered.
        deliver: Gets each `Piece`, or the `Refusal` that ends the request; called from the thread of the batcher.
        deadline: In seconds of `time.monotonic`.
    """

    def __init__(
        self,
        ids: Sequence[int],
        clips: Sequence[Tensor],
        sampling: Sampling,
        deliver: Callable[['Piece | Refusal'], None],
        deadline: float,
    ) -> None:
        self.ids, self.clips, self.sampling = ids, clips, sampling
        self.deliver, self.deadline = deliver, deadline
        self.began = time.monotonic()
        self.generation: Generation | None = None
        self.is_cancelled = False

    def cancel(self) -> None:
        """Nobody waits any more; what is running ends at the next token."""
        self.is_cancelled = True


class Batcher:
    """One thread that answers jobs.

    Args:
        engine: The model.
        metrics: Counts what happens.
        max_batch: Answers in the making at once.
        max_queue: Jobs that may wait.
    """

    def __init__(self, engine: Engine, metrics: Metrics, *, max_batch: int, max_queue: int) -> None:
        self.engine, self._metrics = engine, metrics
        self._max_batch, self._max_queue = max_batch, max_queue
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name='batcher', daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Answer what is there, accept nothing more, and end."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(timeout_s)

    @property
    def load(self) -> tuple[int, int]:
        """Jobs that are answered, and jobs that wait."""
        return len(self._running), len(self._waiting)

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            Refusal: The queue is full (429), or the server is about to end (503).
        """
        with self._changed:
            if self._is_closed:
                raise Refusal(503, 'shutting_down', 'The server is shutting down.')
            # a job for which there is room does not wait
            if len(self._waiting) + len(self._running) >= self._max_queue + self._max_batch:
                raise Refusal(
                    429, 'max_queue', f'{len(self._waiting)} requests are waiting (max_queue={self._max_queue}).'
                )
            self._waiting.append(job)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._running or self._is_closed):
                    self._changed.wait()
                if self._is_closed and not (self._waiting or self._running):
                    return
                new = [
                    self._waiting.popleft()
                    for _ in range(min(len(self._waiting), self._max_batch - len(self._running)))
                ]
                self._running += new
            self._metrics.load(*self.load)
            for job in new:
                self._guarded([job], lambda job=job: self._begin(job))  # type: ignore[misc]
            self._drop()
            jobs = list(self._running)
            self._guarded(jobs, lambda jobs=jobs: self._step(jobs))  # type: ignore[misc]
            self._metrics.load(*self.load)

    def _guarded(self, jobs: Sequence[Job], action: Callable[[], None]) -> None:
        """An error ends the jobs that it concerns, never the thread."""
        try:
            action()
        except VtbError as error:
            self._end(jobs, Refusal(400, str(error.field), str(error)))
        except Exception as error:  # noqa: BLE001 - out of memory, a kernel that fails: the next may succeed
            self._metrics.failures.inc()
            self._end(jobs, Refusal(500, 'internal', f'The model failed: {type(error).__name__}.'))

    def _begin(self, job: Job) -> None:
        if job.is_cancelled or time.monotonic() > job.deadline:
            return
        frames = self.engine.frames(job.clips)
        job.generation = self.engine.begin(self.engine.prompt(job.ids, range(len(frames)), frames), job.sampling)
        self._metrics.prompt_tokens.inc(len(job.generation.prompt))

    def _drop(self) -> None:
        now = time.monotonic()
        late = [job for job in self._running if not job.is_cancelled and now > job.deadline]
        self._end(late, Refusal(408, 'timeout_s', 'The time for an answer is over (timeout_s).'))
        cancelled = [job for job in self._running if job.is_cancelled]
        self._metrics.cancelled.inc(len(cancelled))
        self._running = [job for job in self._running if job not in cancelled]

    def _step(self, jobs: Sequence[Job]) -> None:
        generations = [job.generation for job in jobs if job.generation is not None]
        if not generations:
            return
        is_first = [not generation.tokens for generation in generations]
        self.engine.step(generations)
        self._metrics.batch_size.observe(len(generations))
        self._metrics.new_tokens.inc(len(generations))
        for job, first in zip(jobs, is_first, strict=True):
            generation = job.generation
            assert generation is not None
            if first:
                self._metrics.first_token.observe(time.monotonic() - job.began)
            piece = Piece(generation.new_text(), generation.finish_reason, len(generation.tokens))
            if piece.text or piece.finish_reason:
                job.deliver(piece)
        self._running = [
            job for job in self._running if job.generation is None or job.generation.finish_reason is None
        ]

    def _end(self, jobs: Sequence[Job], refusal: Refusal) -> None:
        for job in jobs:
            job.deliver(refusal)
        self._running = [job for job in self._running if job not in jobs]
