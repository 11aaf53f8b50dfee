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
"""The queue: bounded, closed at the end, and left by those who wait no more."""

import time
from typing import Any

import pytest

from nemo_vtb.serving.batcher import Batcher, Job, Piece, Refusal
from nemo_vtb.serving.engine import Engine, Sampling
from nemo_vtb.serving.metrics import Metrics

pytestmark = pytest.mark.unit


def job(engine: Engine, got: list[Any], seconds: float = 60.0) -> Job:
    from nemo_vtb.data.conversation import Conversation, Text, Turn

    ids = engine.model.renderer.render_prompt(Conversation('x', (Turn('user', (Text('Open the door.'),)),))).ids
    return Job(ids, (), Sampling(max_new_tokens=4), got.append, time.monotonic() + seconds)


def test_a_full_queue_and_a_closed_one_refuse(engine: Engine) -> None:
    batcher = Batcher(engine, Metrics(), max_batch=2, max_queue=1)  # not started: nothing leaves the queue
    got: list[Any] = []
    for _ in range(3):
        batcher.submit(job(engine, got))
    with pytest.raises(Refusal) as full:
        batcher.submit(job(engine, got))
    assert (full.value.status, full.value.code) == (429, 'max_queue')
    batcher.start()
    batcher.close(60.0)  # what was accepted is answered
    assert sum(isinstance(piece, Piece) and piece.finish_reason is not None for piece in got) == 3
    with pytest.raises(Refusal) as closed:
        batcher.submit(job(engine, got))
    assert closed.value.status == 503 and batcher.load == (0, 0)


def test_late_and_cancelled_jobs_cost_nothing(engine: Engine) -> None:
    metrics, late, gone, answered = Metrics(), list[Any](), list[Any](), list[Any]()
    batcher = Batcher(engine, metrics, max_batch=4, max_queue=4)
    cancelled = job(engine, gone)
    for one in (job(engine, late, seconds=-1.0), cancelled, job(engine, answered)):
        batcher.submit(one)
    cancelled.cancel()
    batcher.start()
    batcher.close(60.0)
    assert [(refusal.status, refusal.code) for refusal in late] == [(408, 'timeout_s')] and gone == []
    assert answered[-1].finish_reason in ('stop', 'length') and b'vtb_cancelled_requests_total 1.0' in metrics.text()
    assert f'vtb_prompt_tokens_total {float(len(job(engine, []).ids))}'.encode() in metrics.text()  # of one prompt
