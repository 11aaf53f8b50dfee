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
"""What one optimizer step asks of one GPU: FLOPs, bytes and messages, counted from the sizes of a model.

The counts are exact for the products of the model and for what our strategies send; times follow from rates that the
caller gives. Letters: T row length, H LLM width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_BUCKET = 32 * 2**20
"""Elements of one reduction of gradients, as in `parallel.strategies`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """One packed row, on average.

    Args:
        tokens: T, positions of a row, audio frames included.
        rows: Rows of one data-parallel rank for a step.
        conversation: Mean length of a conversation, in positions.
        targets: Share of the positions that are supervised.
        audio: Share of the positions that are audio frames.
        frame_s: Seconds of sound in an audio frame.
    """

    tokens: int
    rows: int = 1
    conversation: int = 350
    targets: float = 1 / 3
    audio: float = 0.5
    frame_s: float = 0.08

    @property
    def audio_s(self) -> float:
        """Seconds of sound that one rank encodes for a step."""
        return self.tokens * self.rows * self.audio * self.frame_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """A speech LLM and how it is spread over GPUs.

    Args:
        layers: Decoder layers.
        hidden: H.
        query: Query heads times their width.
        vocab: Rows of the vocabulary.
        layer: Weights of the linears of one decoder layer.
        lora: LoRA weights.
        encoder: Weights of the speech encoder.
        encoder_rate: Frames of the encoder in a second of sound, behind its subsampling.
        adapter: Weights of adapter and projection.
        tensor: GPUs that hold one LLM.
        data: Copies of it.
        sharded: Whether the layers of the LLM are spread over the data-parallel ranks (FSDP2).
        sequence_parallel: Whether activations between the layers are cut along the row.
        recompute: Whether whole layers are computed again in the backward pass.
        train_encoder: Whether the encoder is trained.
        bytes_moved: Of an activation or a frozen weight.
    """

    layers: int
    hidden: int
    query: int
    vocab: int
    layer: int
    lora: int
    encoder: int
    encoder_rate: float = 12.5
    adapter: int = 0
    tensor: int = 1
    data: int = 1
    sharded: bool = False
    sequence_parallel: bool = False
    recompute: bool = False
    train_encoder: bool = True
    bytes_moved: int = 2

    @property
    def trained(self) -> int:
        """Trained weights."""
        return self.lora + self.adapter + (self.encoder if self.train_encoder else 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Rates of one GPU and its links; those of an H100 in a DGX unless given.

    Args:
        tflops: Of large bfloat16 products that this GPU really does; the data sheet says 989.
        share: Of that rate which the step reaches.
        nvlink_gb_s: Bytes that leave a GPU within a node, one way.
        network_gb_s: Bytes that leave a GPU between nodes, one way.
        message_us: Of a collective without any bytes.
        per_node: GPUs of a node.
    """

    tflops: float = 700.0
    share: float = 0.45
    nvlink_gb_s: float = 450.0
    network_gb_s: float = 50.0
    message_us: float = 20.0
    per_node: int = 8


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one optimizer step asks of one GPU.

    Args:
        llm_tflop: Products of the LLM with LoRA, attention and the vocabulary.
        speech_tflop: Products of encoder and adapter.
        tensor_gb: Bytes that leave the GPU to those that hold the same LLM (NVLink).
        tensor_messages: Collectives among them.
        gradient_gb: Bytes that leave the GPU for the mean of the gradients.
        gradient_messages: Collectives for it.
        gather_gb: Bytes that leave the GPU for the layers of a sharded LLM.
        gather_messages: Collectives for them.
        audio_s: Seconds of sound that one loader decodes and one GPU's ranks encode.
        data: Copies of the LLM.
        tensor: GPUs of each.
    """

    llm_tflop: float
    speech_tflop: float
    tensor_gb: float
    tensor_messages: int
    gradient_gb: float
    gradient_messages: int
    gather_gb: float
    gather_messages: int
    audio_s: float
    data: int
    tensor: int

    def seconds(self, machine: Machine) -> dict[str, float]:
        """Seconds of each resource if nothing overlapped: `compute`, `tensor`, `gradients`, `gathers`."""
        world = self.data * self.tensor
        link = machine.nvlink_gb_s if world <= machine.per_node else machine.network_gb_s
        wait = machine.message_us / 1e6
        return {
            'compute': (self.llm_tflop + self.speech_tflop) / (machine.tflops * machine.share),
            'tensor': self.tensor_gb / machine.nvlink_gb_s + self.tensor_messages * wait,
            'gradients': self.gradient_gb / link + self.gradient_messages * wait,
            'gathers': self.gather_gb / link + self.gather_messages * wait,
        }

    def predicted_s(self, machine: Machine) -> float:
        """Seconds of a step: tensor-parallel messages wait for one another and for the products; gathers of layers
        run ahead of them; the gradients follow."""
        spent = self.seconds(machine)
        return max(spent['compute'] + spent['tensor'], spent['gathers']) + spent['gradients']

    def bound_by(self, machine: Machine) -> str:
        """The resource that takes most."""
        spent = self.seconds(machine)
        return max(spent, key=lambda name: spent[name])


def step_cost(sizes: Sizes, work: Workload) -> StepCost:
    """Count a step.

    Args:
        sizes: Model and mesh.
        work: The rows of a step.
    """
    tokens = work.tokens * work.rows
    forward = 2 * sizes.layers * sizes.layer + 2 * sizes.lora
    # a frozen weight has no gradient of its own; LoRA has
    backward = 2 * sizes.layers * sizes.layer + 4 * sizes.lora
    # causal: half of two products of length x length x query, forward; twice that backward
    attention = sizes.layers * 2 * work.conversation * sizes.query * 3
    again = forward + attention / 3 if sizes.recompute else 0
    # logits are made again in the backward pass, a chunk at a time
    head = 6 * sizes.hidden * sizes.vocab * work.targets
    llm = tokens * (forward + backward + attention + again + head) / sizes.tensor
    encoder = (6 if sizes.train_encoder else 2) * sizes.encoder * sizes.encoder_rate
    speech = work.audio_s * (encoder + 6 * sizes.adapter / work.frame_s)
    row = work.tokens * sizes.hidden * sizes.bytes_moved * work.rows
    # two sums forward and two backward in each layer, and as many of the width of LoRA's rank
    sums = 4 * sizes.layers if sizes.tensor > 1 else 0
    buckets = math.ceil(sizes.trained / _BUCKET)
    weights = sizes.layers * sizes.layer * sizes.bytes_moved
    gathers = 2 * sizes.layers * work.rows if sizes.sharded and sizes.data > 1 else 0
    return StepCost(
        llm_tflop=llm / 1e12,
        # the ranks of one LLM share the clips of its rows
        speech_tflop=speech / sizes.tensor / 1e12,
        tensor_gb=sums * row * _ring(sizes.tensor) / 1e9,
        tensor_messages=2 * sums * work.rows,
        gradient_gb=4 * sizes.trained * _ring(sizes.data * sizes.tensor) / 1e9,
        gradient_messages=buckets if sizes.data * sizes.tensor > 1 else 0,
        gather_gb=(2 * weights * work.rows * _ring(sizes.data) / 2 / 1e9) if gathers else 0.0,
        gather_messages=gathers,
        audio_s=work.audio_s,
        data=sizes.data,
        tensor=sizes.tensor,
    )


def measured_tflops() -> float:
    """Rate of large bfloat16 products on this machine's GPU, or on one thread of its CPU: the best of five."""
    import time

    import torch

    gpu = torch.cuda.is_available()
    size = 8192 if gpu else 1024
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device='cuda' if gpu else 'cpu') for _ in range(2))
    spent = []
    for _ in range(6):  # the first one prepares
        begin = time.perf_counter()
        product = a @ b
        float(product[0, 0])  # waits for the device
        spent.append(time.perf_counter() - begin)
    return 2 * size**3 / min(spent[1:]) / 1e12


