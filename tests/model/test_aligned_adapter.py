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
"""The aligned adapter: what is kept of a clip, and for which LLM and encoder its file is good."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn
from nemo_vtb.errors import VtbCheckpointError, VtbConfigError
from nemo_vtb.model import inference
from nemo_vtb.model.aligned_adapter import (
    ADAPTER_OPTIONS,
    ALIGNED_TARGET,
    BLANK,
    AlignedAdapter,
    AlignedAdapterFile,
    embeddings_digest,
    encoder_digest,
    greedy_pieces,
)
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.model.inference import encode_clips, load_clip
from nemo_vtb.model.perception import build_encoder
from nemo_vtb.testing import TinyCorpus, tiny_model_cfg

WIDTH, PIECES = 8, [5, 9, 11]


def adapter(**options: Any) -> AlignedAdapter:
    torch.manual_seed(0)
    made = AlignedAdapter(16, WIDTH, len(PIECES), hidden=12, dropout=0.0, **options)
    made.set_pieces(PIECES, torch.randn(len(PIECES), WIDTH))
    return made


def hearing(made: AlignedAdapter, *classes: int, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Frames (R, H) that an adapter makes where it is sure of these classes."""
    logits = 40.0 * torch.nn.functional.one_hot(torch.tensor([classes]), len(PIECES) + 1).float()
    monkeypatch.setattr(made, 'logits', lambda signal, length: (logits, torch.tensor([len(classes)])))
    frames, lens = made(torch.zeros(1, 16, 4), torch.tensor([4]))
    return frames[0, :, : int(lens)].T


def test_blanks_are_dropped_and_repetitions_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    made = adapter()
    frames = hearing(made, BLANK, 1, 1, BLANK, 1, 3, 3, 3, BLANK, monkeypatch=monkeypatch)
    torch.testing.assert_close(frames, made.table[[0, 0, 2]])


def test_without_compression_every_frame_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    made = adapter(blank_threshold=1.0)
    frames = hearing(made, BLANK, 1, 1, 2, monkeypatch=monkeypatch)
    torch.testing.assert_close(frames, torch.stack([made.blank.detach(), *made.table[[0, 0, 1]]]))


def test_a_clip_without_a_word_is_one_blank_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    made = adapter()
    frames = hearing(made, BLANK, BLANK, BLANK, monkeypatch=monkeypatch)
    torch.testing.assert_close(frames, made.blank.detach()[None])


def test_a_merged_frame_is_what_is_heard_in_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    made = adapter()
    logits = torch.tensor([[[0.0, 3.0, 1.0, 0.0], [0.0, 5.0, 0.0, 2.0]]])
    monkeypatch.setattr(made, 'logits', lambda signal, length: (logits, torch.tensor([2])))
    frames, lens = made(torch.zeros(1, 16, 4), torch.tensor([4]))
    heard = logits[0].softmax(-1).sum(0)[1:]  # the blank has no share in it
    assert lens.tolist() == [1]
    torch.testing.assert_close(frames[0, :, 0], heard / heard.sum() @ made.table)


def test_a_clip_is_heard_alone_as_beside_longer_ones() -> None:
    made = adapter().eval()
    made.scale.data.mul_(3)
    clips = [torch.randn(16, length) for length in (40, 23, 8)]
    lengths = torch.tensor([clip.shape[1] for clip in clips])
    batch = torch.stack([torch.nn.functional.pad(clip, (0, 40 - clip.shape[1]), value=7.0) for clip in clips])
    together, lens = made(batch, lengths)
    for clip, frames, count in zip(clips, together, lens, strict=True):
        alone, one = made(clip[None], torch.tensor([clip.shape[1]]))
        assert int(one) == int(count)
        torch.testing.assert_close(frames[:, : int(count)], alone[0], atol=1e-6, rtol=1e-5)


def test_greedy_pieces() -> None:
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 1, 1, 0, 1, 3, 2]]), 4).float()
    assert greedy_pieces(logits, torch.tensor([6])) == [[0, 0, 2]]
    assert greedy_pieces(logits, torch.tensor([0])) == [[]]


# ---- the file, in a model


@pytest.fixture(scope='module')
def cfg(tiny_root: Path) -> dict[str, Any]:
    return tiny_model_cfg(tiny_root / 'aligned', encoder='whisper') | {'pretrained_weights': True}


