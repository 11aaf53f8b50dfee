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
"""The clips of one row shared among the ranks that hold one LLM: each encodes its part, all get all frames.

Letters: A clips, S samples, F frames, H LLM width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_vtb.model.perception import encode

__all__ = ['share_clips', 'spread_encode']


def spread_encode(
    perception: Any,
    audios: Tensor,
    audio_lens: Tensor,
    frame_lens: Tensor,
    group: dist.ProcessGroup,
    *,
    chunk_s: float | None = None,
) -> Tensor:
    """What `encode` returns, each rank of the group having encoded its part of the clips.

    The gradient of the frames must be the same on all ranks of the group, as it is in front of a tensor-parallel LLM.
    Each rank then has the gradient of its own clips, and the perception's gradients must be summed over the group.

    Args:
        perception: As `setup_perception` builds it.
        audios: (A, S) float32 at 16 kHz, padded; the same on all ranks.
        audio_lens: (A,) samples.
        frame_lens: (A,) frames that each clip will have.
        group: The ranks.
        chunk_s: NeMo's `encoder_chunk_size_seconds`.

    Returns:
        (F, H) frames of all clips in order.
    """
    counts = frame_lens.tolist()
    parts = share_clips(audio_lens.tolist(), dist.get_world_size(group))
    mine = parts[dist.get_rank(group)]
    chosen = torch.tensor(mine, dtype=torch.int64, device=audios.device)
    with _own_random(dist.get_rank(group)):
        own, _ = encode(perception, audios[chosen], audio_lens[chosen], chunk_s=chunk_s)  # (F_own, H)
    if torch.is_grad_enabled() and not mine and any(p.requires_grad for p in perception.parameters()):
        own.requires_grad_()  # else this rank would leave out the collectives of the others' backward pass
    # under autocast a rank's type would depend on whether it had a clip
    own = own.to(next(perception.parameters()).dtype)
    sizes = [sum(counts[clip] for clip in part) for part in parts]
    gathered: Tensor = _Gather.apply(own, sizes, group)  # (F, H), rank after rank
    return gathered.index_select(0, _places(parts, counts).to(gathered.device))


def share_clips(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Clip numbers for each rank, so that all have about the same to do: longest first, to whoever has least."""
    parts: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for clip in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rank = min(range(ranks), key=lambda r: (loads[r], r))
        parts[rank].append(clip)
        loads[rank] += lengths[clip]
    return parts


def _places(parts: Sequence[Sequence[int]], counts: Sequence[int]) -> Tensor:
    """(F,) where each frame, in the order of the clips, stands in the order of the ranks."""
    begins, begin = dict[int, int](), 0
    for clip in (clip for part in parts for clip in part):
        begins[clip] = begin
        begin += counts[clip]
    return torch.cat([torch.arange(begins[clip], begins[clip] + counts[clip]) for clip in range(len(counts))])


@contextmanager
def _own_random(rank: int) -> Iterator[None]:
    """Random numbers of this rank's own; afterwards the generators of all ranks stand at the same place again."""
    seed = int(torch.randint(2**31, (1,)))
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.manual_seed(seed + rank)
        yield


class _Gather(torch.autograd.Function):
    """(F_own, H) of each rank to (F, H) on all of them; backwards each rank takes its own rows."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
        rank, longest = dist.get_rank(group), max(sizes)
        ctx.rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        padded = own.new_zeros(longest, own.shape[1])
        padded[: own.shape[0]] = own
        out = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(out, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(out, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0][ctx.rows].contiguous(), None, None
