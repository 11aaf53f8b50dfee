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
"""Two ranks share the clips of a row: same frames, same gradients as one rank that encodes all of them."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from omegaconf import OmegaConf

from nemo_vtb.model.aligned_adapter import ALIGNED_TARGET
from nemo_vtb.model.frames import frame_counter
from nemo_vtb.model.perception import encode, encode_shared, setup_perception, share_clips
from nemo_vtb.testing import tiny_model_cfg

LENGTHS = [9000, 16000, 5000, 12000, 16000]


def test_clips_are_shared_by_length() -> None:
    parts = share_clips([9, 16, 5, 12, 16], 2)
    assert sorted(clip for part in parts for clip in part) == [0, 1, 2, 3, 4]
    assert [sum([9, 16, 5, 12, 16][clip] for clip in part) for part in parts] == [28, 30]
    assert share_clips([7], 3) == [[0], [], []]
    assert share_clips([], 2) == [[], []]


def perception_and_clips(folder: str, aligned: bool = False) -> tuple[Any, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    cfg = OmegaConf.create(tiny_model_cfg(folder, encoder='whisper'))
    if aligned:
        cfg.perception.modality_adapter = {
            '_target_': ALIGNED_TARGET, 'feat_in': 32, 'output_dim': 64, 'num_pieces': 5, 'hidden': 16, 'dropout': 0.0
        }  # fmt: skip
    perception = setup_perception(cfg, 64, 1.0, pretrained=True)
    if aligned:
        perception.modality_adapter.set_pieces(range(5), torch.randn(5, 64))
        perception.modality_adapter.scale.data.mul_(4)  # so sure of itself that frames are dropped and merged
    return perception, torch.randn(len(LENGTHS), max(LENGTHS)), torch.tensor(LENGTHS)


def autocast(rank: int, folder: str) -> None:
    """One clip for two ranks: one of them has nothing whose type it could see."""
    dist.init_process_group('gloo', rank=rank, world_size=2, init_method=f'file://{folder}/meet')
    perception, audios, lens = perception_and_clips(folder)
    audios, lens = audios[:1], lens[:1]
    frame_lens = encode(perception, audios, lens)[1]
    with torch.autocast('cpu', torch.bfloat16):
        frames, _ = encode_shared(perception, audios, lens, frame_lens, dist.group.WORLD)
        expected = encode(perception, audios, lens)[0]
    torch.testing.assert_close(frames, expected.to(frames.dtype))
    frames.float().square().sum().backward()
    dist.destroy_process_group()


@pytest.mark.integration
def test_a_rank_without_a_clip_has_the_type_of_the_others() -> None:
    with tempfile.TemporaryDirectory() as folder:
        perception_and_clips(folder)
        mp.start_processes(autocast, (folder,), nprocs=2, start_method='fork')


def ranked(rank: int, folder: str, clips: int, aligned: bool) -> None:
    """One rank: its part of the gradients, to be summed, and all frames."""
    dist.init_process_group('gloo', rank=rank, world_size=2, init_method=f'file://{folder}/meet{clips}')
    perception, audios, lens = perception_and_clips(folder, aligned)
    audios, lens = audios[:clips], lens[:clips]
    counter = frame_counter(perception.cfg)
    counted = torch.tensor([counter(length) for length in lens.tolist()])
    frames, frame_lens = encode_shared(perception, audios, lens, counted, dist.group.WORLD)
    assert aligned == bool((frame_lens < counted).any()) and bool((frame_lens <= counted).all())
    place = torch.rand(())  # the generators of both ranks stand at the same place
    (frames * torch.arange(frames.numel()).view_as(frames).sin()).sum().backward()
    grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in perception.named_parameters()}
    for grad in grads.values():
        dist.all_reduce(grad)
    torch.save({'frames': frames.detach(), 'grads': grads, 'place': place}, f'{folder}/rank{rank}-{clips}.pt')
    dist.destroy_process_group()


@pytest.mark.integration
@pytest.mark.parametrize(('clips', 'aligned'), [(1, False), (5, False), (5, True)])
def test_frames_and_gradients_are_those_of_one_rank(clips: int, aligned: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        perception, audios, lens = perception_and_clips(folder, aligned)
        mp.start_processes(ranked, (folder, clips, aligned), nprocs=2, start_method='fork')
        one, two = (torch.load(Path(folder) / f'rank{r}-{clips}.pt', weights_only=True) for r in (0, 1))
    frames, _ = encode(perception, audios[:clips], lens[:clips])
    (frames * torch.arange(frames.numel()).view_as(frames).sin()).sum().backward()
    assert torch.equal(one['frames'], two['frames']) and torch.equal(one['place'], two['place'])
    torch.testing.assert_close(one['frames'], frames.detach(), atol=1e-5, rtol=1e-5)
    for name, parameter in perception.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(one['grads'][name], expected, atol=1e-4, rtol=1e-4)
    assert any(grad.abs().max() > 1e-3 for grad in one['grads'].values())
