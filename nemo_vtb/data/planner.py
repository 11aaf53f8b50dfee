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
"""The global plan made by one process of the whole job, ahead of training: each rank is sent its own rows.

Rank 0 forks that process, which stands where its plan stands. It plans as many global batches ahead as it may, and
sends each rank its rows, what the batch holds of each source, and the state of the plan behind it. What changes the
plan later (compensations, shares) reaches it through rank 0, long before the row that it changes (docs/adr/0073).
"""

import json
import multiprocessing
import os
import resource
import secrets
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener
from multiprocessing.context import AuthenticationError
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any

from nemo_vtb import errors
from nemo_vtb.data.sampler import (
    BatchCounts,
    BatchPlan,
    PlannedBatch,
    RowPlan,
    TokenBudgetPlan,
    plan_batch,
    split_rows,
)  # fmt: skip
from nemo_vtb.errors import VtbDataError, VtbError

if TYPE_CHECKING:
    from nemo_vtb.parallel.dims import ParallelDims

_MOST_AHEAD = 4
_AUTO_ROWS = 16
_CONNECT_S, _HANDSHAKE_S = 600.0, 20
_TAKEN = 'taken'
_LAST_BATCHES_S = 60  # for the trainer to complete its step and to save, after a TERM to all processes


def batches_ahead(asked: int | None, refund_batches: int, prefetched_rows: int, batch: BatchPlan) -> int:
    """How many global batches are planned ahead by a process of its own; 0: the training process plans.

    Args:
        asked: `data.plan_ahead`; None: 4 where a global batch is large, as far as a compensation stays in time.
        refund_batches: Global batches after which a compensation holds.
        prefetched_rows: Rows of a rank that its loader processes keep ready.
        batch: The global batch.
    """
    if asked is not None:
        return asked
    if batch.rows < _AUTO_ROWS:
        return 0
    return max(0, min(_MOST_AHEAD, spare_batches(refund_batches) - -(-prefetched_rows // batch.rows_per_rank)))


def spare_batches(refund_batches: int) -> int:
    """Global batches that may be planned or loaded before they are trained on, so that compensations are in time.

    Half of the time is for telling the other ranks, and the batch that is loaded from is planned as well.
    """
    return refund_batches // 2 - 2


class Planner:
    """One rank's end of the process that plans for all ranks. All ranks make it, and iterate, together.

    Args:
        dims: Who is who; rank 0 forks the process, the others connect to it.
        ahead: Global batches that it may plan beyond those that rank 0 has taken.
    """

    def __init__(self, dims: 'ParallelDims', ahead: int) -> None:
        self.ahead, self._dims, self._iterations = ahead, dims, 0
        self._listener: Listener | None = None
        self._link: Connection | None = None
        self._at_exit: Finalize | None = None
        self._address: Any = None
        self._key = b''
        if dims.world_size > 1:
            self._meet()

    def _meet(self) -> None:
        """Agree on where the process is found, and on the key without which it talks to nobody."""
        found = None
        if self._dims.is_writer:
            self._key, host = secrets.token_bytes(32), os.environ.get('MASTER_ADDR', '127.0.0.1')
            options: dict[str, Any] = {'backlog': self._dims.world_size, 'authkey': self._key}
            try:
                self._listener = Listener((host, 0), **options)
            except OSError:  # a name that stands for another interface, as in containers
                self._listener = Listener(('', 0), **options)
            found = ((host, self._listener.address[1]), self._key)
        self._address, self._key = self._dims.gather_objects(found)[0]

    def batches(
        self, plan: TokenBudgetPlan, batch: BatchPlan, num_batches: int | None, balance: bool
    ) -> Iterator[PlannedBatch]:
        """The global batches from where the plan stands, with the rows of this rank.

        Raises:
            VtbError: What the process raised.
            VtbDataError: The process was killed, or cannot be reached.
        """
        self._iterations += 1
        self._hang_up()
        work = _Work(plan, batch, num_batches, balance, self.ahead)
        self._link = link = self._fork(work) if self._dims.is_writer else self._connect()
        # before the interpreter waits for its children, who wait for the end of the connection
        self._at_exit = Finalize(None, link.close, exitpriority=10)
        try:
            while (planned := self._next(link)) is not None:
                yield planned
        finally:
            if self._link is link:
                self._hang_up()

    def tell(self, change: str, *args: Any) -> None:
        """Call a method of the plan in the process; every rank says the same, and that of rank 0 counts."""
        if self._link is not None and self._dims.is_writer:
            with suppress(ConnectionError):  # the next batch says that it was killed
                _send(self._link, [change, *args])

    def _hang_up(self) -> None:
        """Close the connection: the process ends by it."""
        if self._link is not None and self._at_exit is not None:
            self._at_exit.cancel()
            self._link.close()
            self._link = None

    def _fork(self, work: '_Work') -> Connection:
        context = multiprocessing.get_context('fork')  # the plan stands there already, with its mapped indexes
        link, other = context.Pipe()
        others = (self._listener, self._iterations, self._dims.world_size - 1)
        context.Process(target=work.run, args=(other, link, *others), name='vtb-planner', daemon=True).start()
        other.close()
        return link

    def _connect(self) -> Connection:
        """Connect to the process of this iteration: that of the one before may not have ended yet."""
        until = time.monotonic() + _CONNECT_S
        while True:
            try:
                link = Client(self._address, authkey=self._key)
                _send(link, [self._iterations, self._dims.data_rank])
                if _receive(link) == self._iterations:
                    return link
            except (OSError, EOFError, AuthenticationError) as error:
                if time.monotonic() > until:
                    raise VtbDataError(
                        'The process that plans the rows cannot be reached.', field='data.plan_ahead',
                        got=f'{self._address[0]}:{self._address[1]}: {error}', allowed='rank 0 reachable by TCP',
                        remedy='data.plan_ahead=0 plans on each rank',
                    ) from error  # fmt: skip
            time.sleep(0.05)

    def _next(self, link: Connection) -> PlannedBatch | None:
        try:
            message = _receive(link)
            if message is None:
                return None
            if 'error' in message:
                raise getattr(errors, message['error'])(message['says'])
            rows = _receive(link)
            if self._dims.is_writer:
                _send(link, [_TAKEN])
        except (EOFError, ConnectionError) as error:
            raise VtbDataError(
                'The process that plans the rows was killed, most often since the memory was full.',
                field='data.plan_ahead', got=str(error) or 'end of its messages', allowed='a process that lives on',
                remedy='the same command goes on from the last checkpoint; data.plan_ahead=0 plans without it',
            ) from error  # fmt: skip
        return _unpacked(message, rows)


# ---- messages: JSON, so that nothing that is received can run code


def _send(link: Connection, message: Any) -> None:
    link.send_bytes(json.dumps(message).encode())


def _receive(link: Connection) -> Any:
    return json.loads(link.recv_bytes())


def _packed(planned: PlannedBatch) -> bytes:
    """What all ranks are told of a global batch."""
    counts = planned.counts
    said = {'number': planned.number, 'rows': counts.rows, 'tokens': counts.tokens, 'snapshot': planned.snapshot}
    return json.dumps(said | {'sources': list(counts.sources.items())}).encode()


def _packed_rows(rows: Sequence[RowPlan]) -> bytes:
    return json.dumps([[r.index, r.items, r.num_tokens, r.cost, r.passes] for r in rows]).encode()


def _unpacked(message: Mapping[str, Any], rows: Sequence[Sequence[Any]]) -> PlannedBatch:
    sources = {number: (sums[0], sums[1], sums[2], sums[3]) for number, sums in message['sources']}
    plans = [RowPlan(n, tuple(map(tuple, items)), tokens, cost, tuple(p)) for n, items, tokens, cost, p in rows]
    counts = BatchCounts(message['rows'], message['tokens'], sources)
    return PlannedBatch(message['number'], plans, counts, tuple(message['snapshot']))


# ---- the process


@dataclass(frozen=True, slots=True)
class _Work:
    """What the process does: it plans until its trainer hangs up."""

    plan: TokenBudgetPlan
    batch: BatchPlan
    num_batches: int | None
    balance: bool
    ahead: int

    def run(self, link: Connection, parents: Connection, listener: Listener | None, number: int, others: int) -> None:
        """Plan, then end without what the trainer registered for its own end."""
        parents.close()  # else its end would never be seen here
        # the terminal and the scheduler signal all processes of a run: its trainer says when it ends
        for each in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(each, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_LAST_BATCHES_S))
        with suppress(OSError, AttributeError):  # where cores are scarce, it must not push the trainer aside
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        try:
            self._serve([(0, link), *_accept(listener, number, others)])
        except (EOFError, ConnectionError):  # the run is over
            pass
        finally:
            os._exit(0)

    def _serve(self, links: Sequence[tuple[int, Connection]]) -> None:
        end: dict[str, str] | None = None
        try:
            self._plan(links)
        except (EOFError, ConnectionError):
            raise
        except Exception as error:  # noqa: BLE001 - each rank raises it
            kind = type(error).__name__ if isinstance(error, VtbError) else VtbDataError.__name__
            end = {'error': kind, 'says': str(error) if isinstance(error, VtbError) else repr(error)}
        for _, each in links:
            _send(each, end)
        while True:
            _receive(links[0][1])

    def _plan(self, links: Sequence[tuple[int, Connection]]) -> None:
        leader, taken, planned = links[0][1], 0, 0
        while self.num_batches is None or self.plan.row < self.num_batches * self.batch.rows:
            while planned >= taken + self.ahead or leader.poll():
                what, *args = _receive(leader)
                if what == _TAKEN:
                    taken += 1
                else:
                    getattr(self.plan, what)(*args)
            made = plan_batch(self.plan, self.batch.rows)
            if made is None:
                return
            shares = split_rows(made.rows, self.batch.ranks, balance=self.balance)
            common = _packed(made)
            for rank, each in links:
                each.send_bytes(common)
                each.send_bytes(_packed_rows(shares[rank]))
            planned += 1


def _accept(listener: Listener | None, number: int, count: int) -> Iterator[tuple[int, Connection]]:
    """The connections of all other ranks, by data-parallel rank."""
    if listener is None:
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # often 1,024: one for each rank, and then some
    signal.signal(signal.SIGALRM, _raise_timeout)
    while count:
        signal.alarm(_HANDSHAKE_S)  # a stranger that says nothing must not keep the ranks waiting; they try again
        try:
            link = listener.accept()
            iteration, rank = _receive(link)
            if iteration == number:
                _send(link, number)
        except (OSError, EOFError, AuthenticationError):  # a stranger, or a rank that ends
            continue
        if iteration == number:
            count -= 1
            yield rank, link
        else:
            link.close()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _raise_timeout(*_: object) -> None:
    raise TimeoutError
