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
"""The tables of docs/step_costs.md: FLOPs, bytes and messages of a step, counted, on 8 to 1,024 GPUs.

python benchmarks/step_costs.py [--quick]      nothing is measured; the last line is one JSON object

`vtb doctor --config FILE` prints the same for any configuration.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from nemo_vtb.training.step_cost import Machine, Sizes, StepCost, Workload, step_cost

RANK = 32
WORK = Workload(tokens=8192, rows=1)
GPUS = (8, 64, 1024)
MACHINE = Machine()


@dataclass(frozen=True)
class Model:
    """An LLM with the encoder of a Canary, and the ways in which it may be spread."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv: int
    head: int
    ffn: int
    vocab: int
    tied: bool
    encoder_m: float
    ways: tuple[tuple[str, dict[str, Any]], ...]

    def sizes(self, gpus: int, mesh: dict[str, Any]) -> Sizes:
        """With LoRA on all linears."""
        query, keys = self.heads * self.head, self.kv * self.head
        sides = [(self.hidden, query), (self.hidden, keys), (self.hidden, keys), (query, self.hidden)]
        sides += [(self.hidden, self.ffn)] * 2 + [(self.ffn, self.hidden)]
        tensor = mesh.get('tensor', 1)
        return Sizes(
            layers=self.layers, hidden=self.hidden, query=query, vocab=self.vocab,
            layer=sum(i * o for i, o in sides), lora=self.layers * RANK * sum(i + o for i, o in sides),
            encoder=round(self.encoder_m * 1e6), adapter=round(52e6) + 1024 * self.hidden,
            data=gpus // tensor, **mesh,
        )  # fmt: skip


DATA: tuple[str, dict[str, Any]] = ('data', {})
FSDP: tuple[str, dict[str, Any]] = ('FSDP2', {'sharded': True})
MODELS = (
    Model('Gemma-2B + Canary-1B', 18, 2048, 8, 1, 256, 16384, 256000, True, 609,
          (DATA, FSDP, ('tensor 2', {'tensor': 2}))),
    Model('Llama-8B + Canary-1B-flash', 32, 4096, 32, 8, 128, 14336, 128256, False, 811,
          (DATA, FSDP, ('tensor 2', {'tensor': 2}))),
    Model('Llama-70B + Canary-1B-flash', 80, 8192, 64, 8, 128, 28672, 128256, False, 811,
          (FSDP, ('tensor 4', {'tensor': 4}), ('tensor 8', {'tensor': 8}))),
)  # fmt: skip


def frozen_gb(model: Model, gpus: int, mesh: dict[str, Any]) -> float:
    """GB of the frozen LLM in bfloat16 on one GPU."""
    sizes = model.sizes(gpus, mesh)
    spread = sizes.data if sizes.sharded else sizes.tensor
    whole = sizes.layers * sizes.layer
    tables = (1 if model.tied else 2) * sizes.hidden * sizes.vocab / sizes.tensor
    gathered = sizes.layer if sizes.sharded else 0
    return 2 * (whole / spread + gathered + tables) / 1e9


def rows() -> Iterator[tuple[Model, str, int, StepCost, float]]:
    """Model, way, GPUs, counts, GB of the frozen LLM."""
    for model in MODELS:
        for way, mesh in model.ways:
            for gpus in GPUS:
                yield model, way, gpus, step_cost(model.sizes(gpus, mesh), WORK), frozen_gb(model, gpus, mesh)


def table() -> list[str]:
    """Markdown."""
    lines = [
        '| model | way | GPUs | LLM + speech, TFLOP | NVLink, GB (messages) | gradients, GB (messages) '
        '| gathers, GB (messages) | frozen LLM, GB | s a step | bound by | tokens/s a GPU |',
        '| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |',
    ]
    for model, way, gpus, cost, frozen in rows():
        lines.append(
            f'| {model.name} | {way} | {gpus:,} | {cost.llm_tflop:.0f} + {cost.speech_tflop:.0f} '
            f'| {cost.tensor_gb:.1f} ({cost.tensor_messages}) | {cost.gradient_gb:.1f} ({cost.gradient_messages}) '
            f'| {cost.gather_gb:.1f} ({cost.gather_messages}) | {frozen:.0f} '
            f'| {cost.predicted_s(MACHINE):.3f} | {cost.bound_by(MACHINE)} '
            f'| {WORK.tokens / cost.predicted_s(MACHINE) / cost.tensor:,.0f} |'
        )
    return lines


def rows_to_hide_the_gathers() -> dict[str, int]:
    """Tokens of a row from which FSDP2 on 64 GPUs is bound by products and no longer by the gathers of layers."""
    found = {}
    for model in MODELS:
        sizes = model.sizes(64, {'sharded': True})
        tokens = next(
            n for n in range(1024, 2**20, 1024)
            if step_cost(sizes, replace(WORK, tokens=n)).bound_by(MACHINE) == 'compute'
        )  # fmt: skip
        found[model.name] = tokens
    return found


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='the same: nothing is measured')
    parser.parse_args()
    print('\n'.join(table()))
    hidden = rows_to_hide_the_gathers()
    for name, tokens in hidden.items():
        print(f'{name}: FSDP2 on 64 GPUs is bound by products from rows of {tokens:,} tokens')
    print(json.dumps({'benchmark': 'step_costs', 'ok': True, 'rows_to_hide_gathers': hidden}))
    return 0


if __name__ == '__main__':
    sys.exit(main())
