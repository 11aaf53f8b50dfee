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
"""What Prometheus asks a server for."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters and histograms of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: Any = {'registry': self.registry}
        self.requests = Counter('vtb_requests', 'Requests by endpoint and status', ['endpoint', 'status'], **own)
        self.prompt_tokens = Counter('vtb_prompt_tokens', 'Tokens of prompts, audio frames included', **own)
        self.new_tokens = Counter('vtb_new_tokens', 'Tokens of answers, ends of turns included', **own)
        self.audio_seconds = Counter('vtb_audio_seconds', 'Seconds of recordings', **own)
        self.cancelled = Counter('vtb_cancelled_requests', 'Requests whose client went away', **own)
        self.failures = Counter('vtb_failures', 'Passes of the model that failed', **own)
        self.batch_size = Histogram(
            'vtb_batch_size', 'Answers in one pass', buckets=(1, 2, 4, 8, 16, 32, 64, 128), **own
        )
        self.seconds = Histogram('vtb_request_seconds', 'From request to end', ['endpoint'], buckets=_SECONDS, **own)
        self.first_token = Histogram('vtb_first_token_seconds', 'From request to first token', buckets=_SECONDS, **own)
        self._running = Gauge('vtb_running_requests', 'Answers in the making', **own)
        self._waiting = Gauge('vtb_waiting_requests', 'Requests in the queue', **own)

    def load(self, running: int, waiting: int) -> None:
        """Set the gauges."""
        self._running.set(running)
        self._waiting.set(waiting)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)