@pytest.fixture(scope='module')
def file(cfg: dict[str, Any], tiny_root: Path) -> Path:
    """An untrained adapter for the tiny LLM and encoder, sure enough of itself to drop frames."""
    encoder = build_encoder(OmegaConf.create(cfg))
    llm = VoiceTextBlender(cfg)
    table = llm.backbone.embed(torch.tensor(PIECES)).detach()
    torch.manual_seed(0)
    made = AlignedAdapter(32, table.shape[1], len(PIECES), hidden=12)
    made.set_pieces(PIECES, table)
    made.scale.data.mul_(4)
    manifest = {
        'adapter': {'feat_in': 32, 'output_dim': table.shape[1], 'num_pieces': len(PIECES), 'hidden': 12},
        'llm': {'name': 'tiny', 'digest': embeddings_digest(table)},
        'encoder': {'name': 'tiny', 'digest': encoder_digest(encoder)},
    }
    path = tiny_root / 'aligned' / 'adapter.safetensors'
    AlignedAdapterFile.write(path, made, manifest)
    return path


def aligned_cfg(cfg: dict[str, Any], file: Path) -> dict[str, Any]:
    return cfg | {'perception': cfg['perception'] | {'adapter_init': 'aligned', 'init_adapter': str(file)}}


def test_a_model_takes_its_adapter_from_the_file(cfg: dict[str, Any], file: Path, corpus: TinyCorpus) -> None:
    model = VoiceTextBlender(aligned_cfg(cfg, file)).eval()
    assert model.cfg.perception.modality_adapter._target_ == ALIGNED_TARGET
    made = model.perception.modality_adapter
    torch.testing.assert_close(made.table, model.backbone.embed(made.pieces))
    state = load_file(file)
    assert 'table' not in state
    torch.testing.assert_close(made.stack.weight, state['stack.weight'].float())
    line = json.loads(corpus.path('asr_ast').read_text().splitlines()[0])
    clip = next(entry for entry in line['conversations'] if entry['type'] == 'audio')
    turns = (Turn('user', (Text('Transcribe:'), Audio(str(corpus.folder / clip['value'])))),)
    assert isinstance(model.answer([Conversation('a', turns)], max_new_tokens=3)[0], str)


def test_saved_and_restored_it_needs_neither_file_nor_llm(cfg: dict[str, Any], file: Path, tmp_path: Path) -> None:
    model = VoiceTextBlender(aligned_cfg(cfg, file))
    model.save_to(str(tmp_path / 'm.nemo'))
    text = file.read_bytes()
    file.unlink()
    try:
        restored = VoiceTextBlender.restore_from(str(tmp_path / 'm.nemo'))
    finally:
        file.write_bytes(text)
    for name, value in model.perception.state_dict().items():
        torch.testing.assert_close(restored.perception.state_dict()[name], value, rtol=0, atol=0)