def _ring(ranks: int) -> float:
    """Bytes that each rank sends for a sum of one byte over so many; a gather sends half of it."""
    return 2 * (ranks - 1) / ranks


def sizes_of(config: Any, parts: Mapping[str, int], **mesh: Any) -> Sizes:
    """Sizes of a Hugging Face decoder.

    Args:
        config: Its text configuration.
        parts: Weights of `encoder`, `adapter`, `projection` and `lora`.
        mesh: Further fields of `Sizes`.
    """
    head = getattr(config, 'head_dim', None) or config.hidden_size // config.num_attention_heads
    query, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    return Sizes(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        query=query,
        vocab=config.vocab_size,
        layer=config.hidden_size * (2 * query + 2 * keys + 3 * config.intermediate_size),
        lora=parts['lora'],
        encoder=parts['encoder'],
        adapter=parts['adapter'] + parts['projection'],
        **mesh,
    )


def cost_table(cost: StepCost, machine: Machine) -> 'Table':
    """For people: what a step asks of one GPU, and how long that takes."""
    from rich.table import Table

    spent = cost.seconds(machine)
    title = (
        f'one step on one GPU, {machine.tflops:,.0f} TFLOP/s at {machine.share:.0%}: {cost.predicted_s(machine):.3f} s'
    )
    table = Table(title=f'{title}, bound by {cost.bound_by(machine)}', title_justify='left')
    for column in ('resource', 'amount', 'messages', 'seconds'):
        table.add_column(column, justify='left' if column == 'resource' else 'right')
    speech = f'{cost.llm_tflop:,.1f} + {cost.speech_tflop:,.1f} TFLOP'
    table.add_row('products: LLM + speech', speech, '', f'{spent["compute"]:.4f}')
    for name, gb, messages, key in (
        ('within one LLM (NVLink)', cost.tensor_gb, cost.tensor_messages, 'tensor'),
        ('gradients', cost.gradient_gb, cost.gradient_messages, 'gradients'),
        ('layers of a sharded LLM', cost.gather_gb, cost.gather_messages, 'gathers'),
    ):
        table.add_row(name, f'{gb:,.2f} GB', f'{messages:,}', f'{spent[key]:.4f}')
    table.add_row('sound to decode', f'{cost.audio_s:,.0f} s', '', '')
    return table
