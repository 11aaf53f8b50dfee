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
"""The perception: built as NeMo builds it, run without padding, silent where there is no audio."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nemo.collections.asr.models import EncDecCTCModel
from nemo.collections.speechlm2.modules.perception import AudioPerceptionModule
from nemo.collections.speechlm2.parts.pretrained import setup_speech_encoder
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperModel

import nemo_vtb
from nemo_vtb.errors import VtbConfigError, VtbModelError
from nemo_vtb.model.frames import frame_counter
from nemo_vtb.model.perception import StackedMLPAdapter, encode, setup_perception, silent_forward, splice

nemo_vtb.register()
ASR = 'nemo.collections.asr.modules.'
HIDDEN, STD = 48, 0.03
LENGTHS = [16000, 1300, 52345, 20000, 19999, 52344, 8000]


def mel(**keys: Any) -> dict[str, Any]:
    sizes = {'sample_rate': 16000, 'features': 16, 'window_size': 0.025, 'window_stride': 0.01, 'n_fft': 512}
    return {'_target_': ASR + 'AudioToMelSpectrogramPreprocessor', **sizes, 'pad_to': 0, **keys}


def conformer(**keys: Any) -> dict[str, Any]:
    sizes = {'feat_in': 16, 'n_layers': 1, 'd_model': 16, 'n_heads': 2, 'conv_kernel_size': 5}
    return {'_target_': ASR + 'ConformerEncoder', **sizes, 'subsampling_conv_channels': 4, **keys}


def adapter(**keys: Any) -> dict[str, Any]:
    return conformer(**{'feat_in': 16, 'd_model': 24, 'subsampling_factor': 1, 'conv_norm_type': 'layer_norm', **keys})


def fast_conformer() -> dict[str, Any]:
    return conformer(subsampling='dw_striding', subsampling_factor=8, n_layers=2)


def model_cfg(encoder: dict | None = None, modality_adapter: dict | None = None, **keys: Any) -> DictConfig:
    perception = {'modality_adapter': modality_adapter or adapter(), 'preprocessor': mel(), 'output_dim': HIDDEN}
    perception['encoder'] = encoder or fast_conformer()
    perception.update(keys.pop('perception', {}))
    return OmegaConf.create({'pretrained_asr': None, **keys, 'perception': perception})


def whisper_cfg(folder: Path | None = None, **adapter_keys: Any) -> DictConfig:
    keys = {'subsampling': 'stacking', 'subsampling_factor': 4, **adapter_keys}
    section = {key: value for key, value in adapter(**keys).items() if key != 'feat_in'}
    return OmegaConf.create({'pretrained_asr': str(folder), 'perception': {'modality_adapter': section}})


def build(cfg: DictConfig, seed: int = 0, *, pretrained: bool = False) -> AudioPerceptionModule:
    torch.manual_seed(seed)
    return setup_perception(cfg, HIDDEN, STD, pretrained=pretrained)


def clips(lengths: list[int]) -> tuple[Tensor, Tensor]:
    # noise also behind each clip's length
    audios = 0.1 * torch.randn(len(lengths), max(lengths), generator=torch.Generator().manual_seed(7))
    return audios, torch.tensor(lengths)


def one_by_one(perception: AudioPerceptionModule, audios: Tensor, lengths: list[int]) -> list[Tensor]:
    rows = []
    for audio, length in zip(audios, lengths, strict=True):
        frames, lens = perception(input_signal=audio[None, :length], input_signal_length=torch.tensor([length]))
        rows.append(frames[0, : int(lens[0])])
    return rows


@pytest.fixture(scope='module')
def whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    sizes = {'d_model': 32, 'encoder_layers': 2, 'encoder_attention_heads': 4, 'encoder_ffn_dim': 64}
    ids = {'vocab_size': 64, 'pad_token_id': 0, 'bos_token_id': 1, 'eos_token_id': 2, 'decoder_start_token_id': 3}
    decoder = {'decoder_layers': 1, 'decoder_attention_heads': 4, 'decoder_ffn_dim': 64}
    path = tmp_path_factory.mktemp('whisper')
    WhisperModel(WhisperConfig(**sizes, **ids, **decoder)).save_pretrained(path)
    return path


@pytest.fixture(scope='module')
def nemo_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    decoder = {'_target_': ASR + 'ConvASRDecoder', 'feat_in': 16, 'num_classes': 2, 'vocabulary': ['a', 'b']}
    parts = {'preprocessor': mel(), 'encoder': fast_conformer(), 'decoder': decoder, 'sample_rate': 16000}
    path = tmp_path_factory.mktemp('nemo') / 'tiny.nemo'
    EncDecCTCModel(OmegaConf.create(parts)).save_to(str(path))
    return path


# ---- building


@pytest.mark.unit
def test_random_init_is_bit_equal_with_salm() -> None:
    ours = build(model_cfg(perception={'adapter_init': 'default'}), seed=3)
    torch.manual_seed(3)
    salm = SimpleNamespace(cfg=model_cfg(), llm=None)
    setup_speech_encoder(salm, pretrained_weights=False)
    assert ours.state_dict().keys() == salm.perception.state_dict().keys()
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in salm.perception.state_dict().items())
    assert ours.training


@pytest.mark.unit
def test_a_nemo_file_loads_as_salm_loads_it(nemo_file: Path) -> None:
    def config() -> DictConfig:
        # a key under perception.encoder wins over the checkpoint's
        parts = {'modality_adapter': adapter(), 'encoder': {'dropout': 0.05}, 'adapter_init': 'default'}
        return OmegaConf.create({'pretrained_asr': str(nemo_file), 'perception': parts})

    cfg = config()
    ours = build(cfg, seed=4, pretrained=True)
    torch.manual_seed(4)
    salm = SimpleNamespace(cfg=config(), llm=SimpleNamespace(config=SimpleNamespace(hidden_size=HIDDEN)))
    setup_speech_encoder(salm)
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in salm.perception.state_dict().items())
    assert cfg.perception.encoder.dropout == 0.05 and cfg.perception.output_dim == HIDDEN


@pytest.mark.unit
def test_a_resolved_configuration_rebuilds_without_the_checkpoint(whisper_folder: Path) -> None:
    cfg = whisper_cfg(whisper_folder)
    first = build(cfg, pretrained=True)
    saved = OmegaConf.create(OmegaConf.to_yaml(cfg))
    saved.pretrained_asr = '/nowhere'
    second = build(saved, seed=9)
    second.load_state_dict(first.state_dict())
    audios, lens = clips(LENGTHS)
    assert torch.equal(encode(first.eval(), audios, lens)[0], encode(second.eval(), audios, lens)[0])


@pytest.mark.unit
def test_a_whisper_folder_gives_its_weights(whisper_folder: Path) -> None:
    perception = build(whisper_cfg(whisper_folder), pretrained=True)
    want = WhisperModel.from_pretrained(whisper_folder).encoder.state_dict()
    got = perception.encoder.state_dict()
    assert got.keys() == want.keys() and all(torch.equal(got[key], want[key]) for key in want)
    assert perception.token_equivalent_duration == pytest.approx(0.08)
    assert perception.preprocessor.featurizer.sample_rate == 16000
    random = build(whisper_cfg(whisper_folder), pretrained=False)
    assert not torch.equal(random.encoder.conv1.weight, want['conv1.weight'])


@pytest.mark.unit
@pytest.mark.parametrize('kind', ['conformer', 'stacked_mlp'])
def test_speech_starts_at_the_scale_of_the_embeddings(kind: str, whisper_folder: Path) -> None:
    cfg = whisper_cfg(whisper_folder)
    if kind == 'stacked_mlp':
        target = 'nemo_vtb.model.perception.StackedMLPAdapter'
        cfg.perception.modality_adapter = {'_target_': target, 'd_model': 24}
    perception = build(cfg, pretrained=True).eval()
    frames, _ = encode(perception, *clips(LENGTHS))
    assert 0.7 * STD < frames.std().item() < 1.4 * STD
    cfg.perception.adapter_init = 'default'
    torch_init = nn.Linear(perception.proj.in_features, HIDDEN).weight.std().item()
    assert build(cfg, pretrained=True).proj.weight.std().item() == pytest.approx(torch_init, rel=0.15)


@pytest.mark.unit
def test_collectives_are_off_because_ranks_encode_different_numbers_of_groups() -> None:
    perception = build(model_cfg())
    assert not perception.encoder.sync_max_audio_length and not perception.modality_adapter.sync_max_audio_length


@pytest.mark.unit
def test_widths_that_do_not_fit_are_named_with_both_numbers() -> None:
    with pytest.raises(VtbModelError, match='width 20, the encoder makes frames of width 16') as caught:
        build(model_cfg(modality_adapter=adapter(feat_in=20)))
    assert caught.value.field == 'perception.modality_adapter.feat_in'
    identity = {'_target_': 'nemo.collections.speechlm2.modules.perception.IdentityConnector'}
    with pytest.raises(VtbModelError, match='width 48, the encoder makes frames of width 16'):
        build(model_cfg(modality_adapter=identity))


@pytest.mark.unit
@pytest.mark.parametrize(
    ('source', 'match'),
    [(None, 'no speech encoder'), ('/nowhere/asr.nemo', 'no speech encoder at this path'), ('/nowhere', 'at this')],
)
def test_a_missing_checkpoint_is_named(source: str | None, match: str) -> None:
    cfg = OmegaConf.create({'pretrained_asr': source, 'perception': {'modality_adapter': adapter()}})
    with pytest.raises((VtbModelError, VtbConfigError), match=match) as caught:
        build(cfg, pretrained=True)
    assert caught.value.field == 'pretrained_asr'


@pytest.mark.unit
def test_a_corrupt_checkpoint_is_named(nemo_file: Path, whisper_folder: Path, tmp_path: Path) -> None:
    cut = tmp_path / 'cut.nemo'
    cut.write_bytes(nemo_file.read_bytes()[:3000])
    (tmp_path / 'config.json').write_bytes((whisper_folder / 'config.json').read_bytes())
    (tmp_path / 'model.safetensors').write_bytes(b'junk')
    for source in (cut, tmp_path):
        cfg = OmegaConf.create({'pretrained_asr': str(source), 'perception': {'modality_adapter': adapter()}})
        with pytest.raises(VtbModelError, match='cannot be re') as caught:
            build(cfg, pretrained=True)
        assert caught.value.field == 'pretrained_asr'


@pytest.mark.unit
def test_overrides_that_the_weights_do_not_fit_are_named(whisper_folder: Path) -> None:
    cfg = whisper_cfg(whisper_folder)
    cfg.perception.encoder = {'ff': 128}
    with pytest.raises(VtbModelError, match='do not fit'):
        build(cfg, pretrained=True)
    cfg = whisper_cfg(whisper_folder)
    cfg.perception.encoder = {'n_layers': 3}
    with pytest.raises(VtbModelError, match='not in the checkpoint'):
        build(cfg, pretrained=True)


@pytest.mark.unit
def test_wrong_keys_are_named() -> None:
    with pytest.raises(VtbConfigError, match='match_embeddings'):
        build(model_cfg(perception={'adapter_init': 'magic'}))
    with pytest.raises(VtbModelError, match='cannot be built'):
        build(model_cfg(modality_adapter=adapter(n_layerz=1)))
    with pytest.raises(VtbModelError, match='n_heads = 5'):
        target = {'_target_': 'nemo_vtb.model.whisper.WhisperEncoder', 'd_model': 16, 'n_heads': 5}
        build(model_cfg(encoder=target))
    cfg = model_cfg()
    del cfg.perception.modality_adapter
    with pytest.raises(VtbConfigError, match='no adapter'):
        build(cfg)


# ---- running

WAYS = {
    'fast_conformer': lambda: model_cfg(),
    'fast_conformer, stacking adapter': lambda: model_cfg(
        modality_adapter=adapter(subsampling='stacking', subsampling_factor=2)
    ),
    'stacking encoder': lambda: model_cfg(encoder=conformer(subsampling='stacking', subsampling_factor=8)),
    'stacked mlp': lambda: model_cfg(
        modality_adapter={'_target_': 'nemo_vtb.model.perception.StackedMLPAdapter', 'd_model': 24}
    ),
    'layers joined': lambda: model_cfg(
        modality_adapter={
            '_target_': 'nemo.collections.speechlm2.modules.perception.MultiLayerProjectionConnector',
            'target_layer_ids': [0],
            'input_dim': 16,
            'output_dim': 7,
        }
    ),
}


@pytest.mark.unit
@pytest.mark.parametrize('way', WAYS)
def test_frames_are_those_of_the_clips_alone(way: str) -> None:
    perception = build(WAYS[way]()).eval()
    audios, lens = clips(LENGTHS)
    with torch.no_grad():
        frames, frame_lens = encode(perception, audios, lens)
        alone = one_by_one(perception, audios, LENGTHS)
    count = frame_counter(perception.cfg)
    assert frame_lens.tolist() == [count(n) for n in LENGTHS] == [row.shape[0] for row in alone]
    assert frames.shape == (sum(frame_lens.tolist()), HIDDEN)
    # a stack that the clip fills only in part also sees what NeMo's encoder leaves behind its end
    if way not in ('fast_conformer, stacking adapter', 'stacking encoder'):
        assert (frames - torch.cat(alone)).abs().max() < 1e-5


@pytest.mark.unit
@pytest.mark.parametrize('max_group_s', [0.1, 4.0, 120.0, None])
def test_whisper_frames_do_not_depend_on_the_grouping(max_group_s: float | None, whisper_folder: Path) -> None:
    perception = build(whisper_cfg(whisper_folder), pretrained=True).eval()
    lengths = [*LENGTHS, 1, 495000]  # one clip of more than 30 s
    audios, lens = clips(lengths)
    with torch.no_grad():
        frames, frame_lens = encode(perception, audios, lens, max_group_s=max_group_s)
        alone = torch.cat(one_by_one(perception, audios, lengths))
    assert frame_lens.tolist() == [-(-n // 1280) for n in lengths]
    assert (frames - alone).abs().max() < 1e-5


@pytest.mark.unit
def test_chunks_are_joined_in_order(whisper_folder: Path) -> None:
    perception = build(whisper_cfg(whisper_folder), pretrained=True).eval()
    audios, lens = clips([40000, 16000])
    with torch.no_grad():
        frames, frame_lens = encode(perception, audios, lens, chunk_s=1.6)
        pieces = [audios[0, :25600], audios[0, 25600:], audios[1, :16000]]
        alone = [one_by_one(perception, piece[None], [len(piece)])[0] for piece in pieces]
    assert frame_lens.tolist() == [20 + 12, 13]
    assert (frames - torch.cat(alone)).abs().max() < 1e-5
    assert frame_lens.tolist() == [frame_counter(perception.cfg, chunk_s=1.6)(n) for n in (40000, 16000)]


@pytest.mark.unit
def test_no_clip_gives_no_frames() -> None:
    frames, frame_lens = encode(build(model_cfg()), torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64))
    assert frames.shape == (0, HIDDEN) and frame_lens.shape == (0,)


@pytest.mark.unit
def test_a_wrong_count_is_an_error() -> None:
    perception = build(model_cfg()).eval()
    perception.cfg.encoder.subsampling_factor = 4
    with pytest.raises(VtbModelError, match='another number of frames'):
        encode(perception, *clips([16000]))


@pytest.mark.unit
@pytest.mark.parametrize('way', WAYS)
def test_silence_gives_zero_gradients_and_leaves_no_trace(way: str) -> None:
    cfg = WAYS[way]()
    cfg.perception.spec_augment = {'_target_': ASR + 'SpectrogramAugmentation', 'time_masks': 2, 'freq_masks': 2}
    perception = build(cfg)
    perception.encoder.eval()  # as a frozen encoder may be kept
    modes = [part.training for part in perception.modules()]
    before = {key: value.clone() for key, value in perception.state_dict().items()}
    random_state = torch.get_rng_state()
    loss = silent_forward(perception)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.shape == () and loss.item() == 0.0
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [part.training for part in perception.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in perception.state_dict().items())
    trained = {name: p for name, p in perception.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == []
    assert all(not p.grad.any() for p in trained.values())


@pytest.mark.unit
def test_silence_and_speech_train_the_same_parameters(whisper_folder: Path) -> None:
    perception = build(whisper_cfg(whisper_folder), pretrained=True)
    silent_forward(perception).backward()
    silent = {name for name, p in perception.named_parameters() if p.grad is not None}
    perception.zero_grad(set_to_none=True)
    encode(perception, *clips(LENGTHS))[0].square().sum().backward()
    assert silent == {name for name, p in perception.named_parameters() if p.grad is not None}


@pytest.mark.unit
def test_spec_augment_acts_in_training_only(whisper_folder: Path) -> None:
    cfg = whisper_cfg(whisper_folder, dropout=0.0, dropout_pre_encoder=0.0, dropout_emb=0.0)
    cfg.perception.spec_augment = {'_target_': ASR + 'SpectrogramAugmentation', 'freq_masks': 2, 'freq_width': 40}
    perception = build(cfg, pretrained=True)
    audios, lens = clips(LENGTHS)
    training = encode(perception, audios, lens)[0]
    perception.eval()
    assert torch.equal(encode(perception, audios, lens)[0], encode(perception, audios, lens)[0])
    assert not torch.allclose(training, encode(perception, audios, lens)[0])


@pytest.mark.unit
def test_the_light_adapter_ignores_what_lies_behind_the_clip() -> None:
    torch.manual_seed(5)
    light = StackedMLPAdapter(feat_in=6, d_model=8, subsampling_factor=4)
    frames = torch.randn(2, 6, 11)
    stacked, lens = light(audio_signal=frames, length=torch.tensor([11, 5]))
    assert stacked.shape == (2, 8, 3) and lens.tolist() == [3, 2] and lens.dtype == torch.int64
    alone, _ = light(audio_signal=frames[1:, :, :5], length=torch.tensor([5]))
    assert torch.allclose(stacked[1:, :, :2], alone, atol=1e-6)


# ---- frames into a row of text: expectations written by hand on rows of 5 x 2

TEXT = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0], [5.0, 50.0]])  # (5, 2)
NONE = torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)


def test_frames_replace_what_stands_at_their_positions() -> None:
    frames = torch.tensor([[7.0, 70.0], [8.0, 80.0]])
    out = splice(TEXT, frames, torch.tensor([1, 2]))
    assert out.tolist() == [[1, 10], [7, 70], [8, 80], [4, 40], [5, 50]]


def test_frames_of_two_clips_need_not_be_neighbours() -> None:
    frames = torch.tensor([[7.0, 70.0], [8.0, 80.0], [9.0, 90.0]])
    out = splice(TEXT, frames, torch.tensor([0, 3, 4]))
    assert out.tolist() == [[7, 70], [2, 20], [3, 30], [8, 80], [9, 90]]


def test_a_row_may_be_audio_alone() -> None:
    frames = -TEXT
    assert torch.equal(splice(TEXT, frames, torch.arange(5)), frames)


def test_a_row_may_be_text_alone() -> None:
    assert splice(TEXT, *NONE) is TEXT


def test_the_input_is_left_as_it_was() -> None:
    before = TEXT.clone()
    splice(TEXT, torch.zeros(1, 2), torch.tensor([4]))
    assert torch.equal(TEXT, before)


def test_gradients_go_to_the_frames_and_to_the_text_beside_them() -> None:
    text, frames = TEXT.clone().requires_grad_(), torch.ones(2, 2, requires_grad=True)
    weights = torch.arange(10.0).reshape(5, 2)
    (splice(text, frames, torch.tensor([3, 1])) * weights).sum().backward()
    assert frames.grad is not None and text.grad is not None
    assert frames.grad.tolist() == [[6, 7], [2, 3]]
    assert text.grad.tolist() == [[0, 1], [0, 0], [4, 5], [0, 0], [8, 9]]


def test_the_row_keeps_its_dtype() -> None:
    out = splice(TEXT.bfloat16(), torch.full((1, 2), 0.5), torch.tensor([2]))
    assert out.dtype is torch.bfloat16
    assert out[2].tolist() == [0.5, 0.5]


@pytest.mark.parametrize('frames', [1, 3])
def test_another_number_of_frames_is_refused(frames: int) -> None:
    with pytest.raises(VtbModelError, match=f'{frames} frames for 2 positions'):
        splice(TEXT, torch.zeros(frames, 2), torch.tensor([1, 2]))