def test_a_transcript_is_no_longer_than_its_recording(cfg: dict[str, Any], file: Path, corpus: TinyCorpus) -> None:
    model = VoiceTextBlender(aligned_cfg(cfg, file)).eval()
    model.perception.modality_adapter.blank_threshold = 0.5
    line = json.loads(corpus.path('asr_ast').read_text().splitlines()[0])
    clip = next(entry for entry in line['conversations'] if entry['type'] == 'audio')
    turns = (Turn('user', (Text('Transcribe:'), Audio(str(corpus.folder / clip['value'])))),)
    asked = [Conversation(kind, turns, kind) for kind in ('asr_ast', 'speech_qa')]
    rows = [model.renderer.render_prompt(each).ids for each in asked]
    clips = [load_clip(model, each.audios[0]) for each in asked]
    [frames, _] = encode_clips(model, clips)
    longest = 60
    ids = inference._generate(
        model,
        rows,
        clips,
        None,
        ['asr_ast', 'speech_qa'],
        max_new_tokens=longest,
        min_new_tokens=longest,
        do_sample=False,
    )
    limit = 5 + -(-5 * len(frames) // 4)
    assert 0 < limit < longest
    assert torch.equal(ids[0, :limit], ids[1, :limit])
    assert (ids[0, limit:] == model.text_pad_id).all() and (ids[1, limit:] != model.text_pad_id).any()


def test_silence_is_answered_as_silence(cfg: dict[str, Any], file: Path, tmp_path: Path) -> None:
    model = VoiceTextBlender(aligned_cfg(cfg, file)).eval()
    soundfile.write(tmp_path / 'a.wav', np.zeros(8000, np.float32), 16000)
    turns = (Turn('user', (Text('Transcribe:'), Audio(str(tmp_path / 'a.wav')))),)
    asked = [Conversation(kind, turns, kind) for kind in ('asr_ast', 'speech_qa', 'mixed_modal')]
    with torch.no_grad():
        bias = model.perception.modality_adapter.bias
        bias.zero_()[BLANK] = 100.0
        spoken, question, mixed = model.answer(asked, max_new_tokens=2)
        tokenizer = model.tokenizer.tokenizer
        expected = tokenizer.decode(tokenizer.encode(inference.NOTHING_HEARD, add_special_tokens=False)).strip()
        assert spoken == question == expected and mixed != expected
        bias[BLANK] = -100.0
        assert expected not in model.answer(asked, max_new_tokens=2)


def test_another_alignment_starts_from_the_file(cfg: dict[str, Any], file: Path) -> None:
    llm = VoiceTextBlender(cfg)
    made = AlignedAdapter(32, llm.backbone.embed(torch.tensor([0])).shape[1], 5, hidden=12)
    made.set_pieces([5, 7, 9, 11, 12], llm.backbone.embed(torch.tensor([5, 7, 9, 11, 12])).detach())
    read = AlignedAdapterFile.read(file)
    read.state['bias'].copy_(torch.tensor([0.5, 1.0, 2.0, 3.0]))
    read.start(made, llm.backbone.embed, read.manifest['encoder']['digest'])
    assert made.bias.tolist() == [0.5, 1.0, 0.0, 2.0, 3.0, 0.0]
    assert made.pieces.tolist() == [5, 7, 9, 11, 12]
    assert torch.equal(made.stack.weight, read.state['stack.weight'])
    with pytest.raises(VtbCheckpointError, match='encoder'):
        read.start(made, llm.backbone.embed, '0' * 64)


@pytest.mark.parametrize('part', ['llm', 'encoder'])
def test_another_llm_or_encoder_is_refused(part: str, cfg: dict[str, Any], file: Path, tmp_path: Path) -> None:
    read = AlignedAdapterFile.read(file)
    manifest = json.loads(json.dumps(dict(read.manifest)))
    manifest[part]['digest'] = '0' * 64
    other = tmp_path / 'other.safetensors'
    save_file(dict(read.state), other, metadata={'manifest': json.dumps(manifest)})
    with pytest.raises(VtbCheckpointError, match=part if part == 'encoder' else 'LLM') as error:
        VoiceTextBlender(aligned_cfg(cfg, other))
    assert error.value.field == 'model.perception.init_adapter'


HOSTILE = {
    'code': {'_target_': 'os.system'},
    'endless_layers': {'num_blocks': 10**9},
    'endless_width': {'hidden': 10**9},
    'unknown_option': {'depth': 3},
    'text_for_a_number': {'hidden': '${oc.env:HOME}'},
}


@pytest.mark.parametrize('damage', ['cut', 'not_safetensors', 'no_manifest', *HOSTILE])
def test_a_damaged_file_is_refused_by_name(damage: str, file: Path, tmp_path: Path) -> None:
    path = tmp_path / 'x.safetensors'
    if damage == 'cut':
        path.write_bytes(file.read_bytes()[:-40])
    elif damage == 'not_safetensors':
        path.write_bytes(b'PK\x03\x04' + bytes(200))
    elif damage == 'no_manifest':
        save_file(load_file(file), path)
    else:
        manifest = dict(AlignedAdapterFile.read(file).manifest)
        hostile = manifest | {'adapter': dict(manifest['adapter']) | HOSTILE[damage]}
        save_file(load_file(file), path, metadata={'manifest': json.dumps(hostile)})
    with pytest.raises(VtbCheckpointError) as error:
        AlignedAdapterFile.read(path)
    assert error.value.field == 'model.perception.init_adapter'


def test_no_file_is_named(cfg: dict[str, Any]) -> None:
    with pytest.raises(VtbConfigError) as error:
        VoiceTextBlender(aligned_cfg(cfg, Path('nowhere.safetensors')))
    assert error.value.field == 'model.perception.init_adapter'


def test_options_are_those_of_the_constructor() -> None:
    import inspect

    names = set(inspect.signature(AlignedAdapter).parameters)
    assert names == {'feat_in', 'output_dim', 'num_pieces', *ADAPTER_OPTIONS}
