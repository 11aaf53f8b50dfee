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
"""A hand-written row, and the wrong sound by file stem."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import count_frames, write_wav
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.plugins.precision import HalfPrecision

from nemo_vtb.data.collate import Collator, PackedRow, PackItem, pack_row
from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn
from nemo_vtb.data.template import AUDIO_SLOT, ChatRenderer, Rendered, Segment
from nemo_vtb.errors import VtbAudioError


def clip(samples: int, value: float) -> np.ndarray:
    return np.full(samples, value, dtype=np.float32)


def by_hand() -> list[PackItem]:
    spoken = Rendered(
        (
            Segment('a b', (11, 12)),
            Segment('', (AUDIO_SLOT,), audio=0),
            Segment('c', (13,)),
            Segment('yes', (14, 2), supervised=True),
            Segment('', (AUDIO_SLOT,), audio=1),
            Segment('no', (15, 2), supervised=True),
        )
    )
    typed = Rendered((Segment('q', (21,)), Segment('w', (22, 2), supervised=True), Segment('n', (23,))))
    return [
        PackItem(spoken, [clip(5, 0.5), clip(3, -0.5)], [3, 2], 'one', 'mixed_modal', 'm'),
        PackItem(typed, [], [], 'two', 'text', 't'),
    ]


def test_a_row_written_by_hand() -> None:
    batch = pack_row(by_hand(), 7)
    x = -100
    #                             a   b   <audio 0>  c   yes </s> <audio 1> no </s>| q   w  </s>  n
    assert batch.input_ids.tolist() == [11, 12, 0, 0, 0, 13, 14, 2, 0, 0, 15, 2, 21, 22, 2, 23]
    assert batch.labels.tolist() == [x, x, x, x, x, 14, 2, x, x, 15, 2, x, 22, 2, x, x]
    assert batch.label_kinds.tolist() == [-1, -1, -1, -1, -1, 3, 3, -1, -1, 3, 3, -1, 0, 0, -1, -1]
    assert batch.position_ids.tolist() == [*range(12), *range(4)]
    assert batch.audio_positions.tolist() == [2, 3, 4, 8, 9]
    assert batch.cu_seqlens.tolist() == [0, 12, 16]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.audios.tolist() == [[0.5] * 5, [-0.5] * 3 + [0.0] * 2]
    assert batch.audio_lens.tolist() == [5, 3]
    assert batch.frame_lens.tolist() == [3, 2]
    assert (batch.max_seqlen, batch.num_tokens, batch.index) == (12, 16, 7)
    assert (batch.ids, batch.kinds, batch.sources) == (['one', 'two'], ['mixed_modal', 'text'], ['m', 't'])
    for name in ('input_ids', 'labels', 'label_kinds', 'position_ids', 'audio_positions', 'audio_lens', 'frame_lens'):
        assert getattr(batch, name).dtype == torch.int64


def test_a_supervised_first_token_is_predicted_by_nobody() -> None:
    first = Rendered((Segment('a', (5, 6), supervised=True),))
    items = [PackItem(first, [], [], str(n), 'text', 't') for n in range(2)]
    assert pack_row(items).labels.tolist() == [6, -100, 6, -100]


def test_rows_without_audio_and_without_anything() -> None:
    batch = pack_row(by_hand()[1:])
    assert batch.audios.shape == (0, 0)
    assert batch.audio_positions.shape == (0,)
    empty = pack_row([])
    assert empty.input_ids.shape == (0,)
    assert empty.cu_seqlens.tolist() == [0]
    assert empty.max_seqlen == empty.num_tokens == 0


def test_lightning_moves_and_converts_a_row() -> None:
    row = pack_row(by_hand(), 7)
    moved = move_data_to_device(row, torch.device('cpu'))
    assert isinstance(moved, PackedRow) and (moved.ids, moved.index) == (row.ids, 7)
    assert torch.equal(moved.audios, row.audios)
    half = HalfPrecision('bf16-true').convert_input(row)
    assert (half.audios.dtype, half.input_ids.dtype) == (torch.bfloat16, torch.int64)
    assert row.audios.dtype == torch.float32
    on_device = row.to('meta')
    assert on_device.input_ids.is_meta and on_device.audios.is_meta and on_device.audio_positions.is_meta
    for name in ('cu_seqlens', 'audio_lens', 'frame_lens'):  # sliced by: on a GPU each would have to be waited for
        assert torch.equal(getattr(on_device, name), getattr(row, name))


def conversation(id_: str, *paths: Path) -> Conversation:
    audios = tuple(Audio(str(path)) for path in paths)
    return Conversation(
        id_, (Turn('user', (Text('say'), *audios)), Turn('assistant', (Text('yes'),))), 'speech_qa', 's'
    )


def test_two_files_of_one_name_keep_their_own_sound(tmp_path: Path, renderer: ChatRenderer) -> None:
    """NeMo 3.0 keys recordings by file stem: there both conversations hear b/utt.wav."""
    loud, soft = write_wav(tmp_path / 'a/utt.wav', level=0.5), write_wav(tmp_path / 'b/utt.wav', level=0.1)
    batch = Collator(renderer, count_frames)([conversation('one', loud), conversation('two', soft)])
    assert batch.audios.abs().amax(1).tolist() == pytest.approx([0.5, 0.1], abs=1e-3)


def test_one_file_with_two_durations_keeps_both(tmp_path: Path, renderer: ChatRenderer) -> None:
    """NeMo 3.0 gives both conversations the longer one."""
    path = str(write_wav(tmp_path / 'utt.wav', 2.0))
    first, second = (
        Conversation(str(s), (Turn('user', (Audio(path, s),)), Turn('assistant', (Text('yes'),))), 'asr_ast', 's')
        for s in (1.0, 2.0)
    )
    batch = Collator(renderer, count_frames)([first, second])
    assert batch.audio_lens.tolist() == [16000, 32000]
    assert batch.frame_lens.tolist() == [count_frames(16000), count_frames(32000)]


def test_clips_stand_in_the_order_in_which_they_are_heard(tmp_path: Path, renderer: ChatRenderer) -> None:
    levels = (0.1, 0.4, 0.2)
    paths = [write_wav(tmp_path / f'{level}.wav', 0.2, level=level) for level in levels]
    batch = Collator(renderer, count_frames)([conversation('x', *paths)])
    assert batch.audios.abs().amax(1).tolist() == pytest.approx(levels, abs=1e-3)
    assert len(batch.audio_positions) == int(batch.frame_lens.sum())
    assert (batch.input_ids[batch.audio_positions] == 0).all()
    assert (batch.labels != -100).sum() == renderer.render(conversation('x', *paths)).num_supervised


def test_a_broken_recording_is_an_error_here(tmp_path: Path, renderer: ChatRenderer) -> None:
    with pytest.raises(VtbAudioError, match='does not exist'):
        Collator(renderer, count_frames)([conversation('x', tmp_path / 'none.wav')])
    with pytest.raises(VtbAudioError, match='shorter than one frame'):
        Collator(renderer, count_frames)([conversation('x', write_wav(tmp_path / 'a.wav', 0.005))])


@pytest.mark.parametrize('made', [[3, 2], [1, 1], [2, 2], [3, 1]])
def test_a_row_of_fewer_frames_is_the_row_packed_with_them(made: list[int]) -> None:
    row = pack_row(by_hand(), 7)
    one, two = by_hand()
    expected = pack_row([PackItem(one.rendered, one.clips, made, one.id, one.kind, one.source), two], 7)
    got = row.with_frames(torch.tensor(made))
    for name in (each.name for each in fields(PackedRow)):
        value, right = getattr(got, name), getattr(expected, name)
        assert torch.equal(value, right) and value.dtype == right.dtype if torch.is_tensor(right) else value == right
    assert (got is row) == (made == [3, 2])
